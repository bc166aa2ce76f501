//! The only voice of the program: where lines go, how they look, and what is escaped in them.
//!
//! Lines go to syslog(3) by the syslog crate, to files and to the standard streams; never to a
//! stream that is a client's socket. The connection to syslog is made when there is something to
//! say. What comes from outside must pass [`escape()`] on its way into a line.

mod access_log;
mod journal;
mod level;
mod outlet;
mod record;
mod refusals;
mod sink;
mod syslog;
mod time;

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process;
use std::rc::Rc;

use crate::sys::streams::Streams;
use crate::terms::error::{Error, Status};
use crate::terms::escape::escape;
use crate::terms::facts::Facts;

use access_log::AccessLog;
pub(crate) use access_log::Plan as AccessLogPlan;
pub(crate) use journal::{Ended, Journal, note_gone};
pub(crate) use level::Level;
use outlet::Outlet;
pub(crate) use outlet::StandardError;
use record::Record;
pub(crate) use record::{Format, Wording};
pub(crate) use refusals::{Quota, Quotas};
use sink::Sink;
pub(crate) use sink::Target;
pub(crate) use time::timestamp;

/// The name under which lines are logged unless another is asked for.
pub(crate) const DEFAULT_NAME: &str = "tcpproxy";

/// What the log is to be.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The name under which lines are logged.
    pub name: Option<String>,
    /// The least grave level that is logged.
    pub level: Level,
    /// Where lines go; empty for the default.
    pub targets: Vec<Target>,
    /// Where a line per ended session goes as well.
    pub access_log: Option<AccessLogPlan>,
    /// Whether standard error is about to be left to whoever has started us.
    pub in_background: bool,
}

/// The log: lines in, to every sink.
#[derive(Clone)]
pub(crate) struct Log {
    name: Rc<str>,
    level: Level,
    sinks: Rc<[Sink]>,
    access_log: Option<Rc<AccessLog>>,
    stderr: Stderr,
}

/// What standard error is to us.
#[derive(Clone)]
enum Stderr {
    /// The client.
    Client,
    /// An answer to whoever has started us, who gets all of it.
    Answer,
    /// A log like others, which nobody may read.
    Log(Rc<StandardError>),
}

impl Log {
    /// A log for what goes wrong before the settings are known: it has nothing but
    /// [`Log::fatal`] to say, on standard error, or to syslog where that is the client.
    pub(crate) fn at_start(streams: Streams) -> Log {
        Log::of_errors(if streams.stderr_is_client {
            Stderr::Client
        } else {
            Stderr::Answer
        })
    }

    fn of_errors(stderr: Stderr) -> Log {
        Log {
            name: Rc::from(DEFAULT_NAME),
            level: Level::Error,
            sinks: match stderr {
                Stderr::Client => Rc::new([Sink::syslog(None)]),
                Stderr::Answer | Stderr::Log(_) => Rc::new([]),
            },
            access_log: None,
            stderr,
        }
    }

    /// A log as the settings want it. Without targets: syslog, and standard error too where a
    /// server of our own runs on a terminal, and stays there. Files are opened at once, with the ids of now.
    /// `stderr` stays the same when a log is opened anew.
    pub(crate) fn open(
        plan: &Plan,
        standalone: bool,
        streams: Streams,
        stderr: &Rc<StandardError>,
    ) -> Result<Log, Error> {
        let Plan {
            name,
            level,
            targets,
            access_log,
            in_background,
        } = plan;
        let has_stderr = !streams.stderr_is_client && !in_background;
        let stderr = has_stderr.then(|| Rc::clone(stderr));
        let mut sinks = Vec::new();
        for target in targets {
            sinks.push(match (target, &stderr) {
                (Target::Stderr, Some(stream)) => Sink::Stderr(Rc::clone(stream)),
                (Target::Stdout, _) if !streams.stdout_is_client() => {
                    let outlet = Outlet::stdout();
                    Sink::Stdout(outlet.map_err(|error| Error::io("standard output", &error))?)
                }
                (Target::File(path), _) => Sink::File(Outlet::open(path).map_err(|error| {
                    let path = escape(path.as_os_str().as_encoded_bytes());
                    Error::io(format_args!("log file {path}"), &error)
                })?),
                (Target::Syslog | Target::Stderr | Target::Stdout, _) => {
                    Sink::syslog(stderr.clone())
                }
            });
        }
        if sinks.is_empty() {
            match &stderr {
                Some(stream) if standalone && io::stderr().is_terminal() => {
                    sinks.push(Sink::syslog(None));
                    sinks.push(Sink::Stderr(Rc::clone(stream)));
                }
                _ => sinks.push(Sink::syslog(stderr.clone())),
            }
        }
        if standalone {
            sinks.iter().for_each(Sink::prepare);
        }
        Ok(Log {
            name: Rc::from(name.as_deref().unwrap_or(DEFAULT_NAME)),
            level: *level,
            sinks: sinks.into(),
            access_log: match access_log {
                Some(plan) => Some(Rc::new(AccessLog::open(plan)?)),
                None => None,
            },
            stderr: match stderr {
                Some(stream) => Stderr::Log(stream),
                None if streams.stderr_is_client => Stderr::Client,
                None => Stderr::Answer,
            },
        })
    }

