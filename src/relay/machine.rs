//! The relay's state: two directions that share nothing but the idle clock and the reason.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::socket::{Shutdown, shutdown};

use super::Engine;
use super::Side;
use super::buffer::{Buffer, Filled};
use crate::relay::transcript::Transcript;
use crate::sys;
use crate::terms::reason::Reason;

/// What poll(2) said of one side.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ready {
    readable: bool,
    writable: bool,
    failed: bool,
    hung_up: bool,
}

impl From<Option<PollFlags>> for Ready {
    fn from(events: Option<PollFlags>) -> Ready {
        let events = events.unwrap_or(PollFlags::POLLERR);
        let broken = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
        Ready {
            // A socket that failed or hung up does not block: reading and writing say how it is.
            readable: events.intersects(PollFlags::POLLIN | broken),
            writable: events.intersects(PollFlags::POLLOUT | broken),
            failed: events.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL),
            hung_up: events.contains(PollFlags::POLLHUP),
        }
    }
}

/// How a relay ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Both directions were delivered to their end; this side's ended first.
    Orderly(Side),
    /// This side broke off. The other has been sent what came before, and is to be reset.
    Broken(Side),
    /// It is given up, for this reason.
    Abandoned(Reason),
}

/// How far a direction has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The source may send more.
    Open,
    /// The source has ended; the rest is being delivered.
    Draining,
    /// Everything was delivered, and the sink was told that it is all.
    Done,
    /// The sink is gone: there is nobody to deliver to.
    Dropped,
}

/// One way through the relay, so that one side's end of data never cuts the other side short
/// (half-close, RFC 9293 §3.6.1).
struct Direction {
    state: State,
    buffer: Buffer,
    /// The sink would not take more when last asked.
    blocked: bool,
    /// When it last began not to.
    blocked_at: Instant,
    delivered: u64,
}

/// Two directions between two sockets that do not block.
pub(super) struct Machine<'a> {
    sockets: [BorrowedFd<'a>; 2],
    directions: [Direction; 2],
    transcript: Option<&'a mut Transcript>,
    first_end: Option<Side>,
    broken: Option<Side>,
    /// These have hung up while nothing was wanted from them. poll(2) would report it for ever.
    hung_up: [bool; 2],
    last_activity: Instant,
}

/// How often one direction may read and write before the other gets its turn.
const ROUNDS: usize = 8;

/// What one direction may move before that.
const TURN: u64 = 1 << 20;

/// A sink that takes longer for what it was given is slow.
const SLOW: Duration = Duration::from_millis(100);

