//! Where a client meant to go that a rule of the packet filter has brought here instead.
//!
//! Rules that redirect change a connection's destination, and the system's connection tracking knows
//! what it was. Rules for transparent listeners (ip(7), `IP_TRANSPARENT`) change nothing: our own end
//! of the connection has the address that the client meant.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{Ip6tOriginalDst, IpTransparent, OriginalDst};
use nix::sys::socket::{SockaddrIn, SockaddrIn6, getsockopt};

use super::client::{Client, is_of_this_machine};
use crate::terms::endpoint::Endpoint;
use crate::terms::error::describe;

/// Why a client meant to go nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotRedirected {
    OverUnixSocket,
    /// It has connected to its listener itself.
    ToListener(SocketAddr),
    /// The system does not know of the connection.
    NotTracked,
    /// The system does not say.
    Unknown(Errno),
}

impl fmt::Display for NotRedirected {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("the client was not redirected: ")?;
        match self {
            NotRedirected::OverUnixSocket => f.write_str("it came over a unix socket"),
            NotRedirected::ToListener(address) => {
                write!(f, "it had connected to {address}, which is the listener")
            }
            NotRedirected::NotTracked => f.write_str(
                "connection tracking does not know of it, nor is the listener transparent",
            ),
            NotRedirected::Unknown(errno) => write!(f, "SO_ORIGINAL_DST: {}", describe(*errno)),
        }
    }
}

/// What a client had connected to, if that was not its listener.
pub(super) fn destination(client: &Client) -> Result<SocketAddr, NotRedirected> {
    let Endpoint::Inet(local) = client.local else {
        return Err(NotRedirected::OverUnixSocket);
    };
    let socket = client.socket.as_fd();
    let is_local = |meant: &SocketAddr| (meant.ip(), meant.port()) == (local.ip(), local.port());
    let meant = match tracked(socket, &local) {
        Ok(meant) if !is_local(&meant) => meant,
        _ if getsockopt(&socket, IpTransparent).unwrap_or(false) => local,
        Ok(_) => return Err(NotRedirected::ToListener(local)),
        // No connection is tracked at all, or this one is exempt.
        Err(Errno::ENOPROTOOPT | Errno::ENOENT) => return Err(NotRedirected::NotTracked),
        Err(errno) => return Err(NotRedirected::Unknown(errno)),
    };
    // A super-server's listener may be for all addresses of this machine: its port must do.
    let may_be_listener = match client.listener {
        Some(_) => client.came_through(meant),
        None => meant.port() == local.port() && is_of_this_machine(meant.ip()),
    };
    if may_be_listener {
        return Err(NotRedirected::ToListener(meant));
    }
    Ok(meant)
}

/// Whether connection tracking has a client's connection down as one to this address that it has redirected.
/// It would take another one from the same address and port for the same, and redirect that to us.
pub(super) fn was_at(client: &Client, address: SocketAddr) -> bool {
    let Endpoint::Inet(local) = client.local else {
        return false;
    };
    let is_it = |other: SocketAddr| (other.ip(), other.port()) == (address.ip(), address.port());
    !is_it(local) && tracked(client.socket.as_fd(), &local).is_ok_and(is_it)
}

/// What connection tracking knows as the destination of a connection whose own end is `local`.
fn tracked(socket: BorrowedFd, local: &SocketAddr) -> nix::Result<SocketAddr> {
    Ok(match local {
        SocketAddr::V4(_) => {
            let address = SockaddrIn::from(getsockopt(&socket, OriginalDst)?);
            SocketAddr::V4(address.into())
        }
        SocketAddr::V6(_) => {
            let address = SockaddrIn6::from(getsockopt(&socket, Ip6tOriginalDst)?);
            SocketAddr::V6(address.into())
        }
    })
}
