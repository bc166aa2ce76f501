//! The standard streams, of which any may be a client's socket.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{close, dup2_stderr, dup2_stdin, dup2_stdout};

use crate::sys;
use crate::terms::error::Error;

/// The first descriptor that a service manager passes (sd_listen_fds(3)).
pub(crate) const FIRST_PASSED: i32 = 3;

/// Which standard streams are a client's socket. inetd and xinetd put it on 0, 1 and 2, and
/// nothing but data may ever reach it.
#[derive(Debug, Clone, Copy)]
pub struct Streams {
    /// Standard error was, when the process started.
    pub stderr_is_client: bool,
}

impl Streams {
    /// Looks at the standard streams. Where standard error is a client's socket, puts /dev/null
    /// in its place, so that not even a dying runtime can write there; and in the place of those
    /// that are not open, so that no other file takes it.
    pub fn shielded() -> Result<Streams, Error> {
        let stderr_is_client = may_be_client(io::stderr().as_fd());
        if stderr_is_client {
            close(STDERR).map_err(|errno| Error::system("close", errno))?;
        }
        if stderr_is_client || !sys::are_open([STDIN, STDOUT, STDERR]) {
            fill_standard_streams()?;
        }
        Ok(Streams { stderr_is_client })
    }

    /// Whether standard output is.
    pub(crate) fn stdout_is_client(self) -> bool {
        may_be_client(io::stdout().as_fd())
    }
}

/// Has everybody who shares standard error with us append to it, where it is a file: a handler that
/// moves in it must not move what is logged. `2>log` of a shell opens it otherwise.
pub(crate) fn append_to_stderr() {
    let stderr = io::stderr();
    let is_file = fstat(&stderr).is_ok_and(|found| found.st_mode & libc::S_IFMT == libc::S_IFREG);
    if !is_file {
        return;
    }
    if let Ok(flags) = fcntl(&stderr, FcntlArg::F_GETFL) {
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_APPEND;
        // A file system that does not allow it leaves things as they are.
        let _ = fcntl(&stderr, FcntlArg::F_SETFL(flags));
    }
}

/// Has nobody who is given our standard error read there, where it is a terminal: people's are open
/// for both, and what they type, such as a password, is for no handler. Nothing else keeps it from one
/// that has a session of its own.
pub(crate) fn only_write_to_terminal() {
    if !io::stderr().is_terminal() {
        return;
    }
    // A line without a carrier is not waited for.
    let flags = OFlag::O_WRONLY | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    // Without /proc, or where another user has made it, things stay as they are.
    if let Ok(terminal) = open("/proc/self/fd/2", flags, Mode::empty())
        && sys::set_blocking(terminal.as_fd(), true).is_ok()
    {
        let _ = dup2_stderr(&terminal);
    }
}

/// Leaves the standard streams to whoever has started us: they are /dev/null from now on.
pub(crate) fn leave() -> Result<(), Error> {
    let device = null_device()?;
    let left = dup2_stdin(&device)
        .and_then(|()| dup2_stdout(&device))
        .and_then(|()| dup2_stderr(&device));
    left.map_err(|errno| Error::system("/dev/null", errno))
}

const STDIN: RawFd = 0;
const STDOUT: RawFd = 1;
const STDERR: RawFd = 2;

/// Puts /dev/null in the place of those that are not open. A new descriptor is always the lowest
/// number that is free.
fn fill_standard_streams() -> Result<(), Error> {
    loop {
        let device = null_device()?;
        let number = device.as_raw_fd();
        if number <= STDERR {
            // It stays.
            let _ = device.into_raw_fd();
        }
        if number >= STDERR {
            return Ok(());
        }
    }
}

/// It stays open in programs that replace this one.
pub(crate) fn null_device() -> Result<OwnedFd, Error> {
    let device = open("/dev/null", OFlag::O_RDWR, Mode::empty());
    device.map_err(|errno| Error::system("/dev/null", errno))
}

/// Whether a standard stream leads to a client: an Internet socket always does; a unix-domain
/// one may be the journal's, and is the client's if it is the one that was handed over.
fn may_be_client(stream: BorrowedFd) -> bool {
    let Ok(local) = getsockname::<SockaddrStorage>(stream.as_raw_fd()) else {
        return false;
    };
    match local.family() {
        Some(AddressFamily::Inet | AddressFamily::Inet6) => true,
        _ => [0, FIRST_PASSED]
            .into_iter()
            .any(|handed_over| sys::are_same_file(stream.as_raw_fd(), handed_over)),
    }
}
