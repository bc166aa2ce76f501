//! The attempts themselves: several addresses at once, a little apart (RFC 8305 §4, §5), or one
//! unix-domain socket.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::sockopt::{IpBindAddressNoPort, IpTransparent, ReuseAddr};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, bind,
    connect, getpeername, getsockname, recv, setsockopt, socket,
};

use super::{Bound, Failed, at_port};
use crate::sys;
use crate::sys::sockets;
use crate::sys::vigil::{Cut, Event, Vigil};

/// Between one attempt and the next: the "Connection Attempt Delay" of RFC 8305 §8.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Before a unix-domain listener whose backlog is full is tried again; connect(2) does not wait
/// for it on a socket that does not block.
const UNIX_RETRY_DELAY: Duration = Duration::from_millis(10);

/// Addresses with the families taking turns, beginning with the first one's (RFC 8305 §4).
pub(super) fn interleaved(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let Some(first) = addresses.first() else {
        return VecDeque::new();
    };
    let first_is_v4 = first.is_ipv4();
    let (preferred, other): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv4() == first_is_v4);
    let mut other = other.into_iter();
    let mut ordered = VecDeque::new();
    for address in preferred {
        ordered.push_back(address);
        ordered.extend(other.next());
    }
    ordered.extend(other);
    ordered
}

/// Attempts at several addresses of one upstream, of which the first to connect wins.
pub(super) struct Race {
    untried: VecDeque<SocketAddr>,
    running: Vec<(SocketAddr, OwnedFd)>,
    begin: Begin,
    last: Failed,
}

/// What every attempt begins with.
#[derive(Clone, Copy)]
pub(super) struct Begin {
    /// What it comes from, if the kernel is not to choose.
    pub(super) source: Option<Bound>,
    /// The hop limit, if it is not the system's default.
    pub(super) hop_limit: Option<u8>,
}

/// What has come of beginning an attempt.
enum Started {
    Connected(OwnedFd),
    Running,
    Failed,
    /// No address was left to try.
    Nothing,
}

impl Race {
    pub(super) fn new(addresses: VecDeque<SocketAddr>, begin: Begin) -> Race {
        Race {
            untried: addresses,
            running: Vec::new(),
            begin,
            last: Failed::from(Cut::TimeOver),
        }
    }

    pub(super) fn run(
        mut self,
        mut vigil: Vigil,
        waiting: &mut dyn FnMut(),
    ) -> Result<OwnedFd, Failed> {
        let mut next_attempt = Instant::now();
        loop {
            if Instant::now() >= next_attempt || self.running.is_empty() {
                match self.start_next() {
                    Started::Connected(socket) => return Ok(socket),
                    Started::Running => next_attempt = Instant::now() + ATTEMPT_DELAY,
                    // RFC 8305 §5: after a failure the next attempt need not wait.
                    Started::Failed => continue,
                    Started::Nothing => {}
                }
            }
            if self.running.is_empty() {
                return Err(self.last);
            }
            let moment = (!self.untried.is_empty()).then_some(next_attempt);
            let set: Vec<PollFd> = self
                .running
                .iter()
                .map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLOUT))
                .collect();
            waiting();
            let decided = match vigil.wait(&set, moment) {
                Ok(Event::Ready(index)) => index,
                Ok(Event::Moment) => continue,
                Err(cut) => {
                    if cut == Cut::ClientGone {
                        self.abort();
                    }
                    return Err(cut.into());
                }
            };
            let (address, socket) = self.running.swap_remove(decided);
            match outcome(&socket) {
                Ok(()) => return Ok(socket),
                Err(errno) => {
                    self.note(address, errno);
                    if self.last.is_final() {
                        return Err(self.last);
                    }
                    // RFC 8305 §5: after a failure the next attempt need not wait.
                    next_attempt = Instant::now();
                }
            }
        }
    }

    /// Begins the next attempt.
    fn start_next(&mut self) -> Started {
        let Some(address) = self.untried.pop_front() else {
            return Started::Nothing;
        };
        match start_connecting(address, self.begin) {
            Ok((socket, true)) => Started::Connected(socket),
            Ok((socket, false)) => {
                self.running.push((address, socket));
                Started::Running
            }
            Err(errno) => {
                self.note(address, errno);
                Started::Failed
            }
        }
    }

    /// Gives the attempts up so that an upstream that has already accepted one sees a reset: an
    /// end of input would look as if the client had had nothing to say.
    fn abort(&self) {
        for (_, socket) in &self.running {
            // Fails only where there is no connection, and so nobody to tell.
            let _ = sys::abort_connection(socket.as_fd());
        }
    }

    fn note(&mut self, address: SocketAddr, errno: Errno) {
        let from = match self.begin.source {
            Some(Bound::Foreign(source)) => format!(" from {}", source.ip()),
            Some(Bound::Own(_)) | None => String::new(),
        };
        self.last = Failed::at(&format!("connect to {address}{from}"), errno);
    }
}

