//! The relay's state: two directions that share nothing but the idle clock and the reason. It is
//! told what is ready and what time it is, and says what it wants next; it never waits.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};

use super::buffer::{Buffer, Failure, Filled};
use super::direction::{Direction, State};
use super::pace::Pace;
use super::pacing::Pacing;
use super::readiness::{Interest, Ready};
use super::{Bounds, Desk, Engine, Outcome, Side};
use crate::sys::{self, sockets};
use crate::terms::reason::Reason;

/// Who is shown what passes.
pub trait Tap {
    /// These bytes have arrived from this side.
    fn record(&mut self, from: Side, bytes: &[u8]);
}

/// How a relay comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Both directions were delivered to their end; this side's ended first.
    Orderly(Side),
    /// This side broke off. The other has been sent what came before, and is to be reset.
    Broken(Side),
    /// It is given up, for this reason.
    Abandoned(Reason),
}

/// How far a relay has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Bytes move, or may.
    Moving,
    /// This side has broken off, and the other has been sent all there was. It is reset once its
    /// kernel has that, which can only be asked.
    Resetting { broken: Side, asks_at: Instant },
    /// Both sides have been told.
    Over(Reason),
}

/// Two directions between two sockets.
pub struct Machine {
    sockets: [OwnedFd; 2],
    directions: [Direction; 2],
    bounds: Bounds,
    engine: Engine,
    phase: Phase,
    first_end: Option<Side>,
    broken: Option<Side>,
    /// These have hung up while nothing was wanted from them. poll(2) would report it for ever.
    hung_up: [bool; 2],
    /// When a byte last moved, a side ended, what was held back was let go, or the relay began.
    last_activity: Instant,
    ends_at: Option<Instant>,
}

/// A relay in which nothing is on its way, as another process can be told of it. Its times go on.
#[derive(Debug)]
pub struct Parked {
    /// The client's and the upstream's.
    pub sockets: [OwnedFd; 2],
    /// What it is to do.
    pub bounds: Bounds,
    /// When a byte last moved, a side ended, or the relay began.
    pub last_activity: Instant,
    /// When it is to be over, if it is.
    pub ends_at: Option<Instant>,
    /// The side whose input has ended and been delivered, if one's has.
    pub ended: Option<Side>,
    /// Bytes delivered from the client to the upstream.
    pub sent: u64,
    /// Bytes delivered from the upstream to the client.
    pub received: u64,
    /// What holds each direction back, by the side that it comes from.
    pub(super) paces: [Option<Box<Pace>>; 2],
}

/// How often one direction may read and write before the other gets its turn.
const ROUNDS: usize = 8;

/// What one direction may move before that.
const TURN: u64 = 1 << 20;

/// A sink that takes longer for what it was given is slow.
const SLOW: Duration = Duration::from_millis(100);

/// How long what a broken side had still sent may take to reach the other side before that is
/// reset too.
const RESET_GRACE: Duration = Duration::from_secs(2);

/// The shortest and the longest time between two questions whether it has.
const RESET_PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

impl Machine {
    /// A relay between a client and its upstream that begins now, and is over at `ends_at` at the
    /// latest.
    pub fn new(
        sockets: [OwnedFd; 2],
        bounds: Bounds,
        engine: Engine,
        ends_at: Option<Instant>,
        now: Instant,
    ) -> Machine {
        let direction = || Direction::new(Buffer::new(engine, bounds.buffer_size, now));
        Machine {
            sockets,
            directions: [direction(), direction()],
            bounds,
            engine,
            phase: Phase::Moving,
            first_end: None,
            broken: None,
            hung_up: [false; 2],
            last_activity: now,
            ends_at,
        }
    }

    /// Holds each direction back from now on as `pacing` says; nothing must have moved yet.
    // Cold: who asks for nothing of it does not pay for its code.
    #[cold]
    pub fn pace(&mut self, pacing: &Pacing, now: Instant) {
        let paces = Side::BOTH.map(|from| pacing.of(from, now).map(Box::new));
        self.keep_pace(paces, now);
    }

