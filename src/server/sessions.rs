//! The sessions that are going on, and what is known of those that were.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Instant;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::announced::{Answer, Board, Place};
use crate::config::service::Service;
use crate::gate::{Counts, Ledger, Limits, Refusal, Seat};
use crate::log::Log;
use crate::log::{Ended, Journal};
use crate::source::{Client, Ends};
use crate::terms::endpoint::Endpoint;
use crate::terms::escape::escape_word;
use crate::terms::facts::{Facts, Via};
use crate::terms::reason::Reason;
use crate::upstream::Upstream;

/// A session that is going on in a child process.
pub(super) struct Session {
    facts: Facts,
    service: Rc<Service>,
    seat: Option<Seat>,
    started: Instant,
    /// The port that its socket is for, whatever a proxy says.
    port: Option<u16>,
    /// Where it tells who the client is, if a proxy says that.
    place: Option<Place>,
    /// Where it rings to be counted, as long as it has not.
    bell: Option<UnixStream>,
}

impl Session {
    pub(super) fn new(client: &Client, service: &Rc<Service>, seat: Option<Seat>) -> Session {
        Session {
            facts: client.facts(),
            service: Rc::clone(service),
            seat,
            started: Instant::now(),
            port: client.local.port(),
            place: None,
            bell: None,
        }
    }

    /// Has it told there who the client is; if it rings, it waits to be counted.
    pub(super) fn will_tell(&mut self, place: Place, bell: Option<UnixStream>) {
        self.place = Some(place);
        self.bell = bell;
    }

    pub(super) fn bell(&self) -> Option<&UnixStream> {
        self.bell.as_ref()
    }

    /// What is known of it by now.
    fn facts(&self) -> Facts {
        let facts = self.facts.clone();
        let told = self.place.as_ref().and_then(Place::told);
        match told.and_then(Ends::of) {
            None => facts,
            Some(ends) => Facts {
                via: Some(facts.client),
                client: ends.client,
                local: ends.destination,
                ..facts
            },
        }
    }

    /// Writes its closed line for it.
    fn close(&self, reason: Reason, signal: Option<String>, log: &Log) {
        let log = log.under(self.service.log_name.as_deref());
        let journal = Journal::resumed(self.facts(), self.started, &log);
        let journal = journal.of_service(&*self.service);
        journal.close(Ended {
            signal,
            ..Ended::before_action(reason)
        });
    }
}

/// Kills what is left of a program's process group when the program has ended with its session's
/// process, instead of before it: the kernel has killed the program alone (`sys::end_with_us`), and it
/// has become our child with that. What a program leaves behind that has ended by itself, or a program
/// before us in this process, ends in its own time, however it does; only that a group is led by one
/// which is killed is taken as a sign that the group is not to go on.
fn end_group_of_orphan(orphan: Pid, status: ExitStatus) {
    let asked_to_end = [Signal::SIGTERM, Signal::SIGKILL].map(|signal| Some(signal as i32));
    if asked_to_end.contains(&status.signal()) {
        // Its number is not given to another as long as the group has members. If it has none, there
        // is nobody to be killed.
        let _ = killpg(orphan, Signal::SIGKILL);
    }
}

/// A signal's name, or the number of one that has none.
pub(super) fn name_of(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| signal.to_string(), |signal| signal.to_string())
}

pub(super) struct Sessions {
    running: HashMap<Pid, Session>,
    counts: Counts,
    /// Where sessions tell of clients that are announced to them.
    board: Board,
    /// The number of the last session.
    serial: u64,
    refused: u64,
    /// When a session last began or ended, or a client was turned away.
    last_change: Instant,
}

impl Default for Sessions {
    fn default() -> Sessions {
        Sessions {
            running: HashMap::new(),
            counts: Counts::default(),
            board: Board::default(),
            serial: 0,
            refused: 0,
            last_change: Instant::now(),
        }
    }
}

