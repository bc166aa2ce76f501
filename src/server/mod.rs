//! The server that accepts and forks: a child per connection, so that a session that fails takes
//! nothing with it. The supervisor itself never reads a client's byte.

mod accepting;
mod announced;
mod background;
mod ending;
mod notify;
mod pidfile;
mod reload;
mod sessions;
mod watch;

use std::fmt;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::config::settings::Overflow;
use crate::config::setup::{ServerPlan, Setup};
use crate::log::{Log, Quotas};
use crate::source::{Listener, Listeners};
use crate::sys;
use crate::sys::{sockets, streams, user, wait};
use crate::terms::error::{Error, Status};
use crate::terms::reason::Reason;
use background::Starter;
pub(crate) use background::in_background;
use ending::Finish;
use notify::Notifier;
use pidfile::PidFile;
pub(crate) use reload::Again;
use reload::Reload;
use sessions::Sessions;
use watch::{Wanted, Watch};

/// How often at most trouble is logged, and the service manager told of changes.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// How often at most the log says that clients have to wait.
const FULL_EVERY: Duration = Duration::from_secs(60);

/// What the only service is called, where there is but one.
const ONLY_SERVICE: &str = "-";

/// The signals that the supervisor acts upon.
const WATCHED: [Signal; 6] = [
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
];

/// Has the signals noted that a server acts upon. To be called before it can be seen to listen:
/// who sees that may send one.
pub(crate) fn watch_signals() -> Result<(), Error> {
    sys::watch_signals(&WATCHED, &[]).map_err(|errno| Error::system("signals", errno))
}

/// Has the signals noted that a server acts upon, but for those that end it, which do so at once: as
/// long as it gets ready to listen there is nothing to put in order.
pub(crate) fn watch_signals_until_ready() -> Result<(), Error> {
    watch_signals()?;
    sys::end_at(&wait::ENDING).map_err(|errno| Error::system("signals", errno))
}

/// Serves the clients of these listeners until asked to end, or until idle where that was asked
/// for. Ends with status 0. A starter is told when all that could fail at the start has succeeded.
pub(crate) fn run(
    listeners: Listeners,
    setup: Setup,
    log: &mut Log,
    again: Again,
    starter: Option<Starter>,
) -> Result<Status, Error> {
    streams::append_to_stderr();
    streams::only_write_to_terminal();
    if !user::has_root() {
        // Handlers have our user then, and must not trace us or other sessions (ptrace(2)). Where
        // root's ids are given up, the kernel sees to it itself; and a handler is as any program is.
        prctl::set_dumpable(false).map_err(|errno| Error::system("prctl", errno))?;
    }
    // What a session's process leaves behind when it is killed comes to us.
    prctl::set_child_subreaper(true).map_err(|errno| Error::system("prctl", errno))?;
    let mut supervisor = Supervisor {
        pidfile: match &setup.server.pidfile {
            Some(path) => Some(PidFile::create(path)?),
            None => None,
        },
        notifier: Notifier::from_environment(),
        watch: Watch::new()?,
        listeners: listeners.sockets,
        until_idle: listeners.until_idle,
        own_listeners: listeners.own,
        setup,
        log,
        again,
        reload: None,
        sessions: Sessions::default(),
        began: Instant::now(),
        accept_from: Instant::now(),
        next_complaint: Instant::now(),
        next_full: Instant::now(),
        next_status: Instant::now(),
        status_changed: true,
        refusals: Quotas::new().map_err(|errno| Error::system("shared memory", errno))?,
        left_out_at: None,
        swept: Instant::now(),
        sweep_at: None,
    };
    supervisor.watch_listeners(0)?;
    supervisor.prepare_listeners(0)?;
    if let Some(starter) = &starter {
        starter.leave_streams()?;
        supervisor.notifier.take_over();
    }
    supervisor.notifier.ready();
    if let Some(starter) = starter {
        starter.dismiss();
    }
    let how = supervisor.serve()?;
    supervisor.notifier.stopping();
    supervisor.finish(how);
    supervisor.say_left_out();
    Ok(Status::Done)
}

struct Supervisor<'a> {
    watch: Watch,
    pidfile: Option<PidFile>,
    notifier: Notifier,
    listeners: Vec<Listener>,
    /// Whether we have bound them, and may bind others.
    own_listeners: bool,
    until_idle: Option<Duration>,
    setup: Setup,
    log: &'a mut Log,
    again: Again<'a>,
    /// What has come of SIGHUP so far.
    reload: Option<Reload>,
    sessions: Sessions,
    began: Instant,
    /// Nothing is accepted before this.
    accept_from: Instant,
    /// Nothing is complained about before this.
    next_complaint: Instant,
    /// That clients have to wait is not said before this.
    next_full: Instant,
    /// The service manager is not told of changes before this.
    next_status: Instant,
    status_changed: bool,
    /// How many lines about refused clients there may be.
    refusals: Quotas,
    /// When it is to be said how many there were not.
    left_out_at: Option<Instant>,
    /// When every child was last looked at, and when that is due again.
    swept: Instant,
    sweep_at: Option<Instant>,
}

