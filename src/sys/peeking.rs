//! Bytes looked at before they are taken, so that what is not ours is left to who is given the socket next.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// Looks at what has arrived, without waiting for it.
pub(crate) fn peek(socket: BorrowedFd, place: &mut [u8]) -> nix::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(socket.as_raw_fd(), place, flags)
}

/// Takes bytes that have been seen to be there.
pub(crate) fn take(socket: BorrowedFd, mut seen: &mut [u8]) -> nix::Result<()> {
    while !seen.is_empty() {
        match recv(socket.as_raw_fd(), seen, MsgFlags::MSG_DONTWAIT) {
            // They cannot go away; but who else holds the socket might have read.
            Ok(0) => return Err(Errno::ECONNABORTED),
            Ok(count) => seen = &mut seen[count..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
