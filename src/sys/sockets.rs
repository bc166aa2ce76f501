//! What sockets are told beside what nix has a word for.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{OobInline, ReceiveTimeout, SendTimeout};
use nix::sys::time::{TimeVal, TimeValLike};

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
