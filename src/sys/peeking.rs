//! What comes in front of data that is not ours, read to its last byte and not one further: so that who is
//! given the socket next finds the stream whole.
//!
//! What has arrived is looked at first (`MSG_PEEK`), and only what is wanted is taken: all of it as long as
//! it is incomplete, so that nothing that was seen already wakes us again. What comes in one piece costs
//! two calls.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{MsgFlags, recv};

use super::vigil::{Cut, Vigil};
use crate::terms::progress::Progress;

/// What is usual has no more bytes than this: a PROXY header with all the additions that are in use. A page
/// more of the stack would cost each session.
const USUAL: usize = 536;

/// Why something was not read to its end.
pub(crate) enum Unread {
    /// The peer has ended the connection after so many bytes of it.
    Ended(usize),
    /// It is something else; a sentence says why.
    Wrong(String),
    /// It was not waited for any longer, when there were so many bytes of it.
    Cut(Cut, usize),
    /// The socket has failed.
    Failed(Errno),
}

/// Reads what `read` knows, within `longest` bytes, from a socket that may block or not.
pub(crate) fn read_ahead<T>(
    socket: BorrowedFd,
    mut vigil: Vigil,
    longest: usize,
    read: impl Fn(&[u8]) -> Progress<T>,
) -> Result<T, Unread> {
    let mut bytes = vec![0; USUAL.min(longest)];
    let mut taken = 0;
    loop {
        if taken == bytes.len() {
            bytes.resize(longest, 0);
        }
        // There is always room for more: what has come as far as it may is complete, or wrong.
        let arrived = match peek(socket, &mut bytes[taken..]) {
            Ok(0) => return Err(Unread::Ended(taken)),
            Ok(count) => taken + count,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => {
                let set = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                vigil
                    .wait(&set, None)
                    .map_err(|cut| Unread::Cut(cut, taken))?;
                continue;
            }
            Err(errno) => return Err(Unread::Failed(errno)),
        };
        let (end, says) = match read(&bytes[..arrived]) {
            Progress::Incomplete => (arrived, None),
            Progress::Complete { says, length } => (length, Some(says)),
            Progress::Wrong(why) => return Err(Unread::Wrong(why)),
        };
        take(socket, &mut bytes[taken..end]).map_err(Unread::Failed)?;
        taken = end;
        if let Some(says) = says {
            return Ok(says);
        }
        // Who keeps sending single bytes is not waited for, but has no more time than anybody.
        if vigil.is_over() {
            return Err(Unread::Cut(Cut::TimeOver, taken));
        }
    }
}

/// Looks at what has arrived, without waiting for it.
fn peek(socket: BorrowedFd, place: &mut [u8]) -> nix::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(socket.as_raw_fd(), place, flags)
}

/// Takes bytes that have been seen to be there.
fn take(socket: BorrowedFd, mut seen: &mut [u8]) -> nix::Result<()> {
    while !seen.is_empty() {
        match recv(socket.as_raw_fd(), seen, MsgFlags::MSG_DONTWAIT) {
            // They cannot go away; but who else holds the socket might have read.
            Ok(0) => return Err(Errno::ECONNABORTED),
            Ok(count) => seen = &mut seen[count..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
