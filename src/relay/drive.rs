//! The loop around a few machines, by poll(2): a session's one, or the several of a session whose
//! protocol has more connections than one.

use std::time::Instant;

use nix::poll::{PollFd, PollFlags};
use nix::sched::sched_yield;

use super::course::SMALL;
use super::hunch::{Hunch, Moved};
use super::machine::{Machine, Tap};
use super::readiness::Ready;
use super::side::Side;
use crate::sys::wait::{self, Woken};
use crate::terms::reason::Reason;

/// A machine in a loop, and who listens in.
pub struct Relay<'a> {
    /// The machine.
    pub machine: &'a mut Machine,
    /// Who is shown what passes, if the machine only [copies](super::Engine::Copy) or is
    /// [edited](super::Engine::Edited).
    pub tap: Option<&'a mut dyn Tap>,
}

/// What is known of both sides of a machine.
type Sides = [Ready; 2];

/// One turn: sleeps until something is ready or due, or `until`, and has each machine do what can be
/// done then. SIGTERM and SIGINT end them all. Returns when it woke. The owner of the machines looks
/// at them between two turns, and does what is its own to do: once bytes have passed, at `until`, or
/// when all of them have [ended](Machine::end).
///
/// One of `beside` wakes it as well: it is not told whether it was that, and who has brought them looks.
///
/// Where the `hunch` is that there is something to read already, that is looked for first.
///
/// For one machine nothing is allocated.
pub fn turn(
    relays: &mut [Relay],
    beside: &[PollFd],
    hunch: &mut Hunch,
    until: Option<Instant>,
) -> nix::Result<Instant> {
    if hunch.is_worth_a_look() {
        let (now, found) = look(relays);
        hunch.has_looked(found);
        if found != Moved::Nothing {
            return Ok(now);
        }
    }
    let mut of_one = [Sides::default()];
    let mut of_several = Vec::new();
    let ready = if relays.len() == 1 {
        &mut of_one[..]
    } else {
        of_several.resize(relays.len(), Sides::default());
        &mut of_several[..]
    };
    let due = relays.iter().filter_map(|relay| relay.machine.wakes_at());
    let woken = sleep(relays, beside, ready, due.chain(until).min())?;
    let now = Instant::now();
    let mut moved = Moved::Nothing;
    for (relay, &mut sides) in relays.iter_mut().zip(ready) {
        if woken == Woken::Terminated {
            relay.machine.give_up(Reason::Terminated);
        } else if sides.into_iter().any(Ready::is_any) {
            moved = moved.max(relay.advance(sides, now));
        }
        if relay.machine.wakes_at().is_some_and(|due| due <= now) {
            relay.machine.tick(now);
        }
    }
    hunch.has_slept(moved);
    Ok(now)
}

impl Relay<'_> {
    /// Has the machine move what it can. Returns how much came of it.
    fn advance(&mut self, sides: Sides, now: Instant) -> Moved {
        let delivered = |machine: &Machine| Side::BOTH.map(|side| machine.delivered_to(side));
        let before = delivered(self.machine);
        let tap = self.tap.as_mut().map(|tap| &mut **tap as &mut dyn Tap);
        self.machine.advance(sides, now, tap);
        if self.machine.last_activity() != now && self.machine.end().is_none() {
            return Moved::Nothing;
        }
        let [one, other] = delivered(self.machine);
        // A reset takes back what was lost by it.
        let most = one
            .saturating_sub(before[0])
            .max(other.saturating_sub(before[1]));
        if most > SMALL as u64 {
            Moved::Much
        } else {
            Moved::Little
        }
    }
}

/// Lets others have the processor, and reads what they have sent meanwhile. Returns when that was, and
/// what there was.
fn look(relays: &mut [Relay]) -> (Instant, Moved) {
    // Fails nowhere on Linux.
    let _ = sched_yield();
    let now = Instant::now();
    let mut moved = Moved::Nothing;
    for relay in relays {
        let wants = |side| relay.machine.wants(side);
        let may_be_readable = |side| Ready {
            readable: wants(side).is_some_and(|interest| interest.readable),
            ..Ready::default()
        };
        let sides = Side::BOTH.map(may_be_readable);
        moved = moved.max(relay.advance(sides, now));
        // What is due is done when the turn has slept.
    }
    (now, moved)
}

/// Sleeps until a side is ready, and notes which are.
fn sleep(
    relays: &[Relay],
    beside: &[PollFd],
    ready: &mut [Sides],
    until: Option<Instant>,
) -> nix::Result<Woken> {
    let mut wanted = relays
        .iter()
        .flat_map(|relay| Side::BOTH.map(|side| polled(relay.machine, side)))
        .flatten()
        .chain(beside.iter().cloned());
    let (mut one, mut two, mut more);
    let set = match (wanted.next(), wanted.next(), wanted.next()) {
        (Some(first), Some(second), Some(third)) => {
            more = vec![first, second, third];
            more.extend(wanted);
            &mut more[..]
        }
        (Some(first), Some(second), None) => {
            two = [first, second];
            &mut two[..]
        }
        (Some(first), None, _) => {
            one = [first];
            &mut one[..]
        }
        (None, ..) => &mut [],
    };
    let woken = wait::wait(set, until)?;
    let mut polled = set.iter();
    for (relay, sides) in relays.iter().zip(ready) {
        for side in Side::BOTH {
            if relay.machine.wants(side).is_some() {
                sides[side as usize] = polled.next().map_or(Ready::default(), ready_as_polled);
            }
        }
    }
    Ok(woken)
}

/// How to ask for a side, if anything is wanted from it: poll(2) reports hang-ups whatever is asked,
/// so that a side of which nothing is wanted any more must not be in the set.
fn polled(machine: &Machine, side: Side) -> Option<PollFd<'_>> {
    let interest = machine.wants(side)?;
    let mut events = PollFlags::empty();
    events.set(PollFlags::POLLIN, interest.readable);
    events.set(PollFlags::POLLOUT, interest.writable);
    Some(PollFd::new(machine.socket(side), events))
}

fn ready_as_polled(polled: &PollFd) -> Ready {
    let events = polled.revents().unwrap_or(PollFlags::POLLERR);
    let broken = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
    Ready {
        // A socket that failed or hung up does not block: reading and writing say how it is.
        readable: events.intersects(PollFlags::POLLIN | broken),
        writable: events.intersects(PollFlags::POLLOUT | broken),
        failed: events.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL),
        hung_up: events.contains(PollFlags::POLLHUP),
    }
}
