//! Moving bytes between two sockets, both ways at once, until both ways have ended.
//!
//! `machine` decides: it is told what is ready and says what it wants next. `buffer` holds
//! what is on its way, in `memory` or in a `pipe`; `course` chooses between them by what has come so
//! far, and says why. This file is the loop around them. Nothing here knows of clients' rights,
//! names or settings: two sockets and two times come in, a reason and two counts go out.

mod buffer;
mod course;
mod machine;
mod memory;
mod pipe;
mod side;
pub mod transcript;

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{KeepAlive, OobInline, TcpNoDelay};

use crate::relay::transcript::Transcript;
use crate::sys;
use crate::sys::wait::{self, Woken};
use crate::terms::reason::Reason;

use machine::{End, Machine, Ready};
pub use side::Side;

/// How bytes may get from one socket to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    /// As is best for what comes: small copies, large ones, or by splice(2).
    Adaptive,
    /// Through memory only, where they can be seen.
    Copy,
    /// By splice(2) from the first byte on.
    #[cfg(test)]
    Splice,
}

#[cfg(test)]
impl Engine {
    /// Every engine there is.
    const ALL: &[Engine] = &[Engine::Adaptive, Engine::Copy, Engine::Splice];
}

/// What a relay is to do.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How many bytes each direction may hold at most.
    pub buffer_size: usize,
    /// How long no byte may pass before the session is ended.
    pub idle_timeout: Option<Duration>,
    /// The same, once one side has ended, if it is another time.
    pub half_close_timeout: Option<Duration>,
}

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Why.
    pub reason: Reason,
    /// Bytes delivered from the client to the upstream.
    pub sent: u64,
    /// Bytes delivered from the upstream to the client.
    pub received: u64,
}

/// How long what a broken side had still sent may take to reach the other side before that is
/// reset too.
const RESET_GRACE: Duration = Duration::from_secs(2);

/// How long what a session has put off waits for its first bytes.
const MOMENT: Duration = Duration::from_millis(10);

/// Relays until both directions have ended, one side has broken off, or time is up: that of a
/// byte, or all of it at `ends_at`. When this returns, each side has been told: by an end of
/// input, or by a reset. What the session has `put_off` is done once there is time for it: when the
/// first bytes have been passed on, or none have come for a moment.
pub fn run(
    client: BorrowedFd,
    upstream: BorrowedFd,
    settings: Settings,
    ends_at: Option<Instant>,
    transcript: Option<&mut Transcript>,
    put_off: impl FnOnce(),
) -> nix::Result<Outcome> {
    let engine = match transcript {
        Some(_) => Engine::Copy,
        None => Engine::Adaptive,
    };
    let sockets = [client, upstream];
    run_by(engine, sockets, settings, ends_at, transcript, put_off)
}

/// The same, by one engine.
fn run_by(
    engine: Engine,
    [client, upstream]: [BorrowedFd; 2],
    settings: Settings,
    ends_at: Option<Instant>,
    transcript: Option<&mut Transcript>,
    put_off: impl FnOnce(),
) -> nix::Result<Outcome> {
    prepare(client);
    prepare(upstream);
    let mut put_off = Some((Instant::now() + MOMENT, put_off));
    let mut machine = Machine::new(client, upstream, engine, settings.buffer_size, transcript);
    let end = loop {
        if let Some(end) = machine.end() {
            break end;
        }
        let due = due(&machine, &settings, ends_at);
        let wanted = [Side::Client, Side::Upstream].map(|side| machine.wants(side));
        let mut set = [Side::Client, Side::Upstream].map(|side| {
            let events = wanted[side as usize].unwrap_or(PollFlags::empty());
            PollFd::new(machine.socket(side), events)
        });
        // poll(2) reports hang-ups whatever is asked, so a side of which nothing is wanted any
        // more must not be in the set.
        let polled = match wanted.map(|wanted| wanted.is_some()) {
            [true, true] => &mut set[..],
            [true, false] => &mut set[..1],
            [false, true] => &mut set[1..],
            [false, false] => &mut [],
        };
        let ends = due.map(|(deadline, _)| deadline);
        let others = machine.gives_back_at().into_iter();
        let others = others.chain(put_off.as_ref().map(|(latest, _)| *latest));
        let wakes = ends.into_iter().chain(others).min();
        let woken = wait::wait(polled, wakes)?;
        match (woken, due) {
            (Woken::Ready, _) => {
                let ready = set.map(|polled| Ready::from(polled.revents()));
                machine.advance(ready);
                machine.give_back(machine.last_activity());
                if ends_at.is_some_and(|ends_at| ends_at <= Instant::now()) {
                    break machine.end().unwrap_or(End::Abandoned(Reason::MaxDuration));
                }
            }
            (Woken::Deadline, Some((deadline, end))) if wakes == Some(deadline) => break end,
            (Woken::Deadline, _) => machine.give_back(Instant::now()),
            (Woken::Terminated, _) => break End::Abandoned(Reason::Terminated),
        }
        let is_time = |latest| woken == Woken::Ready || latest <= Instant::now();
        if let Some((_, put_off)) = put_off.take_if(|(latest, _)| is_time(*latest)) {
            put_off();
        }
    };
    let mut delivered = [Side::Client, Side::Upstream].map(|side| machine.delivered_to(side));
    let reason = match end {
        End::Orderly(first) => closed_by(first),
        End::Broken(side) => {
            let other = side.other();
            let lost =
                deliver_and_reset(machine.socket(other), machine.last_activity() + RESET_GRACE);
            delivered[other as usize] -= delivered[other as usize].min(lost as u64);
            broken_by(side)
        }
        End::Abandoned(reason) => {
            machine.abandon();
            reason
        }
    };
    let [received, sent] = delivered;
    Ok(Outcome {
        reason,
        sent,
        received,
    })
}

