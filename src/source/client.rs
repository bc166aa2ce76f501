//! A connected client, before anything was decided about it.

use std::cell::OnceCell;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process;

use nix::ifaddrs::getifaddrs;
use nix::poll::{PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, getsockname, socket,
};

use super::original::{self, NotRedirected};
use crate::protocol::proxy::Announced;
use crate::sys::{self, wait};
use crate::terms::endpoint::Endpoint;
use crate::terms::facts::Facts;

pub(crate) struct Client {
    pub(crate) socket: OwnedFd,
    /// Its own end; where a proxy has announced it, what that said.
    pub(crate) address: Endpoint,
    /// Our end of the connection.
    pub(crate) local: Endpoint,
    /// What a proxy has said besides.
    pub(crate) relayed: Option<Relayed>,
    /// The listener that it came through, where that is known: the address that it listens on, which
    /// may be all of this machine's.
    pub(crate) listener: Option<Endpoint>,
    /// What it meant to reach, once that was asked for.
    pub(super) original: OnceCell<Result<SocketAddr, NotRedirected>>,
    /// How it got here.
    pub(crate) origin: Origin,
}

/// What is known of a client that a proxy has announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Relayed {
    /// The proxy: the peer of our socket.
    pub(crate) via: Endpoint,
    /// What the client had connected to.
    pub(crate) destination: Endpoint,
}

/// The ends of a client's own connection to a proxy.
pub(crate) struct Ends {
    pub(crate) client: Endpoint,
    pub(crate) destination: Endpoint,
}

impl Ends {
    /// `None` where a proxy has announced nobody.
    pub(crate) fn of(announced: Announced) -> Option<Ends> {
        let (client, destination) = match announced {
            Announced::Nothing => return None,
            Announced::Tcp {
                source,
                destination,
            } => (Endpoint::inet(source), Endpoint::inet(destination)),
            Announced::Unix => (Endpoint::Unix, Endpoint::Unix),
        };
        Some(Ends {
            client,
            destination,
        })
    }
}

/// How a client got to the process that serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A super-server started this process for it.
    Inherited {
        /// Whether descriptor 2 was its socket too, as inetd has it.
        on_stderr: bool,
    },
    /// Our supervisor accepted it.
    Accepted {
        /// The session's serial number, from 1.
        serial: u64,
    },
}

impl Origin {
    fn session(self) -> u64 {
        match self {
            Origin::Inherited { .. } => u64::from(process::id()),
            Origin::Accepted { serial } => serial,
        }
    }
}

impl Client {
    /// Takes a proxy's word for who the client is.
    pub(crate) fn identify(&mut self, announced: Announced) {
        if let Some(ends) = Ends::of(announced) {
            let via = self.address;
            self.address = ends.client;
            self.relayed = Some(Relayed {
                via,
                destination: ends.destination,
            });
        }
    }

    /// What it connected to: where it was redirected from, if somebody has asked for that; our own end, or
    /// what a proxy has announced.
    pub(crate) fn destination(&self) -> Endpoint {
        match self.known_original() {
            Some(original) => Endpoint::Inet(original),
            None => self.reached(),
        }
    }

    /// The same, wherever it was redirected from.
    fn reached(&self) -> Endpoint {
        self.relayed
            .map_or(self.local, |relayed| relayed.destination)
    }

    /// What it meant to reach when a rule of the packet filter sent it here. The system is asked once:
    /// it may have forgotten the answer before the session is over.
    pub(crate) fn original_destination(&self) -> Result<SocketAddr, NotRedirected> {
        *self.original.get_or_init(|| original::destination(self))
    }

    /// Whether the packet filter has redirected it from this address, and would redirect everything that comes
    /// from its own port to there.
    pub(crate) fn was_redirected_from(&self, address: SocketAddr) -> bool {
        original::was_at(self, address)
    }

    fn known_original(&self) -> Option<SocketAddr> {
        self.original.get()?.ok()
    }

    /// The other end of our socket: its own, or a proxy's.
    fn peer(&self) -> Endpoint {
        self.relayed.map_or(self.address, |relayed| relayed.via)
    }

