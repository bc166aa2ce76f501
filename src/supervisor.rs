//! The server that accepts and forks: a child per connection, so that a session that fails takes
//! nothing with it. The supervisor itself never reads a client's byte.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::{Error, Status};
use crate::log::Log;
use crate::reason::Reason;
use crate::relay;
use crate::service::{Action, Service};
use crate::session;
use crate::source::{Client, Endpoint, Listener, Listeners};
use crate::sys;
use crate::wait;

/// Between SIGTERM and SIGKILL for sessions when the server ends.
const GRACE: Duration = Duration::from_secs(3);

/// How long nothing is accepted after the system was short of something: long enough not to
/// spin, short enough for clients in the backlog not to notice much.
const BACK_OFF: Duration = Duration::from_millis(100);

/// How often at most the same kind of trouble is logged.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

/// How many clients of one listener are accepted before the others have their turn.
const BATCH: usize = 64;

/// Serves the clients of these listeners until asked to end, or until idle where that was asked
/// for. Ends with status 0.
pub fn run(listeners: Listeners, service: &Service, log: &Log) -> Result<Status, Error> {
    let watched = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT];
    sys::watch_signals(&watched).map_err(|errno| Error::system("signals", errno))?;
    for listener in &listeners.sockets {
        // A client that is gone before we accept it must not block the others.
        sys::set_blocking(listener.socket.as_fd(), false)
            .map_err(|errno| Error::system("listener", errno))?;
        if let Action::Forward(_) = service.action {
            // What it accepts inherits this. A handler sees the client as it is.
            relay::keep_urgent_data(listener.socket.as_fd());
        }
    }
    Supervisor {
        listeners: listeners.sockets,
        until_idle: listeners.until_idle,
        service,
        log,
        sessions: HashMap::new(),
        serial: 0,
        last_activity: Instant::now(),
        accept_from: Instant::now(),
        next_complaint: Instant::now(),
    }
    .serve()
}

/// A session that is going on in a child process.
struct Session {
    serial: u64,
    client: Endpoint,
    started: Instant,
}

struct Supervisor<'a> {
    listeners: Vec<Listener>,
    until_idle: Option<Duration>,
    service: &'a Service,
    log: &'a Log,
    sessions: HashMap<Pid, Session>,
    /// The number of the last session.
    serial: u64,
    /// When a session last began or ended.
    last_activity: Instant,
    /// Nothing is accepted before this.
    accept_from: Instant,
    /// Nothing is complained about before this.
    next_complaint: Instant,
}

impl Supervisor<'_> {
    fn serve(mut self) -> Result<Status, Error> {
        loop {
            if sys::take_signal(Signal::SIGCHLD) {
                self.reap(Reason::InternalError);
            }
            if wait::ENDING.into_iter().any(sys::take_signal) {
                return Ok(self.shut_down());
            }
            let idle_at = self
                .until_idle
                .filter(|_| self.sessions.is_empty())
                .map(|time| self.last_activity + time);
            let now = Instant::now();
            if idle_at.is_some_and(|at| at <= now) {
                self.log.info("idle: ending");
                return Ok(Status::Done);
            }
            let accepting = self.accept_from <= now;
            let resume_at = (!accepting).then_some(self.accept_from);
            let deadline = [idle_at, resume_at].into_iter().flatten().min();
            let ready = self.poll(accepting, deadline)?;
            for index in ready {
                self.accept_some(index);
            }
        }
    }

    /// Sleeps until there is something to do. Returns which listeners have clients.
    fn poll(&self, accepting: bool, deadline: Option<Instant>) -> Result<Vec<usize>, Error> {
        let listeners = if accepting { &self.listeners[..] } else { &[] };
        let mut set: Vec<PollFd> = listeners
            .iter()
            .map(|listener| PollFd::new(listener.socket.as_fd(), PollFlags::POLLIN))
            .collect();
        match wait::poll(&mut set, deadline) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(errno) => return Err(Error::system("poll", errno)),
        }
        let is_ready = |polled: &PollFd| polled.any().unwrap_or(true);
        Ok((0..set.len())
            .filter(|&index| is_ready(&set[index]))
            .collect())
    }

    /// Accepts what waits at one listener, within limits.
    fn accept_some(&mut self, index: usize) {
        for _ in 0..BATCH {
            if self.accept_from > Instant::now() {
                return;
            }
            match Client::accept(&self.listeners[index], self.serial + 1) {
                Ok(client) => self.start(client),
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    self.complain(format_args!("accept: {}", errno.desc()));
                    // A client that has given up says nothing about the next one.
                    if errno != Errno::ECONNABORTED {
                        self.accept_from = Instant::now() + BACK_OFF;
                    }
                }
            }
        }
    }

    /// Has a child serve the client.
    fn start(&mut self, client: Client) {
        self.serial += 1;
        self.last_activity = Instant::now();
        let session = Session {
            serial: self.serial,
            client: client.address,
            started: self.last_activity,
        };
        let Supervisor {
            listeners,
            service,
            log,
            ..
        } = self;
        let forked = sys::fork(|| {
            listeners.clear();
            session::serve(client, service, log) as i32
        });
        match forked {
            Ok(child) => {
                self.sessions.insert(child, session);
            }
            Err(errno) => {
                self.complain(format_args!("fork: {}", errno.desc()));
                self.accept_from = Instant::now() + BACK_OFF;
                self.close(&session, Reason::InternalError, "");
            }
        }
    }

    /// Collects the children that have ended. Those that could not write their closed line have
    /// it written for them, with this reason.
    fn reap(&mut self, reason: Reason) {
        loop {
            let (child, cause) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(child, _)) => (child, None),
                Ok(WaitStatus::Signaled(child, signal, _)) => (child, Some(signal)),
                Err(Errno::EINTR) => continue,
                Ok(_) | Err(_) => return,
            };
            // Not ours is only what a program before us left behind in this process.
            let Some(session) = self.sessions.remove(&child) else {
                continue;
            };
            self.last_activity = Instant::now();
            if let Some(signal) = cause {
                self.close(&session, reason, &format!(" signal={signal}"));
            }
        }
    }

    fn close(&self, session: &Session, reason: Reason, why: &str) {
        let Session {
            serial,
            client,
            started,
        } = session;
        session::close_for(*serial, client, *started, reason, why, self.log);
    }

    /// Ends the server and every session.
    fn shut_down(mut self) -> Status {
        self.listeners.clear();
        self.log.notice(format_args!(
            "asked to end, with {} live",
            self.sessions.len()
        ));
        self.signal_all(Signal::SIGTERM);
        let deadline = Instant::now() + GRACE;
        while !self.sessions.is_empty() {
            match wait::poll(&mut [], Some(deadline)) {
                Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => break,
            }
            self.reap(Reason::Terminated);
            if wait::ENDING.into_iter().any(sys::take_signal) {
                break;
            }
        }
        self.signal_all(Signal::SIGKILL);
        for session in self.sessions.values() {
            self.close(session, Reason::Terminated, " signal=SIGKILL");
        }
        Status::Done
    }

    fn signal_all(&self, signal: Signal) {
        for &session in self.sessions.keys() {
            // It may have ended; until it is reaped its number is not given to another.
            let _ = kill(session, signal);
        }
    }

    /// Logs trouble that may come with every client, but not with every client.
    fn complain(&mut self, trouble: std::fmt::Arguments) {
        let now = Instant::now();
        if now >= self.next_complaint {
            self.next_complaint = now + COMPLAINT_INTERVAL;
            self.log.error(trouble);
        }
    }
}
