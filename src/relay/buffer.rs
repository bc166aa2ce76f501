//! What is on its way in one direction: a pipe that splice(2) fills and drains, or plain memory.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::unistd::{pipe2, write};

use super::Engine;

/// Bytes that were read from a source and not yet written to a sink.
pub(super) enum Buffer {
    Pipe(Pipe),
    Memory(Memory),
}

/// What reading from a source has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// So many bytes.
    Some(usize),
    /// Nothing for now.
    Nothing,
    /// The end of input.
    End,
}

impl Buffer {
    pub(super) fn new(engine: Engine, size: usize) -> Buffer {
        match engine {
            // Descriptors may run out; memory is there.
            Engine::Splice => Pipe::new(size).map_or_else(|_| Memory::buffer(size), Buffer::Pipe),
            Engine::Copy => Memory::buffer(size),
        }
    }

    /// Whether it can take more.
    pub(super) fn has_room(&self) -> bool {
        match self {
            Buffer::Pipe(pipe) => !pipe.full,
            Buffer::Memory(memory) => memory.end < memory.bytes.len(),
        }
    }

    /// How much it takes at once.
    pub(super) fn size(&self) -> usize {
        match self {
            Buffer::Pipe(pipe) => pipe.size,
            Buffer::Memory(memory) => memory.bytes.len(),
        }
    }

    /// Whether everything has been written to the sink.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Buffer::Pipe(pipe) => pipe.held == 0,
            Buffer::Memory(memory) => memory.start == memory.end,
        }
    }

    /// Reads once from a source that does not block.
    pub(super) fn fill(&mut self, source: BorrowedFd) -> nix::Result<Filled> {
        match self {
            Buffer::Memory(memory) => memory.fill(source),
            Buffer::Pipe(pipe) => match pipe.fill(source) {
                // This kernel cannot splice from such a socket.
                Err(Errno::EINVAL) if pipe.held == 0 => {
                    *self = Memory::buffer(pipe.size);
                    self.fill(source)
                }
                filled => filled,
            },
        }
    }

    /// Writes once to a sink that does not block. Returns how many bytes it took, 0 if it takes
    /// none now.
    pub(super) fn drain(&mut self, sink: BorrowedFd) -> nix::Result<usize> {
        let drained = match self {
            Buffer::Pipe(pipe) => pipe.drain(sink),
            Buffer::Memory(memory) => memory.drain(sink),
        };
        match drained {
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            drained => drained,
        }
    }

    /// The last `count` bytes read, where they can be seen.
    pub(super) fn newest(&self, count: usize) -> &[u8] {
        match self {
            Buffer::Pipe(_) => &[],
            Buffer::Memory(memory) => &memory.bytes[memory.end - count..memory.end],
        }
    }

    /// Drops what is on its way.
    pub(super) fn clear(&mut self) {
        *self = Buffer::Memory(Memory {
            bytes: Box::default(),
            start: 0,
            end: 0,
        });
    }
}

/// A pipe between a source and a sink.
pub(super) struct Pipe {
    into: OwnedFd,
    out_of: OwnedFd,
    size: usize,
    held: usize,
    /// A pipe runs out of slots before bytes (16 one-byte segments fill one of 64 KiB), and
    /// does not say which: it counts as full from the first EAGAIN until it has been drained.
    full: bool,
}

/// The size that pipe(7) gives a new pipe.
const DEFAULT_PIPE_SIZE: usize = 65_536;

/// How much is read by hand where splice(2) does not. A pipe that is empty takes so much at once
/// (`PIPE_BUF`, pipe(7)).
const BY_HAND: usize = 4096;

impl Pipe {
    fn new(size: usize) -> nix::Result<Pipe> {
        let (out_of, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        if size != DEFAULT_PIPE_SIZE {
            // Refused above the system's limits (pipe(7)): it stays as it is then.
            let _ = fcntl(
                &into,
                FcntlArg::F_SETPIPE_SZ(i32::try_from(size).unwrap_or(i32::MAX)),
            );
        }
        Ok(Pipe {
            into,
            out_of,
            size,
            held: 0,
            full: false,
        })
    }

    fn fill(&mut self, source: BorrowedFd) -> nix::Result<Filled> {
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        match splice(source, None, &self.into, None, self.size, flags) {
            Ok(count) if count > 0 => {
                self.held += count;
                Ok(Filled::Some(count))
            }
            Ok(_) | Err(Errno::EAGAIN) if self.held > 0 => {
                self.full = true;
                Ok(Filled::Nothing)
            }
            // splice(2) from TCP stops at urgent data, and then says the same as at the end of
            // input, or as when there is nothing. A plain read knows better.
            Ok(_) | Err(Errno::EAGAIN) => self.fill_by_hand(source),
            Err(Errno::EINTR) => Ok(Filled::Nothing),
            Err(errno) => Err(errno),
        }
    }

    fn fill_by_hand(&mut self, source: BorrowedFd) -> nix::Result<Filled> {
        let mut bytes = [0; BY_HAND];
        let filled = receive(source, &mut bytes)?;
        if let Filled::Some(count) = filled {
            write(&self.into, &bytes[..count])?;
            self.held = count;
        }
        Ok(filled)
    }

    fn drain(&mut self, sink: BorrowedFd) -> nix::Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        let count = splice(&self.out_of, None, sink, None, self.held, flags)?;
        self.held -= count;
        if self.held == 0 {
            self.full = false;
        }
        Ok(count)
    }
}

/// A stretch of memory between a source and a sink.
pub(super) struct Memory {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Memory {
    fn buffer(size: usize) -> Buffer {
        Buffer::Memory(Memory {
            bytes: vec![0; size].into_boxed_slice(),
            start: 0,
            end: 0,
        })
    }

    fn fill(&mut self, source: BorrowedFd) -> nix::Result<Filled> {
        let filled = receive(source, &mut self.bytes[self.end..])?;
        if let Filled::Some(count) = filled {
            self.end += count;
        }
        Ok(filled)
    }

    fn drain(&mut self, sink: BorrowedFd) -> nix::Result<usize> {
        let bytes = &self.bytes[self.start..self.end];
        let count = send(sink.as_fd().as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?;
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        Ok(count)
    }
}

/// Reads once; `bytes` must not be empty.
fn receive(source: BorrowedFd, bytes: &mut [u8]) -> nix::Result<Filled> {
    match recv(source.as_raw_fd(), bytes, MsgFlags::empty()) {
        Ok(0) => Ok(Filled::End),
        Ok(count) => Ok(Filled::Some(count)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(Filled::Nothing),
        Err(errno) => Err(errno),
    }
}
