//! What can be seen of a process from outside: its children, descriptors, and what it costs.

use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{eventually, wait_for_line};

/// The children of a process with one thread, oldest first; zombies too.
pub fn children(parent: Pid) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    list.unwrap_or_default()
        .split_whitespace()
        .map(|pid| Pid::from_raw(pid.parse().unwrap()))
        .collect()
}

/// The only child of a process, when it has one.
pub fn only_child(parent: Pid) -> Pid {
    eventually("a child process", || children(parent).first().copied())
}

/// The fields of /proc/PID/stat from the third (the state) on; `None` if there is no such process.
fn stat(pid: Pid) -> Option<Vec<String>> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses, which may contain anything.
    let (_, fields) = line.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// Whether a process is there, and not a zombie.
pub fn is_alive(pid: Pid) -> bool {
    stat(pid).is_some_and(|fields| fields[0] != "Z")
}

/// Waits until SIGSTOP has stopped a process.
pub fn wait_until_stopped(pid: Pid) {
    eventually("the process to stop", || {
        stat(pid)
            .is_some_and(|fields| fields[0] == "T")
            .then_some(())
    });
}

/// The processor time a process has used, in steps of 10 ms.
pub fn cpu_time(pid: Pid) -> Duration {
    let fields = stat(pid).expect("the process is there");
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// How often a process has gone to sleep or was put to sleep.
pub fn context_switches(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status
        .lines()
        .filter(|line| line.contains("ctxt_switches"))
        .map(|line| line.rsplit('\t').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

/// The memory that a process has written to, whoever shares it, in bytes. The pages of its program
/// file do not count: whether those are private depends on who else runs it.
pub fn written_memory(pid: Pid) -> usize {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Anonymous:"));
    let kilobytes = line.unwrap().split_whitespace().nth(1).unwrap();
    kilobytes.parse::<usize>().unwrap() * 1024
}

/// The descriptors of a process, and what they lead to, as in `socket:[123]`.
pub fn descriptors(pid: Pid) -> Vec<(i32, PathBuf)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let mut found: Vec<(i32, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_str()?.parse().ok()?;
            // It may have been closed meanwhile.
            Some((number, fs::read_link(path).ok()?))
        })
        .collect();
    found.sort();
    found
}

/// The descriptors of a server, once it has all that it opens for itself: the last is the set that
/// it waits for.
pub fn descriptors_of_server(pid: Pid) -> Vec<(i32, PathBuf)> {
    eventually("the server to have what it waits for", || {
        let all = descriptors(pid);
        let is_set = |path: &PathBuf| path.to_string_lossy() == "anon_inode:[eventpoll]";
        all.iter().any(|(_, path)| is_set(path)).then_some(all)
    })
}

/// The descriptors of one kind (`socket`, `pipe`) that a process has.
pub fn descriptors_of_kind(pid: Pid, kind: &str) -> Vec<i32> {
    let of_kind = |path: &PathBuf| path.to_string_lossy().starts_with(&format!("{kind}:"));
    descriptors(pid)
        .into_iter()
        .filter(|(_, path)| of_kind(path))
        .map(|(number, _)| number)
        .collect()
}

/// A copy of another process's descriptor (pidfd_getfd(2)), to look at what it leads to.
pub fn borrow_descriptor(pid: Pid, number: i32) -> OwnedFd {
    // SAFETY: both calls take integers only, and each returns a new descriptor that nobody else
    // owns, or -1.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0);
        let process = OwnedFd::from_raw_fd(Errno::result(process).unwrap() as i32);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&process);
        let copy = libc::syscall(libc::SYS_pidfd_getfd, fd, number, 0);
        OwnedFd::from_raw_fd(Errno::result(copy).unwrap() as i32)
    }
}

/// Fails if a process does more than a little for a second.
pub fn assert_quiet(pid: Pid, when: &str) {
    thread::sleep(Duration::from_millis(200));
    let before = (context_switches(pid), cpu_time(pid));
    thread::sleep(Duration::from_millis(1000));
    let switches = context_switches(pid) - before.0;
    let cpu = cpu_time(pid) - before.1;
    assert!(
        switches <= 20 && cpu <= Duration::from_millis(20),
        "{when}: {switches} context switches, {cpu:?} of processor time"
    );
}

/// A process that is ended when a test is over, however it ends.
pub struct Leftover(pub Pid);

impl Leftover {
    /// The process whose id a script writes to a file.
    pub fn noted_in(file: &Path) -> Leftover {
        Leftover(Pid::from_raw(wait_for_line(file, "").parse().unwrap()))
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        // It has gone already if all went well.
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

/// The processes of a group, but for those that have ended and wait for init to collect them.
pub fn living_in_group(group: Pid) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap();
    all.filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("stat")).ok())
        .filter(|stat| {
            // PID (NAME) STATE PARENT GROUP ...: proc_pid_stat(5).
            let (_, rest) = stat.rsplit_once(") ").unwrap();
            let fields: Vec<&str> = rest.split(' ').collect();
            fields[0] != "Z" && fields[2] == group.to_string()
        })
        .collect()
}

/// Waits until no process of a group is left.
pub fn assert_nobody_is_left_of(group: Pid) {
    // SIGKILL has been sent, but takes effect when the kernel gets to it.
    eventually("the end of a process group", || {
        living_in_group(group).is_empty().then_some(())
    });
}
