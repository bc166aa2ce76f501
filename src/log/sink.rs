//! Where lines go: as they were asked for, and as they are written to.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process;
use std::rc::Rc;
use std::time::SystemTime;

use super::Level;
use super::outlet::{Outlet, StandardError};
use super::syslog::Syslog;
use super::time::timestamp;
use crate::terms::escape::brief;
use crate::terms::value::{self, Complaint};

/// Where lines are to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// syslog(3), facility daemon.
    Syslog,
    Stderr,
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

impl Target {
    /// What is wrong with it for a server that goes to the background, if anything is: that leaves the
    /// standard streams to whoever has started it.
    pub(crate) fn complaint_of_daemon(&self) -> Option<Complaint> {
        match self {
            Target::Stderr | Target::Stdout => Some(format!(
                "'{self}' and daemon exclude each other: write syslog or file:PATH"
            )),
            Target::Syslog | Target::File(_) => None,
        }
    }

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
    /// With the name and the process before each line.
    Stderr(Rc<StandardError>),
    Stdout(Outlet),
    /// With the time before them.
    File(Outlet),
}

impl Sink {
    /// The system's log; standard error takes its place where there is none, if it may.
    pub(super) fn syslog(fall_back: Option<Rc<StandardError>>) -> Sink {
        Sink::Syslog(RefCell::new(Syslog::new(fall_back)))
    }

    /// Whether a line would be read by anybody, as far as can be known.
    pub(super) fn is_heard(&self) -> bool {
        match self {
            Sink::Syslog(syslog) => syslog.borrow_mut().is_heard(),
            Sink::Stderr(_) | Sink::Stdout(_) | Sink::File(_) => true,
        }
    }

    /// Does what would otherwise be done at the first line, by each session for itself.
    pub(super) fn prepare(&self) {
        if let Sink::Stderr(stream) = self {
            stream.prepare();
        }
    }

    pub(super) fn write(&self, level: Level, name: &str, text: &str) -> io::Result<()> {
        match self {
            Sink::Syslog(syslog) => syslog.borrow_mut().write(level, name, text),
            Sink::Stderr(stream) => stream.write(&tagged(name, text)),
            Sink::Stdout(outlet) => outlet.write(&tagged(name, text)),
            Sink::File(outlet) => {
                let time = timestamp(SystemTime::now(), 3);
                outlet.write(&format!("{time} {}", tagged(name, text)))
            }
        }
    }
}

/// A line as standard streams have it.
pub(super) fn tagged(name: &str, text: &str) -> String {
    format!("{name}[{}]: {text}\n", process::id())
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
