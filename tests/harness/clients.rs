//! Clients: where they connect to, and from.

use std::net::{SocketAddr, TcpStream};

use super::patient;

/// Connects to a port of 127.0.0.1.
pub fn connect(port: u16) -> TcpStream {
    patient(TcpStream::connect(("127.0.0.1", port)).unwrap())
}

/// Connects from another address of this machine.
pub fn connect_from(source: &str, to: SocketAddr) -> TcpStream {
    use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};
    use std::os::fd::AsRawFd;
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let from = SocketAddr::new(source.parse().unwrap(), 0);
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
    patient(TcpStream::from(fd))
}

/// Whether nobody listens there.
pub fn is_refused(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port))
        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}
