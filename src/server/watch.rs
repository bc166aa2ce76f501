//! What the supervisor sleeps on: its signals, its listeners, and sessions that ask to be counted.
//!
//! Signals come by signalfd(2), so that they are heard however busy the listeners are, and no
//! handler's frame is written to a page that the last fork has made a copy of. Listeners come by
//! epoll(7), so that a wake-up costs the same with one of them as with thousands.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::WATCHED;
use crate::source::Listener;
use crate::sys;
use crate::terms::error::Error;

/// How many listeners are told of at once. Those that are left out are told of first the next time.
const AT_ONCE: usize = 16;

/// What stands for the signals where listeners have the numbers of their descriptors.
const SIGNALS: u64 = u64::MAX;

/// What stands for all sessions that ring.
const BELLS: u64 = u64::MAX - 1;

/// The signals, the listeners, and the bells of sessions.
pub(super) struct Watch {
    signals: SignalFd,
    all: Epoll,
    /// Watched on its own, as sessions are answered also where no client is accepted; made when there
    /// is the first.
    bells: Option<Epoll>,
    /// The bells that are not rung yet.
    silent: Vec<RawFd>,
    /// What no session may hold, as few ranges of numbers.
    descriptors: Vec<RangeInclusive<RawFd>>,
    /// Where the listener of a descriptor stands.
    index_of: Vec<Option<usize>>,
}

/// Whether listeners are watched as well.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Clients,
    SignalsOnly,
}

/// What there is to do.
#[derive(Default)]
pub(super) struct Due {
    /// A child has ended: this one, and perhaps others with it.
    pub(super) child_ended: Option<Pid>,
    /// There are sessions that ring.
    pub(super) rung: bool,
    listeners: [(usize, bool); AT_ONCE],
    count: usize,
}

impl Due {
    /// The numbers of the listeners that have clients, or have hung up; the last comes first.
    pub(super) fn listeners(&mut self) -> &[(usize, bool)] {
        let ready = &mut self.listeners[..self.count];
        ready.sort_unstable_by(|one, other| other.cmp(one));
        ready
    }
}

fn failed(errno: Errno) -> Error {
    Error::system("epoll", errno)
}

