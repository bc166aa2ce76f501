//! The server that accepts and forks: a child per connection, so that a session that fails takes
//! nothing with it. The supervisor itself never reads a client's byte.

mod announced;
mod notify;
mod pidfile;
mod reload;
mod sessions;
mod watch;

use std::fmt;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;

use crate::config::service::Service;
use crate::config::settings::Overflow;
use crate::config::setup::{ServerPlan, Setup};
use crate::gate::{Seat, Standing};
use crate::log::{Ended, Journal, Log, Quota, Quotas};
use crate::session::{self, Counting, Registrar};
use crate::source::{Client, Listener, Listeners};
use crate::sys;
use crate::sys::{sockets, streams, user, wait};
use crate::terms::error::{Error, Status, describe};
use crate::terms::reason::Reason;
use announced::{Answer, Teller};
use notify::Notifier;
use pidfile::PidFile;
pub(crate) use reload::Again;
use reload::Reload;
use sessions::{Session, Sessions};
use watch::{Wanted, Watch};

/// Between SIGTERM and SIGKILL for sessions when the server ends: what they give their handlers,
/// and a moment to write their closed lines.
const GRACE: Duration = Duration::from_millis(3_250);

/// How long nothing is accepted after the system was short of something: long enough not to
/// spin, short enough for clients in the backlog not to notice much.
const BACK_OFF: Duration = Duration::from_millis(100);

/// How often at most trouble is logged, and the service manager told of changes.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// How long to wait, for each session, before every child is looked at again (waitpid(2) for any).
/// It looks at one after the other, for 0.08 µs each (measured, Linux 6.18), twice: with thousands
/// that would be what a session costs most. So it takes one twenty-fifth of the time.
const SWEEP_COST: Duration = Duration::from_micros(4);

/// How often at most the log says that clients have to wait.
const FULL_EVERY: Duration = Duration::from_secs(60);

/// What the only service is called, where there is but one.
const ONLY_SERVICE: &str = "-";

/// What stands for a service where there is none.
const NO_SERVICE: &str = "no service";

/// How many clients of one listener are accepted before the others have their turn.
const BATCH: usize = 64;

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
/// for. Ends with status 0.
pub(crate) fn run(
    listeners: Listeners,
    setup: Setup,
    log: &mut Log,
    again: Again,
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
    supervisor.notifier.ready();
    let how = supervisor.serve()?;
    supervisor.notifier.stopping();
    supervisor.finish(how);
    supervisor.say_left_out();
    Ok(Status::Done)
}

/// How the server ends.
enum Finish {
    /// Now, and its sessions with it.
    EndSessions,
    /// When its sessions have ended.
    AwaitSessions,
}

/// What became of a listener.
#[derive(PartialEq, Eq)]
enum Accepting {
    Open,
    Lost,
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
            let ends_at = self.server().lifetime.map(|time| self.began + time);
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