    /// The same log for lines under another name, if there is one.
    pub(crate) fn under(&self, name: Option<&str>) -> Cow<'_, Log> {
        match name {
            None => Cow::Borrowed(self),
            Some(name) => Cow::Owned(Log {
                name: Rc::from(name),
                ..self.clone()
            }),
        }
    }

    /// Notes the end of a session in the access log.
    fn record(&self, record: &Record) {
        if let Some(access_log) = &self.access_log {
            let tag = format!("{}[{}]", self.name, process::id());
            // Like any other line: one that cannot be written is lost.
            let _ = access_log.write(record, &tag);
        }
    }

    /// Notes in the access log that a session opens.
    fn record_opened(&self, facts: &Facts, wording: Option<&dyn Wording>) {
        if let Some(access_log) = &self.access_log {
            // Like any other line: one that cannot be written is lost.
            let _ = access_log.write_opened(facts, wording);
        }
    }

    /// Says what must not be missed, such as why the program ends: on standard error, whatever the
    /// log's targets are, unless that is the client; and in the log.
    pub(crate) fn fatal(&self, error: &Error) {
        let text = printable(error);
        let line = || format!("{DEFAULT_NAME}: {text}\n");
        // Nobody is left to tell if one of these fails.
        match &self.stderr {
            Stderr::Client => {}
            Stderr::Answer => drop(io::stderr().write_all(line().as_bytes())),
            Stderr::Log(stream) => drop(stream.write(&line())),
        }
        for sink in self.sinks.iter() {
            match sink {
                Sink::Stderr(_) => {}
                Sink::Syslog(syslog) => {
                    drop(
                        syslog
                            .borrow_mut()
                            .write_there(Level::Error, &self.name, &text),
                    );
                }
                Sink::Stdout(_) | Sink::File(_) => {
                    drop(sink.write(Level::Error, &self.name, &text));
                }
            }
        }
    }

    /// Says what failed that should not.
    pub(crate) fn error(&self, what: impl Display) {
        self.line(Level::Error, what);
    }

    /// Says what is not as it was asked for.
    pub(crate) fn warning(&self, what: impl Display) {
        self.line(Level::Warning, what);
    }

    /// Says something worth knowing.
    pub(crate) fn notice(&self, what: impl Display) {
        self.line(Level::Notice, what);
    }

    /// Says what is going on.
    pub(crate) fn info(&self, what: impl Display) {
        self.line(Level::Info, what);
    }

    /// Whether lines of this level are logged.
    pub(crate) fn is_logged(&self, level: Level) -> bool {
        level <= self.level
    }

    /// One line, to every sink. A sink that cannot take it loses it: there is nobody to tell,
    /// and a session must not wait for its log.
    pub(crate) fn line(&self, level: Level, what: impl Display) {
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
        let stderr = if streams.stderr_is_client {
            Stderr::Client
        } else {
            Stderr::Log(Rc::default())
        };
        Log::of_errors(stderr).fatal(&Error::new(
            Status::System,
            format!("internal error at {place}: {message}"),
        ));
    }));
}
