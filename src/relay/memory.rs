//! Bytes on their way through memory, by recv(2) and send(2).

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::buffer::Filled;
use crate::sys::Pages;

/// A stretch of memory between a source and a sink.
#[derive(Default)]
pub(super) struct Memory {
    bytes: Pages,
    start: usize,
    end: usize,
}

impl Memory {
    pub(super) fn new(size: usize) -> nix::Result<Memory> {
        Ok(Memory {
            bytes: Pages::new(size)?,
            ..Memory::default()
        })
    }

    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn held(&self) -> usize {
        self.end - self.start
    }

    /// Has all its room behind what it holds.
    pub(super) fn close_up(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.held());
    }

    /// How many more bytes it takes at once.
    pub(super) fn room(&self) -> usize {
        self.bytes.len() - self.end
    }

    /// Reads at most so much, once, if that need not wait; there must be room.
    pub(super) fn fill(&mut self, source: BorrowedFd, most: usize) -> nix::Result<Filled> {
        let room = self.room().min(most);
        let bytes = &mut self.bytes[self.end..self.end + room];
        match recv(source.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Ok(Filled::End),
            Ok(count) => {
                self.end += count;
                Ok(Filled::some(count, room))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Filled::Nothing),
            Err(errno) => Err(errno),
        }
    }

    /// Writes at most so much of what it holds, once, and what that need not wait for. Returns how many
    /// bytes were taken.
    pub(super) fn drain(&mut self, sink: BorrowedFd, most: usize) -> nix::Result<usize> {
        let bytes = &self.bytes[self.start..self.start + self.held().min(most)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let count = send(sink.as_raw_fd(), bytes, flags)?;
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        Ok(count)
    }

    /// The last `count` bytes read.
    pub(super) fn newest(&self, count: usize) -> &[u8] {
        &self.bytes[self.end - count..self.end]
    }
}
