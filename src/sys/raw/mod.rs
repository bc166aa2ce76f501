//! Every `unsafe` line of the program, behind functions that are safe to call.
//!
//! What std and nix offer safely is not wrapped again. The program never starts a thread; the
//! functions that rely on that (fork, local time) say so.

mod clock;
mod directory;
mod hops;
mod pages;
mod rights;
mod session;
mod shared;
mod words;
mod writing;

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{ForkResult, Pid};

pub(crate) use clock::{LocalTime, learn_utc_offset, local_time};
pub(crate) use directory::entries;
pub(crate) use hops::{hops_left, limit_hops};
pub(crate) use pages::Pages;
pub(crate) use rights::{
    empty_bounding_set, give_up_capabilities, has_net_admin, keep_net_admin_alone, leave_terminal,
};
pub(crate) use session::fork_without;
pub(crate) use shared::shared_numbers;
pub use words::Words;
pub(crate) use writing::{overwrite, write_now};

/// Which watched signals have arrived and were not asked about yet: bit N is signal N.
static ARRIVED: AtomicU64 = AtomicU64::new(0);

extern "C" fn note_arrival(signal: libc::c_int) {
    ARRIVED.fetch_or(1 << signal, Ordering::Relaxed);
}

/// Which signals no wait lets in: bit N is signal N.
static DEAF_TO: AtomicU64 = AtomicU64::new(0);

/// Has these signals noted, for [`signal_arrived`], and blocks them, so that they interrupt
/// nothing but the waits that let them in (ppoll(2) with [`wait_mask`]). Those of `deaf_to` are
/// blocked for good.
pub(crate) fn watch_signals(signals: &[Signal], deaf_to: &[Signal]) -> nix::Result<()> {
    let mut blocked = SigSet::empty();
    let action = SigAction::new(
        SigHandler::Handler(note_arrival),
        SaFlags::empty(),
        SigSet::empty(),
    );
    for &signal in deaf_to {
        blocked.add(signal);
        DEAF_TO.fetch_or(bit(signal), Ordering::Relaxed);
    }
    for &signal in signals {
        blocked.add(signal);
        // SAFETY: the handler only sets a bit in an atomic, which signal-safety(7) allows at any
        // moment.
        unsafe { nix::sys::signal::sigaction(signal, &action) }?;
    }
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None)
}

extern "C" fn end_at_once(_: libc::c_int) {
    exit_now(0);
}

/// Has these signals end the process at once, with status 0: as long as it may have to wait for
/// something that cannot be interrupted, and has nothing to put in order. By default they would not
/// end the first process of a container.
pub(crate) fn end_at(signals: &[Signal]) -> nix::Result<()> {
    let end = SigHandler::Handler(end_at_once);
    let action = SigAction::new(end, SaFlags::empty(), SigSet::empty());
    for &signal in signals {
        // SAFETY: the handler only calls _exit(2), which signal-safety(7) allows at any moment.
        unsafe { nix::sys::signal::sigaction(signal, &action) }?;
    }
    let heard = signals.iter().copied().collect::<SigSet>();
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&heard), None)
}

/// Gives these signals the system's default effect, and has none blocked.
pub(crate) fn forget_signals(signals: &[Signal]) -> nix::Result<()> {
    for &signal in signals {
        restore_default(signal)?;
    }
    SigSet::empty().thread_set_mask()
}

/// Notes a signal that has come another way than to the handler.
pub(crate) fn note_signal(signal: Signal) {
    note_arrival(signal as libc::c_int);
}

/// The signals to block while waiting.
pub(crate) fn wait_mask() -> SigSet {
    let deaf_to = DEAF_TO.load(Ordering::Relaxed);
    let mut mask = SigSet::empty();
    if deaf_to != 0 {
        mask.extend(Signal::iterator().filter(|&signal| deaf_to & bit(signal) != 0));
    }
    mask
}

/// Whether a watched signal has arrived, and was not [taken](take_signal) yet.
pub(crate) fn signal_arrived(signal: Signal) -> bool {
    ARRIVED.load(Ordering::Relaxed) & bit(signal) != 0
}

/// Whether a watched signal has arrived since this was last asked of it.
pub(crate) fn take_signal(signal: Signal) -> bool {
    // Written to only where there is something to take: after a fork that has the page copied.
    signal_arrived(signal) && ARRIVED.fetch_and(!bit(signal), Ordering::Relaxed) & bit(signal) != 0
}

fn bit(signal: Signal) -> u64 {
    1 << signal as libc::c_int
}

/// Gives one signal the system's default effect.
pub(crate) fn restore_default(signal: Signal) -> nix::Result<()> {
    // SAFETY: no handler is installed, so nothing of ours runs in signal context.
    unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }.map(drop)
}