impl<'a> Machine<'a> {
    pub(super) fn new(
        client: BorrowedFd<'a>,
        upstream: BorrowedFd<'a>,
        engine: Engine,
        buffer_size: usize,
        transcript: Option<&'a mut Transcript>,
    ) -> Machine<'a> {
        let now = Instant::now();
        let direction = || Direction {
            state: State::Open,
            buffer: Buffer::new(engine, buffer_size, now),
            blocked: false,
            blocked_at: now,
            delivered: 0,
        };
        Machine {
            sockets: [client, upstream],
            directions: [direction(), direction()],
            transcript,
            first_end: None,
            broken: None,
            hung_up: [false; 2],
            last_activity: now,
        }
    }

    pub(super) fn socket(&self, side: Side) -> BorrowedFd<'a> {
        self.sockets[side as usize]
    }

    /// When a byte last moved, a side ended, or the relay began.
    pub(super) fn last_activity(&self) -> Instant {
        self.last_activity
    }

    /// The side that has broken off, if one has; only what it had sent is still delivered.
    pub(super) fn broken(&self) -> Option<Side> {
        self.broken
    }

    /// Whether one direction has been delivered to its end.
    pub(super) fn is_half_closed(&self) -> bool {
        self.directions
            .iter()
            .any(|direction| direction.state == State::Done)
    }

    pub(super) fn delivered_to(&self, side: Side) -> u64 {
        self.to(side).delivered
    }

    fn from(&self, side: Side) -> &Direction {
        &self.directions[side as usize]
    }

    fn to(&self, side: Side) -> &Direction {
        self.from(side.other())
    }

    /// The events to wait for; `None` if the side is to be left out of the set.
    pub(super) fn wants(&self, side: Side) -> Option<PollFlags> {
        let mut events = PollFlags::empty();
        let (from, to) = (self.from(side), self.to(side));
        if from.state == State::Open && from.buffer.has_room() {
            events |= PollFlags::POLLIN;
        }
        if to.blocked {
            events |= PollFlags::POLLOUT;
        }
        // With nothing wanted, a reset is still to be noticed.
        let worth_watching = self.broken != Some(side) && !self.hung_up[side as usize];
        (!events.is_empty() || worth_watching).then_some(events)
    }

    /// Moves what can be moved.
    pub(super) fn advance(&mut self, ready: [Ready; 2]) {
        for side in [Side::Client, Side::Upstream] {
            let Ready {
                failed, hung_up, ..
            } = ready[side as usize];
            let unwanted = self.wants(side) == Some(PollFlags::empty());
            if unwanted && failed {
                self.break_off(side);
            } else if unwanted && hung_up {
                self.hung_up[side as usize] = true;
            }
        }
        for from in [Side::Client, Side::Upstream] {
            let readable = ready[from as usize].readable;
            let writable = ready[from.other() as usize].writable;
            self.pump(from, readable, writable);
        }
    }

    /// Moves bytes in one direction: reads, writes at once what was read, and goes on while there
    /// seems to be more.
    fn pump(&mut self, from: Side, mut readable: bool, writable: bool) {
        let direction = &mut self.directions[from as usize];
        if direction.blocked && writable {
            direction.blocked = false;
            if direction.blocked_at.elapsed() >= SLOW {
                direction.buffer.slow_down();
            }
        }
        let turn_ends = direction.delivered + TURN;
        for _ in 0..ROUNDS {
            let filled = readable && self.fill(from, &mut readable);
            let drained = self.drain(from);
            self.finish(from);
            if !filled && !drained {
                return;
            }
            self.last_activity = Instant::now();
            if self.from(from).delivered >= turn_ends {
                return;
            }
        }
    }

    /// Reads once, if the direction has room. Returns whether bytes came; clears `more` unless
    /// there are likely to be more.
    fn fill(&mut self, from: Side, more: &mut bool) -> bool {
        let source = self.socket(from);
        let direction = &mut self.directions[from as usize];
        if direction.state != State::Open || !direction.buffer.has_room() {
            return false;
        }
        *more = false;
        match direction.buffer.fill(source) {
            Ok(Filled::Some {
                count,
                more: likely,
            }) => {
                *more = likely;
                if let Some(transcript) = &mut self.transcript {
                    transcript.record(from, direction.buffer.newest(count));
                }
                return true;
            }
            Ok(Filled::Nothing) => {}
            Ok(Filled::End) => {
                direction.state = State::Draining;
                self.first_end.get_or_insert(from);
            }
            Err(_) => {
                direction.state = State::Draining;
                self.break_off(from);
            }
        }
        false
    }

    /// Writes once, if there is something to write to a sink that takes it. Returns whether
    /// bytes went.
    fn drain(&mut self, from: Side) -> bool {
        let sink = self.socket(from.other());
        let direction = &mut self.directions[from as usize];
        if direction.buffer.is_empty() || direction.blocked {
            return false;
        }
        match direction.buffer.drain(sink) {
            Ok(count) => {
                direction.delivered += count as u64;
                if !direction.buffer.is_empty() {
                    direction.blocked = true;
                    direction.blocked_at = Instant::now();
                }
                count > 0
            }
            Err(_) => {
                self.break_off(from.other());
                false
            }
        }
    }

    /// Tells the sink of the end of input, once everything before it has been delivered.
    fn finish(&mut self, from: Side) {
        let sink = self.socket(from.other());
        let direction = &mut self.directions[from as usize];
        if direction.state == State::Draining && direction.buffer.is_empty() {
            direction.state = State::Done;
            self.last_activity = Instant::now();
            if self.broken.is_none() {
                // Fails if the sink has been reset meanwhile, which poll(2) will report.
                let _ = shutdown(sink.as_raw_fd(), Shutdown::Write);
            }
        }
    }

    /// Notes that a side has broken off: nothing can be delivered to it any more. What it had
    /// sent before can still be read, and is delivered.
    fn break_off(&mut self, side: Side) {
        self.broken.get_or_insert(side);
        self.last_activity = Instant::now();
        let towards = &mut self.directions[side.other() as usize];
        towards.state = State::Dropped;
        towards.blocked = false;
        towards.buffer.clear();
    }

    /// When there will be something to give back, if nothing happens until then.
    pub(super) fn gives_back_at(&self) -> Option<Instant> {
        let [one, other] = &self.directions;
        let [one, other] = [one, other].map(|direction| direction.buffer.gives_back_at());
        one.into_iter().chain(other).min()
    }

    /// Gives back what nobody needs any more.
    pub(super) fn give_back(&mut self, now: Instant) {
        for direction in &mut self.directions {
            direction.buffer.give_back(now);
        }
    }

    /// How the relay has ended, if it has.
    pub(super) fn end(&self) -> Option<End> {
        let is_over = |direction: &Direction| match direction.state {
            State::Open | State::Draining => false,
            State::Done | State::Dropped => true,
        };
        if !self.directions.iter().all(is_over) {
            return None;
        }
        self.broken
            .map(End::Broken)
            .or(self.first_end.map(End::Orderly))
    }

    /// Closes both sides, whatever is still on its way. A side that would miss something is
    /// reset: what it got must not look complete.
    pub(super) fn abandon(&mut self) {
        for side in [Side::Client, Side::Upstream] {
            let socket = self.socket(side);
            // Each fails only on a connection that has ended already.
            let direction = self.to(side);
            let unread = match direction.state {
                State::Open => sys::bytes_waiting(self.socket(side.other())).unwrap_or(0),
                State::Draining | State::Done | State::Dropped => 0,
            };
            if direction.buffer.is_empty() && unread == 0 {
                let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
            } else {
                let _ = sys::abort_connection(socket);
            }
        }
    }
}
