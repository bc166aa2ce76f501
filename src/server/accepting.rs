//! A client from its listener to the process that serves it, within limits.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;

use super::Supervisor;
use super::announced::{Answer, Teller};
use super::sessions::Session;
use crate::config::service::Service;
use crate::gate::{Seat, Standing};
use crate::log::{Ended, Journal, Log, Quota};
use crate::session::{self, Counting, Registrar};
use crate::source::Client;
use crate::sys;
use crate::terms::error::{Error, Status, describe};
use crate::terms::reason::Reason;

/// How long nothing is accepted after the system was short of something: long enough not to
/// spin, short enough for clients in the backlog not to notice much.
const BACK_OFF: Duration = Duration::from_millis(100);

/// How many clients of one listener are accepted before the others have their turn.
const BATCH: usize = 64;

/// What stands for a service where there is none.
const NO_SERVICE: &str = "no service";

/// What became of a listener.
#[derive(PartialEq, Eq)]
enum Accepting {
    Open,
    Lost,
}

impl Supervisor<'_> {
    /// Accepts from listeners that have clients, and gives up those that have hung up. In this order
    /// one that is lost does not move those that are to come.
    pub(super) fn accept_from_some(&mut self, last_first: &[(usize, bool)]) -> Result<(), Error> {
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
            .find_for(&client)
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
                let journal = journal.of_service(&*service);
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
    pub(super) fn answer_some(&mut self) {
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
}