/// Has the signals ignored by which writing ends a process: to a reader or peer that is gone, or beyond
/// a limit on the sizes of files that a log or a transcript reaches. It is an error then, and no end.
pub(crate) fn ignore_what_writing_raises() -> nix::Result<()> {
    ignore(Signal::SIGPIPE)?;
    ignore(Signal::SIGXFSZ)
}

/// Has one signal ignored. Programs that are started later do not inherit this: see
/// [`start_clean`].
pub(crate) fn ignore(signal: Signal) -> nix::Result<()> {
    // SAFETY: no handler is installed, so nothing of ours runs in signal context.
    unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) }.map(drop)
}

/// More than the size of the kernel's `struct sigaction` anywhere.
const DEFAULT_ACTION: [u64; 16] = [0; 16];

/// Has the program start in a session of its own and without capabilities, with every signal at
/// its default and none blocked, and with no descriptor above 2, whatever we or our own parent left
/// behind. Works for `spawn` and `exec`. A child that is spawned leads its process group, too, and
/// must not be given one by [`CommandExt::process_group`]: the leader of a group can begin no
/// session.
pub(crate) fn start_clean(command: &mut Command) {
    let clean = || {
        rights::leave_terminal()?;
        rights::give_up_capabilities()?;
        let last = libc::SIGRTMAX();
        // The size of the kernel's signal set in bytes: for signals 1 to 64, on MIPS to 127.
        let set_size = (last + 1) / 8;
        for signal in 1..=last {
            // glibc's signal(2) refuses the two signals that it uses itself; but its
            // posix_spawn(3) may have started us with those ignored. So the kernel is asked.
            // SAFETY: all-zero bytes, at least as many as the kernel reads, are SIG_DFL without
            // flags and mask on every architecture; nothing of ours runs in signal context. It
            // fails for SIGKILL and SIGSTOP, which nobody can ignore.
            unsafe {
                libc::syscall(
                    libc::SYS_rt_sigaction,
                    signal,
                    DEFAULT_ACTION.as_ptr(),
                    std::ptr::null_mut::<u64>(),
                    set_size as usize,
                )
            };
        }
        SigSet::empty().thread_set_mask()?;
        // SAFETY: close_range(2) with CLOEXEC (Linux 5.11) closes nothing yet, so that the
        // descriptor by which std reports a failed exec still works.
        let done = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3 as libc::c_uint,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        Errno::result(done).map(drop).map_err(io::Error::from)
    };
    // SAFETY: the closure only makes async-signal-safe system calls; it neither allocates nor
    // takes a lock, as pre_exec asks of what runs between fork and exec.
    unsafe { command.pre_exec(clean) };
}

/// The number of the descriptor that a program answers to.
pub(crate) const ANSWERED: RawFd = 3;

/// Has the program find this descriptor, which it is to answer to, under the number [`ANSWERED`]; behind
/// [`start_clean`], which closes all others. The command holds the descriptor.
pub(crate) fn pass_for_answer(command: &mut Command, descriptor: OwnedFd) -> nix::Result<()> {
    // Where the number is free now, this takes it. So it is never that of the descriptor by which std
    // reports a failed exec, which is yet to be made.
    let number = fcntl(&descriptor, FcntlArg::F_DUPFD_CLOEXEC(ANSWERED))?;
    // SAFETY: the kernel has just made this descriptor for us.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    let pass = move || {
        let done = match descriptor.as_raw_fd() {
            // SAFETY: the flag of a descriptor of our own is taken away.
            ANSWERED => unsafe { libc::fcntl(ANSWERED, libc::F_SETFD, 0) },
            // SAFETY: in the child nobody else uses the number any more: what it was there is closed.
            number => unsafe { libc::dup2(number, ANSWERED) },
        };
        Errno::result(done).map(drop).map_err(io::Error::from)
    };
    // SAFETY: the closure makes one async-signal-safe system call; it neither allocates nor takes a
    // lock, as pre_exec asks of what runs between fork and exec.
    unsafe { command.pre_exec(pass) };
    Ok(())
}

/// Has the program killed when this process ends, however it does: then nobody is left who waits
/// for it. What it has started is not: the supervisor sees to that, as the one that adopts it.
pub(crate) fn end_with_us(command: &mut Command) {
    let us = nix::unistd::getpid();
    let bind = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        match nix::unistd::getppid() == us {
            true => Ok(()),
            // We have ended before the kernel knew.
            false => Err(io::Error::from(Errno::ESRCH)),
        }
    };
    // SAFETY: prctl(2) and getppid(2) are system calls and nothing more; neither allocates nor
    // takes a lock, as pre_exec asks of what runs between fork and exec.
    unsafe { command.pre_exec(bind) };
}

