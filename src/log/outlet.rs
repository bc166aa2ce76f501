//! What lines are written to: a file, a pipe, a terminal, a socket. None of them is waited for.

use std::borrow::Cow;
use std::cell::{Cell, OnceCell};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::fstat;
use nix::unistd::{Whence, lseek, write};

use crate::sys;

/// The longest line for whom it is read by at once, with its end: what a pipe takes whole or not at
/// all (pipe(7), `PIPE_BUF`).
pub(super) const LONGEST: usize = libc::PIPE_BUF;

/// What a line ends with that was cut.
const CUT: &str = "...";

/// Something that lines are written to.
#[derive(Debug)]
pub(super) struct Outlet {
    held: Held,
    kind: Kind,
    /// The last line did not go in whole, and could not be ended.
    torn: Cell<bool>,
}

#[derive(Debug)]
enum Held {
    Ours(File),
    /// Standard error, whose number stays what it is: a process may have no descriptor to spare.
    Stderr(io::Stderr),
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Takes all that is written; the disk alone is waited for.
    File,
    /// A pipe or a device that was opened for us alone: it does not wait (`O_NONBLOCK`).
    Own,
    /// One that others share, and whose flags are not ours to change.
    Shared,
    Socket,
}

impl Outlet {
    /// A file, appended to, or created: readable by its owner and group. A FIFO is not waited for.
    pub(super) fn open(path: &Path) -> io::Result<Outlet> {
        let file = options().create(true).mode(0o640).open(path)?;
        let kind = if file.metadata()?.is_file() {
            Kind::File
        } else {
            Kind::Own
        };
        Ok(Outlet::new(Held::Ours(file), kind))
    }

    /// Standard output. The duplicate is ours even if its number becomes a handler's, and so a
    /// client's, although the handler then cannot be started.
    pub(super) fn stdout() -> io::Result<Outlet> {
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        Outlet::of(Held::Ours(stdout.into()))
    }

    fn stderr() -> io::Result<Outlet> {
        Outlet::of(Held::Stderr(io::stderr()))
    }

    fn of(shared: Held) -> io::Result<Outlet> {
        let found = fstat(shared.fd())?.st_mode & libc::S_IFMT;
        let may_wait = match found {
            libc::S_IFSOCK => return Ok(Outlet::new(shared, Kind::Socket)),
            libc::S_IFIFO => true,
            libc::S_IFCHR => shared.fd().is_terminal(),
            _ => false,
        };
        if !may_wait {
            return Ok(Outlet::new(shared, Kind::File));
        }
        // To be opened once more is not allowed where another user has made it, and needs /proc.
        let path = format!("/proc/self/fd/{}", shared.fd().as_raw_fd());
        Ok(match options().open(path) {
            Ok(own) => Outlet::new(Held::Ours(own), Kind::Own),
            Err(_) => Outlet::new(shared, Kind::Shared),
        })
    }

    fn new(held: Held, kind: Kind) -> Outlet {
        Outlet {
            held,
            kind,
            torn: Cell::new(false),
        }
    }

    /// Writes one line, with one write, so that lines of several processes do not mix. What is not
    /// taken at once is lost, and a line that is too long for that is cut.
    pub(super) fn write(&self, line: &str) -> io::Result<()> {
        let mut line = match self.kind {
            Kind::File => Cow::Borrowed(line),
            Kind::Own | Kind::Shared | Kind::Socket => within(line, LONGEST),
        };
        if self.torn.get() {
            line = Cow::Owned(format!("\n{line}"));
        }
        let written = self.take(line.as_bytes())?;
        if written == line.len() {
            self.torn.set(false);
            return Ok(());
        }
        self.torn.set(self.end_torn_line().is_err());
        Err(io::ErrorKind::WriteZero.into())
    }

    /// Ends a line of which only a part went into a file, as where the disk was full, with the last
    /// byte of that part: another process may write the next line, and does not know.
    fn end_torn_line(&self) -> io::Result<()> {
        let fd = self.held.fd();
        // Behind our part; or behind what another process has written since that shares the file with
        // us, which ends its line there, too.
        let end = u64::try_from(lseek(fd, 0, Whence::SeekCur)?).unwrap_or(0);
        match sys::overwrite(fd, b"\n", end.saturating_sub(1))? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            _ => Ok(()),
        }
    }

    /// How much of it was taken at once.
    fn take(&self, line: &[u8]) -> io::Result<usize> {
        let fd = self.held.fd();
        match self.kind {
            Kind::File | Kind::Own => Ok(write(fd, line)?),
            Kind::Shared => match sys::write_now(fd, line) {
                // What the kernel does not do so for this kind, or not yet (pipes: Linux 6.4). It may
                // still have to wait then, if others write at the same moment.
                Err(Errno::EOPNOTSUPP) => {
                    let mut set = [PollFd::new(fd, PollFlags::POLLOUT)];
                    match poll(&mut set, PollTimeout::ZERO)? {
                        0 => Err(io::ErrorKind::WouldBlock.into()),
                        _ => Ok(write(fd, line)?),
                    }
                }
                written => Ok(written?),
            },
            Kind::Socket => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                Ok(send(fd.as_raw_fd(), line, flags)?)
            }
        }
    }
}

impl Held {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Held::Ours(file) => file.as_fd(),
            Held::Stderr(stderr) => stderr.as_fd(),
        }
    }
}

/// Standard error, looked at when there is something to say: most sessions under inetd have nothing
/// to say there.
#[derive(Debug, Default)]
pub(crate) struct StandardError(OnceCell<Option<Outlet>>);

impl StandardError {
    /// Looks at it now, so that no session has to.
    pub(super) fn prepare(&self) -> Option<&Outlet> {
        self.0.get_or_init(|| Outlet::stderr().ok()).as_ref()
    }

    pub(super) fn write(&self, line: &str) -> io::Result<()> {
        match self.prepare() {
            Some(outlet) => outlet.write(line),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// How something is opened that lines are written to: it does not wait for its reader, and is no
/// controlling terminal of ours.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .append(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits());
    options
}

/// A text within so many bytes: cut, if it has to be, where a character begins. An end of line
/// stays at its end.
pub(super) fn within(text: &str, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest {
        return Cow::Borrowed(text);
    }
    let end = if text.ends_with('\n') { "\n" } else { "" };
    let room = longest.saturating_sub(CUT.len() + end.len());
    let cut = (0..=room).rfind(|&at| text.is_char_boundary(at));
    Cow::Owned(format!("{}{CUT}{end}", &text[..cut.unwrap_or(0)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_where_a_character_begins() {
        for (text, longest, expected) in [
            ("12345678\n", 9, "12345678\n"),
            ("123456789\n", 9, "12345...\n"),
            ("123456789", 8, "12345..."),
            ("1234€6789\n", 9, "1234...\n"),
            ("12€456789\n", 9, "12€...\n"),
        ] {
            assert_eq!(within(text, longest), expected);
        }
    }
}
