//! Why the program as a whole cannot go on, and the status it exits with.
//!
//! What happens to one session is a [`crate::terms::reason::Reason`] instead.

use std::fmt;

use nix::errno::Errno;

use crate::terms::place::Place;

/// An exit status, after sysexits(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// The connection was served or denied, or the server was asked to end.
    Done = 0,
    /// The rules would not let in the client that `--explain` was asked about.
    NotAdmitted = 1,
    Usage = 64,
    /// No upstream could be reached.
    Unavailable = 69,
    /// The operating system refused something that should have worked.
    System = 71,
    /// A permission is lacking, to bind or to change ids.
    NotPermitted = 77,
    Config = 78,
}

/// One line for a person, and an exit status for a script.
#[derive(Debug)]
pub struct Error {
    status: Status,
    line: String,
}

impl Error {
    /// The command line is wrong in the way that `line` says.
    pub(crate) fn usage(line: impl Into<String>) -> Error {
        Error::new(Status::Usage, line)
    }

    /// The configuration is wrong in the way that `line` says.
    pub(crate) fn config(line: impl Into<String>) -> Error {
        Error::new(Status::Config, line)
    }

    /// A system call failed while doing `what`.
    pub(crate) fn system(what: impl fmt::Display, errno: Errno) -> Error {
        let status = match errno {
            Errno::EACCES | Errno::EPERM => Status::NotPermitted,
            _ => Status::System,
        };
        Error::new(status, format!("{what}: {}", describe(errno)))
    }

    /// As [`Error::system`], for a call of std's.
    pub(crate) fn io(what: impl fmt::Display, error: &std::io::Error) -> Error {
        match error.raw_os_error() {
            Some(number) => Error::system(what, Errno::from_raw(number)),
            None => Error::new(Status::System, format!("{what}: {error}")),
        }
    }

    /// An error of any status.
    pub(crate) fn new(status: Status, line: impl Into<String>) -> Error {
        Error {
            status,
            line: line.into(),
        }
    }

    /// The same error, with what it means.
    pub(crate) fn about(self, what: &str) -> Error {
        Error {
            line: format!("{what}: {}", self.line),
            ..self
        }
    }

    /// The same error, with the place that it is about.
    pub(crate) fn at(self, place: &Place) -> Error {
        Error {
            line: format!("{place}: {}", self.line),
            ..self
        }
    }

    /// The status to exit with.
    pub(crate) fn status(&self) -> Status {
        self.status
    }
}

/// What the system calls an error, in strerror(3)'s words.
pub(crate) fn describe(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    // std adds the number.
    match text.rsplit_once(" (os error ") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for Error {}
