//! The one way in which a session sleeps: until a descriptor is ready, a deadline has come, or
//! somebody asks it to end.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;

use crate::sys;

/// The signals that end a session, or a server.
pub(crate) const ENDING: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// How often something was ready. Counted for the process, whose the signals are, whatever it serves.
static BUSY: AtomicUsize = AtomicUsize::new(0);

/// One wait in so many lets signals in that a busy process would not hear.
const ASK_EVERY: usize = 32;

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// At least one descriptor is ready, or has failed.
    Ready,
    Deadline,
    /// SIGTERM or SIGINT has arrived, now or earlier.
    Terminated,
}

/// Whether a signal of [`ENDING`] has arrived.
pub(crate) fn is_end_asked_for() -> bool {
    ENDING.into_iter().any(sys::signal_arrived)
}

/// Sleeps until one of `set` is ready. The signals of [`ENDING`] must be watched
/// (`sys::watch_signals`): they are let in only here, so that none is missed.
pub(crate) fn wait(set: &mut [PollFd], deadline: Option<Instant>) -> nix::Result<Woken> {
    loop {
        if is_end_asked_for() {
            return Ok(Woken::Terminated);
        }
        match poll(set, deadline) {
            Ok(0) => return Ok(Woken::Deadline),
            Ok(_) => return Ok(Woken::Ready),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Sleeps until one of `set` is ready or the deadline has come, whoever asks for an end.
pub(crate) fn until_ready(set: &mut [PollFd], deadline: Instant) -> nix::Result<()> {
    loop {
        match poll(set, Some(deadline)) {
            Err(Errno::EINTR) => {}
            polled => return polled.map(drop),
        }
    }
}

/// ppoll(2) with signals let in. Returns how many descriptors are ready, 0 at the deadline,
/// and EINTR when a signal has arrived.
fn poll(set: &mut [PollFd], deadline: Option<Instant>) -> nix::Result<usize> {
    let left = deadline.map(|deadline| {
        TimeSpec::from_duration(deadline.saturating_duration_since(Instant::now()))
    });
    let ready = ppoll(set, left, Some(sys::wait_mask()))?;
    // Where something is ready at once, ppoll lets no signal in. Whoever is always busy asks with
    // an empty set now and then; more often would cost a call for each one that is needed.
    if ready > 0 && BUSY.fetch_add(1, Ordering::Relaxed) % ASK_EVERY == ASK_EVERY - 1 {
        // EINTR says that one has arrived, and has been noted: what is ready comes first.
        let _ = ppoll(&mut [], Some(TimeSpec::new(0, 0)), Some(sys::wait_mask()));
    }
    Ok(usize::try_from(ready).unwrap_or(0))
}

/// Whether a connection's peer has broken it off, which poll(2) reports without being asked.
pub(crate) fn is_broken(polled: &PollFd) -> bool {
    polled
        .revents()
        .is_some_and(|events| events.contains(PollFlags::POLLERR))
}

/// A descriptor of which only failures are to be reported.
pub(crate) fn failures_of(socket: BorrowedFd) -> PollFd {
    PollFd::new(socket, PollFlags::empty())
}
