//! What sessions tell the server of clients that a proxy has announced: the server itself reads no
//! client's byte, but is to know who its clients are.
//!
//! A session writes what it has read into a place of its own in memory that both share, which costs
//! next to nothing and outlives the session, however that ends. Where limits ask for an answer, it rings
//! by a socket as well, and waits there for the word.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};

use crate::gate::Refusal;
use crate::protocol::proxy::Announced;
use crate::session::Registrar;
use crate::sys;
use crate::sys::vigil::Vigil;
use crate::terms::reason::Reason;

/// Words for one session: what it tells, and two addresses with their ports. A cache line.
const WORDS: usize = 8;

/// How many sessions share one stretch of memory.
const PLACES: usize = 1024;

/// How long a session waits for the server's answer: a moment, unless the server is gone, or is
/// stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a session tells.
const NOT_YET: u64 = 0;
const NOTHING: u64 = 1;
const TCP: u64 = 2;
const UNIX: u64 = 3;

/// The places that are nobody's now. There is memory for as many as were needed at once so far.
#[derive(Default)]
pub(super) struct Board {
    free: Vec<Place>,
}

/// Where one session tells.
#[derive(Clone, Copy)]
pub(super) struct Place(&'static [AtomicU64]);

impl Board {
    /// A place in which nothing has been told yet.
    pub(super) fn take(&mut self) -> nix::Result<Place> {
        if self.free.is_empty() {
            let memory = sys::shared_numbers(PLACES * WORDS)?;
            self.free.extend(memory.chunks_exact(WORDS).map(Place));
        }
        let place = self.free.pop().ok_or(Errno::ENOMEM)?;
        place.0[0].store(NOT_YET, Ordering::Relaxed);
        Ok(place)
    }

    /// Takes back the place of a session that has ended.
    pub(super) fn give_back(&mut self, place: Place) {
        self.free.push(place);
    }
}

impl Place {
    fn tell(&self, announced: &Announced) {
        let words = self.0;
        let store = |first: usize, end: &SocketAddr| {
            let v6 = match end.ip() {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            let bits = v6.to_bits();
            words[first].store((bits >> 64) as u64, Ordering::Relaxed);
            words[first + 1].store(bits as u64, Ordering::Relaxed);
            words[first + 2].store(end.port().into(), Ordering::Relaxed);
        };
        let what = match announced {
            Announced::Nothing => NOTHING,
            Announced::Unix => UNIX,
            Announced::Tcp {
                source,
                destination,
            } => {
                store(1, source);
                store(4, destination);
                TCP
            }
        };
        // Last: who sees it sees the rest.
        words[0].store(what, Ordering::Release);
    }

    /// What the session has told, if it has.
    pub(super) fn told(&self) -> Option<Announced> {
        let words = self.0;
        let load = |first: usize| {
            let [high, low, port] = [0, 1, 2].map(|at| words[first + at].load(Ordering::Relaxed));
            let ip = Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low));
            SocketAddr::new(ip.to_canonical(), port as u16)
        };
        match words[0].load(Ordering::Acquire) {
            NOTHING => Some(Announced::Nothing),
            TCP => Some(Announced::Tcp {
                source: load(1),
                destination: load(4),
            }),
            UNIX => Some(Announced::Unix),
            // A session can have written anything there. What makes no sense was not told.
            _ => None,
        }
    }
}

/// What a session that is to tell has of it.
pub(super) struct Teller {
    place: Place,
    /// Where it rings, if it is to wait for an answer.
    bell: Option<UnixStream>,
}

impl Teller {
    pub(super) fn new(place: Place, bell: Option<UnixStream>) -> Teller {
        Teller { place, bell }
    }
}

impl Registrar for Teller {
    fn register(&self, announced: &Announced) -> Result<(), Reason> {
        self.place.tell(announced);
        let Some(mut bell) = self.bell.as_ref() else {
            return Ok(());
        };
        let failed = |_| Reason::InternalError;
        bell.write_all(b"?").map_err(failed)?;
        let set = [PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
        let mut vigil = Vigil::until(None);
        // Without an answer nobody is let in.
        match vigil.wait(&set, Some(Instant::now() + PATIENCE)) {
            Ok(_) => {}
            Err(cut) => return Err(cut.reason()),
        }
        let mut word = [0];
        bell.read_exact(&mut word).map_err(failed)?;
        Answer::of(word[0]).map_or(Err(Reason::InternalError), Answer::verdict)
    }
}

/// What the server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    GoOn = b'+' as isize,
    TooMany = b'm' as isize,
    TooFast = b'f' as isize,
}

impl From<Result<(), Refusal>> for Answer {
    fn from(counted: Result<(), Refusal>) -> Answer {
        match counted {
            Ok(()) => Answer::GoOn,
            Err(Refusal::TooFast) => Answer::TooFast,
            // What is kept in memory can always be told.
            Err(Refusal::TooMany | Refusal::Unknown(_)) => Answer::TooMany,
        }
    }
}

impl Answer {
    fn of(word: u8) -> Option<Answer> {
        let all = [Answer::GoOn, Answer::TooMany, Answer::TooFast];
        all.into_iter().find(|answer| *answer as u8 == word)
    }

    fn verdict(self) -> Result<(), Reason> {
        match self {
            Answer::GoOn => Ok(()),
            Answer::TooMany => Err(Reason::TooManyFromClient),
            Answer::TooFast => Err(Reason::TooFastFromClient),
        }
    }

    /// Tells a session that has rung. One that is gone needs no answer.
    pub(super) fn give(self, mut bell: &UnixStream) {
        let _ = bell.write_all(&[self as u8]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_known_until_the_place_is_anothers() {
        let mut board = Board::default();
        let tcp = |source: &str, destination: &str| Announced::Tcp {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        };
        for announced in [
            Announced::Nothing,
            Announced::Unix,
            tcp("192.0.2.7:65535", "198.51.100.1:25"),
            tcp("[2001:db8::1]:1", "[::1]:0"),
        ] {
            let place = board.take().unwrap();
            let other = board.take().unwrap();
            assert_eq!(place.told(), None);
            place.tell(&announced);
            assert_eq!(place.told(), Some(announced));
            assert_eq!(other.told(), None);
            board.give_back(place);
            board.give_back(other);
        }
    }

    #[test]
    fn there_is_a_place_for_each_of_many() {
        let mut board = Board::default();
        let places: Vec<Place> = (0..3 * PLACES).map(|_| board.take().unwrap()).collect();
        let announced = |number: usize| Announced::Tcp {
            source: SocketAddr::new([127, 0, 0, 1].into(), number as u16),
            destination: SocketAddr::new([127, 0, 0, 2].into(), 0),
        };
        for (number, place) in places.iter().enumerate() {
            place.tell(&announced(number));
        }
        for (number, place) in places.iter().enumerate() {
            assert_eq!(place.told(), Some(announced(number)));
        }
    }
}
