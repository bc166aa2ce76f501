//! How the supervisor makes a session's process, as cheaply as that can be.

use std::ops::RangeInclusive;
use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::in_child;

unsafe extern "C" {
    /// As fork(2), without the handlers of pthread_atfork(3) (POSIX.1-2024; glibc 2.34, musl 1.2.2).
    fn _Fork() -> libc::pid_t;
}

/// As [`super::fork`], and the child is without these descriptors from the start. `work` must not
/// use or drop their owners.
///
/// Each page that either process writes to is copied. fork(3) has the child write to three just to
/// renew the locks of the C library, which nobody can hold where there is no second thread.
pub(crate) fn fork_without(
    descriptors: &[RangeInclusive<RawFd>],
    work: impl FnOnce() -> i32,
) -> nix::Result<Pid> {
    // SAFETY: as in `fork`: the program never has a second thread.
    match Errno::result(unsafe { _Fork() })? {
        0 => in_child(|| {
            descriptors.iter().for_each(close);
            work()
        }),
        child => Ok(Pid::from_raw(child)),
    }
}

/// Closes descriptors whose owners are left behind in the parent: a process that was forked never
/// goes back there, but ends without running a destructor of theirs.
fn close(range: &RangeInclusive<RawFd>) {
    let (first, last) = (*range.start() as libc::c_uint, *range.end() as libc::c_uint);
    // SAFETY: see above: nothing in this process uses these numbers, which are not below 0, before
    // they are given out anew. The call fails only for a range that is none, or an older kernel.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed == -1 {
        // Before Linux 5.9.
        for number in range.clone() {
            // SAFETY: as above.
            unsafe { libc::close(number) };
        }
    }
}
