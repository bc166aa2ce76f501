//! The system's log, by the syslog crate: connected to when there is something to say, and never
//! waited for.

use std::io::{self, Write};
use std::process;
use std::time::SystemTime;

use syslog::{LogFormat, Logger, LoggerBackend, Severity};

use super::Level;
use crate::sys;

/// The system's log.
pub(super) struct Syslog {
    connection: Connection,
    /// Whether standard error takes its place where there is none.
    fall_back: bool,
}

/// A connection to the system's log, made when it is first needed.
enum Connection {
    Untried,
    Open(Box<Logger<LoggerBackend, Rfc3164>>),
    Absent,
}

impl Syslog {
    pub(super) fn new(fall_back: bool) -> Syslog {
        Syslog {
            connection: Connection::Untried,
            fall_back,
        }
    }

    /// Writes a line if there is a system's log.
    pub(super) fn write(&mut self, level: Level, name: &str, text: &str) -> io::Result<()> {
        if let Connection::Untried = self.connection {
            self.connection = Syslog::connect().map_or(Connection::Absent, Connection::Open);
        }
        match self.send(level, name, text) {
            // Full: this line is lost.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // Another daemon may have taken the first one's place.
            Err(_) => {
                self.connection = Syslog::connect().map_or(Connection::Absent, Connection::Open);
                self.send(level, name, text)
            }
            Ok(()) => Ok(()),
        }
    }

    fn send(&mut self, level: Level, name: &str, text: &str) -> io::Result<()> {
        let Connection::Open(logger) = &mut self.connection else {
            return Ok(());
        };
        let line = (name, text);
        let sent = match level {
            Level::Error => logger.err(line),
            Level::Warning => logger.warning(line),
            Level::Notice => logger.notice(line),
            Level::Info => logger.info(line),
            Level::Debug => logger.debug(line),
        };
        sent.map_err(|error| match error {
            syslog::Error::Write(error) => error,
            error => io::Error::other(error),
        })
    }

    /// Whether lines belong on standard error, as there is no system's log.
    pub(super) fn falls_back(&self) -> bool {
        self.fall_back && matches!(self.connection, Connection::Absent)
    }

    /// Connects so that a full socket loses lines rather than delaying sessions.
    fn connect() -> Option<Box<Logger<LoggerBackend, Rfc3164>>> {
        let logger = syslog::unix(Rfc3164).ok()?;
        match &logger.backend {
            LoggerBackend::Unix(socket) => socket.set_nonblocking(true),
            LoggerBackend::UnixStream(socket) => socket.get_ref().set_nonblocking(true),
            LoggerBackend::Udp(..) | LoggerBackend::Tcp(_) => Ok(()),
        }
        .ok()?;
        Some(Box::new(logger))
    }
}

/// The form that syslog(3) writes to /dev/log: RFC 3164 without a host name. The crate's own
/// `Formatter3164` fixes name and process id when it is made; ours outlives a fork.
#[derive(Clone)]
struct Rfc3164;

/// Facility daemon, RFC 3164 §4.1.1.
const DAEMON: u8 = 3 << 3;

impl LogFormat<(&str, &str)> for Rfc3164 {
    fn format<W: Write>(
        &self,
        to: &mut W,
        severity: Severity,
        (name, text): (&str, &str),
    ) -> syslog::Result<()> {
        let now = sys::local_time(SystemTime::now());
        write!(
            to,
            "<{}>{} {:2} {:02}:{:02}:{:02} {name}[{}]: {text}",
            DAEMON | severity as u8,
            now.month_name(),
            now.day,
            now.hour,
            now.minute,
            now.second,
            process::id(),
        )
        .map_err(syslog::Error::Write)
    }
}
