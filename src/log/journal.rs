//! What a session leaves in the log: every line of it begins with the session's number.

use std::cell::Cell;
use std::fmt::Display;
use std::process;
use std::time::{Duration, Instant};

use super::record::{Record, Wording};
use super::{Level, Log, Quota};
use crate::sys::user::Ids;
use crate::terms::error::Status;
use crate::terms::escape::escape_word;
use crate::terms::facts::{Facts, Via};
use crate::terms::reason::Reason;

/// The lines of one session.
pub(crate) struct Journal<'a> {
    facts: Facts,
    started: Instant,
    /// Its opened line is still to be written.
    opened: Cell<Option<Ids>>,
    /// Its client is refused.
    refused: Cell<bool>,
    /// How many lines there may be about that.
    refusals: Option<Quota>,
    /// What its service was written as, where that is known.
    wording: Option<&'a dyn Wording>,
    log: &'a Log,
}

/// How a session ended, and what it had come to.
pub(crate) struct Ended {
    /// The upstream or handler that was used last.
    pub(crate) server: String,
    /// Bytes delivered to the upstream.
    pub(crate) sent: u64,
    /// Bytes delivered to the client.
    pub(crate) received: u64,
    pub(crate) reason: Reason,
    /// It was refused as no allow rule matched.
    pub(crate) not_allowed: bool,
    /// The signal that ended its process, if one did.
    pub(crate) signal: Option<String>,
}

impl Ended {
    /// Without anything having been reached for.
    pub(crate) fn before_action(reason: Reason) -> Ended {
        Ended::without_bytes("-", reason)
    }

    /// Without a byte having been counted.
    pub(crate) fn without_bytes(server: impl Into<String>, reason: Reason) -> Ended {
        Ended {
            server: server.into(),
            sent: 0,
            received: 0,
            reason,
            not_allowed: false,
            signal: None,
        }
    }
}

impl<'a> Journal<'a> {
    /// Begins the journal of a session, which begins now.
    pub(crate) fn begin(facts: Facts, log: &'a Log) -> Journal<'a> {
        Journal::resumed(facts, Instant::now(), log)
    }

    /// The journal of a session that began earlier, in another process.
    pub(crate) fn resumed(facts: Facts, started: Instant, log: &'a Log) -> Journal<'a> {
        Journal {
            facts,
            started,
            opened: Cell::new(None),
            refused: Cell::new(false),
            refusals: None,
            wording: None,
            log,
        }
    }

    /// The same journal, with no more lines about a client that is refused than this allows.
    pub(crate) fn limited_by(self, refusals: Option<Quota>) -> Journal<'a> {
        Journal { refusals, ..self }
    }

    /// The same journal, of a session of a service that was written so.
    pub(crate) fn of_service(self, wording: &'a dyn Wording) -> Journal<'a> {
        Journal {
            wording: Some(wording),
            ..self
        }
    }

    /// What is known of the session.
    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Learns more of the client: who it is, which a proxy has announced, or what it had meant to reach.
    pub(crate) fn identify(&mut self, facts: Facts) {
        self.facts = facts;
    }

    /// Notes that the session has passed the limits. The line is put off until there is time, but
    /// comes before any other: see [`Journal::catch_up`].
    pub(crate) fn open(&mut self, name: Option<String>, ids: Ids) {
        self.facts.name = name;
        self.opened.set(Some(ids));
    }

    /// Writes the line that was put off. To be called before anything that may take a while.
    pub(crate) fn catch_up(&self) {
        let Some(ids) = self.opened.take() else {
            return;
        };
        if !self.refused.get() {
            self.log.record_opened(&self.facts, self.wording);
        }
        if !self.is_to_be_logged(Level::Info) {
            return;
        }
        let Facts {
            session,
            client,
            via,
            local,
            original: _,
            name,
        } = &self.facts;
        let via = Via(*via);
        let name = name.as_ref();
        let name = name.map_or_else(String::new, |name| format!(" name={}", escape_word(name)));
        self.log.info(format_args!(
            "session {session} opened: client={client}{via}{name} local={local} user={ids}"
        ));
    }

    /// Notes the session's end. Returns the status of a process that had no other.
    pub(crate) fn close(&self, ended: Ended) -> Status {
        if ended.reason.is_the_gates() {
            self.refused.set(true);
        }
        self.catch_up();
        let record = Record {
            session: self.facts.session,
            facts: Some(&self.facts),
            duration: self.started.elapsed(),
            ended: &ended,
            wording: self.wording,
        };
        let level = level_of(ended.reason);
        if self.is_to_be_logged(level) {
            self.log.line(level, &record);
        }
        self.log.record(&record);
        ended.reason.status()
    }

    /// Notes a client that is no service's. Returns the status of a process that was started for it.
    pub(crate) fn close_unserved(&self) -> Status {
        self.refused.set(true);
        self.close(Ended::before_action(Reason::InternalError))
    }

    /// Says why the client is refused, which it is from here on.
    pub(crate) fn refusal(&self, why: impl Display) {
        self.refused.set(true);
        self.line(Level::Notice, why);
    }

    /// Notes the end of a connection that the session had beside its own.
    pub(crate) fn data_connection(&self, ended: impl Display) {
        self.line_about(" data", Level::Info, ended);
    }

    /// Says what failed.
    pub(crate) fn error(&self, what: &dyn Display) {
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

    /// Says a step in between.
    pub(crate) fn debug(&self, what: impl Display) {
        self.line(Level::Debug, what);
    }

    fn line(&self, level: Level, what: impl Display) {
        self.line_about("", level, what);
    }

    /// A line with these words behind the session's number.
    fn line_about(&self, of: &str, level: Level, what: impl Display) {
        if !self.log.is_logged(level) {
            return;
        }
        self.catch_up();
        if self.is_to_be_logged(level) {
            self.log.line(
                level,
                format_args!("session {}{of}: {what}", self.facts.session),
            );
        }
    }

    /// Whether a line of this level is logged, and counts it where lines are counted.
    fn is_to_be_logged(&self, level: Level) -> bool {
        let is_limited = || self.refused.get() && !self.refusals.is_none_or(Quota::take);
        self.log.is_logged(level) && !is_limited()
    }
}

fn level_of(reason: Reason) -> Level {
    match reason.is_refusal() {
        true => Level::Notice,
        false => Level::Info,
    }
}

/// Notes a client that was gone before anything could be learnt about it. Returns the status of
/// a process that was started for it.
pub(crate) fn note_gone(log: &Log) -> Status {
    let record = Record {
        session: u64::from(process::id()),
        facts: None,
        duration: Duration::ZERO,
        ended: &Ended::before_action(Reason::ClientReset),
        wording: None,
    };
    let reason = record.ended.reason;
    log.line(level_of(reason), &record);
    log.record(&record);
    reason.status()
}