    fn keep_pace(&mut self, paces: [Option<Box<Pace>>; 2], now: Instant) {
        for (direction, pace) in self.directions.iter_mut().zip(paces) {
            if let Some(pace) = pace {
                direction.keep_pace(pace, self.engine, self.bounds.buffer_size, now);
            }
        }
    }

    /// Has both peers asked whether they are there when they have been silent for so long, or never:
    /// otherwise they are when the system finds it time.
    pub(crate) fn ask_silent_peers(&self, after: Option<Duration>) {
        for socket in &self.sockets {
            sockets::ask_silent_peer(socket.as_fd(), after);
        }
    }

    /// Takes the relay apart, if nothing is on its way, nobody listens in, and no side has broken
    /// off. What it holds for its bytes is given back.
    #[expect(
        clippy::result_large_err,
        reason = "it is no error, but the machine as it was"
    )]
    pub fn park(self) -> Result<Parked, Machine> {
        let rests = self.phase == Phase::Moving && self.is_empty();
        if !rests || self.broken.is_some() || self.engine.shows_bytes() {
            return Err(self);
        }
        let [sent, received] = [Side::Upstream, Side::Client].map(|side| self.delivered_to(side));
        Ok(Parked {
            paces: self.directions.map(|direction| direction.pace),
            sockets: self.sockets,
            bounds: self.bounds,
            last_activity: self.last_activity,
            ends_at: self.ends_at,
            ended: self.first_end,
            sent,
            received,
        })
    }

    /// Goes on with a relay that was parked, here or elsewhere.
    pub fn resume(parked: Parked) -> Machine {
        let Parked {
            sockets,
            bounds,
            last_activity,
            ends_at,
            ended,
            sent,
            received,
            paces,
        } = parked;
        let engine = Engine::Adaptive;
        let mut machine = Machine::new(sockets, bounds, engine, ends_at, last_activity);
        machine.keep_pace(paces, last_activity);
        for (direction, delivered) in machine.directions.iter_mut().zip([sent, received]) {
            direction.delivered = delivered;
        }
        if let Some(side) = ended {
            machine.directions[side as usize].state = State::Done;
        }
        machine.first_end = ended;
        machine
    }

    /// The socket of one side.
    pub fn socket(&self, side: Side) -> BorrowedFd<'_> {
        self.sockets[side as usize].as_fd()
    }

    /// What has arrived from a side of a machine that is [edited](Engine::Edited), and goes on to the
    /// other: `None` of any other machine, or where nothing can go on. Between two turns its owner takes
    /// from the one and adds to the other; then the machine [advances](Machine::advance), whatever is
    /// ready. A side that has ended is told the other when nothing is left of either.
    pub fn desk(&mut self, from: Side) -> Option<&mut Desk> {
        let direction = &mut self.directions[from as usize];
        match (self.phase, direction.state) {
            (Phase::Moving, State::Open | State::Draining) => direction.buffer.desk(),
            _ => None,
        }
    }

    /// Whether nothing more will arrive from a side.
    pub fn has_ended(&self, side: Side) -> bool {
        self.from(side).state != State::Open
    }

    /// Whether everything that was read has been written.
    pub fn is_empty(&self) -> bool {
        let is_empty = |direction: &Direction| direction.buffer.is_empty();
        self.directions.iter().all(is_empty)
    }

    /// When a byte last moved, a side ended, or the relay began. Later than its beginning, it says
    /// that the first bytes have been passed on, or that there are none.
    pub fn last_activity(&self) -> Instant {
        self.last_activity
    }

    /// How the relay has ended, if it has: then each side has been told, by an end of input or by a
    /// reset.
    pub fn end(&self) -> Option<Outcome> {
        match self.phase {
            Phase::Moving | Phase::Resetting { .. } => None,
            Phase::Over(reason) => Some(Outcome {
                reason,
                sent: self.delivered_to(Side::Upstream),
                received: self.delivered_to(Side::Client),
            }),
        }
    }

    /// Whether one direction has been delivered to its end.
    pub fn is_half_closed(&self) -> bool {
        self.directions
            .iter()
            .any(|direction| direction.state == State::Done)
    }

    /// How many bytes have been delivered to this side.
    pub(super) fn delivered_to(&self, side: Side) -> u64 {
        self.to(side).delivered
    }

    fn from(&self, side: Side) -> &Direction {
        &self.directions[side as usize]
    }

    fn to(&self, side: Side) -> &Direction {
        self.from(side.other())
    }

    /// What to wait for at one side; `None` if the side is not to be watched at all.
    pub fn wants(&self, side: Side) -> Option<Interest> {
        match self.phase {
            Phase::Moving => {}
            // On a connection that is itself broken nothing is acknowledged any more.
            Phase::Resetting { broken, .. } => {
                return (side != broken).then_some(Interest::FAILURES);
            }
            Phase::Over(_) => return None,
        }
        let (from, to) = (self.from(side), self.to(side));
        let interest = Interest {
            readable: from.is_open_for_more(),
            writable: to.blocked.is_some(),
        };
        // With nothing wanted, a reset is still to be noticed.
        let worth_watching = self.broken != Some(side) && !self.hung_up[side as usize];
        (interest != Interest::FAILURES || worth_watching).then_some(interest)
    }

    /// When something is due, if nothing happens until then: see [`Machine::tick`].
    pub fn wakes_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Moving => {
                let end = self.due().map(|(at, _)| at);
                let [one, other] = &self.directions;
                let given_back = [one, other].map(|direction| direction.buffer.gives_back_at());
                let let_go = [one, other].map(|direction| direction.pace.as_ref()?.wakes_at());
                let due = given_back.into_iter().chain(let_go).chain([end]);
                due.flatten().min()
            }
            Phase::Resetting { asks_at, .. } => Some(asks_at.min(self.reset_by())),
            Phase::Over(_) => None,
        }
    }

    /// Does what is due by now.
    pub fn tick(&mut self, now: Instant) {
        match self.phase {
            Phase::Moving => match self.due() {
                Some((at, end)) if at <= now => self.conclude(end, now),
                _ => {
                    for from in Side::BOTH {
                        self.let_go(from, now);
                        self.directions[from as usize].buffer.give_back(now);
                    }
                    self.conclude_if_over(now);
                }
            },
            Phase::Resetting { broken, asks_at } => {
                if asks_at.min(self.reset_by()) <= now {
                    self.reset_when_delivered(broken, now);
                }
            }
            Phase::Over(_) => {}
        }
    }

    /// Ends the relay, whatever is still on its way.
    pub fn give_up(&mut self, reason: Reason) {
        match self.phase {
            Phase::Moving => self.abandon(reason),
            Phase::Resetting { broken, .. } => self.reset(broken),
            Phase::Over(_) => {}
        }
    }

    /// Moves what can be moved. What arrives is shown to the tap, if the machine only copies
    /// or is edited.
    pub fn advance(&mut self, ready: [Ready; 2], now: Instant, mut tap: Option<&mut dyn Tap>) {
        match self.phase {
            Phase::Moving => {}
            Phase::Resetting { broken, .. } => {
                let Ready {
                    failed, hung_up, ..
                } = ready[broken.other() as usize];
                if failed || hung_up {
                    self.reset(broken);
                }
                return;
            }
            Phase::Over(_) => return,
        }
        for side in Side::BOTH {
            let Ready {
                failed, hung_up, ..
            } = ready[side as usize];
            let unwanted = self.wants(side) == Some(Interest::FAILURES);
            if unwanted && failed {
                self.break_off(side, now);
            } else if unwanted && hung_up {
                self.hung_up[side as usize] = true;
            }
        }
        for from in Side::BOTH {
            let readable = ready[from as usize].readable;
            let writable = ready[from.other() as usize].writable;
            self.pump(from, readable, writable, now, &mut tap);
        }
        self.conclude_if_over(now);
    }

    fn conclude_if_over(&mut self, now: Instant) {
        if self.phase == Phase::Moving
            && let Some(end) = self.reached_end()
        {
            self.conclude(end, now);
        }
    }

    /// Goes on with what a direction was held back with until now.
    fn let_go(&mut self, from: Side, now: Instant) {
        let pace = self.directions[from as usize].pace.as_mut();
        if pace.is_some_and(|pace| pace.let_go(now)) {
            self.note_activity(now);
            self.pump(from, false, false, now, &mut None);
        }
    }

    /// Has the idle clock begin anew.
    fn note_activity(&mut self, now: Instant) {
        // Held back, what a side had sent before it broke off could put the other's reset off for hours.
        let is_paced = |direction: &Direction| direction.pace.is_some();
        if self.broken.is_none() || !self.directions.iter().any(is_paced) {
            self.last_activity = now;
        }
    }

    /// Moves bytes in one direction: reads, writes at once what was read, and goes on while there
    /// seems to be more.
    fn pump(
        &mut self,
        from: Side,
        mut readable: bool,
        writable: bool,
        now: Instant,
        tap: &mut Option<&mut dyn Tap>,
    ) {
        let direction = &mut self.directions[from as usize];
        let asked_again = direction.blocked.take_if(|_| writable);
        if asked_again.is_some_and(|since| now.saturating_duration_since(since) >= SLOW) {
            direction.buffer.slow_down();
        }
        let turn_ends = direction.delivered + TURN;
        for _ in 0..ROUNDS {
            let filled = readable && self.fill(from, &mut readable, now, tap);
            let drained = self.drain(from, now);
            self.finish(from, now);
            if !filled && !drained {
                return;
            }
            self.note_activity(now);
            if self.from(from).delivered >= turn_ends {
                return;
            }
        }
    }

    /// Reads once, if the direction has room. Returns whether bytes came; clears `more` unless
    /// there are likely to be more.
    fn fill(
        &mut self,
        from: Side,
        more: &mut bool,
        now: Instant,
        tap: &mut Option<&mut dyn Tap>,
    ) -> bool {
        let source = self.sockets[from as usize].as_fd();
        let direction = &mut self.directions[from as usize];
        let most = direction.may_read_now(now);
        if most == 0 {
            return false;
        }
        *more = false;
        match direction.buffer.fill(source, most, now) {
            Ok(Filled::Some {
                count,
                more: likely,
            }) => {
                *more = likely;
                direction.has_read(count, now);
                // Bytes in a pipe cannot be seen.
                if self.engine.shows_bytes()
                    && let Some(tap) = tap
                {
                    tap.record(from, direction.buffer.newest(count));
                }
                return true;
            }
            Ok(Filled::Nothing) => {}
            Ok(Filled::End) => {
                direction.state = State::Draining;
                self.first_end.get_or_insert(from);
            }
            Err(Failure::Source) => {
                direction.state = State::Draining;
                self.break_off(from, now);
            }
            Err(Failure::Ours) => self.abandon(Reason::InternalError),
        }
        false
    }

    /// Writes once, if there is something to write to a sink that takes it. Returns whether
    /// bytes went.
    fn drain(&mut self, from: Side, now: Instant) -> bool {
        let sink = self.sockets[from.other() as usize].as_fd();
        let direction = &mut self.directions[from as usize];
        let offered = direction.may_write(now);
        if offered == 0 || direction.blocked.is_some() {
            return false;
        }
        match direction.buffer.drain(sink, offered) {
            Ok(count) => {
                direction.has_written(count);
                if count < offered {
                    direction.blocked = Some(now);
                }
                count > 0
            }
            Err(_) => {
                self.break_off(from.other(), now);
                false
            }
        }
    }

    /// Tells the sink of the end of input, once everything before it has been delivered.
    fn finish(&mut self, from: Side, now: Instant) {
        let direction = &mut self.directions[from as usize];
        if direction.state == State::Draining && direction.buffer.is_empty() {
            direction.state = State::Done;
            self.last_activity = now;
            if self.broken.is_none() {
                // Fails if the sink has been reset meanwhile, which poll(2) will report.
                let _ = shutdown(self.socket(from.other()).as_raw_fd(), Shutdown::Write);
            }
        }
    }

    /// Notes that a side has broken off: nothing can be delivered to it any more. What it had
    /// sent before can still be read, and is delivered.
    fn break_off(&mut self, side: Side, now: Instant) {
        self.broken.get_or_insert(side);
        self.last_activity = now;
        let towards = &mut self.directions[side.other() as usize];
        towards.drop_rest();
    }

    /// How the relay comes to its end, if nothing is left to be moved.
    fn reached_end(&self) -> Option<End> {
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

    /// When the relay comes to its end if nothing happens, and how.
    fn due(&self) -> Option<(Instant, End)> {
        let held = |pace: &Pace| pace.holds_until();
        let idle_since = self.held_until(held);
        let after = |timeout: Duration, end| (idle_since + timeout, end);
        let quiet = match self.broken {
            Some(side) => Some((self.reset_by(), End::Broken(side))),
            None => match self.bounds.half_close_timeout {
                Some(timeout) if self.is_half_closed() => {
                    Some(after(timeout, End::Abandoned(Reason::HalfCloseTimeout)))
                }
                _ => {
                    let timeout = self.bounds.idle_timeout;
                    timeout.map(|timeout| after(timeout, End::Abandoned(Reason::IdleTimeout)))
                }
            },
        };
        let over = self
            .ends_at
            .map(|at| (at, End::Abandoned(Reason::MaxDuration)));
        [quiet, over]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at)
    }

    /// When what a broken side had sent must have been delivered.
    fn reset_by(&self) -> Instant {
        let delayed = |pace: &Pace| pace.delays_until();
        self.held_until(delayed) + RESET_GRACE
    }

    /// When something last happened, or the last of what is held back until then will be let go.
    fn held_until(&self, until: impl Fn(&Pace) -> Option<Instant>) -> Instant {
        let directions = self.directions.iter();
        let held = directions.filter_map(|direction| until(direction.pace.as_ref()?));
        held.fold(self.last_activity, Instant::max)
    }

    fn conclude(&mut self, end: End, now: Instant) {
        match end {
            End::Orderly(Side::Client) => self.phase = Phase::Over(Reason::ClientClosed),
            End::Orderly(Side::Upstream) => self.phase = Phase::Over(Reason::ServerClosed),
            End::Broken(side) => self.reset_when_delivered(side, now),
            End::Abandoned(reason) => self.abandon(reason),
        }
    }

    /// Resets the side that has not broken off, but not before its kernel has what was sent, or
    /// time is up: a reset discards the rest, and the bytes before the break did arrive.
    fn reset_when_delivered(&mut self, broken: Side, now: Instant) {
        if self.in_flight_to(broken.other()) == 0 || self.reset_by() <= now {
            return self.reset(broken);
        }
        // As long again as it has taken so far.
        let waited = now.saturating_duration_since(self.last_activity);
        self.phase = Phase::Resetting {
            broken,
            asks_at: now + waited.clamp(RESET_PAUSES.0, RESET_PAUSES.1),
        };
    }

    fn in_flight_to(&self, side: Side) -> u64 {
        sys::bytes_in_flight(self.socket(side)).unwrap_or(0) as u64
    }

    /// Resets the side that has not broken off. What it did not get was not delivered.
    fn reset(&mut self, broken: Side) {
        let side = broken.other();
        let lost = self.in_flight_to(side);
        // Fails where there is no such thing as a reset (unix-domain sockets): then closing must do.
        if sys::abort_connection(self.socket(side)).is_ok() {
            let delivered = &mut self.directions[broken as usize].delivered;
            *delivered = delivered.saturating_sub(lost);
        }
        self.phase = Phase::Over(match broken {
            Side::Client => Reason::ClientReset,
            Side::Upstream => Reason::ServerReset,
        });
    }

    /// Closes both sides, whatever is still on its way. A side that would miss something is
    /// reset: what it got must not look complete.
    fn abandon(&mut self, reason: Reason) {
        for side in Side::BOTH {
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
        self.phase = Phase::Over(reason);
    }
}