/// Forks a child that does its work and exits with the status this returns. Signals that arrived
/// for the parent are not the child's. A panic ends the child as SIGABRT does, and goes no
/// further up than here.
pub(crate) fn fork(work: impl FnOnce() -> i32) -> nix::Result<Pid> {
    // SAFETY: the program never has a second thread, so no lock can be held by a thread that
    // the child lacks, and the child may do whatever any process may.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => in_child(work),
    }
}

/// What a child does that was forked.
fn in_child(work: impl FnOnce() -> i32) -> ! {
    // Only where there is something to forget: writing has the page copied.
    if ARRIVED.load(Ordering::Relaxed) != 0 {
        ARRIVED.store(0, Ordering::Relaxed);
    }
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(status) => exit_now(status),
        Err(_) => std::process::abort(),
    }
}

/// Ends the process at once: no destructor or exit handler that the parent set up is run.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) has no precondition, and does not return.
    unsafe { libc::_exit(status) }
}

/// Whether two descriptors, open or not, are the same file. Takes numbers, as it may be asked
/// about descriptors that nobody here owns.
pub(crate) fn are_same_file(one: RawFd, other: RawFd) -> bool {
    let file = |fd| {
        let mut status = MaybeUninit::<libc::stat>::zeroed();
        // SAFETY: fstat(2) writes to `status`, which has its size; a number that is no
        // descriptor gives EBADF.
        let done = unsafe { libc::fstat(fd, status.as_mut_ptr()) };
        // SAFETY: it was written, or is all zero, which is a valid value as well.
        let status = unsafe { status.assume_init() };
        (done == 0).then_some((status.st_dev, status.st_ino))
    };
    file(one).is_some_and(|file_of_one| file(other) == Some(file_of_one))
}

/// Whether all of these numbers are open descriptors.
pub(crate) fn are_open<const N: usize>(numbers: [RawFd; N]) -> bool {
    let mut set = numbers.map(|fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    });
    // SAFETY: the set is valid for its length. A number that is no descriptor gives POLLNVAL.
    let ready = unsafe { libc::poll(set.as_mut_ptr(), N as libc::nfds_t, 0) };
    let is_open = |polled: &libc::pollfd| polled.revents & libc::POLLNVAL == 0;
    ready == 0 || ready > 0 && set.iter().all(is_open)
}

/// How many supplementary groups the process has. Nix would first ask how many there could be at
/// most, which sysconf(3) reads from a file.
pub(crate) fn count_supplementary_groups() -> nix::Result<usize> {
    // SAFETY: with a size of 0 nothing is written.
    let count = unsafe { libc::getgroups(0, std::ptr::null_mut()) };
    Errno::result(count).map(|count| usize::try_from(count).unwrap_or(0))
}

/// Takes over descriptor 0. `None` if it is not open, or was taken over before.
pub(crate) fn take_standard_input() -> Option<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    match TAKEN.swap(true, Ordering::Relaxed) {
        true => None,
        false => take_over(0),
    }
}

/// Takes over the descriptors that a service manager has passed: so many, from 3 on
/// (sd_listen_fds(3)). `None` stands for one that is not open. Nothing the second time.
pub(crate) fn take_passed(count: usize) -> Vec<Option<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    match TAKEN.swap(true, Ordering::Relaxed) {
        true => Vec::new(),
        false => (3..).take(count).map(take_over).collect(),
    }
}

