//! What is known of a session's ends, for whoever speaks of it.

use super::endpoint::Endpoint;

/// What is known of a session: the log, the access log, the supervisor and every program are told
/// the same.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Its number in the log and for programs: the serial number under our own listener, the
    /// process id where the process serves nobody else.
    pub(crate) session: u64,
    /// The client's end.
    pub(crate) client: Endpoint,
    /// Our end: what the client connected to.
    pub(crate) local: Endpoint,
    /// The client's name, where it was looked up and leads back to its address.
    pub(crate) name: Option<String>,
}
