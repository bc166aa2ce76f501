//! What comes in front of a client's data: a proxy's header, read to its last byte and not one further,
//! so that whoever is given the socket next finds the client's stream whole.
//!
//! What has arrived is looked at first (`MSG_PEEK`), and only what is the header's is taken: all of it as
//! long as the header is incomplete, so that nothing that was seen already wakes us again. A proxy that
//! sends its header in one piece, as it should, costs two calls.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};

use crate::protocol::proxy::{self, Announced, Progress};
use crate::sys::peeking::{peek, take};
use crate::sys::vigil::{Cut, Vigil};
use crate::terms::reason::Reason;

/// Headers with all the additions that are in use have no more bytes than this; a page more of the stack
/// would cost each session.
const USUAL: usize = 536;

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
    let mut vigil = session.within(Instant::now() + timeout);
    let mut header = vec![0; USUAL];
    let mut taken = 0;
    loop {
        if taken == header.len() {
            header.resize(proxy::LONGEST, 0);
        }
        // There is always room for more: a header that has come as far as it may is complete, or none.
        let arrived = match peek(socket, &mut header[taken..]) {
            Ok(0) if taken == 0 => return Err(NoHeader::Nothing),
            Ok(0) => {
                let why = format!("the connection ended after {taken} bytes of it");
                return Err(NoHeader::Wrong(why));
            }
            Ok(count) => taken + count,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => {
                let set = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                match vigil.wait(&set, None) {
                    Ok(_) => continue,
                    Err(Cut::TimeOver) if !session.is_over() => {
                        let why = came_within(taken, timeout);
                        return Err(NoHeader::Wrong(why));
                    }
                    Err(cut) => return Err(NoHeader::Cut(cut)),
                }
            }
            Err(Errno::ECONNRESET) => return Err(NoHeader::Cut(Cut::ClientGone)),
            Err(errno) => return Err(NoHeader::Cut(Cut::System(errno))),
        };
        let (end, announced) = match proxy::read(&header[..arrived]) {
            Progress::Incomplete => (arrived, None),
            Progress::Complete { announced, length } => (length, Some(announced)),
            Progress::Wrong(why) => return Err(NoHeader::Wrong(why)),
        };
        take(socket, &mut header[taken..end]).map_err(|errno| NoHeader::Cut(Cut::System(errno)))?;
        taken = end;
        if let Some(announced) = announced {
            return Ok(announced);
        }
        // Who keeps sending single bytes is not waited for, but has no more time than anybody.
        if vigil.is_over() {
            return Err(if session.is_over() {
                NoHeader::Cut(Cut::TimeOver)
            } else {
                NoHeader::Wrong(came_within(taken, timeout))
            });
        }
    }
}

fn came_within(count: usize, timeout: Duration) -> String {
    let milliseconds = timeout.as_millis();
    format!("{count} bytes of it came within {milliseconds} ms")
}
