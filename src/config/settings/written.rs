//! What was written about the settings, in one scope: the command line, a file's defaults, or a
//! service.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::{Gid, Uid};

use super::{Explained, Helper, Shown};
use crate::config::settings::Overflow;
use crate::gate::{AllowLevels, Others, Rate, Rules};
use crate::log;
use crate::relay::{Bandwidth, Delay};
use crate::source::Bind;
use crate::terms::place::Located;
use crate::terms::value::PortRange;
use crate::upstream::{ForwardProxy, OwnAddress, SendProxy};

/// A struct of settings that are each written or not, and their inheritance.
macro_rules! written {
    ($($(#[$doc:meta])+ $name:ident: $kind:ty,)+) => {
        /// Every setting as it stood in one scope: `None` or empty where it was not written.
        /// Defaults are not in here; see [`crate::config::settings::default`].
        #[derive(Debug, Clone, Default, PartialEq)]
        pub(crate) struct Written {
            $($(#[$doc])+ pub(crate) $name: Option<$kind>,)+
            /// `--via-auth`.
            pub(crate) via_auth: Option<Box<Located<PathBuf>>>,
            /// `--bind`, in the order given.
            pub(crate) binds: Vec<Bind>,
            /// `--allow` and `--deny`.
            pub(crate) rules: Rules,
            /// `--accept-proxy`.
            pub(crate) proxies: Rules,
            /// `--log`, in the order given.
            pub(crate) log_targets: Vec<log::Target>,
        }

        impl Written {
            /// What holds where this was written within a scope in which `outer` was: single
            /// values replace the outer ones, rules follow them.
            pub(crate) fn within(self, outer: &Written) -> Written {
                // One proxy's credentials are not told to another that stands in its place.
                let outer_via_auth = match (&self.via, &outer.via) {
                    (Some(_), Some(_)) => None,
                    (Some(_), None) | (None, _) => outer.via_auth.clone(),
                };
                Written {
                    via_auth: self.via_auth.or(outer_via_auth),
                    $($name: self.$name.or_else(|| outer.$name.clone()),)+
                    binds: self.binds,
                    rules: self.rules.within(&outer.rules),
                    proxies: self.proxies.within(&outer.proxies),
                    log_targets: if self.log_targets.is_empty() {
                        outer.log_targets.clone()
                    } else {
                        self.log_targets
                    },
                }
            }
        }
    };
}

impl Written {
    /// What holds for a service in which this was written, where these are the defaults.
    pub(crate) fn in_service(self, defaults: &Written) -> Written {
        let rules = self.rules.clone().of_service(&defaults.rules);
        Written {
            rules,
            ..self.within(defaults)
        }
    }
}

written! {
    /// `--help` or `--version`.
    shown: Shown,
    /// `--config`.
    config: PathBuf,
    /// `--check`.
    check: bool,
    /// `--explain`.
    explain: Explained,
    /// `--list`, so many times.
    list: usize,
    /// `--standalone`.
    standalone: bool,
    /// `--daemon`.
    daemon: bool,
    /// `--pidfile`; the inner `None` is "none".
    pidfile: Option<PathBuf>,
    /// `--allow-levels`.
    allow_levels: AllowLevels,
    /// `--acp`: the access control program and its arguments.
    acp: Vec<String>,
    /// `--acp-timeout`.
    acp_timeout: Duration,
    /// `--acp-server`.
    acp_server: bool,
    /// `--user`.
    user: Uid,
    /// `--group`.
    group: Gid,
    /// `--log-name`.
    log_name: String,
    /// `--log-level`.
    log_level: log::Level,
    /// `--access-log`.
    access_log: PathBuf,
    /// `--access-log-format`.
    access_log_format: log::Format,
    /// `--timeout`; the inner `None` is "never", here and below.
    timeout: Option<Duration>,
    /// `--half-close-timeout`.
    half_close_timeout: Duration,
    /// `--keepalive`.
    keepalive: Option<Duration>,
    /// `--max-duration`.
    max_duration: Option<Duration>,
    /// `--connect-timeout`.
    connect_timeout: Duration,
    /// `--connect-retry`.
    connect_retry: Duration,
    /// `--lifetime`.
    lifetime: Option<Duration>,
    /// `--max-sessions`; the inner `None` is "no limit", here and below.
    max_sessions: Option<usize>,
    /// `--overflow`.
    overflow: Overflow,
    /// `--max-per-source`.
    max_per_source: Option<usize>,
    /// `--rate`.
    rate: Rate,
    /// `--state-dir`.
    state_dir: PathBuf,
    /// `--proxy-others`.
    proxy_others: Others,
    /// `--proxy-timeout`.
    proxy_timeout: Duration,
    /// `--send-proxy`.
    send_proxy: SendProxy,
    /// `--helper`; the inner `None` is "no".
    helper: Option<Helper>,
    /// `--ftp-address`.
    ftp_address: Ipv4Addr,
    /// `--ftp-ports`.
    ftp_ports: PortRange,
    /// `--ftp-data-timeout`.
    ftp_data_timeout: Duration,
    /// `--http-force`.
    http_force: String,
    /// `--env-prefix`.
    env_prefix: String,
    /// `--clear-env`.
    clear_env: bool,
    /// `--write`: the transcript's base name.
    write: PathBuf,
    /// `--transparent`.
    transparent: bool,
    /// `--via`; the inner `None` is "none".
    via: Box<Located<Option<ForwardProxy>>>,
    /// `--source`.
    source: OwnAddress,
    /// `--buffer-size`, in bytes.
    buffer_size: usize,
    /// `--bandwidth`.
    bandwidth: Bandwidth,
    /// `--delay`.
    delay: Delay,
}
