//! What holds where nothing was written.

use std::time::Duration;

use nix::unistd::{Gid, Uid};

/// The configuration file.
pub(crate) const CONFIG: &str = "/etc/tcpproxy.conf";
/// The pid file of `-p`.
pub(crate) const PIDFILE: &str = "/var/run/tcpproxy.pid";
/// `--log-name`.
pub(crate) use crate::log::DEFAULT_NAME as LOG_NAME;
/// `--user`: what the original's -1 was when ids had 16 bits.
pub(crate) const USER: Uid = Uid::from_raw(65535);
/// `--group`: what the original's -2 was.
pub(crate) const GROUP: Gid = Gid::from_raw(65534);
/// `--env-prefix`.
pub(crate) const ENV_PREFIX: &str = "PROXY_";
/// `--timeout`.
pub(crate) const TIMEOUT: Option<Duration> = Some(Duration::from_secs(60));
/// `--connect-timeout`.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// `--connect-retry`.
pub(crate) const CONNECT_RETRY: Duration = Duration::ZERO;
/// `--acp-timeout`.
pub(crate) const ACP_TIMEOUT: Duration = Duration::from_secs(10);
/// `--proxy-timeout`.
pub(crate) const PROXY_TIMEOUT: Duration = Duration::from_secs(5);
/// `--ftp-data-timeout`.
pub(crate) const FTP_DATA_TIMEOUT: Duration = Duration::from_secs(60);
/// `--max-sessions`.
pub(crate) const MAX_SESSIONS: Option<usize> = Some(500);
/// `--buffer-size`, in bytes.
pub(crate) const BUFFER_SIZE: usize = 1 << 20;
/// The least and the greatest `--buffer-size`, in bytes.
pub(crate) const BUFFER_SIZES: (usize, usize) = (256, 64 << 20);