/// Takes over a descriptor that was inherited from whoever started this process.
fn take_over(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_SETFD sets a flag; a number that is no descriptor gives EBADF.
    let done = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: it is open, and was passed to this process to be its own. Nothing else here owns
    // it: std only ever borrows 0, 1 and 2, and both callers take each number once, at the start.
    (done == 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Bytes that have arrived at a socket and were not read yet (tcp(7), SIOCINQ).
pub(crate) fn bytes_waiting(socket: BorrowedFd) -> nix::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD (the same as SIOCINQ) stores one int, for which `count` is the place.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    Errno::result(done)?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Collects a child that has ended (waitpid(2)): this one, or any, without waiting. Nix would fail
/// for one that a real-time signal has ended, after the kernel has forgotten it.
pub(crate) fn reap(child: Option<Pid>) -> Option<(Pid, ExitStatus)> {
    let which = child.map_or(-1, Pid::as_raw);
    loop {
        let mut status = 0;
        // SAFETY: the status is written to a place of its type.
        let child = unsafe { libc::waitpid(which, &raw mut status, libc::WNOHANG) };
        match Errno::result(child) {
            Ok(0) => return None,
            Ok(child) => return Some((Pid::from_raw(child), ExitStatus::from_raw(status))),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// Whether there is a child that was not [collected](reap) yet, be it that it lives.
pub(crate) fn has_children() -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    // Nix cannot say what it has found where a real-time signal has ended it.
    !matches!(waitid(Id::All, flags), Err(Errno::ECHILD))
}

/// accept4(2): a socket that does not block, with close-on-exec, and the peer's address as it was when the connection was made
/// (a peer that has reset it since has none any more).
pub(crate) fn accept(listener: BorrowedFd) -> nix::Result<(OwnedFd, Option<SockaddrStorage>)> {
    let mut address = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: the address is writable for the length given, which is its size.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            address.as_mut_ptr().cast(),
            &raw mut length,
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        )
    };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the kernel has written an address of this length; the rest is zero.
    let address = unsafe { SockaddrStorage::from_raw(address.as_ptr().cast(), Some(length)) };
    Ok((socket, address))
}

/// Aborts a TCP connection: its peer sees a reset at once (RFC 9293 §3.10.5), whoever else
/// still holds the socket. Undelivered data is discarded. Fails for other kinds of socket.
pub(crate) fn abort_connection(socket: BorrowedFd) -> nix::Result<()> {
    let unspecified = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    // SAFETY: the address lives until the call returns, and the length is its size.
    let done = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            &raw const unspecified,
            size_of_val(&unspecified) as libc::socklen_t,
        )
    };
    Errno::result(done).map(drop)
}

/// Bytes that were written to a socket and that its peer has not acknowledged yet (tcp(7),
/// SIOCOUTQ).
pub(crate) fn bytes_in_flight(socket: BorrowedFd) -> nix::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same as TIOCOUTQ) stores one int, for which `count` is the place.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    Errno::result(done)?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// A descriptor that becomes readable when the child has ended (pidfd_open(2), Linux 5.3).
pub(crate) fn watch_child(child: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.as_raw(), 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The name of an address in the system's name services (getnameinfo(3)); `None` if it has none.
/// May take as long as a name server does.
pub(crate) fn name_by_address(address: IpAddr) -> Option<String> {
    let address = SockaddrStorage::from(SocketAddr::new(address, 0));
    let mut name = [0 as libc::c_char; libc::NI_MAXHOST as usize];
    // SAFETY: the address is valid for its length, the buffer is writable for its own, and no
    // service name is asked for.
    let failure = unsafe {
        libc::getnameinfo(
            address.as_ptr(),
            address.len(),
            name.as_mut_ptr(),
            name.len() as libc::socklen_t,
            std::ptr::null_mut(),
            0,
            libc::NI_NAMEREQD,
        )
    };
    if failure != 0 {
        return None;
    }
    // SAFETY: on success the buffer holds a string that ends in NUL.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    name.to_str().ok().map(str::to_owned)
}

/// Whether calls on a descriptor wait (`O_NONBLOCK` off). The flag belongs to the open file, and
/// so is shared with whoever else holds it. Costs one system call if nothing is to be changed.
pub(crate) fn set_blocking(fd: BorrowedFd, blocking: bool) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    let mut wanted = flags;
    wanted.set(OFlag::O_NONBLOCK, !blocking);
    if wanted != flags {
        fcntl(fd, FcntlArg::F_SETFL(wanted))?;
    }
    Ok(())
}

/// Has the kernel send this process SIGALRM after a time, even if it has become another program
/// by then (setitimer(2)); or not any more.
pub(crate) fn set_alarm(after: Option<Duration>) {
    let timer = libc::itimerval {
        it_interval: libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        },
        it_value: libc::timeval {
            // The types are the C library's, which libc would rather not name.
            tv_sec: after.map_or(0, |after| after.as_secs()) as _,
            // 0 is no alarm at all.
            tv_usec: after.map_or(0, |after| after.subsec_micros().max(1)) as _,
        },
    };
    // SAFETY: the timer is valid for the call; the old one is not asked for. It fails only for
    // times that are not normal, which a Duration's are.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
}

/// Has two names change places (renameat2(2), `RENAME_EXCHANGE`), so that neither is ever without a
/// file.
pub(crate) fn exchange(one: &Path, other: &Path) -> nix::Result<()> {
    let done = one.with_nix_path(|one| {
        other.with_nix_path(|other| {
            // SAFETY: both are strings that end in NUL, for the time of the call.
            unsafe {
                libc::syscall(
                    libc::SYS_renameat2,
                    libc::AT_FDCWD,
                    one.as_ptr(),
                    libc::AT_FDCWD,
                    other.as_ptr(),
                    libc::RENAME_EXCHANGE,
                )
            }
        })
    })??;
    Errno::result(done).map(drop)
}