/// Has a socket ready for the relay: small messages are not held back, and dead peers are noticed
/// in the end.
fn prepare(socket: BorrowedFd) {
    // Each of these fails on sockets other than TCP's, which have no use for it.
    let _ = setsockopt(&socket, TcpNoDelay, &true);
    let _ = setsockopt(&socket, KeepAlive, &true);
}

/// Has urgent data read in its place in the stream, as the relay needs it, or not, as handlers may
/// want it. Of urgent data that arrives before only the last byte would be kept (`tcp_check_urg`,
/// Linux 6.18): so it is done for each socket as early as it can be, on its listener even, or
/// before it connects.
pub fn set_urgent_in_line(socket: BorrowedFd, in_line: bool) {
    // Fails on sockets other than TCP's, which have no urgent data.
    let _ = setsockopt(&socket, OobInline, &in_line);
}

/// When the relay ends if nothing happens, and how.
fn due(machine: &Machine, settings: &Settings, ends_at: Option<Instant>) -> Option<(Instant, End)> {
    let after = |timeout: Duration, end| (machine.last_activity() + timeout, end);
    let quiet = match (machine.broken(), machine.is_half_closed()) {
        (Some(side), _) => Some(after(RESET_GRACE, End::Broken(side))),
        (None, is_half_closed) => match settings.half_close_timeout {
            Some(timeout) if is_half_closed => {
                Some(after(timeout, End::Abandoned(Reason::HalfCloseTimeout)))
            }
            _ => settings
                .idle_timeout
                .map(|timeout| after(timeout, End::Abandoned(Reason::IdleTimeout))),
        },
    };
    let over = ends_at.map(|at| (at, End::Abandoned(Reason::MaxDuration)));
    [quiet, over]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
}

fn closed_by(first: Side) -> Reason {
    match first {
        Side::Client => Reason::ClientClosed,
        Side::Upstream => Reason::ServerClosed,
    }
}

fn broken_by(side: Side) -> Reason {
    match side {
        Side::Client => Reason::ClientReset,
        Side::Upstream => Reason::ServerReset,
    }
}

/// Resets a connection, but not before its peer's kernel has what was sent, or the deadline has
/// come: a reset discards the rest, and the bytes before the break did arrive. Returns how many
/// were discarded.
fn deliver_and_reset(socket: BorrowedFd, deadline: Instant) -> usize {
    let in_flight = || sys::bytes_in_flight(socket).unwrap_or(0);
    let mut pause = Duration::from_millis(1);
    while in_flight() > 0 && Instant::now() < deadline {
        // That it is acknowledged can only be asked. On a connection that is itself broken
        // nothing is acknowledged any more.
        let mut set = [wait::failures_of(socket)];
        if wait::wait(&mut set, Some(Instant::now() + pause)) != Ok(Woken::Deadline) {
            break;
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    let lost = in_flight();
    // Fails where there is no such thing as a reset (unix-domain sockets): then closing must do.
    match sys::abort_connection(socket) {
        Ok(()) => lost,
        Err(_) => 0,
    }
}

#[cfg(test)]
mod switching;
#[cfg(test)]
mod tests;
