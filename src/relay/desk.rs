//! Bytes on their way through the hands of whoever edits them.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::buffer::Filled;

/// What has arrived from a source, and what is to go on to the sink in its place. Both stay small: what
/// has arrived by itself, what goes on by the care of who edits it.
pub struct Desk {
    /// Taken away by who edits it, from the front.
    pub arrived: Vec<u8>,
    /// Added to by who edits it.
    pub onward: Vec<u8>,
    /// How much is read at once, and may lie there before nothing more is.
    piece: usize,
}

/// How much is read at once, at first.
const SMALL: usize = 16 << 10;

/// The same while much comes. Bodies of 3 GiB took an HTTP session 0.22 to 0.36 s of a processor per GiB
/// with these, 0.44 to 0.51 with small ones (one connection over loopback, Linux 6.18).
const LARGE: usize = 128 << 10;

impl Default for Desk {
    fn default() -> Desk {
        Desk {
            arrived: Vec::new(),
            onward: Vec::new(),
            piece: SMALL,
        }
    }
}

impl Desk {
    /// The most that should wait to go on: who edits stops there.
    pub const MOST_ONWARD: usize = 64 << 10;

    pub(super) fn is_empty(&self) -> bool {
        self.arrived.is_empty() && self.onward.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.arrived.len() < self.piece
    }

    /// Reads at most so much, once, if that need not wait.
    pub(super) fn fill(&mut self, source: BorrowedFd, most: usize) -> nix::Result<Filled> {
        let (before, room) = (self.arrived.len(), self.piece.min(most));
        self.give_back();
        self.arrived.resize(before + room, 0);
        let read = recv(
            source.as_raw_fd(),
            &mut self.arrived[before..],
            MsgFlags::MSG_DONTWAIT,
        );
        self.arrived.truncate(before + read.unwrap_or(0));
        match read {
            Ok(0) => Ok(Filled::End),
            Ok(count) => {
                self.piece = if count >= room {
                    LARGE.min(2 * self.piece)
                } else if count < SMALL {
                    SMALL
                } else {
                    self.piece
                };
                Ok(Filled::some(count, room))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Filled::Nothing),
            Err(errno) => Err(errno),
        }
    }

    /// Writes at most so much, once, what that need not wait for. Returns how many bytes were taken.
    pub(super) fn drain(&mut self, sink: BorrowedFd, most: usize) -> nix::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let bytes = &self.onward[..self.onward.len().min(most)];
        let count = send(sink.as_raw_fd(), bytes, flags)?;
        self.onward.drain(..count);
        self.give_back();
        Ok(count)
    }

    /// Lets go of the memory that much was in, once there is little again.
    fn give_back(&mut self) {
        for bytes in [&mut self.arrived, &mut self.onward] {
            if self.piece == SMALL && bytes.is_empty() && bytes.capacity() > Desk::MOST_ONWARD {
                *bytes = Vec::new();
            }
        }
    }

    /// The last `count` bytes read.
    pub(super) fn newest(&self, count: usize) -> &[u8] {
        &self.arrived[self.arrived.len() - count..]
    }
}
