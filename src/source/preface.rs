//! What comes in front of a client's data: a proxy's header, and not a byte behind it.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::protocol::proxy::{self, Announced};
use crate::sys::peeking::{Unread, read_ahead};
use crate::sys::vigil::{Cut, Vigil};
use crate::terms::reason::Reason;

/// Why nobody was announced.
#[derive(Debug)]
pub(crate) enum NoHeader {
    /// The proxy ended the connection before its first byte: it wanted to see that we are there.
    Nothing,
    /// What came was no header, or not a whole one; a sentence says why.
    Wrong(String),
    /// There was no more waiting.
    Cut(Cut),
}

impl NoHeader {
    pub(crate) fn reason(&self) -> Reason {
        match self {
            NoHeader::Nothing => Reason::ClientClosed,
            NoHeader::Wrong(_) => Reason::BadProxyHeader,
            NoHeader::Cut(cut) => cut.reason(),
        }
    }
}

/// Reads the header that a proxy has to send within a time, from a socket that may block or not.
pub(crate) fn read_header(
    socket: BorrowedFd,
    ends_at: Option<Instant>,
    timeout: Duration,
) -> Result<Announced, NoHeader> {
    let session = Vigil::until(ends_at);
    let vigil = session.within(Instant::now() + timeout);
    read_ahead(socket, vigil, proxy::LONGEST, proxy::read).map_err(|unread| match unread {
        Unread::Ended(0) => NoHeader::Nothing,
        Unread::Ended(count) => {
            NoHeader::Wrong(format!("the connection ended after {count} bytes of it"))
        }
        Unread::Wrong(why) => NoHeader::Wrong(why),
        Unread::Cut(Cut::TimeOver, count) if !session.is_over() => {
            NoHeader::Wrong(came_within(count, timeout))
        }
        Unread::Cut(cut, _) => NoHeader::Cut(cut),
        Unread::Failed(Errno::ECONNRESET) => NoHeader::Cut(Cut::ClientGone),
        Unread::Failed(errno) => NoHeader::Cut(Cut::System(errno)),
    })
}

fn came_within(count: usize, timeout: Duration) -> String {
    let milliseconds = timeout.as_millis();
    format!("{count} bytes of it came within {milliseconds} ms")
}