    /// Whether it has broken its connection off, be it behind data that can still be read. Who does so
    /// while it waits in a backlog is accepted like any other.
    pub(crate) fn is_gone(&self) -> bool {
        let mut set = [wait::failures_of(self.socket.as_fd())];
        // poll(2) tells of a reset without taking the news away, as SO_ERROR would, and whatever is
        // to be read before it, which recv(2) would tell of first.
        poll(&mut set, PollTimeout::ZERO).is_ok() && wait::is_broken(&set[0])
    }

    /// Whether who connects to this address reaches the very listener that the client came through.
    /// Of a super-server's listener only the address is known that this client reached.
    pub(crate) fn came_through(&self, address: SocketAddr) -> bool {
        let canonical = address.ip().to_canonical();
        let is_at = |endpoint: &Endpoint| match endpoint {
            Endpoint::Inet(own) => own.port() == address.port() && own.ip() == canonical,
            Endpoint::Unix => false,
        };
        match self.listener {
            Some(Endpoint::Inet(listener)) if listener.ip().is_unspecified() => {
                let reaches = listener.is_ipv6() || canonical.is_ipv4();
                reaches && listener.port() == address.port() && is_of_this_machine(canonical)
            }
            Some(listener) => is_at(&listener),
            // On a transparent listener (ip(7), IP_TRANSPARENT) it may be somebody else's.
            None => is_at(&self.local) && is_of_this_machine(canonical),
        }
    }

    /// The same for a unix socket. Whether two paths lead to one is not looked for.
    pub(crate) fn came_through_unix(&self, path: &Path) -> bool {
        self.local == Endpoint::Unix
            && getsockname::<UnixAddr>(self.socket.as_raw_fd())
                .is_ok_and(|own| own.path() == Some(path))
    }

    /// How many more times its connection may be passed on, where that is counted: under our own
    /// listener, if it comes from this machine.
    pub(crate) fn hops_left(&self) -> Option<u8> {
        let (Origin::Accepted { .. }, Endpoint::Inet(from), Endpoint::Inet(to)) =
            (self.origin, self.peer(), self.local)
        else {
            return None;
        };
        // Its own address need not be the one that it reached: there may be several, and --source.
        if from.ip() != to.ip() && !is_of_this_machine(from.ip()) {
            return None;
        }
        sys::hops_left(self.socket.as_fd(), from.ip()).ok()
    }

    /// The same for whoever it is and however it came: where we stand in a client's way, as a router
    /// does, or speak with its address, its packets would have had no more hops either.
    pub(crate) fn hops_left_as_routed(&self) -> Option<u8> {
        match self.peer() {
            Endpoint::Inet(from) => sys::hops_left(self.socket.as_fd(), from.ip()).ok(),
            Endpoint::Unix => None,
        }
    }

    /// What is known of it, before its name was asked for.
    pub(crate) fn facts(&self) -> Facts {
        Facts {
            session: self.origin.session(),
            client: self.address,
            via: self.relayed.map(|relayed| relayed.via),
            local: self.reached(),
            original: self.known_original(),
            name: None,
        }
    }
}

/// Whether this is an address of this machine. Only to those can a socket be bound, unless
/// `ip_nonlocal_bind` (ip(7)) is on: so who cannot be is none, and who can be is looked for.
pub(super) fn is_of_this_machine(address: IpAddr) -> bool {
    if address.is_loopback() || address.is_unspecified() {
        return true;
    }
    let family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let place = SockaddrStorage::from(SocketAddr::new(address, 0));
    socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .is_ok_and(|socket| bind(socket.as_raw_fd(), &place).is_ok())
        && is_an_interfaces(address)
}

fn is_an_interfaces(address: IpAddr) -> bool {
    let is_it = |own: SockaddrStorage| match Endpoint::from_address(&own) {
        Some(Endpoint::Inet(own)) => own.ip() == address,
        Some(Endpoint::Unix) | None => false,
    };
    getifaddrs().is_ok_and(|mut all| all.any(|entry| entry.address.is_some_and(is_it)))
}
