//! The system's log, by the syslog crate: connected to when there is something to say, and never
//! waited for.

use std::io::{self, BufWriter, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process;
use std::rc::Rc;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use syslog::{LogFormat, Logger, LoggerBackend, Severity};

use super::Level;
use super::outlet::{LONGEST, StandardError, within};
use super::sink::tagged;
use crate::sys;

pub(super) struct Syslog {
    connection: Connection,
    /// What takes its place where there is none.
    fall_back: Option<Rc<StandardError>>,
}

/// A connection to the system's log, made when it is first needed.
enum Connection {
    Untried,
    Open(Box<Logger<LoggerBackend, Rfc3164>>),
    Absent,
}

impl Syslog {
    pub(super) fn new(fall_back: Option<Rc<StandardError>>) -> Syslog {
        Syslog {
            connection: Connection::Untried,
            fall_back,
        }
    }

    /// Whether a line would be read by anybody: here, or on standard error instead.
    pub(super) fn is_heard(&mut self) -> bool {
        if let Connection::Untried = self.connection {
            self.connection = Connection::new();
        }
        self.fall_back.is_some() || matches!(self.connection, Connection::Open(_))
    }

    /// Writes a line; to what takes its place where there is no system's log.
    pub(super) fn write(&mut self, level: Level, name: &str, text: &str) -> io::Result<()> {
        self.write_there(level, name, text)?;
        match (&self.connection, &self.fall_back) {
            (Connection::Absent, Some(stream)) => stream.write(&tagged(name, text)),
            _ => Ok(()),
        }
    }

    /// Writes a line if there is a system's log.
    pub(super) fn write_there(&mut self, level: Level, name: &str, text: &str) -> io::Result<()> {
        if !self.is_heard() {
            return Ok(());
        }
        match self.send(level, name, text) {
            // Full: this line is lost.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // Another daemon may have taken the first one's place.
            Err(_) => {
                self.connection = Connection::new();
                self.send(level, name, text)
            }
            Ok(()) => Ok(()),
        }
    }

    fn send(&mut self, level: Level, name: &str, text: &str) -> io::Result<()> {
        let Connection::Open(logger) = &mut self.connection else {
            return Ok(());
        };
        let header = HEADER + name.len() + MOST_OF_PROCESS;
        let text = within(text, LONGEST - header);
        let line = (name, &*text);
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
}

impl Connection {
    /// Connects so that a full socket loses lines rather than delaying sessions. The crate's own
    /// `unix` would try two more places that are other systems'.
    fn new() -> Connection {
        let backend = match connected(SockType::Datagram) {
            // Some daemons listen on a stream socket.
            Err(Errno::EPROTOTYPE) => connected(SockType::Stream)
                .map(|socket| LoggerBackend::UnixStream(BufWriter::new(UnixStream::from(socket)))),
            socket => socket.map(|socket| LoggerBackend::Unix(UnixDatagram::from(socket))),
        };
        match backend {
            Ok(backend) => Connection::Open(Box::new(Logger {
                formatter: Rfc3164,
                backend,
            })),
            // It has not accepted those before us: this line is lost.
            Err(Errno::EAGAIN) => Connection::Untried,
            Err(_) => Connection::Absent,
        }
    }
}

/// Where the system's log listens (syslog(3)).
const DEV_LOG: &str = "/dev/log";

fn connected(kind: SockType) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, kind, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(DEV_LOG)?)?;
    Ok(socket)
}

/// The form that syslog(3) writes to /dev/log: RFC 3164 without a host name. The crate's own
/// `Formatter3164` fixes name and process id when it is made; ours outlives a fork.
#[derive(Clone)]
struct Rfc3164;

/// How long what comes before a text can be: `<31>Nov 21 16:04:00 `, and `[4194303]: ` behind the name.
const HEADER: usize = 20;
const MOST_OF_PROCESS: usize = 11;

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