    /// Accepts from listeners that have clients, and gives up those that have hung up. In this order
    /// one that is lost does not move those that are to come.
    fn accept_from_some(&mut self, last_first: &[(usize, bool)]) -> Result<(), Error> {
        // They stay open until no session is to be without their descriptors any more: a client that
        // is accepted meanwhile would be given such a number, and its session would close it.
        let mut lost = Vec::new();
        for &(index, hung_up) in last_first {
            if hung_up || self.accept_some(index) == Accepting::Lost {
                let listener = self.listeners.swap_remove(index);
                self.watch.remove(&listener);
                let line = format_args!("lost the listener of {}", listener.local);
                self.log.error(line);
                lost.push(listener);
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        self.keep_descriptors();
        if self.listeners.is_empty() {
            return Err(Error::new(Status::System, "no listener is left"));
        }
        Ok(())
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

    /// Accepts what waits at one listener, within limits.
    fn accept_some(&mut self, index: usize) -> Accepting {
        for _ in 0..BATCH {
            if self.accept_from > Instant::now() || !self.has_room() {
                break;
            }
            match self.listeners[index].accept(self.sessions.next_serial()) {
                Ok(client) => self.start(client),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                // Shut down by somebody who holds it too, or no listener any more.
                Err(Errno::EINVAL | Errno::EBADF | Errno::ENOTSOCK | Errno::EOPNOTSUPP) => {
                    return Accepting::Lost;
                }
                Err(errno) => {
                    self.complain(format_args!("accept: {}", describe(errno)));
                    let shortage = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS];
                    // A client that has given up says nothing about the next one.
                    if shortage.contains(&errno) {
                        self.accept_from = Instant::now() + BACK_OFF;
                    }
                }
            }
        }
        Accepting::Open
    }

    /// Counts a client, or says which limit it is beyond.
    fn count(&self, service: &Service, client: &Client) -> Result<Option<Seat>, Reason> {
        match self.is_full() {
            true => Err(Reason::TooManySessions),
            // Whom it is to be counted for, it learns itself.
            false if service.proxies.judge(&client.address) == Standing::Proxy => Ok(None),
            false => self.sessions.count(service, &client.address),
        }
    }

    /// Has a child serve the client, if limits allow it.
    fn start(&mut self, client: Client) {
        self.status_changed = true;
        let found = self
            .setup
            .services
            .find(&client.local)
            .map(|service| service.cloned());
        let service = match found {
            Ok(Some(service)) => service,
            Ok(None) => {
                let line = format_args!("no service is configured for {}", client.local);
                return self.refuse_unserved(&client, |log| log.warning(line));
            }
            Err(error) => return self.refuse_unserved(&client, |log| log.error(error)),
        };
        let refusals = self.refusals.of(&service.label);
        let counted = self.count(&service, &client).or_else(|reason| {
            if reason != Reason::TooFastFromClient {
                // Some may have ended since.
                self.reap(Reason::InternalError);
                return self.count(&service, &client);
            }
            Err(reason)
        });
        let seat = match counted {
            Ok(seat) => seat,
            Err(reason) => {
                self.sessions.count_refused();
                let log = self.log.under(service.log_name.as_deref());
                let journal = Journal::begin(client.facts(), &log).limited_by(refusals);
                journal.close(Ended::before_action(reason));
                return;
            }
        };
        let mut session = Session::new(&client, &service, seat);
        let teller = match self.hear_from(&mut session, &client, &service) {
            Ok(teller) => teller,
            Err(errno) => return self.cannot_start(session, "announced clients", errno),
        };
        let registrar = teller.as_ref().map(|teller| teller as &dyn Registrar);
        sys::learn_utc_offset();
        // No session holds a listener, or what only the server is to have.
        let forked = sys::fork_without(&self.watch.descriptors(), || {
            let log = self.log.under(service.log_name.as_deref());
            session::serve(
                client,
                &service,
                Counting::BySupervisor(registrar),
                refusals,
                &log,
            ) as i32
        });
        let child = match forked {
            Ok(child) => child,
            Err(errno) => return self.cannot_start(session, "fork", errno),
        };
        let listening = session
            .bell()
            .map_or(Ok(()), |bell| self.watch.listen_for(bell, child));
        self.sessions.begin(child, session);
        if let Err(errno) = listening {
            self.complain(format_args!("epoll: {}", describe(errno)));
            self.answer(child, None);
        }
    }

    /// Gives up a client for whom there is no process, or nothing that it takes to have one.
    fn cannot_start(&mut self, session: Session, what: &str, errno: Errno) {
        self.accept_from = Instant::now() + BACK_OFF;
        self.complain(format_args!("{what}: {}", describe(errno)));
        if let Some(bell) = session.bell() {
            self.watch.forget(bell);
        }
        self.sessions.give_up(session, self.log);
    }

    /// Prepares to be told by a session who its client is, if that is for a proxy to say.
    fn hear_from(
        &mut self,
        session: &mut Session,
        client: &Client,
        service: &Service,
    ) -> nix::Result<Option<Teller>> {
        if service.proxies.judge(&client.address) != Standing::Proxy {
            return Ok(None);
        }
        let place = self.sessions.place()?;
        session.will_tell(place, None);
        if service.limits.are_none() {
            return Ok(Some(Teller::new(place, None)));
        }
        let (own, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        let [own, theirs] = [own, theirs].map(UnixStream::from);
        self.watch.hide(&own)?;
        session.will_tell(place, Some(own));
        Ok(Some(Teller::new(place, Some(theirs))))
    }

    /// Counts the sessions that have been told who their clients are, and ask for it.
    fn answer_some(&mut self) {
        for child in self.watch.ringing() {
            let counted = match self.sessions.count_told(child) {
                Some(Err(_)) => {
                    // Some may have ended since.
                    self.reap(Reason::InternalError);
                    self.sessions.count_told(child)
                }
                counted => counted,
            };
            self.answer(child, counted.map(Answer::from));
        }
    }

    fn answer(&mut self, child: Pid, answer: Option<Answer>) {
        if let Some(bell) = self.sessions.bell(child) {
            self.watch.forget(bell);
        }
        self.status_changed = true;
        self.sessions.answer(child, answer);
    }

    /// Notes a client that is no service's, and why, unless there have been too many of them.
    fn refuse_unserved(&mut self, client: &Client, say_why: impl FnOnce(&Log)) {
        self.sessions.count_refused();
        let refusals = self.refusals.of(NO_SERVICE);
        if refusals.is_none_or(Quota::take) {
            say_why(self.log);
        }
        session::note_unserved(client, refusals, self.log);
    }

    /// Collects the child that a signal told of; and every other that has ended, if it is time to
    /// look at them all: two that end together may have one signal.
    fn reap_some(&mut self, told_of: Option<Pid>, reason: Reason) {
        if told_of.is_some() {
            self.end_of_child(told_of, reason);
            if self.sweep_at.is_none() {
                self.sweep_at = Some(self.swept + SWEEP_COST * self.sessions.live() as u32);
            }
        }
        let is_time = |at| at <= Instant::now() || !self.has_room();
        if self.sweep_at.is_some_and(is_time) {
            self.reap(reason);
        }
    }

    /// Collects every child that has ended.
    fn reap(&mut self, reason: Reason) {
        while self.end_of_child(None, reason) {}
        self.swept = Instant::now();
        self.sweep_at = None;
    }

    /// Collects this child, or any, if it has ended. One that could not write its closed line has
    /// it written for it, with this reason.
    fn end_of_child(&mut self, child: Option<Pid>, reason: Reason) -> bool {
        let Some((child, status)) = sys::reap(child) else {
            return false;
        };
        if let Some(reload) = &mut self.reload
            && reload.is_checked_by(child)
        {
            reload.note_end(status);
            return true;
        }
        self.status_changed = true;
        if let Some(bell) = self.sessions.bell(child) {
            self.watch.forget(bell);
        }
        self.sessions.end(child, status, reason, self.log);
        true
    }

    fn finish(&mut self, how: Finish) {
        self.listeners.clear();
        self.reload = None;
        if let Finish::EndSessions = how {
            return self.end_sessions();
        }
        while !self.sessions.is_empty() {
            let now = Instant::now();
            let next = [self.tell_status(now), self.tell_left_out(now)];
            let next = next.into_iter().flatten().min();
            if self.sleep_and_reap(next, Reason::InternalError).is_err() {
                break;
            }
            if wait::ENDING.into_iter().any(sys::take_signal) {
                return self.end_sessions();
            }
            if sys::take_signal(Signal::SIGUSR1) {
                self.sessions.dump(self.log);
            }
        }
    }

    /// Ends every session: when asked once more, at once.
    fn end_sessions(&mut self) {
        self.sessions.signal_all(Signal::SIGTERM);
        let deadline = Instant::now() + GRACE;
        while !self.sessions.is_empty() && Instant::now() < deadline {
            let slept = self.sleep_and_reap(Some(deadline), Reason::Terminated);
            if slept.is_err() || wait::ENDING.into_iter().any(sys::take_signal) {
                break;
            }
        }
        // Their programs are killed with them, and become our children.
        let some_start_programs = self.sessions.some_start_programs();
        self.sessions.signal_all(Signal::SIGKILL);
        // Nothing survives that for long; who has written its own line is not given another.
        let deadline = Instant::now() + AT_MOST_EVERY;
        let is_left = |sessions: &Sessions| {
            !sessions.is_empty() || some_start_programs && sys::has_children()
        };
        while is_left(&self.sessions) && Instant::now() < deadline {
            if self
                .sleep_and_reap(Some(deadline), Reason::Terminated)
                .is_err()
            {
                break;
            }
        }
    }

    /// Sleeps until a signal or the deadline comes, and collects the children that have ended.
    fn sleep_and_reap(&mut self, deadline: Option<Instant>, reason: Reason) -> Result<(), Error> {
        let deadline = [deadline, self.sweep_at].into_iter().flatten().min();
        let due = self.watch.sleep(Wanted::SignalsOnly, deadline)?;
        self.reap_some(due.child_ended, reason);
        if due.rung {
            self.answer_some();
        }
        Ok(())
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
