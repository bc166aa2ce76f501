//! The one way in which a session sleeps: until a descriptor is ready, a deadline has come, or
//! somebody asks it to end.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::time::TimeSpec;

use crate::sys;

/// The signals that end a session, or a server.
pub const ENDING: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// At least one descriptor is ready, or has failed.
    Ready,
    /// The deadline has come.
    Deadline,
    /// SIGTERM or SIGINT has arrived, now or earlier.
    Terminated,
}

/// Sleeps until one of `set` is ready. The signals of [`ENDING`] must be watched
/// ([`sys::watch_signals`]): they are let in only here, so that none is missed.
pub fn wait(set: &mut [PollFd], deadline: Option<Instant>) -> nix::Result<Woken> {
    loop {
        if ENDING.into_iter().any(sys::signal_arrived) {
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

/// ppoll(2) with every signal let in. Returns how many descriptors are ready, 0 at the deadline,
/// and EINTR when a signal has arrived.
pub fn poll(set: &mut [PollFd], deadline: Option<Instant>) -> nix::Result<usize> {
    let left = deadline.map(|deadline| {
        TimeSpec::from_duration(deadline.saturating_duration_since(Instant::now()))
    });
    let ready = ppoll(set, left, Some(SigSet::empty()))?;
    Ok(usize::try_from(ready).unwrap_or(0))
}

/// Whether a connection's peer has broken it off, which poll(2) reports without being asked.
pub fn is_broken(polled: &PollFd) -> bool {
    polled
        .revents()
        .is_some_and(|events| events.contains(PollFlags::POLLERR))
}

/// A descriptor of which only failures are to be reported.
pub fn failures_of(socket: BorrowedFd) -> PollFd {
    PollFd::new(socket, PollFlags::empty())
}
