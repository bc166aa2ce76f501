//! What a program must not have that serves a client.
//!
//! All of it is done between fork and exec, or just before exec: by system calls alone.

use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::setsid;

use super::ignore;

const STDERR: RawFd = 2;

/// Moves this process to a session of its own, and so away from its controlling terminal: whoever
/// has one can open /dev/tty, and type there for the user whose terminal it is (ioctl_tty(2),
/// TIOCSTI).
pub(crate) fn leave_terminal() -> nix::Result<()> {
    match setsid() {
        Err(Errno::EPERM) => {}
        done => return done.map(drop),
    }
    // The leader of a process group, such as a shell's job or a process that inetd has already given
    // a session, has to stay in its session, but can let go of the terminal: it gets no other, as
    // long as it opens none as the leader of a session.
    let flags = OFlag::O_RDONLY | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let terminal = open("/dev/tty", flags, Mode::empty());
    // Where there is no /dev/tty, standard error is the only way that could lead to the terminal.
    let terminal = terminal.as_ref().map_or(STDERR, AsRawFd::as_raw_fd);
    // SAFETY: the call takes an integer; a descriptor of another kind gives ENOTTY, and so does a
    // terminal that is not ours.
    if unsafe { libc::ioctl(terminal, libc::TIOCNOTTY) } == 0 {
        // The leader of a session has with this sent SIGHUP to the processes in the foreground, of
        // which it may be one. It is blocked here; being ignored, it is forgotten.
        ignore(Signal::SIGHUP)?;
    }
    Ok(())
}

/// The kernel's `struct __user_cap_header_struct`, for capget(2) and capset(2).
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

/// `_LINUX_CAPABILITY_VERSION_3`, which has 64 bits, in two halves.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// The kernel's `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Capabilities {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up every capability, and what of them a program would be handed (capabilities(7)): where
/// root's were given up with its ids, the inheritable ones are left; and without root a service
/// manager may have given some (systemd.exec(5), `AmbientCapabilities=`).
pub(super) fn give_up_capabilities() -> nix::Result<()> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let mut held = [Capabilities::default(); 2];
    // SAFETY: both point to what the kernel reads and writes for this version.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw const header, held.as_mut_ptr()) };
    Errno::result(done)?;
    let none = [Capabilities::default(); 2];
    // Filters of system calls often know capset(2), but do not allow it (systemd's `@privileged`).
    if held == none {
        return Ok(());
    }
    // What is not inheritable is not ambient either.
    // SAFETY: as above; nothing is written.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    Errno::result(done).map(drop)
}
