//! How sessions end, and the server with them.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::sessions::Sessions;
use super::watch::Wanted;
use super::{AT_MOST_EVERY, Supervisor};
use crate::sys;
use crate::sys::wait;
use crate::terms::error::Error;
use crate::terms::reason::Reason;

/// Between SIGTERM and SIGKILL for sessions when the server ends: what they give their handlers,
/// and a moment to write their closed lines.
const GRACE: Duration = Duration::from_millis(3_250);

/// How long to wait, for each session, before every child is looked at again (waitpid(2) for any).
/// It looks at one after the other, for 0.08 µs each (measured, Linux 6.18), twice: with thousands
/// that would be what a session costs most. So it takes one twenty-fifth of the time.
const SWEEP_COST: Duration = Duration::from_micros(4);

/// How the server ends.
pub(super) enum Finish {
    /// Now, and its sessions with it.
    EndSessions,
    /// When its sessions have ended.
    AwaitSessions,
}

impl Supervisor<'_> {
    /// Collects the child that a signal told of; and every other that has ended, if it is time to
    /// look at them all: two that end together may have one signal.
    pub(super) fn reap_some(&mut self, told_of: Option<Pid>, reason: Reason) {
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
    pub(super) fn reap(&mut self, reason: Reason) {
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

    pub(super) fn finish(&mut self, how: Finish) {
        self.listeners.clear();
        self.reload = None;
        if let Finish::EndSessions = how {
            return self.end_sessions();
        }
        while !self.sessions.is_empty() {
            let now = Instant::now();
            let ends_at = self.ends_at();
            if ends_at.is_some_and(|at| at <= now) {
                self.log.notice("the server's lifetime is over: ending");
                return self.end_sessions();
            }
            let next = [ends_at, self.tell_status(now), self.tell_left_out(now)];
            let next = next.into_iter().flatten().min();
            if self.sleep_and_reap(next, Reason::InternalError).is_err() {
                break;
            }
            if wait::ENDING.into_iter().any(sys::take_signal) {
                return self.end_sessions();
            }
            if sys::take_signal(Signal::SIGHUP) {
                // There is nothing left that a configuration could say.
                self.reopen_log("log files reopened");
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
}
