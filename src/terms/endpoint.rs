//! The ends of connections, as rules, logs and programs see them.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{SockaddrStorage, getsockname};

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// An IP address and TCP port. IPv4-mapped IPv6 addresses are held as IPv4.
    Inet(SocketAddr),
    Unix,
}

impl Endpoint {
    /// An IP address and port; rinetd compares the mapped form as text, and so lets denied clients in.
    pub(crate) fn inet(address: SocketAddr) -> Endpoint {
        Endpoint::Inet(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// The endpoint that a socket address stands for; `None` for families we do not serve.
    pub(crate) fn from_address(address: &SockaddrStorage) -> Option<Endpoint> {
        if let Some(v4) = address.as_sockaddr_in() {
            return Some(Endpoint::inet(SocketAddr::V4((*v4).into())));
        }
        if let Some(v6) = address.as_sockaddr_in6() {
            let v6 = std::net::SocketAddrV6::from(*v6);
            return Some(match v6.ip().to_ipv4_mapped() {
                Some(_) => Endpoint::inet(SocketAddr::V6(v6)),
                None => Endpoint::Inet(SocketAddr::V6(v6)),
            });
        }
        address.as_unix_addr().map(|_| Endpoint::Unix)
    }

    /// The local endpoint of a socket.
    pub(crate) fn local(socket: BorrowedFd) -> Option<Endpoint> {
        let address = getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()?;
        Endpoint::from_address(&address)
    }

    /// The TCP port, if it has one.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Endpoint::Inet(address) => Some(address.port()),
            Endpoint::Unix => None,
        }
    }

    /// The address without the port, as programs and rules see it; `unix` if it is none.
    pub(crate) fn host(&self) -> String {
        match self {
            Endpoint::Inet(address) => address.ip().to_string(),
            Endpoint::Unix => "unix".to_owned(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Endpoint::Inet(address) => write!(f, "{address}"),
            Endpoint::Unix => f.write_str("unix"),
        }
    }
}