impl Supervisor<'_> {
    fn server(&self) -> &ServerPlan {
        &self.setup.server
    }

    /// When the server's lifetime is over, if it is to be.
    fn ends_at(&self) -> Option<Instant> {
        self.server().lifetime.map(|time| self.began + time)
    }

    /// Prepares the listeners from this one on.
    fn prepare_listeners(&self, first: usize) -> Result<(), Error> {
        let all_forward = self.setup.services.all_forward();
        self.listeners[first..].iter().try_for_each(|listener| {
            let socket = listener.socket.as_fd();
            // Connections inherit this from their listener.
            sockets::set_urgent_in_line(socket, all_forward);
            // A client that is gone before we accept it must not block the others.
            sys::set_blocking(socket, false).map_err(|errno| Error::system("listener", errno))
        })
    }

    fn serve(&mut self) -> Result<Finish, Error> {
        // What a program before us in this process has left behind.
        self.reap(Reason::InternalError);
        loop {
            let live = self.sessions.live();
            if wait::ENDING.into_iter().any(sys::take_signal) {
                // Closed before the line is written: who acts on it must find the ports free.
                self.listeners.clear();
                self.log
                    .notice(format_args!("asked to end, with {live} live"));
                return Ok(Finish::EndSessions);
            }
            if sys::take_signal(Signal::SIGQUIT) {
                self.listeners.clear();
                self.log
                    .notice(format_args!("asked to end when the {live} live have ended"));
                return Ok(Finish::AwaitSessions);
            }
            if sys::take_signal(Signal::SIGHUP) {
                self.reload();
            }
            let reloaded_by = self.go_on_reloading();
            if sys::take_signal(Signal::SIGUSR1) {
                self.sessions.dump(self.log);
            }
            let now = Instant::now();
            let idle_at = self
                .until_idle
                .filter(|_| self.sessions.is_empty())
                .map(|time| self.sessions.last_change() + time);
            let ends_at = self.ends_at();
            if idle_at.is_some_and(|at| at <= now) {
                self.log.info("idle: ending");
                return Ok(Finish::AwaitSessions);
            }
            if ends_at.is_some_and(|at| at <= now) {
                self.log.notice("the server's lifetime is over: ending");
                return Ok(Finish::EndSessions);
            }
            self.tell_if_full(now);
            let status_at = self.tell_status(now);
            let left_out_at = self.tell_left_out(now);
            let wanted = if self.accept_from <= now && self.has_room() {
                Wanted::Clients
            } else {
                Wanted::SignalsOnly
            };
            let resume_at = (self.accept_from > now).then_some(self.accept_from);
            let deadlines = [
                idle_at,
                ends_at,
                status_at,
                left_out_at,
                resume_at,
                reloaded_by,
                self.sweep_at,
            ];
            let deadline = deadlines.into_iter().flatten().min();
            let mut due = self.watch.sleep(wanted, deadline)?;
            self.reap_some(due.child_ended, Reason::InternalError);
            if due.rung {
                self.answer_some();
            }
            self.accept_from_some(due.listeners())?;
        }
    }

    /// Watches the listeners from this one on. Those that cannot be watched are dropped; returns the
    /// last one's error.
    fn watch_listeners(&mut self, first: usize) -> Result<(), Error> {
        let mut done = Ok(());
        for listener in self.listeners.split_off(first) {
            match self.watch.add(&listener) {
                Ok(()) => self.listeners.push(listener),
                Err(error) => done = Err(error),
            }
        }
        self.keep_descriptors();
        done
    }

    /// Notes where the listeners stand, and what no session may hold.
    fn keep_descriptors(&mut self) {
        let pidfile = self.pidfile.iter().map(PidFile::descriptor);
        let others = pidfile.chain(self.notifier.descriptor());
        let others = others.chain(self.reload.iter().map(Reload::descriptor));
        self.watch.keep(&self.listeners, others);
    }

    /// Whether more clients may be accepted, be it to turn them away.
    fn has_room(&self) -> bool {
        !self.is_full() || self.server().overflow == Overflow::Drop
    }

    fn is_full(&self) -> bool {
        let most = self.server().max_sessions;
        most.is_some_and(|most| self.sessions.live() >= most)
    }

    /// Says that clients have to wait: nobody else does, least of all to them.
    fn tell_if_full(&mut self, now: Instant) {
        if !self.has_room() && self.next_full <= now {
            self.next_full = now + FULL_EVERY;
            let live = self.sessions.live();
            let line =
                format_args!("{live} live, as many as --max-sessions allows: further clients wait");
            self.log.notice(line);
        }
    }

    /// Tells the service manager of a change, but not of every one. Returns when it is to be told,
    /// if not now.
    fn tell_status(&mut self, now: Instant) -> Option<Instant> {
        if !self.status_changed {
            return None;
        }
        if now < self.next_status {
            return Some(self.next_status);
        }
        self.notifier.status(&self.sessions.summary());
        self.status_changed = false;
        self.next_status = now + AT_MOST_EVERY;
        None
    }

    /// Says how many lines about refused clients were left out, a second after the first of them.
    /// Returns when that is to be said, if not now.
    fn tell_left_out(&mut self, now: Instant) -> Option<Instant> {
        if !self.refusals.left_some_out() {
            return None;
        }
        let at = *self.left_out_at.get_or_insert(now + AT_MOST_EVERY);
        if now < at {
            return Some(at);
        }
        self.left_out_at = None;
        self.say_left_out();
        None
    }

    fn say_left_out(&self) {
        for (service, count) in self.refusals.take_left_out() {
            let of = match service {
                ONLY_SERVICE => String::new(),
                service => format!(" of {service}"),
            };
            let line = format_args!("refused clients{of}: {count} lines left out");
            self.log.notice(line);
        }
    }

    /// Logs trouble that may come with every client, but not with every client.
    fn complain(&mut self, trouble: fmt::Arguments) {
        let now = Instant::now();
        if now >= self.next_complaint {
            self.next_complaint = now + AT_MOST_EVERY;
            self.log.error(trouble);
        }
    }
}
