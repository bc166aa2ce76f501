//! Bytes on their way through the hands of whoever edits them.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::buffer::Filled;

/// What has arrived from a source, and what is to go on to the sink in its place. Both stay small: what
/// has arrived by itself, what goes on by the care of who edits it.
#[derive(Default)]
pub struct Desk {
    /// Taken away by who edits it, from the front.
    pub arrived: Vec<u8>,
    /// Added to by who edits it.
    pub onward: Vec<u8>,
}

/// How much may lie there before nothing more is read.
const MOST_ARRIVED: usize = 16 << 10;

/// How much is read at once.
const PIECE: usize = 16 << 10;

impl Desk {
    /// The most that should wait to go on: who edits stops there.
    pub const MOST_ONWARD: usize = 64 << 10;

    pub(super) fn is_empty(&self) -> bool {
        self.arrived.is_empty() && self.onward.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.arrived.len() < MOST_ARRIVED
    }

    /// Reads at most so much, once, if that need not wait.
    pub(super) fn fill(&mut self, source: BorrowedFd, most: usize) -> nix::Result<Filled> {
        let (before, room) = (self.arrived.len(), PIECE.min(most));
        self.arrived.resize(before + room, 0);
        let read = recv(
            source.as_raw_fd(),
            &mut self.arrived[before..],
            MsgFlags::MSG_DONTWAIT,
        );
        self.arrived.truncate(before + read.unwrap_or(0));
        match read {
            Ok(0) => Ok(Filled::End),
            Ok(count) => Ok(Filled::some(count, room)),
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
        Ok(count)
    }

    /// The last `count` bytes read.
    pub(super) fn newest(&self, count: usize) -> &[u8] {
        &self.arrived[self.arrived.len() - count..]
    }
}
