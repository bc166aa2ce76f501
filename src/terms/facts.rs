//! What is known of a session's ends, for whoever speaks of it.

use std::fmt;
use std::net::SocketAddr;

use super::endpoint::Endpoint;

/// What is known of a session: the log, the access log, the supervisor and every program are told
/// the same.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Its number in the log and for programs: the serial number under our own listener, the
    /// process id where the process serves nobody else.
    pub(crate) session: u64,
    pub(crate) client: Endpoint,
    /// The proxy that has announced the client, if one has.
    pub(crate) via: Option<Endpoint>,
    /// What the client connected to: our end, or what a proxy has announced.
    pub(crate) local: Endpoint,
    /// What it had meant to connect to before it was redirected, where the service goes there: what programs
    /// are told instead.
    pub(crate) original: Option<SocketAddr>,
    /// The client's name, where it was looked up and leads back to its address.
    pub(crate) name: Option<String>,
}

/// The proxy that has announced a client, if one has, as it stands behind the client in a line.
pub(crate) struct Via(pub(crate) Option<Endpoint>);

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.map_or(Ok(()), |via| write!(f, " via={via}"))
    }
}
