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

/// Those of a process: the lower half of the 64 bits, and the upper.
type Sets = [Capabilities; 2];

/// `CAP_NET_ADMIN`, as a bit of the lower half.
const NET_ADMIN: u32 = 1 << 12;

/// Asks about this process.
const HEADER: CapabilityHeader = CapabilityHeader {
    version: CAPABILITY_VERSION,
    pid: 0,
};

fn capabilities() -> nix::Result<Sets> {
    let header = HEADER;
    let mut held = Sets::default();
    // SAFETY: both point to what the kernel reads and writes for this version.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw const header, held.as_mut_ptr()) };
    Errno::result(done).map(|_| held)
}

/// What is not inheritable then is not ambient either (capabilities(7)).
fn set_capabilities(wanted: &Sets) -> nix::Result<()> {
    let header = HEADER;
    // SAFETY: both point to what the kernel reads for this version; nothing is written.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, wanted.as_ptr()) };
    Errno::result(done).map(drop)
}

/// Gives up every capability, and what of them a program would be handed (capabilities(7)): where
/// root's were given up with its ids, the inheritable ones are left; and without root a service
/// manager may have given some (systemd.exec(5), `AmbientCapabilities=`).
pub(crate) fn give_up_capabilities() -> nix::Result<()> {
    let none = Sets::default();
    // Filters of system calls often know capset(2), but do not allow it (systemd's `@privileged`).
    if capabilities()? == none {
        return Ok(());
    }
    set_capabilities(&none)
}

/// Whether this process has `CAP_NET_ADMIN`, or may take it up.
pub(crate) fn has_net_admin() -> nix::Result<bool> {
    capabilities().map(|[lower, _]| lower.permitted & NET_ADMIN != 0)
}

/// Takes up `CAP_NET_ADMIN`, and gives up every other capability. Fails with EPERM where it is missing.
pub(crate) fn keep_net_admin_alone() -> nix::Result<()> {
    let lower = Capabilities {
        effective: NET_ADMIN,
        permitted: NET_ADMIN,
        inheritable: 0,
    };
    set_capabilities(&[lower, Capabilities::default()])
}

/// Has no program get a capability that this process and its children start, whatever its file has. A
/// process without `CAP_SETPCAP` may not do that, and leaves it.
pub(crate) fn empty_bounding_set() {
    // Behind the last one that the kernel knows there is none.
    for capability in 0..64 as libc::c_ulong {
        // SAFETY: the call takes integers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            return;
        }
    }
}
