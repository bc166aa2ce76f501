//! A listener for one data connection, and who may have it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Instant, SystemTime};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::Backlog;

use super::data::Mode;
use crate::sys::{self, sockets};
use crate::terms::endpoint::Endpoint;
use crate::terms::value::PortRange;

pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    pub(super) mode: Mode,
    /// Who may come.
    pub(super) expected: IpAddr,
    /// Where the other half of the connection leads.
    pub(super) leads_to: SocketAddr,
    pub(super) until: Instant,
}

/// Who has come.
pub(super) enum Arrival {
    Nobody,
    /// Whom it was for.
    Expected(OwnedFd, SocketAddr),
    /// Somebody else, whose connection is closed.
    Stranger(Option<Endpoint>),
}

impl Listener {
    /// Whether somebody has come, without waiting.
    pub(super) fn accept(&self) -> nix::Result<Arrival> {
        let (socket, from) = loop {
            match sys::accept(self.socket.as_fd()) {
                Ok(accepted) => break accepted,
                Err(Errno::EAGAIN) => return Ok(Arrival::Nobody),
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(errno) => return Err(errno),
            }
        };
        Ok(match from.as_ref().and_then(Endpoint::from_address) {
            Some(Endpoint::Inet(from)) if from.ip() == self.expected => {
                Arrival::Expected(socket, from)
            }
            from => Arrival::Stranger(from),
        })
    }

    pub(super) fn polled(&self) -> PollFd<'_> {
        PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)
    }
}

/// Listens at an address, at one of these ports or any. Returns the port.
pub(super) fn listen(at: SocketAddr, ports: Option<PortRange>) -> nix::Result<(OwnedFd, u16)> {
    let listen = |port| {
        let socket = sockets::listen_at(with_port(at, port), Backlog::MAXCONN)?;
        let port = Endpoint::local(socket.as_fd()).and_then(|own| own.port());
        Ok((socket, port.ok_or(Errno::EINVAL)?))
    };
    let Some(ports) = ports else {
        return listen(0);
    };
    // Not always the same first: earlier ones may be in use.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let any = now.map_or(0, |now| now.subsec_micros() as usize);
    let mut tried = ports.from(any).map(listen);
    let found = tried.find(|found| !matches!(found, Err(Errno::EADDRINUSE)));
    found.unwrap_or(Err(Errno::EADDRINUSE))
}

/// The same at every address of the family.
pub(super) fn listen_anywhere(
    at: SocketAddr,
    ports: Option<PortRange>,
) -> nix::Result<(OwnedFd, u16)> {
    let any = match at {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    listen(SocketAddr::new(any, 0), ports)
}

pub(super) fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}
