//! How far a connection's packets may still go: the hop limit of IP (RFC 791 calls it the time to
//! live), which each host that passes them on lowers by one.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Ipv4Ttl, Ipv6Ttl};

/// What getsockopt(2) writes for `IP_PKTOPTIONS` here: one control message (cmsg(3)) with an int.
#[repr(C)]
struct Message {
    header: libc::cmsghdr,
    value: libc::c_int,
    padding: libc::c_int,
}

/// `IPV6_2292PKTOPTIONS` (linux/in6.h), which libc does not name on every platform.
const IPV6_2292PKTOPTIONS: libc::c_int = 6;

/// The hop limit that the first packet of an accepted TCP connection had when it arrived, from a
/// peer of this address (ip(7), `IP_RECVTTL`).
pub(crate) fn hops_left(socket: BorrowedFd, peer: IpAddr) -> nix::Result<u8> {
    let (level, receive, packet, kind) = match peer {
        IpAddr::V4(_) => (
            libc::SOL_IP,
            libc::IP_RECVTTL,
            libc::IP_PKTOPTIONS,
            libc::IP_TTL,
        ),
        IpAddr::V6(_) => (
            libc::SOL_IPV6,
            libc::IPV6_RECVHOPLIMIT,
            IPV6_2292PKTOPTIONS,
            libc::IPV6_HOPLIMIT,
        ),
    };
    let on: libc::c_int = 1;
    // SAFETY: the option's value is one int, which lives until the call returns.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            receive,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    Errno::result(done)?;
    let mut message = Message {
        // SAFETY: it is made of integers, for which zero is a value.
        header: unsafe { std::mem::zeroed() },
        value: 0,
        padding: 0,
    };
    let mut length = size_of::<Message>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, for which there is room; any bytes are a
    // message.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            packet,
            (&raw mut message).cast(),
            &raw mut length,
        )
    };
    Errno::result(done)?;
    if (message.header.cmsg_level, message.header.cmsg_type) != (level, kind) {
        return Err(Errno::ENODATA);
    }
    u8::try_from(message.value).map_err(|_| Errno::ENODATA)
}

/// Gives the packets of a socket, which is to be connected to this address, a hop limit of 1 to 255.
pub(crate) fn limit_hops(socket: BorrowedFd, to: IpAddr, hops: u8) -> nix::Result<()> {
    match to {
        IpAddr::V4(_) => setsockopt(&socket, Ipv4Ttl, &i32::from(hops)),
        IpAddr::V6(_) => setsockopt(&socket, Ipv6Ttl, &i32::from(hops)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

    use super::*;

    #[test]
    fn what_one_end_sets_the_other_reads() {
        for (listens, connects_to) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
            ("[::]:0", "127.0.0.1"),
        ] {
            let listener = TcpListener::bind(listens).unwrap();
            let address: IpAddr = connects_to.parse().unwrap();
            let family = if address.is_ipv4() {
                AddressFamily::Inet
            } else {
                AddressFamily::Inet6
            };
            let client = socket(family, SockType::Stream, SockFlag::empty(), None).unwrap();
            limit_hops(client.as_fd(), address, 41).unwrap();
            let port = listener.local_addr().unwrap().port();
            let to = SockaddrStorage::from(std::net::SocketAddr::new(address, port));
            connect(client.as_raw_fd(), &to).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert_eq!(hops_left(accepted.as_fd(), address), Ok(41), "{listens}");
            drop(TcpStream::from(client));
        }
    }
}