/// A socket that is connecting beside a session's own, from this address of ours if one is given; and
/// whether it is connected already.
pub(crate) fn begin_connecting(
    to: SocketAddr,
    own: Option<IpAddr>,
) -> nix::Result<(OwnedFd, bool)> {
    let begin = Begin {
        source: own.map(Bound::Own),
        hop_limit: None,
    };
    start_connecting(to, begin)
}

/// A socket that is connecting, and whether it is connected already.
fn start_connecting(address: SocketAddr, begin: Begin) -> nix::Result<(OwnedFd, bool)> {
    let Some(Bound::Foreign(source)) = begin.source else {
        return attempt(address, begin);
    };
    match attempt(address, begin) {
        // The port is taken, be it by the client itself or by a connection to the same upstream that has
        // ended of late; or it is one of those that are root's.
        Err(Errno::EADDRINUSE | Errno::EADDRNOTAVAIL | Errno::EACCES) if source.port() != 0 => {
            let any_port = Bound::Foreign(at_port(source, Some(0)));
            let source = Some(any_port);
            attempt(address, Begin { source, ..begin })
        }
        attempted => attempted,
    }
}

fn attempt(address: SocketAddr, begin: Begin) -> nix::Result<(OwnedFd, bool)> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    sockets::set_urgent_in_line(socket.as_fd(), true);
    sockets::prepare_for_relay(socket.as_fd());
    if let Some(hops) = begin.hop_limit {
        // The default will do where it cannot be set.
        let _ = sys::limit_hops(socket.as_fd(), address.ip(), hops);
    }
    let source = match begin.source {
        None => None,
        Some(Bound::Own(source)) => Some(SocketAddr::new(source, 0)),
        Some(Bound::Foreign(source)) => {
            // For IPv6 as well.
            setsockopt(&socket, IpTransparent, &true)?;
            Some(source)
        }
    };
    if let Some(source) = source {
        if source.port() == 0 {
            // The port is chosen at connect, when the kernel knows the whole four-tuple (ip(7)).
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
        } else {
            // Several attempts may come from one port.
            setsockopt(&socket, ReuseAddr, &true)?;
        }
        bind(socket.as_raw_fd(), &SockaddrStorage::from(source))?;
    }
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(errno),
    }
    // On one machine the connection is there by now, though connect(2) does not know it yet.
    match getpeername::<SockaddrStorage>(socket.as_raw_fd()) {
        Ok(peer) if is_own_address(&socket, &peer) => Err(Errno::ECONNREFUSED),
        Ok(_) => Ok((socket, true)),
        Err(_) => Ok((socket, false)),
    }
}

/// Whether a socket that has become writable is connected. ECONNRESET says that it was, and that
/// the upstream has broken off since without a word.
///
/// Asking with SO_ERROR would take away the error of a connection that was reset behind data, and
/// the relay would then find an end of input there.
pub(crate) fn outcome(socket: &OwnedFd) -> nix::Result<()> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(socket.as_raw_fd(), &mut [0], flags) {
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
        Err(errno) => return Err(errno),
    }
    match getpeername::<SockaddrStorage>(socket.as_raw_fd()) {
        Ok(peer) if is_own_address(socket, &peer) => Err(Errno::ECONNREFUSED),
        // One that cannot be asked has been reset meanwhile, which the relay will find.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Connecting to a local port in the ephemeral range, where nobody listens, can meet itself
/// (RFC 9293 §3.5, simultaneous open): then our own bytes would be the reply.
fn is_own_address(socket: &OwnedFd, peer: &SockaddrStorage) -> bool {
    getsockname::<SockaddrStorage>(socket.as_raw_fd()).is_ok_and(|local| local == *peer)
}

pub(super) fn connect_unix(
    path: &Path,
    mut vigil: Vigil,
    waiting: &mut dyn FnMut(),
) -> Result<OwnedFd, Failed> {
    let failed = |errno| Failed::at("connect", errno);
    let address = UnixAddr::new(path).map_err(failed)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
    loop {
        match connect(socket.as_raw_fd(), &address as &dyn SockaddrLike) {
            Ok(()) => return Ok(socket),
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(failed(errno)),
        }
        waiting();
        vigil.pause(Instant::now() + UNIX_RETRY_DELAY)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_beginning_with_the_preferred_one() {
        let addresses = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"];
        let parsed = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let ordered: Vec<String> = interleaved(parsed)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(ordered, ["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]);
    }
}
