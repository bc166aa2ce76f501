//! Why an upstream could not be reached.

use nix::errno::Errno;

use crate::source::NotRedirected;
use crate::sys::names::lookup::NoAnswer;
use crate::sys::vigil::Cut;
use crate::terms::error::describe;
use crate::terms::reason::Reason;

use super::{ForwardProxy, Upstream};

/// One attempt's failure: the reason, and the sentence for the log.
pub(super) struct Failed {
    pub(super) reason: Reason,
    pub(super) detail: String,
    errno: Option<Errno>,
}

impl Failed {
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Failed {
        Failed {
            reason,
            detail: detail.into(),
            errno: None,
        }
    }

    pub(super) fn at(what: &str, errno: Errno) -> Failed {
        Failed::saying(format!("{what}: {}", describe(errno)), errno)
    }

    /// Fails for this reason of the system's, about which there is this to say.
    pub(super) fn saying(detail: String, errno: Errno) -> Failed {
        let reason = match errno {
            Errno::ECONNREFUSED => Reason::ConnectRefused,
            Errno::ECONNRESET => Reason::ServerReset,
            Errno::ETIMEDOUT => Reason::ConnectTimeout,
            _ => Reason::ConnectFailed,
        };
        Failed {
            reason,
            detail,
            errno: Some(errno),
        }
    }

    /// The same failure, of a proxy on the way: it was reached, or not, but never the upstream, which has
    /// broken nothing off.
    pub(super) fn of(self, proxy: &ForwardProxy) -> Failed {
        let reason = match self.reason {
            Reason::ServerReset => Reason::ConnectFailed,
            // Nothing that the proxy has to do with.
            Reason::ClientReset | Reason::Terminated => return self,
            reason => reason,
        };
        Failed {
            reason,
            detail: format!("through {proxy}: {}", self.detail),
            ..self
        }
    }

    /// Whether trying another upstream is of no use.
    pub(super) fn is_final(&self) -> bool {
        matches!(
            self.reason,
            Reason::ClientReset | Reason::ServerReset | Reason::Terminated
        )
    }

    /// Whether this is how an upstream looks whose server is about to start: it refuses, or its
    /// unix-domain socket is not there yet.
    pub(super) fn may_be_starting(&self, upstream: &Upstream) -> bool {
        match upstream {
            Upstream::Host { .. } | Upstream::OriginalDestination { .. } => {
                self.errno == Some(Errno::ECONNREFUSED)
            }
            Upstream::Unix(_) => {
                matches!(self.errno, Some(Errno::ECONNREFUSED | Errno::ENOENT))
            }
        }
    }
}

impl From<NoAnswer> for Failed {
    fn from(no_answer: NoAnswer) -> Failed {
        match no_answer {
            NoAnswer::Cut(cut) => Failed::from(cut),
            NoAnswer::Unknown(error) => Failed::new(Reason::NameNotFound, error),
        }
    }
}

impl From<NotRedirected> for Failed {
    fn from(not_redirected: NotRedirected) -> Failed {
        Failed::new(Reason::ConnectFailed, not_redirected.to_string())
    }
}

impl From<Cut> for Failed {
    fn from(cut: Cut) -> Failed {
        match cut {
            Cut::TimeOver => Failed::new(Reason::ConnectTimeout, "no answer in time"),
            Cut::ClientGone => Failed::new(Reason::ClientReset, "the client has gone meanwhile"),
            Cut::Terminated => Failed::new(Reason::Terminated, "asked to end meanwhile"),
            Cut::System(errno) => Failed::new(Reason::ConnectFailed, describe(errno)),
        }
    }
}
