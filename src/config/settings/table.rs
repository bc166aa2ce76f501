//! The table itself.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::shown::{one, or_never, or_unlimited, path, rules, switch, time, word};
use super::{Explained, Helper, Scope, Setting, Shown, Takes, default, url};
use crate::config::settings::Overflow;
use crate::gate::{AllowLevels, Others, Rate, Rule};
use crate::log;
use crate::relay::{Bandwidth, Delay};
use crate::source::Bind;
use crate::sys::names::accounts;
use crate::terms::escape::brief;
use crate::terms::place::Located;
use crate::terms::value::{self, PortRange, quote, quote_command};
use crate::upstream::{ForwardProxy, OwnAddress, SendProxy};

/// What every setting begins with.
const SETTING: Setting = Setting {
    name: "",
    short: &[],
    directive: None,
    scope: Scope::Service,
    takes: Takes::Switch,
    repeatable: false,
    secret: false,
    help: "",
    write: |_, _| Ok(()),
    show: |_| Vec::new(),
};

/// Every setting, in the order of the help: those with short options first.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "acp",
        short: &['a'],
        takes: Takes::Command("P"),
        help: "ask access control program P (with arguments) about every client",
        write: |written, given| {
            written.acp = Some(value::words(given.text)?);
            Ok(())
        },
        show: |written| {
            written
                .acp
                .iter()
                .map(|words| quote_command(words))
                .collect()
        },
        ..SETTING
    },
    Setting {
        name: "bind",
        short: &['b'],
        scope: Scope::CommandLine,
        takes: Takes::Value("A"),
        repeatable: true,
        help: "listen on [interface:]port; may be repeated",
        write: |written, given| {
            written.binds.push(Bind::parse(given.text)?);
            Ok(())
        },
        ..SETTING
    },
    Setting {
        name: "config",
        short: &['f', 'c'],
        scope: Scope::CommandLine,
        takes: Takes::Value("F"),
        help: "read this file instead of /etc/tcpproxy.conf",
        write: |written, given| {
            written.config = Some(value::path(given.text)?);
            Ok(())
        },
        ..SETTING
    },
    Setting {
        name: "group",
        short: &['g'],
        directive: Some("gid"),
        takes: Takes::Value("G"),
        help: "serve as this group when started as root (default 65534)",
        write: |written, given| {
            written.group = Some(accounts::find_group(given.text)?);
            Ok(())
        },
        show: |written| one(written.group.unwrap_or(default::GROUP)),
        ..SETTING
    },
    Setting {
        name: "help",
        short: &['h'],
        scope: Scope::CommandLine,
        takes: Takes::Nothing,
        repeatable: true,
        help: "show this text",
        write: |written, _| {
            written.shown = Some(Shown::Help);
            Ok(())
        },
        ..SETTING
    },
    Setting {
        name: "log-name",
        short: &['l'],
        directive: Some("logname"),
        takes: Takes::Value("N"),
        help: "log under this name (default tcpproxy)",
        write: |written, given| {
            written.log_name = Some(value::log_name(given.text)?);
            Ok(())
        },
        show: |written| {
            let name = written.log_name.as_deref();
            one(quote(name.unwrap_or(default::LOG_NAME)))
        },
        ..SETTING
    },
    Setting {
        name: "pidfile",
        short: &['p'],
        scope: Scope::Server,
        takes: Takes::Perhaps("FILE"),
        help: "write /var/run/tcpproxy.pid, or FILE (also: -p -p FILE)",
        write: |written, given| {
            written.pidfile = Some(match given.text {
                "" | "yes" => Some(PathBuf::from(default::PIDFILE)),
                "no" => None,
                text => Some(value::path(text)?),
            });
            Ok(())
        },
        show: |written| {
            let name = written.pidfile.iter().flatten();
            name.map(|path| quote(&path.to_string_lossy())).collect()
        },
        ..SETTING
    },
    Setting {
        name: "standalone",
        short: &['s'],
        scope: Scope::Server,
        help: "bind to the configured ports and listen",
        write: |written, given| {
            written.standalone = Some(value::switch(given.text)?);
            Ok(())
        },
        // Not the same as the default: that looks for what was handed over first.
        show: |written| written.standalone.into_iter().flat_map(switch).collect(),
        ..SETTING
    },
    Setting {
        name: "timeout",
        short: &['t'],
        takes: Takes::Value("S"),
        help: "end a session after S seconds without a byte (default 60, 0 = never)",
        write: |written, given| {
            written.timeout = Some(value::seconds_or_never(given.text)?);
            Ok(())
        },
        show: |written| or_never(written.timeout.unwrap_or(default::TIMEOUT)),
        ..SETTING
    },
    Setting {
        name: "user",
        short: &['u'],
        directive: Some("uid"),
        takes: Takes::Value("U"),
        help: "serve as this user when started as root (default 65535)",
        write: |written, given| {
            written.user = Some(accounts::find_user(given.text)?);
            Ok(())
        },
        show: |written| one(written.user.unwrap_or(default::USER)),
        ..SETTING
    },
    Setting {
        name: "env-prefix",
        short: &['v'],
        directive: Some("setenv"),
        takes: Takes::Value("P"),
        help: "prefix of the variables that programs see (default PROXY_)",
        write: |written, given| {
            written.env_prefix = Some(value::prefix(given.text)?);
            Ok(())
        },
        show: |written| one(written.env_prefix.as_deref().unwrap_or(default::ENV_PREFIX)),
        ..SETTING
    },
    Setting {
        name: "version",
        short: &['V'],
        scope: Scope::CommandLine,
        takes: Takes::Nothing,
        repeatable: true,
        help: "show the version",
        write: |written, _| {
            written.shown = written.shown.or(Some(Shown::Version));
            Ok(())
        },
        ..SETTING
    },
    Setting {
        name: "write",
        short: &['w'],
        directive: Some("writefile"),
        takes: Takes::Value("F"),
        help: "write a transcript of every session to F.PID.log",
        write: |written, given| {
            written.write = Some(value::path(given.text)?);
            Ok(())
        },
        show: |written| path(written.write.as_ref()),
        ..SETTING
    },
    Setting {
        name: "clear-env",
        short: &['y'],
        repeatable: true,
        help: "clear the environment before a program starts",
        write: |written, given| {
            written.clear_env = Some(value::switch(given.text)?);
            Ok(())
        },
        show: |written| switch(written.clear_env.unwrap_or(false)),
        ..SETTING
    },
    Setting {
        name: "list",
        short: &['z'],
        scope: Scope::CommandLine,
        takes: Takes::Nothing,
        repeatable: true,
        help: "list the configured listeners; -zz: print the whole configuration",
        write: |written, _| {
            *written.list.get_or_insert(0) += 1;
            Ok(())
        },
        ..SETTING
    },
    Setting {
        name: "allow",
        takes: Takes::Value("R"),
        repeatable: true,
        help: "let in clients that match R, and no others; may be repeated",
        write: |written, given| {
            written
                .rules
                .push(Rule::allow(given.text, given.place.clone())?);
            Ok(())
        },
        show: |written| rules(written, Rule::is_allow),
        ..SETTING
    },
    Setting {
        name: "deny",
        takes: Takes::Value("R"),
        repeatable: true,
        help: "refuse clients that match R; may be repeated",
        write: |written, given| {
            written
                .rules
                .push(Rule::deny(given.text, given.place.clone())?);
            Ok(())
        },
        show: |written| rules(written, |rule| !rule.is_allow()),
        ..SETTING
    },
    Setting {
        name: "allow-levels",
        takes: Takes::Value("any|each"),
        help: "where one must match: in the defaults or the service, or in each\n\
               of them that has allow rules (default any)",
        write: |written, given| {
            written.allow_levels = Some(value::one_of(given.text, AllowLevels::WORDS)?);
            Ok(())
        },
        show: |written| word(AllowLevels::WORDS, written.allow_levels.unwrap_or_default()),
        ..SETTING
    },
    Setting {
        name: "check",
        scope: Scope::CommandLine,
        takes: Takes::Nothing,
        repeatable: true,
        help: "read the configuration, say ok or what is wrong with it, and exit",
        write: |written, _| {
            written.check = Some(true);
            Ok(())
        },
        ..SETTING
    },
    Setting {
        name: "explain",
        scope: Scope::CommandLine,
        takes: Takes::Value("C[,L]"),
        help: "say what would happen to client address C at local address[:port] L",
        write: |written, given| {
            written.explain = Some(Explained::parse(given.text)?);
            Ok(())
        },
        ..SETTING
    },
    Setting {
        name: "connect-timeout",
        takes: Takes::Value("S"),
        help: "seconds for reaching an upstream (default 10)",
        write: |written, given| {
            written.connect_timeout = Some(value::some_seconds(given.text)?);
            Ok(())
        },
        show: |written| time(written.connect_timeout.unwrap_or(default::CONNECT_TIMEOUT)),
        ..SETTING
    },
    Setting {
        name: "connect-retry",
        takes: Takes::Value("S"),
        help: "keep trying an upstream that refuses for S seconds (default 0)",
        write: |written, given| {
            written.connect_retry = Some(value::seconds(given.text)?);
            Ok(())
        },
        show: |written| time(written.connect_retry.unwrap_or(default::CONNECT_RETRY)),
        ..SETTING
    },
    Setting {
        name: "half-close-timeout",
        takes: Takes::Value("S"),
        help: "after one side has ended: seconds without a byte until the other is\n\
               ended too (default: the timeout)",
        write: |written, given| {
            written.half_close_timeout = Some(value::seconds(given.text)?);
            Ok(())
        },
        show: |written| {
            let idle = written.timeout.unwrap_or(default::TIMEOUT);
            let timeout = written.half_close_timeout.or(idle);
            timeout.into_iter().flat_map(time).collect()
        },
        ..SETTING
    },
    Setting {
        name: "keepalive",
        takes: Takes::Value("S"),
        help: "ask a peer that has been silent for S seconds whether it is there\n\
               (0 = never; default: as the system does)",
        write: |written, given| {
            written.keepalive = Some(value::keepalive(given.text)?);
            Ok(())
        },
        show: |written| written.keepalive.into_iter().flat_map(or_never).collect(),
        ..SETTING
    },
    Setting {
        name: "max-duration",
        takes: Takes::Value("S"),
        help: "end a session after S seconds, busy or not (default 0 = never)",
        write: |written, given| {
            written.max_duration = Some(value::seconds_or_never(given.text)?);
            Ok(())
        },
        show: |written| or_never(written.max_duration.unwrap_or_default()),
        ..SETTING
    },
    Setting {
        name: "acp-timeout",
        takes: Takes::Value("S"),
        help: "seconds that an access control program may take (default 10)",
        write: |written, given| {
            written.acp_timeout = Some(value::some_seconds(given.text)?);
            Ok(())
        },
        show: |written| time(written.acp_timeout.unwrap_or(default::ACP_TIMEOUT)),
        ..SETTING
    },
    Setting {
        name: "lifetime",
        scope: Scope::Server,
        takes: Takes::Value("S"),
        help: "end the standalone server after S seconds (default 0 = never)",
        write: |written, given| {
            written.lifetime = Some(value::seconds_or_never(given.text)?);
            Ok(())
        },
        show: |written| or_never(written.lifetime.unwrap_or_default()),
        ..SETTING
    },
    Setting {
        name: "max-sessions",
        scope: Scope::Server,
        takes: Takes::Value("N"),
        help: "sessions at once (default 500, 0 = no limit)",
        write: |written, given| {
            written.max_sessions = Some(value::count_or_unlimited(given.text)?);
            Ok(())
        },
        show: |written| or_unlimited(written.max_sessions.unwrap_or(default::MAX_SESSIONS)),
        ..SETTING
    },
    Setting {
        name: "overflow",
        scope: Scope::Server,
        takes: Takes::Value("defer|drop"),
        help: "at max-sessions: leave clients in the backlog, or close them\n\
               (default defer)",
        write: |written, given| {
            written.overflow = Some(value::one_of(given.text, Overflow::WORDS)?);
            Ok(())
        },
        show: |written| word(Overflow::WORDS, written.overflow.unwrap_or_default()),
        ..SETTING
    },
    Setting {
        name: "max-per-source",
        takes: Takes::Value("N"),
        help: "sessions at once from one client address (default 0 = no limit)",
        write: |written, given| {
            written.max_per_source = Some(value::count_or_unlimited(given.text)?);
            Ok(())
        },
        show: |written| or_unlimited(written.max_per_source.unwrap_or_default()),
        ..SETTING
    },
    Setting {
        name: "rate",
        takes: Takes::Value("N/S[:B]"),
        help: "new sessions from one client address: N in S seconds, bursts of B",
        write: |written, given| {
            written.rate = Some(Rate::parse(given.text)?);
            Ok(())
        },
        show: |written| written.rate.iter().map(ToString::to_string).collect(),
        ..SETTING
    },
    Setting {
        name: "state-dir",
        scope: Scope::Server,
        takes: Takes::Value("D"),
        help: "where processes that inetd or systemd started share the two above",
        write: |written, given| {
            written.state_dir = Some(value::path(given.text)?);
            Ok(())
        },
        show: |written| path(written.state_dir.as_ref()),
        ..SETTING
    },
    Setting {
        name: "accept-proxy",
        takes: Takes::Value("R"),
        repeatable: true,
        help: "peers that match R are proxies, which announce their clients in a\n\
               PROXY header; may be repeated",
        write: |written, given| {
            let rule = Rule::allow(given.text, given.place.clone())?;
            written.proxies.push(rule);
            Ok(())
        },
        show: |written| {
            let proxies = written.proxies.own();
            proxies.map(Rule::pattern).collect()
        },
        ..SETTING
    },
    Setting {
        name: "proxy-others",
        takes: Takes::Value("refuse|serve"),
        help: "where proxies are expected: refuse other peers (the default), or\n\
               serve them as clients",
        write: |written, given| {
            written.proxy_others = Some(value::one_of(given.text, Others::WORDS)?);
            Ok(())
        },
        show: |written| word(Others::WORDS, written.proxy_others.unwrap_or_default()),
        ..SETTING
    },
    Setting {
        name: "proxy-timeout",
        takes: Takes::Value("S"),
        help: "seconds that a proxy may take for the whole header (default 5)",
        write: |written, given| {
            written.proxy_timeout = Some(value::some_seconds(given.text)?);
            Ok(())
        },
        show: |written| time(written.proxy_timeout.unwrap_or(default::PROXY_TIMEOUT)),
        ..SETTING
    },
    Setting {
        name: "send-proxy",
        takes: Takes::Value("no|v1|v2"),
        help: "announce the client to the upstream in a PROXY header of this\n\
               version (default no)",
        write: |written, given| {
            written.send_proxy = Some(value::one_of(given.text, SendProxy::WORDS)?);
            Ok(())
        },
        show: |written| word(SendProxy::WORDS, written.send_proxy.unwrap_or_default()),
        ..SETTING
    },
    Setting {
        name: "helper",
        takes: Takes::Value("no|ftp|http-proxy"),
        help: "follow FTP's data connections, or make requests that redirected clients\n\
               meant for origin servers what an HTTP proxy understands (default no)",
        write: |written, given| {
            written.helper = Some(value::one_of(given.text, Helper::WORDS)?);
            Ok(())
        },
        show: |written| word(Helper::WORDS, written.helper.flatten()),
        ..SETTING
    },
    Setting {
        name: "ftp-address",
        takes: Takes::Value("A"),
        help: "what FTP clients are told to connect to for data, if it is not the\n\
               address that they reached",
        write: |written, given| {
            let address = given.text.parse::<Ipv4Addr>().map_err(|_| {
                format!(
                    "'{}' is not an IPv4 address: the reply to EPSV, which IPv6 needs, names none",
                    brief(given.text)
                )
            })?;
            written.ftp_address = Some(address);
            Ok(())
        },
        show: |written| written.ftp_address.into_iter().flat_map(one).collect(),
        ..SETTING
    },
    Setting {
        name: "ftp-ports",
        takes: Takes::Value("FIRST-LAST"),
        help: "ports to take FTP's data connections on (default: any free one)",
        write: |written, given| {
            written.ftp_ports = Some(PortRange::parse(given.text)?);
            Ok(())
        },
        show: |written| written.ftp_ports.into_iter().flat_map(one).collect(),
        ..SETTING
    },
    Setting {
        name: "ftp-data-timeout",
        takes: Takes::Value("S"),
        help: "seconds to wait for an FTP data connection (default 60)",
        write: |written, given| {
            written.ftp_data_timeout = Some(value::some_seconds(given.text)?);
            Ok(())
        },
        show: |written| {
            let timeout = written.ftp_data_timeout;
            time(timeout.unwrap_or(default::FTP_DATA_TIMEOUT))
        },
        ..SETTING
    },
    Setting {
        name: "as",
        scope: Scope::CommandLine,
        takes: Takes::Value("NAME"),
        repeatable: true,
        help: "stand in for rinetd: what follows are its arguments; the first\n\
               argument, or the program's name",
        write: |_, given| {
            let name = brief(given.text);
            let what = "belongs before all other arguments";
            Err(format!("{what}: write tcpproxy --as {name} ...").into())
        },
        ..SETTING
    },
    Setting {
        name: "tcpproxy",
        scope: Scope::CommandLine,
        takes: Takes::Nothing,
        repeatable: true,
        help: "behind the arguments of such a program: our own follow, and win",
        write: |_, _| {
            let what = "belongs behind the arguments of the program that --as names";
            Err(what.to_owned().into())
        },
        ..SETTING
    },
    Setting {
        name: "http-force",
        takes: Takes::Value("URL"),
        help: "have every HTTP request ask for URL, unless that page led to it",
        write: |written, given| {
            written.http_force = Some(url(given.text)?);
            Ok(())
        },
        show: |written| written.http_force.iter().map(|url| quote(url)).collect(),
        ..SETTING
    },
    Setting {
        name: "access-log",
        scope: Scope::Server,
        takes: Takes::Value("F"),
        help: "write a line per ended session to this file",
        write: |written, given| {
            written.access_log = Some(value::path(given.text)?);
            Ok(())
        },
        show: |written| path(written.access_log.as_ref()),
        ..SETTING
    },
    Setting {
        name: "access-log-format",
        scope: Scope::Server,
        takes: Takes::Value("F"),
        help: "tcpproxy (the default), common, rinetd, rinetd-opened or json",
        write: |written, given| {
            let format = value::one_of(given.text, log::Format::WORDS)?;
            written.access_log_format = Some(format);
            Ok(())
        },
        show: |written| {
            let format = written.access_log_format.unwrap_or_default();
            word(log::Format::WORDS, format)
        },
        ..SETTING
    },
    Setting {
        name: "log",
        scope: Scope::Server,
        takes: Takes::Value("T"),
        repeatable: true,
        help: "log to syslog (the default), stderr, stdout or file:PATH; may be\n\
               repeated",
        write: |written, given| {
            written.log_targets.push(log::Target::parse(given.text)?);
            Ok(())
        },
        show: |written| {
            let targets = written.log_targets.iter();
            targets.map(|target| quote(&target.to_string())).collect()
        },
        ..SETTING
    },
    Setting {
        name: "log-level",
        scope: Scope::Server,
        takes: Takes::Value("L"),
        help: "log error, warning, notice, info or debug, and what is graver\n\
               (default info)",
        write: |written, given| {
            written.log_level = Some(value::one_of(given.text, log::Level::WORDS)?);
            Ok(())
        },
        show: |written| word(log::Level::WORDS, written.log_level.unwrap_or_default()),
        ..SETTING
    },
    Setting {
        name: "transparent",
        help: "listen with IP_TRANSPARENT, for clients that the packet filter gives\n\
               us though they had connected to others",
        write: |written, given| {
            written.transparent = Some(value::switch(given.text)?);
            Ok(())
        },
        show: |written| switch(written.transparent.unwrap_or(false)),
        ..SETTING
    },
    Setting {
        name: "via",
        takes: Takes::Value("URL"),
        secret: true,
        help: "reach upstreams through a proxy, http://[user:password@]host[:port] or\n\
               socks5://... (default no)",
        write: |written, given| {
            let value = match given.text {
                "no" => None,
                text => Some(ForwardProxy::parse(text)?),
            };
            let place = given.place.clone();
            written.via = Some(Box::new(Located { value, place }));
            Ok(())
        },
        show: |written| {
            let proxy = written.via.as_ref().and_then(|via| via.value.as_ref());
            one(proxy.map_or_else(|| "no".to_owned(), |proxy| quote(&proxy.to_string())))
        },
        ..SETTING
    },
    Setting {
        name: "via-auth",
        takes: Takes::Value("F"),
        help: "the first line of this file is user:password for that proxy",
        write: |written, given| {
            let (value, place) = (value::path(given.text)?, given.place.clone());
            written.via_auth = Some(Box::new(Located { value, place }));
            Ok(())
        },
        // One that is for nobody would be a mistake in a service, but is none in the defaults.
        show: |written| match (&written.via, &written.via_auth) {
            (Some(via), Some(auth)) if via.value.is_some() => path(Some(&auth.value)),
            _ => Vec::new(),
        },
        ..SETTING
    },
    Setting {
        name: "source",
        takes: Takes::Value("A"),
        help: "local address for connections to the upstream; client: the client's\n\
               own, client:port: from its port too, if that is free",
        write: |written, given| {
            written.source = Some(OwnAddress::parse(given.text)?);
            Ok(())
        },
        show: |written| written.source.iter().map(ToString::to_string).collect(),
        ..SETTING
    },
    Setting {
        name: "buffer-size",
        takes: Takes::Value("N"),
        help: "most bytes buffered per direction (default 1m)",
        write: |written, given| {
            let (smallest, largest) = default::BUFFER_SIZES;
            written.buffer_size = Some(value::size(given.text, smallest, largest)?);
            Ok(())
        },
        show: |written| one(written.buffer_size.unwrap_or(default::BUFFER_SIZE)),
        ..SETTING
    },
    Setting {
        name: "acp-server",
        help: "the access control program may choose the upstreams",
        write: |written, given| {
            written.acp_server = Some(value::switch(given.text)?);
            Ok(())
        },
        show: |written| switch(written.acp_server.unwrap_or(false)),
        ..SETTING
    },
    Setting {
        name: "bandwidth",
        takes: Takes::Value("N[:M]"),
        help: "bytes a second that a session may move, client to upstream, and M the\n\
               other way (default 0 = no limit; M: N)",
        write: |written, given| {
            written.bandwidth = Some(Bandwidth::parse(given.text)?);
            Ok(())
        },
        show: |written| one(written.bandwidth.unwrap_or_default()),
        ..SETTING
    },
    Setting {
        name: "delay",
        takes: Takes::Value("S[:T]"),
        help: "hold each block back by a random time of 0 to 2 S, and of 0 to 2 T the\n\
               other way (default 0; T: S)",
        write: |written, given| {
            written.delay = Some(Delay::parse(given.text)?);
            Ok(())
        },
        show: |written| one(written.delay.unwrap_or_default()),
        ..SETTING
    },
    Setting {
        name: "daemon",
        scope: Scope::Server,
        help: "go to the background once every listener is bound",
        write: |written, given| {
            written.daemon = Some(value::switch(given.text)?);
            Ok(())
        },
        show: |written| switch(written.daemon.unwrap_or(false)),
        ..SETTING
    },
];
