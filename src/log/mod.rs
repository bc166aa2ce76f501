//! The only voice of the program: where lines go, how they look, and what is escaped in them.
//!
//! Lines go to syslog(3) by the syslog crate, to files and to the standard streams; never to a
//! stream that is a client's socket. The connection to syslog is made when there is something to
//! say. What comes from outside must pass [`escape()`] on its way into a line.

mod syslog;

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::{self, Display};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::rc::Rc;
use std::time::SystemTime;

use self::syslog::Syslog;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::access_log::{self, AccessLog, Record};
use crate::settings::default;
use crate::sys::streams::Streams;
use crate::sys::{self, LocalTime};
use crate::terms::error::{Error, Status};
use crate::terms::escape::{brief, escape};
use crate::terms::value::{self, Complaint};

/// How grave a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Something failed that should not.
    Error,
    /// Something is not as it was asked for, but service goes on.
    Warning,
    /// Worth knowing: the server's own life, and clients turned away.
    Notice,
    /// Sessions that open and close.
    #[default]
    Info,
    /// Steps in between.
    Debug,
}

impl Level {
    /// The levels by name, gravest first.
    pub const WORDS: &[(&str, Level)] = &[
        ("error", Level::Error),
        ("warning", Level::Warning),
        ("notice", Level::Notice),
        ("info", Level::Info),
        ("debug", Level::Debug),
    ];
}

/// Where lines are to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
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
    pub fn parse(text: &str) -> Result<Target, Complaint> {
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

/// What was written about the log.
#[derive(Debug, Default)]
pub struct Settings {
    /// The name under which lines are logged.
    pub name: Option<String>,
    /// The least grave level that is logged.
    pub level: Level,
    /// Where lines go; empty for the default.
    pub targets: Vec<Target>,
    /// Where a line per ended session goes as well.
    pub access_log: Option<access_log::Settings>,
}

/// The log: lines in, to every sink.
#[derive(Clone)]
pub struct Log {
    name: Rc<str>,
    level: Level,
    sinks: Rc<[Sink]>,
    access_log: Option<Rc<AccessLog>>,
    /// Standard error is there for people to read.
    stderr: bool,
}

enum Sink {
    Syslog(RefCell<Syslog>),
    Stderr,
    /// A duplicate of our own: descriptor 1 becomes a handler's, and so a client's, even where the
    /// handler then cannot be started.
    Stdout(File),
    File(File),
}

impl Log {
    /// A log for what goes wrong before the settings are known: it has nothing but
    /// [`Log::fatal`] to say, on standard error, or to syslog where that is the client.
    pub fn at_start(streams: Streams) -> Log {
        let stderr = !streams.stderr_is_client;
        Log {
            name: Rc::from(default::LOG_NAME),
            level: Level::Error,
            sinks: match stderr {
                true => Rc::new([]),
                false => Rc::new([Sink::syslog(false)]),
            },
            access_log: None,
            stderr,
        }
    }

    /// A log as the settings want it. Without targets: syslog, and standard error too where a
    /// server of our own runs on a terminal. Files are opened at once, with the ids of now.
    pub fn open(settings: &Settings, standalone: bool, streams: Streams) -> Result<Log, Error> {
        let Settings {
            name,
            level,
            targets,
            access_log,
        } = settings;
        let stderr = !streams.stderr_is_client;
        let mut sinks = Vec::new();
        for target in targets {
            sinks.push(match target {
                Target::Stderr if stderr => Sink::Stderr,
                Target::Stdout if !streams.stdout_is_client() => {
                    let duplicate = io::stdout().as_fd().try_clone_to_owned();
                    let duplicate = duplicate.map_err(|error| Error::io("dup", &error))?;
                    Sink::Stdout(File::from(duplicate))
                }
                Target::File(path) => Sink::File(open_file(path).map_err(|error| {
                    let path = escape(path.as_os_str().as_encoded_bytes());
                    Error::io(format_args!("log file {path}"), &error)
                })?),
                Target::Syslog | Target::Stderr | Target::Stdout => Sink::syslog(stderr),
            });
        }
        if sinks.is_empty() {
            let on_terminal = standalone && stderr && io::stderr().is_terminal();
            sinks.push(Sink::syslog(stderr && !on_terminal));
            if on_terminal {
                sinks.push(Sink::Stderr);
            }
        }
        Ok(Log {
            name: Rc::from(name.as_deref().unwrap_or(default::LOG_NAME)),
            level: *level,
            sinks: sinks.into(),
            access_log: match access_log {
                Some(settings) => Some(Rc::new(AccessLog::open(settings)?)),
                None => None,
            },
            stderr,
        })
    }

    /// The same log for lines under another name, if there is one.
    pub fn under(&self, name: Option<&str>) -> Cow<'_, Log> {
        match name {
            None => Cow::Borrowed(self),
            Some(name) => Cow::Owned(Log {
                name: Rc::from(name),
                ..self.clone()
            }),
        }
    }

    /// Notes the end of a session, here and in the access log.
    pub fn session_ended(&self, level: Level, record: &Record) {
        self.line(level, record);
        if let Some(access_log) = &self.access_log {
            let tag = format!("{}[{}]", self.name, process::id());
            // Like any other line: one that cannot be written is lost.
            let _ = access_log.write(record, &tag);
        }
    }

    /// Says what must not be missed, such as why the program ends: on standard error, whatever the
    /// log's targets are, unless that is the client; and in the log.
    pub fn fatal(&self, error: &Error) {
        let text = printable(error);
        if self.stderr {
            // Nobody is left to tell if this fails.
            let _ = io::stderr().write_all(format!("{}: {text}\n", default::LOG_NAME).as_bytes());
        }
        for sink in self.sinks.iter() {
            let written = match sink {
                Sink::Stderr => Ok(()),
                Sink::Syslog(syslog) => syslog.borrow_mut().write(Level::Error, &self.name, &text),
                Sink::Stdout(_) | Sink::File(_) => sink.write(Level::Error, &self.name, &text),
            };
            let _ = written;
        }
    }

    /// Says what failed that should not.
    pub fn error(&self, what: impl Display) {
        self.line(Level::Error, what);
    }

    /// Says what is not as it was asked for.
    pub fn warning(&self, what: impl Display) {
        self.line(Level::Warning, what);
    }

    /// Says something worth knowing.
    pub fn notice(&self, what: impl Display) {
        self.line(Level::Notice, what);
    }

    /// Says what is going on.
    pub fn info(&self, what: impl Display) {
        self.line(Level::Info, what);
    }

    /// Says a step in between.
    pub fn debug(&self, what: impl Display) {
        self.line(Level::Debug, what);
    }

    /// Whether lines of this level are logged.
    pub fn is_logged(&self, level: Level) -> bool {
        level <= self.level
    }

    /// One line, to every sink. A sink that cannot take it loses it: there is nobody to tell,
    /// and a session must not wait for its log.
    pub fn line(&self, level: Level, what: impl Display) {
        if !self.is_logged(level) || !self.sinks.iter().any(Sink::is_heard) {
            return;
        }
        let text = printable(what);
        for sink in self.sinks.iter() {
            let _ = sink.write(level, &self.name, &text);
        }
    }
}

