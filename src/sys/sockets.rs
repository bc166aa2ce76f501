//! What sockets are told beside what nix has a word for.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::sockopt::{
    Ipv6V6Only, KeepAlive, OobInline, ReceiveTimeout, ReuseAddr, SendTimeout, TcpKeepIdle,
    TcpNoDelay,
};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, SockaddrStorage, bind, listen,
    recv, setsockopt, shutdown, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::sys::wait::{self, Woken};

/// Has a connection ready for the relay: small messages are not held back, and dead peers are noticed in
/// the end. What was sent with `MSG_MORE` goes at once.
pub(crate) fn prepare_for_relay(socket: BorrowedFd) {
    // Each of these fails on sockets other than TCP's, which have no use for it.
    let _ = setsockopt(&socket, TcpNoDelay, &true);
    let _ = setsockopt(&socket, KeepAlive, &true);
}

/// Has urgent data read in its place in the stream, as the relay needs it, or not, as handlers may
/// want it. Of urgent data that arrives before only the last byte would be kept (`tcp_check_urg`,
/// Linux 6.18): so it is done for each socket as early as it can be, on its listener even, or
/// before it connects.
pub(crate) fn set_urgent_in_line(socket: BorrowedFd, in_line: bool) {
    // Fails on sockets other than TCP's, which have no urgent data.
    let _ = setsockopt(&socket, OobInline, &in_line);
}

/// Has calls on a socket that would wait, for whatever reason, do so for this long at most, and then
/// fail with EAGAIN (`SO_RCVTIMEO` and `SO_SNDTIMEO`, socket(7); in steps of the kernel's ticks).
pub(crate) fn bound_waits(socket: BorrowedFd, longest: Duration) -> nix::Result<()> {
    let longest = TimeVal::microseconds(longest.as_micros() as i64);
    setsockopt(&socket, ReceiveTimeout, &longest)?;
    setsockopt(&socket, SendTimeout, &longest)
}

/// A listener at this address alone, for one family; accepting does not wait. Port 0 is any that is free.
/// Its connections read urgent data in its place.
pub(crate) fn listen_at(place: SocketAddr, backlog: Backlog) -> nix::Result<OwnedFd> {
    let family = match place {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(family, SockType::Stream, flags, None)?;
    // Its earlier connections may still be in TIME_WAIT (tcp(7)).
    setsockopt(&listener, ReuseAddr, &true)?;
    if place.is_ipv6() {
        setsockopt(&listener, Ipv6V6Only, &true)?;
    }
    set_urgent_in_line(listener.as_fd(), true);
    bind(listener.as_raw_fd(), &SockaddrStorage::from(place))?;
    listen(&listener, backlog)?;
    Ok(listener)
}

/// How long a peer may be silent before it is asked whether it is still there (`TCP_KEEPIDLE`, tcp(7);
/// in whole seconds); `None`: it is never asked.
pub(crate) fn ask_silent_peer(socket: BorrowedFd, after: Option<Duration>) {
    // Fails on sockets other than TCP's, whose peers do not vanish.
    let _ = match after {
        Some(time) => setsockopt(&socket, TcpKeepIdle, &(time.as_secs() as u32)),
        None => setsockopt(&socket, KeepAlive, &false),
    };
}

/// How long a client that was refused may take to read why.
const LONGEST_DISMISSAL: Duration = Duration::from_secs(2);

/// Ends a connection so that its peer receives everything that was written: nothing more is sent, and
/// what still comes is read and dropped, since closing a socket with unread data resets the connection and
/// discards what is on its way (RFC 2525 §2.17).
///
/// Kept apart: its buffer would make the stack of every session a page longer.
#[inline(never)]
pub(crate) fn dismiss(socket: BorrowedFd) {
    let deadline = Instant::now() + LONGEST_DISMISSAL;
    // Each failure here means that the peer has gone, which is what this waits for.
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Write);
    let mut buffer = [0; 4096];
    loop {
        // Whoever else holds the socket may have made it block.
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return,
            Ok(_) => {}
            Err(Errno::EAGAIN) => {
                let mut set = [PollFd::new(socket, PollFlags::POLLIN)];
                if wait::wait(&mut set, Some(deadline)) != Ok(Woken::Ready) {
                    return;
                }
            }
            Err(_) => return,
        }
        if Instant::now() >= deadline {
            return;
        }
    }
}
