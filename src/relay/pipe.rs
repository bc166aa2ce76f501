//! Bytes on their way through a pipe, by splice(2): they stay in the kernel.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

use super::buffer::Filled;
use crate::sys;

/// A pipe between a source and a sink.
pub(super) struct Pipe {
    into: OwnedFd,
    out_of: OwnedFd,
    size: usize,
    held: usize,
    /// A pipe runs out of slots before bytes (16 one-byte segments fill one of 64 KiB), and
    /// does not say which: it counts as full from the first EAGAIN until it has been drained.
    full: bool,
    /// Whether source and sink are known not to block: unlike recv(2) and send(2), splice(2) has no
    /// flag for that.
    prepared: [bool; 2],
}

/// No splice, whatever happens to it meanwhile, is to wait for the pipe.
const FLAGS: SpliceFFlags = SpliceFFlags::SPLICE_F_NONBLOCK.union(SpliceFFlags::SPLICE_F_MOVE);

impl Pipe {
    /// A pipe that takes so many bytes. Fails where there are no descriptors left, or where this
    /// user has more in pipes than an unprivileged one may (`pipe-user-pages-soft`, pipe(7)):
    /// then new pipes have two slots, and copying is faster.
    pub(super) fn new(size: usize) -> nix::Result<Pipe> {
        let (out_of, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let wanted = i32::try_from(size).map_err(|_| Errno::EPERM)?;
        fcntl(&into, FcntlArg::F_SETPIPE_SZ(wanted))?;
        Ok(Pipe {
            into,
            out_of,
            size,
            held: 0,
            full: false,
            prepared: [false; 2],
        })
    }

    /// Has a socket not block. The flag is shared with whoever else holds it, so it is left alone
    /// until it has to be set.
    fn prepare(&mut self, which: usize, socket: BorrowedFd) -> nix::Result<()> {
        if !self.prepared[which] {
            sys::set_blocking(socket, false)?;
            self.prepared[which] = true;
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// How many more bytes it takes at once.
    pub(super) fn room(&self) -> usize {
        match self.full {
            true => 0,
            false => self.size - self.held,
        }
    }

    /// Reads at most so much, once; there must be room. `None` stands for nothing, and splice(2) does not say why:
    /// at urgent data it says the same as at the end of input, or as when there is nothing. A
    /// plain read knows better.
    pub(super) fn fill(&mut self, source: BorrowedFd, most: usize) -> nix::Result<Option<Filled>> {
        self.prepare(0, source)?;
        let room = self.room().min(most);
        match splice(source, None, &self.into, None, room, FLAGS) {
            Ok(count) if count > 0 => {
                self.held += count;
                Ok(Some(Filled::some(count, room)))
            }
            Ok(_) | Err(Errno::EAGAIN) if self.held > 0 => {
                self.full = true;
                Ok(Some(Filled::Nothing))
            }
            // EINVAL: this kernel cannot splice from such a socket.
            Ok(_) | Err(Errno::EAGAIN | Errno::EINVAL) => Ok(None),
            Err(Errno::EINTR) => Ok(Some(Filled::Nothing)),
            Err(errno) => Err(errno),
        }
    }

    /// Writes at most so much of what it holds, once. Returns how many bytes were taken.
    pub(super) fn drain(&mut self, sink: BorrowedFd, most: usize) -> nix::Result<usize> {
        self.prepare(1, sink)?;
        let most = self.held.min(most);
        let count = splice(&self.out_of, None, sink, None, most, FLAGS)?;
        self.held -= count;
        if self.held == 0 {
            self.full = false;
        }
        Ok(count)
    }
}
