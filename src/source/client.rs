//! A connected client, before anything was decided about it.

use std::os::fd::OwnedFd;
use std::process;

use crate::terms::endpoint::Endpoint;
use crate::terms::facts::Facts;

/// A connected client.
pub(crate) struct Client {
    /// Its connection.
    pub(crate) socket: OwnedFd,
    /// Its own end.
    pub(crate) address: Endpoint,
    /// Our end: what it connected to.
    pub(crate) local: Endpoint,
    /// How it got here.
    pub(crate) origin: Origin,
}

/// How a client got to the process that serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A super-server started this process for it.
    Inherited {
        /// Whether descriptor 2 was its socket too, as inetd has it.
        on_stderr: bool,
    },
    /// Our supervisor accepted it.
    Accepted {
        /// The session's serial number, from 1.
        serial: u64,
    },
}

impl Origin {
    fn session(self) -> u64 {
        match self {
            Origin::Inherited { .. } => u64::from(process::id()),
            Origin::Accepted { serial } => serial,
        }
    }
}

impl Client {
    /// What is known of it, before its name was asked for.
    pub(crate) fn facts(&self) -> Facts {
        Facts {
            session: self.origin.session(),
            client: self.address,
            local: self.local,
            name: None,
        }
    }
}
