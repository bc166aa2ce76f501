//! Moving bytes between two sockets, both ways at once, until both ways have ended.
//!
//! `machine` decides: it is told what is ready and says what it wants next. `buffer` holds
//! what is on its way. This file is the loop around them. Nothing here knows of clients' rights,
//! names or settings: two sockets and two times come in, a reason and two counts go out.

mod buffer;
mod machine;

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{KeepAlive, OobInline, TcpNoDelay};

use crate::reason::Reason;
use crate::sys;
use crate::transcript::Transcript;
use crate::wait::{self, Woken};

pub use machine::Side;
use machine::{End, Machine, Ready};

/// How bytes get from one socket to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Through a pipe, by splice(2): they stay in the kernel.
    Splice,
    /// Through memory, by recv(2) and send(2).
    Copy,
}

impl Engine {
    /// Every engine there is.
    pub const ALL: &[Engine] = &[Engine::Splice, Engine::Copy];
}

/// What a relay is to do.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How bytes are moved; a transcript needs [`Engine::Copy`], and gets it.
    pub engine: Engine,
    /// How many bytes each direction may hold.
    pub buffer_size: usize,
    /// How long no byte may pass before the session is ended.
    pub idle_timeout: Option<Duration>,
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

/// Relays until both directions have ended, one side has broken off, or time is up. When this
/// returns, each side has been told: by an end of input, or by a reset.
pub fn run(
    client: BorrowedFd,
    upstream: BorrowedFd,
    settings: Settings,
    transcript: Option<&mut Transcript>,
) -> nix::Result<Outcome> {
    prepare(client)?;
    prepare(upstream)?;
    let engine = match transcript {
        Some(_) => Engine::Copy,
        None => settings.engine,
    };
    let mut machine = Machine::new(client, upstream, engine, settings.buffer_size, transcript);
    let end = loop {
        if let Some(end) = machine.end() {
            break end;
        }
        let deadline = deadline(&machine, settings.idle_timeout);
        let mut set = [Side::Client, Side::Upstream].map(|side| {
            let wanted = machine.wants(side).unwrap_or(PollFlags::empty());
            PollFd::new(machine.socket(side), wanted)
        });
        // poll(2) reports hang-ups whatever is asked, so a side of which nothing is wanted any
        // more must not be in the set.
        let in_set = [Side::Client, Side::Upstream].map(|side| machine.wants(side).is_some());
        let polled = match in_set {
            [true, true] => &mut set[..],
            [true, false] => &mut set[..1],
            [false, true] => &mut set[1..],
            [false, false] => &mut [],
        };
        match wait::wait(polled, deadline)? {
            Woken::Ready => {
                let ready = set.map(|polled| Ready::from(polled.revents()));
                machine.advance(ready);
            }
            Woken::Deadline => break machine.overdue(),
            Woken::Terminated => break End::Abandoned(Reason::Terminated),
        }
    };
    let reason = match end {
        End::Orderly(first) => closed_by(first),
        End::Broken(side) => {
            deliver_and_reset(machine.socket(side.other()));
            broken_by(side)
        }
        End::Abandoned(reason) => {
            machine.abandon();
            reason
        }
    };
    Ok(Outcome {
        reason,
        sent: machine.delivered_to(Side::Upstream),
        received: machine.delivered_to(Side::Client),
    })
}

/// Has a socket ready for the relay: it does not block; small messages are not held back, dead
/// peers are noticed in the end, and urgent data is read in its place in the stream.
fn prepare(socket: BorrowedFd) -> nix::Result<()> {
    sys::set_blocking(socket, false)?;
    // Each of these fails on sockets other than TCP's, which have no use for it.
    let _ = setsockopt(&socket, TcpNoDelay, &true);
    let _ = setsockopt(&socket, KeepAlive, &true);
    keep_urgent_data(socket);
    Ok(())
}

/// Has urgent data stay in its place in the stream. To be called as early as can be, on a
/// listener or before connecting: until then, an urgent byte that is the next to be read is
/// dropped by the kernel when another arrives (`tcp_check_urg`, Linux 6.18).
pub fn keep_urgent_data(socket: BorrowedFd) {
    // Fails on sockets other than TCP's, which have no urgent data.
    let _ = setsockopt(&socket, OobInline, &true);
}

fn deadline(machine: &Machine, idle_timeout: Option<Duration>) -> Option<Instant> {
    let idle = idle_timeout.map(|timeout| machine.last_byte() + timeout);
    let grace = machine
        .is_breaking()
        .then(|| machine.last_byte() + RESET_GRACE);
    [idle, grace].into_iter().flatten().min()
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

/// Resets a connection, but not before its peer's kernel has what was sent: a reset discards the
/// rest, and the bytes before the break did arrive.
fn deliver_and_reset(socket: BorrowedFd) {
    let deadline = Instant::now() + RESET_GRACE;
    let mut pause = Duration::from_millis(1);
    while sys::bytes_in_flight(socket).is_ok_and(|bytes| bytes > 0) && Instant::now() < deadline {
        if wait::wait(&mut [], Some(Instant::now() + pause)) != Ok(Woken::Deadline) {
            break;
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    // Fails where there is no such thing as a reset (unix-domain sockets): then closing must do.
    let _ = sys::abort_connection(socket);
}

#[cfg(test)]
mod tests;
