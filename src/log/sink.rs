//! Where lines go: as they were asked for, and as they are written to.

use std::cell::RefCell;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::time::SystemTime;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Level;
use super::syslog::Syslog;
use super::time::timestamp;
use crate::terms::escape::brief;
use crate::terms::value::{self, Complaint};

/// Where lines are to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// syslog(3), facility daemon.
    Syslog,
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

impl Target {
    /// Parses `syslog`, `stderr`, `stdout` or `file:PATH`.
    pub(crate) fn parse(text: &str) -> Result<Target, Complaint> {
        match text.strip_prefix("file:") {
            Some("") => Err("'file:' needs a path, as in file:/var/log/tcpproxy.log".to_owned()),
            Some(path) => value::path(path).map(Target::File),
            None => match text {
                "syslog" => Ok(Target::Syslog),
                "stderr" => Ok(Target::Stderr),
                "stdout" => Ok(Target::Stdout),
                _ => Err(format!(
                    "'{}' is unknown{}: write syslog, stderr, stdout or file:PATH",
                    brief(text),
                    value::did_you_mean(text, &["syslog", "stderr", "stdout"])
                )),
            },
        }
    }
}

impl fmt::Display for Target {
    /// As [`Target::parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Target::Syslog => f.write_str("syslog"),
            Target::Stderr => f.write_str("stderr"),
            Target::Stdout => f.write_str("stdout"),
            Target::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

pub(super) enum Sink {
    Syslog(RefCell<Syslog>),
    Stderr,
    /// A duplicate of our own: descriptor 1 becomes a handler's, and so a client's, even where the
    /// handler then cannot be started.
    Stdout(File),
    File(File),
}

impl Sink {
    pub(super) fn syslog(fall_back: bool) -> Sink {
        Sink::Syslog(RefCell::new(Syslog::new(fall_back)))
    }

    /// Whether a line would be read by anybody, as far as can be known.
    pub(super) fn is_heard(&self) -> bool {
        match self {
            Sink::Syslog(syslog) => syslog.borrow_mut().is_heard(),
            Sink::Stderr | Sink::Stdout(_) | Sink::File(_) => true,
        }
    }

    /// Writes one line with one write, so that lines of several processes do not mix.
    pub(super) fn write(&self, level: Level, name: &str, text: &str) -> io::Result<()> {
        let tagged = || format!("{name}[{}]: {text}\n", process::id());
        match self {
            Sink::Syslog(syslog) => {
                let mut syslog = syslog.borrow_mut();
                syslog.write(level, name, text)?;
                match syslog.falls_back() {
                    true => Sink::Stderr.write(level, name, text),
                    false => Ok(()),
                }
            }
            Sink::Stderr => write_if_ready(&mut io::stderr(), &tagged()),
            Sink::Stdout(stream) => {
                let mut stream = stream;
                write_if_ready(&mut stream, &tagged())
            }
            Sink::File(file) => {
                let mut file = file;
                let time = timestamp(SystemTime::now(), 3);
                file.write_all(format!("{time} {}", tagged()).as_bytes())
            }
        }
    }
}

/// Writes a line to a stream that others share, and whose flags are not ours to change. One that
/// nobody reads loses it: nothing waits for a log.
fn write_if_ready<S: Write + AsFd>(stream: &mut S, line: &str) -> io::Result<()> {
    let mut set = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut set, PollTimeout::ZERO)? {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        _ => stream.write_all(line.as_bytes()),
    }
}

/// Opens a file to append lines to, or creates it: readable by its owner and group. A FIFO is not
/// waited for.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_a_closed_set() {
        assert_eq!(Target::parse("syslog"), Ok(Target::Syslog));
        assert_eq!(Target::parse("file:/a b"), Ok(Target::File("/a b".into())));
        for text in ["", "file:", "File:/x", "syslogs"] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }
}