/// The text of a line. Whatever was to be escaped has been; nobody forges a line even so.
fn printable(what: impl Display) -> String {
    let text = what.to_string();
    match text.contains(char::is_control) {
        true => text.replace(char::is_control, "?"),
        false => text,
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

impl Sink {
    fn syslog(fall_back: bool) -> Sink {
        Sink::Syslog(RefCell::new(Syslog::new(fall_back)))
    }

    /// Whether a line would be read by anybody, as far as can be known.
    fn is_heard(&self) -> bool {
        match self {
            Sink::Syslog(syslog) => syslog.borrow_mut().is_heard(),
            Sink::Stderr | Sink::Stdout(_) | Sink::File(_) => true,
        }
    }

    /// Writes one line with one write, so that lines of several processes do not mix.
    fn write(&self, level: Level, name: &str, text: &str) -> io::Result<()> {
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

/// A moment as RFC 3339 has it, in local time with its offset, and so many digits (at most 6)
/// after the second's point.
pub fn timestamp(moment: SystemTime, digits: usize) -> impl Display {
    Timestamp {
        time: sys::local_time(moment),
        digits,
    }
}

struct Timestamp {
    time: LocalTime,
    digits: usize,
}

impl Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let LocalTime {
            year,
            month,
            day,
            hour,
            minute,
            second,
            microsecond,
            offset,
        } = self.time;
        let digits = self.digits;
        let fraction = (digits..6).fold(microsecond, |fraction, _| fraction / 10);
        let sign = if offset < 0 { '-' } else { '+' };
        let (hours, minutes) = (offset.abs() / 60, offset.abs() % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.\
             {fraction:0digits$}{sign}{hours:02}:{minutes:02}"
        )
    }
}

/// Has a panic logged like everything else, instead of written to standard error, which may be
/// a client's socket. The process then dies as the build profile says (release: SIGABRT).
pub fn report_panics(streams: Streams) {
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or(payload.downcast_ref::<String>().map(String::as_str))
            .map_or_else(|| "no message".to_owned(), escape);
        let place: &dyn Display = match panic.location() {
            Some(place) => place,
            None => &"an unknown place",
        };
        Log::at_start(streams).fatal(&Error::new(
            Status::System,
            format!("internal error at {place}: {message}"),
        ));
    }));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timestamps_are_rfc_3339() {
        let moment = SystemTime::UNIX_EPOCH + Duration::from_micros(7_890);
        let stamp = timestamp(moment, 3).to_string();
        assert_eq!(
            stamp.len(),
            "1970-01-01T00:00:00.000+00:00".len(),
            "{stamp}"
        );
        assert_eq!(&stamp[10..11], "T");
        assert_eq!(&stamp[19..23], ".007");
        assert_eq!(&timestamp(moment, 6).to_string()[19..26], ".007890");
    }

    #[test]
    fn targets_are_a_closed_set() {
        assert_eq!(Target::parse("syslog"), Ok(Target::Syslog));
        assert_eq!(Target::parse("file:/a b"), Ok(Target::File("/a b".into())));
        for text in ["", "file:", "File:/x", "syslogs"] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }
}
