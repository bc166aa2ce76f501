//! The one way in which a step of a session waits: it watches what the step is waiting for and,
//! whatever that is, the client, the end of the session's time, and the signals that end it.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::PollFd;

use crate::sys::wait::{self, Woken};
use crate::terms::reason::Reason;

/// What a step watches besides what it waits for.
#[derive(Clone)]
pub(crate) struct Vigil<'a> {
    /// The client, as long as it can still break off.
    client: Option<BorrowedFd<'a>>,
    ends_at: Option<Instant>,
}

/// Why a step need not be finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The client has broken its connection off.
    ClientGone,
    TimeOver,
    /// Somebody has asked for an end.
    Terminated,
    /// The operating system would not wait.
    System(Errno),
}

impl Cut {
    /// What the cut is to a session whose whole time is watched.
    pub(crate) fn reason(self) -> Reason {
        match self {
            Cut::ClientGone => Reason::ClientReset,
            Cut::TimeOver => Reason::MaxDuration,
            Cut::Terminated => Reason::Terminated,
            Cut::System(_) => Reason::InternalError,
        }
    }
}

/// What ended a wait that was not cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The descriptor in this place is ready, or has failed: it is the first that is.
    Ready(usize),
    /// The moment has come until which was to be waited.
    Moment,
}

impl<'a> Vigil<'a> {
    /// Over a client, whose session is to end then.
    pub(crate) fn over(client: BorrowedFd<'a>, ends_at: Option<Instant>) -> Vigil<'a> {
        Vigil {
            client: Some(client),
            ends_at,
        }
    }

    /// Over time alone: whether the client is there makes no difference.
    pub(crate) fn until(ends_at: Option<Instant>) -> Vigil<'a> {
        Vigil {
            client: None,
            ends_at,
        }
    }

    /// The same, with its end no later than this.
    pub(crate) fn within(&self, latest: Instant) -> Vigil<'a> {
        Vigil {
            client: self.client,
            ends_at: Some(self.ends_at.map_or(latest, |ends_at| ends_at.min(latest))),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ends_at
            .is_some_and(|ends_at| ends_at <= Instant::now())
    }

    /// Sleeps until one of these is ready, or the moment has come.
    pub(crate) fn wait(
        &mut self,
        wanted: &[PollFd],
        moment: Option<Instant>,
    ) -> Result<Event, Cut> {
        let deadline = [self.ends_at, moment].into_iter().flatten().min();
        loop {
            let mut all = wanted.to_vec();
            all.extend(self.client.map(wait::failures_of));
            match wait::wait(&mut all, deadline).map_err(Cut::System)? {
                Woken::Terminated => return Err(Cut::Terminated),
                Woken::Deadline if self.is_over() => return Err(Cut::TimeOver),
                Woken::Deadline => return Ok(Event::Moment),
                Woken::Ready => {}
            }
            // What was waited for comes first, even where the client goes at the same time.
            let is_ready = |polled: &PollFd| polled.any().unwrap_or(true);
            if let Some(first) = all[..wanted.len()].iter().position(is_ready) {
                return Ok(Event::Ready(first));
            }
            if let Some(client) = all.get(wanted.len()) {
                if wait::is_broken(client) {
                    return Err(Cut::ClientGone);
                }
                if client.any().unwrap_or(true) {
                    // Closed, not reset: what it sent is still to be served. poll(2) would report
                    // it for ever.
                    self.client = None;
                }
            }
        }
    }

    /// Sleeps until this moment.
    pub(crate) fn pause(&mut self, moment: Instant) -> Result<(), Cut> {
        self.wait(&[], Some(moment)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use nix::poll::PollFlags;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn a_client_that_has_closed_cuts_nothing_short_and_is_not_asked_again() {
        let (client, theirs) = UnixStream::pair().unwrap();
        let (source, mut sink) = UnixStream::pair().unwrap();
        drop(theirs);
        let mut vigil = Vigil::over(client.as_fd(), None);
        let set = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
        assert_eq!(vigil.wait(&set, Some(soon())), Ok(Event::Moment));
        assert!(vigil.client.is_none());
        sink.write_all(b"x").unwrap();
        assert_eq!(vigil.wait(&set, Some(soon())), Ok(Event::Ready(0)));
    }

    #[test]
    fn the_end_comes_before_a_later_moment() {
        let mut vigil = Vigil::until(Some(soon()));
        assert_eq!(
            vigil.pause(soon() + Duration::from_secs(60)),
            Err(Cut::TimeOver)
        );
        let mut vigil = Vigil::until(None).within(soon());
        assert_eq!(
            vigil.pause(soon() + Duration::from_secs(60)),
            Err(Cut::TimeOver)
        );
    }
}
