//! Where connected sockets come from: handed over by a super-server, or from listeners.
//!
//! [`find`] decides which, in the order the manual gives. A connection leaves this room as a
//! [`Client`], whichever way it came.

mod bind;
mod client;
mod inherited;
mod listener;
mod original;
mod preface;

use std::time::Duration;

use crate::log::Log;
use crate::sys::streams::Streams;
use crate::terms::error::Error;

pub(crate) use bind::{Bind, Interface, ListenAt};
pub(crate) use client::{Client, Ends, Origin};
pub(crate) use listener::{Listener, something_to_listen_for};
pub(crate) use original::NotRedirected;
pub(crate) use preface::{NoHeader, read_header};

/// What there is to serve.
pub(crate) enum Source {
    /// One connection that was handed over.
    Connection(Client),
    /// One connection that was handed over, and was gone before we could look at it.
    Gone,
    /// Listening sockets, ours or handed over.
    Listeners(Listeners),
}

impl Source {
    /// Whether it is listeners that we have bound.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self, Source::Listeners(listeners) if listeners.own)
    }
}

/// Listening sockets, and how long to serve them.
pub(crate) struct Listeners {
    /// At least one.
    pub(crate) sockets: Vec<Listener>,
    /// Whether we have bound them.
    pub(crate) own: bool,
    /// Whether to end after so long without a session (inetd's `wait` expects its server to).
    pub(crate) until_idle: Option<Duration>,
}

/// Whether the server listens itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listening {
    /// It does, and looks for nothing that was handed over.
    Always,
    /// It does if nothing was handed over.
    Otherwise,
    /// It does not.
    Never,
}

/// After so long without a session, a server that inetd started with `wait` ends, and inetd
/// listens again.
const INETD_WAIT_IDLE: Duration = Duration::from_secs(60);

/// Finds what there is to serve: own listeners if asked for, else what systemd passed, else what
/// descriptor 0 is, else own listeners if they are called for then. What has to be known before
/// clients are accepted is found out by `prepare`.
pub(crate) fn find(
    listening: Listening,
    places: &[ListenAt],
    prepare: impl Fn() -> Result<(), Error>,
    streams: Streams,
    log: &Log,
) -> Result<Source, Error> {
    let own = || {
        prepare()?;
        listener::listen(places, log).map(|sockets| {
            Source::Listeners(Listeners {
                sockets,
                own: true,
                until_idle: None,
            })
        })
    };
    if listening == Listening::Always {
        return own();
    }
    let handed_over = match inherited::from_service_manager(streams)? {
        Some(source) => Some(source),
        None => inherited::from_standard_input(streams)?,
    };
    if let Some(source) = handed_over {
        if let Source::Listeners(_) = source {
            prepare()?;
        }
        return Ok(source);
    }
    match listening {
        Listening::Always | Listening::Otherwise => own(),
        Listening::Never => Err(Error::usage(
            "no connection to serve: start tcpproxy from inetd or a systemd socket unit, \
             or with -b [interface:]port to listen itself",
        )),
    }
}
