//! Ports for whom port 0 does not serve.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReuseAddr;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket,
};

use super::eventually;

/// A TCP port on which nothing listens now, of neither family. It is below those that the kernel
/// gives to whoever asks for any, so that only another test could take it meanwhile; and they
/// each start to look elsewhere.
pub fn free_port() -> u16 {
    const FIRST: usize = 10_240;
    const COUNT: usize = 22_000;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // More than the tests of one program ask for, as others may be running.
    let start = std::process::id() as usize * 1024;
    for _ in 0..COUNT {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        // Of both families, where there are two.
        let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port as u16));
        let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port as u16));
        let free = match can_bind(AddressFamily::Inet6, v6) {
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => can_bind(AddressFamily::Inet, v4),
            free => free,
        };
        if free.is_ok() {
            return port as u16;
        }
    }
    panic!("every port is taken");
}

/// Waits until nobody listens on a port of 127.0.0.1 any more, for whom it is to be bound again:
/// a process that another thread forks just now has a copy of a listener of ours, until it has
/// become its program.
pub fn wait_until_free(port: u16) {
    let place = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    eventually("the port to be free", || {
        can_bind(AddressFamily::Inet, place).ok()
    });
}

/// Whether an address can be bound. It is not listened on: a process that another thread forks just
/// now has a copy of the socket until it has become its program, and a listener would be in the way
/// of whom the port is for.
fn can_bind(family: AddressFamily, address: SocketAddr) -> nix::Result<()> {
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
}