impl Sessions {
    pub(super) fn live(&self) -> usize {
        self.running.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    pub(super) fn last_change(&self) -> Instant {
        self.last_change
    }

    /// A number for the next client.
    pub(super) fn next_serial(&mut self) -> u64 {
        self.serial + 1
    }

    /// Counts a client among those of its address; says why it is one too many.
    pub(super) fn count(
        &self,
        service: &Service,
        client: &Endpoint,
    ) -> Result<Option<Seat>, Reason> {
        let counted = self.counts.admit(&service.label, client, &service.limits);
        counted.map_err(|refusal| refusal.reason())
    }

    /// Where the next session may tell who its client is.
    pub(super) fn place(&mut self) -> nix::Result<Place> {
        self.board.take()
    }

    /// The bell of a session that has not been answered.
    pub(super) fn bell(&self, session: Pid) -> Option<&UnixStream> {
        self.running.get(&session).and_then(Session::bell)
    }

    /// Counts a session, if it has rung and has told who its client is; says why it is one too many.
    /// `None` where there is nothing to count.
    pub(super) fn count_told(&mut self, session: Pid) -> Option<Result<(), Refusal>> {
        let session = self.running.get_mut(&session)?;
        session.place.as_ref().and_then(Place::told)?;
        let client = session.facts().client;
        let Service { label, limits, .. } = session.service.as_ref();
        let counted = self.counts.admit(label, &client, limits);
        Some(counted.map(|seat| session.seat = seat))
    }

    /// Counts sessions without limits that have told since whose they are: a reload brings some perhaps.
    pub(super) fn count_all_told(&mut self) {
        for session in self.running.values_mut() {
            let told = session.place.as_ref().and_then(Place::told);
            if told.is_some() && session.seat.is_none() && session.bell.is_none() {
                let client = session.facts().client;
                let label = &session.service.label;
                // No limit, no refusal.
                let counted = self.counts.admit(label, &client, &Limits::default());
                session.seat = counted.unwrap_or(None);
            }
        }
    }

    /// Answers a session that has rung; without an answer it is not let in. Either way it rings no
    /// more.
    pub(super) fn answer(&mut self, session: Pid, answer: Option<Answer>) {
        if let Some(session) = self.running.get_mut(&session)
            && let Some(bell) = session.bell.take()
            && let Some(answer) = answer
        {
            answer.give(&bell);
            if answer != Answer::GoOn {
                self.refused += 1;
                self.last_change = Instant::now();
            }
        }
    }

    /// Notes that the client of the next number is not served.
    pub(super) fn count_refused(&mut self) {
        self.serial += 1;
        self.refused += 1;
        self.last_change = Instant::now();
    }

    pub(super) fn begin(&mut self, child: Pid, session: Session) {
        self.serial = session.facts.session;
        self.last_change = Instant::now();
        self.running.insert(child, session);
    }

    /// Closes a session for which there is no process.
    pub(super) fn give_up(&mut self, session: Session, log: &Log) {
        self.count_refused();
        session.close(Reason::InternalError, None, log);
        self.clear(session);
    }

    /// Takes back what a session has had of the server.
    fn clear(&mut self, session: Session) {
        if let Some(seat) = &session.seat {
            self.counts.end(seat);
        }
        if let Some(place) = session.place {
            self.board.give_back(place);
        }
    }

    /// Notes a child's end. One that was killed has its closed line written for it, with this
    /// reason.
    pub(super) fn end(&mut self, child: Pid, status: ExitStatus, reason: Reason, log: &Log) {
        let Some(session) = self.running.remove(&child) else {
            return end_group_of_orphan(child, status);
        };
        self.last_change = Instant::now();
        if let Some(signal) = status.signal() {
            session.close(reason, Some(name_of(signal)), log);
        }
        self.clear(session);
    }

    /// Whether there are any that a program may have been started for.
    pub(super) fn some_start_programs(&self) -> bool {
        self.running
            .values()
            .any(|session| session.service.starts_a_program())
    }

    pub(super) fn signal_all(&self, signal: Signal) {
        for &session in self.running.keys() {
            // It may have ended; until it is reaped its number is not given to another.
            let _ = kill(session, signal);
        }
    }

    /// What the service manager shows.
    pub(super) fn summary(&self) -> String {
        format!("{} live, {} in total", self.live(), self.serial)
    }

    /// Logs every session, and the totals.
    pub(super) fn dump(&self, log: &Log) {
        let mut sessions: Vec<&Session> = self.running.values().collect();
        sessions.sort_by_key(|session| session.facts.session);
        for session in sessions {
            let name = |upstream: &Upstream| upstream.name(session.port);
            let server = session.service.server_line(name);
            let facts = session.facts();
            log.notice(format_args!(
                "session {} live: client={}{} local={} server={} age={:.3}s",
                facts.session,
                facts.client,
                Via(facts.via),
                facts.local,
                escape_word(server.as_encoded_bytes()),
                session.started.elapsed().as_secs_f64()
            ));
        }
        log.notice(format_args!(
            "sessions: live={} total={} refused={}",
            self.live(),
            self.serial,
            self.refused
        ));
    }
}