impl Watch {
    /// Watches the signals that the supervisor acts upon, which must be blocked
    /// ([`super::watch_signals`]).
    pub(super) fn new() -> Result<Watch, Error> {
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&WATCHED.into_iter().collect::<SigSet>(), flags);
        let signals = signals.map_err(|errno| Error::system("signalfd", errno))?;
        let all = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        all.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS))
            .map_err(failed)?;
        Ok(Watch {
            signals,
            all,
            bells: None,
            silent: Vec::new(),
            descriptors: Vec::new(),
            index_of: Vec::new(),
        })
    }

    /// Watches a listener as well.
    pub(super) fn add(&self, listener: &Listener) -> Result<(), Error> {
        let number = listener.socket.as_raw_fd() as u64;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
        self.all.add(&listener.socket, event).map_err(|errno| {
            let what = format_args!("cannot listen on {}: epoll", listener.local);
            Error::system(what, errno)
        })
    }

    /// Watches a listener no more. To be called before it is closed: it stays watched as long as a
    /// child has a copy.
    pub(super) fn remove(&self, listener: &Listener) {
        // One that is no listener any more may have gone by itself.
        let _ = self.all.delete(&listener.socket);
    }

    /// Notes where each of the listeners stands that are watched, and that no session may hold them,
    /// nor these others.
    pub(super) fn keep(&mut self, listeners: &[Listener], others: impl Iterator<Item = RawFd>) {
        let sockets = || listeners.iter().map(|listener| listener.socket.as_raw_fd());
        let own = [self.signals.as_raw_fd(), self.all.0.as_raw_fd()];
        let bells = self.bells.iter().map(|bells| bells.0.as_raw_fd());
        let own = own.into_iter().chain(bells);
        self.descriptors = ranges(sockets().chain(own).chain(others).collect());
        let highest = sockets().max().unwrap_or(0);
        self.index_of = vec![None; highest as usize + 1];
        for (index, socket) in sockets().enumerate() {
            self.index_of[socket as usize] = Some(index);
        }
    }

    /// What no session may hold.
    pub(super) fn descriptors(&self) -> Cow<'_, [RangeInclusive<RawFd>]> {
        if self.silent.is_empty() {
            return Cow::Borrowed(&self.descriptors);
        }
        let bells = self.silent.iter().map(|&bell| bell..=bell);
        self.descriptors.iter().cloned().chain(bells).collect()
    }

    /// Has no session hold a bell, not even its own.
    pub(super) fn hide(&mut self, bell: &UnixStream) -> nix::Result<()> {
        if self.bells.is_none() {
            let bells = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            self.all
                .add(&bells.0, EpollEvent::new(EpollFlags::EPOLLIN, BELLS))?;
            let number = bells.0.as_raw_fd();
            self.descriptors.push(number..=number);
            self.bells = Some(bells);
        }
        self.silent.push(bell.as_raw_fd());
        Ok(())
    }

    /// Listens for the bell of this session, which is hidden.
    pub(super) fn listen_for(&self, bell: &UnixStream, session: Pid) -> nix::Result<()> {
        let Some(bells) = &self.bells else {
            return Err(Errno::ENOENT);
        };
        let event = EpollEvent::new(EpollFlags::EPOLLIN, session.as_raw() as u64);
        bells.add(bell, event)
    }

    /// Listens for this bell no more. To be called before it is closed.
    pub(super) fn forget(&mut self, bell: &UnixStream) {
        self.silent.retain(|silent| *silent != bell.as_raw_fd());
        if let Some(bells) = &self.bells {
            // One that was not listened for yet is not known.
            let _ = bells.delete(bell);
        }
    }

    /// Some of the sessions that ring, or have hung up.
    pub(super) fn ringing(&self) -> Vec<Pid> {
        let mut events = [EpollEvent::empty(); AT_ONCE];
        let count = self
            .bells
            .as_ref()
            .map_or(Ok(0), |bells| bells.wait(&mut events, PollTimeout::ZERO));
        // Those that are left out, or could not be asked for, are told of the next time.
        let ringing = events.iter().take(count.unwrap_or(0));
        ringing
            .map(|event| Pid::from_raw(event.data() as i32))
            .collect()
    }

    /// Sleeps until there is something to do, or the deadline has come. A signal that is not a
    /// child's is noted, for [`sys::take_signal`].
    pub(super) fn sleep(&self, wanted: Wanted, deadline: Option<Instant>) -> Result<Due, Error> {
        let timeout = deadline.map_or(PollTimeout::NONE, until);
        let mut due = Due::default();
        let slept = match wanted {
            Wanted::Clients => self.wait_for_all(timeout, &mut due),
            Wanted::SignalsOnly => {
                let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
                let bells = self.bells.iter().map(|bells| readable(bells.0.as_fd()));
                let mut set: Vec<PollFd> = [readable(self.signals.as_fd())]
                    .into_iter()
                    .chain(bells)
                    .collect();
                let polled = poll(&mut set, timeout);
                let is_ready = |polled: &PollFd| polled.any().unwrap_or(true);
                due.rung = polled.is_ok() && set.get(1).is_some_and(is_ready);
                polled.map(|_| is_ready(&set[0]))
            }
        };
        match slept {
            Ok(true) => due.child_ended = self.take_signal()?,
            Ok(false) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
        Ok(due)
    }

    /// Returns whether there may be signals.
    fn wait_for_all(&self, timeout: PollTimeout, due: &mut Due) -> nix::Result<bool> {
        let mut events = [EpollEvent::empty(); AT_ONCE];
        let count = self.all.wait(&mut events, timeout)?;
        let mut signals = false;
        for event in &events[..count] {
            if event.data() == SIGNALS {
                signals = true;
                continue;
            }
            if event.data() == BELLS {
                due.rung = true;
                continue;
            }
            let hung_up = event
                .events()
                .intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
            let index = self.index_of.get(event.data() as usize);
            if let Some(&Some(index)) = index {
                due.listeners[due.count] = (index, hung_up);
                due.count += 1;
            }
        }
        // Where there was no place for all, signals may be among those that were left out.
        Ok(signals || count == AT_ONCE)
    }

    /// Takes one signal: what is left is told of the next time. The kernel gives those first that
    /// end a server. Returns whose end it told of, if it was a child's.
    fn take_signal(&self) -> Result<Option<Pid>, Error> {
        let taken = self.signals.read_signal();
        let taken = taken.map_err(|errno| Error::system("signalfd", errno))?;
        let Some(taken) = taken else {
            return Ok(None);
        };
        match Signal::try_from(taken.ssi_signo as i32) {
            Ok(Signal::SIGCHLD) => return Ok(Some(Pid::from_raw(taken.ssi_pid as i32))),
            Ok(signal) => sys::note_signal(signal),
            // None but those that were asked for come this way.
            Err(_) => {}
        }
        Ok(None)
    }
}

/// The time left, in whole milliseconds, upwards: below one there would be no sleep.
fn until(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now());
    let milliseconds = (left + Duration::from_nanos(999_999)).as_millis();
    PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
}

/// These numbers as ranges. Listeners that were bound in a row are one.
fn ranges(mut numbers: Vec<RawFd>) -> Vec<RangeInclusive<RawFd>> {
    numbers.sort_unstable();
    let mut ranges: Vec<RangeInclusive<RawFd>> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some(last) if *last.end() + 1 == number => *last = *last.start()..=number,
            _ => ranges.push(number..=number),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_a_row_are_one_range() {
        assert_eq!(ranges(vec![7, 4, 5, 9, 6]), [4..=7, 9..=9]);
        assert_eq!(ranges(vec![]), []);
    }
}
