//! What a forwarder costs: processor time of all its processes, and memory.
//!
//! Processor time comes from a control group (cgroups(7), version 2), which counts everything that
//! ever ran in it in microseconds. rusage would miss the children of forwarders that ignore SIGCHLD,
//! and /proc/PID/stat counts in steps of 10 ms. Every version 2 group counts, whatever controllers
//! there are, so a system that has mounted it beside version 1 will do.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::Outcome;

/// The group in which all groups of this run are made.
pub(crate) struct Accounts {
    group: PathBuf,
}

const NAME: &str = "tcpproxy-bench-";

impl Accounts {
    /// Nothing where no group may be made.
    pub(crate) fn open(run: &str) -> Option<Accounts> {
        let home = own_group()?;
        sweep(&home);
        let group = home.join(format!("{NAME}{run}"));
        fs::create_dir(&group).ok()?;
        // Made in a group that does not count, it would be of no use.
        used_in(&group).map(|_| Accounts { group })
    }

    pub(crate) fn account(&self, name: &str) -> Outcome<Account> {
        let group = self.group.join(name);
        fs::create_dir(&group).map_err(|error| format!("{}: {error}", group.display()))?;
        Ok(Account { group })
    }
}

impl Drop for Accounts {
    fn drop(&mut self) {
        // One that could not be removed is swept by the next run.
        let _ = fs::remove_dir(&self.group);
    }
}

/// The version 2 group that this process is in.
fn own_group() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (place, kind) = (words.nth(1)?, words.next()?);
        (kind == "cgroup2").then_some(place)
    })?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(mount).join(own))
}

/// Removes what interrupted runs have left. A group that is in use cannot be removed.
fn sweep(home: &Path) {
    for group in folders(home) {
        let name = group.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(NAME) {
            for account in folders(&group) {
                let _ = fs::remove_dir(account);
            }
            let _ = fs::remove_dir(&group);
        }
    }
}

fn folders(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    let entries = entries.map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).collect()
}

fn used_in(group: &Path) -> Option<Duration> {
    let text = fs::read_to_string(group.join("cpu.stat")).ok()?;
    let used = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(Duration::from_micros(used.parse().ok()?))
}

/// What one forwarder has used. Whoever writes 0 to `entrance` is in it, with all its children.
pub(crate) struct Account {
    group: PathBuf,
}

impl Account {
    pub(crate) fn entrance(&self) -> PathBuf {
        self.group.join("cgroup.procs")
    }

    /// Who is in it now: unlike a family, also those whose parent has gone.
    pub(crate) fn members(&self) -> Option<Vec<Pid>> {
        let text = fs::read_to_string(self.entrance()).ok()?;
        let members = text.lines().filter_map(|pid| pid.parse().ok());
        // One that is just going is listed as 0, which kill(2) would take for our own group.
        Some(members.filter(|&pid| pid > 0).map(Pid::from_raw).collect())
    }

    pub(crate) fn used(&self) -> Option<Duration> {
        used_in(&self.group)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // A process that has been killed is in its group until it has gone.
        let deadline = Instant::now() + Duration::from_secs(1);
        while fs::remove_dir(&self.group).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A process and all that descend from it, as far as their parents are still there.
pub(crate) fn family(head: Pid) -> Vec<Pid> {
    let mut members = vec![head];
    let mut seen = 0;
    while let Some(&parent) = members.get(seen) {
        let tasks = fs::read_dir(format!("/proc/{parent}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children = children
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok());
            members.extend(children.map(Pid::from_raw));
        }
        seen += 1;
    }
    members
}

/// The memory of these processes in KiB, a page that several share counted once.
pub(crate) fn user_memory(processes: &[Pid]) -> u64 {
    let of = |pid: &Pid| kibibytes(&format!("/proc/{pid}/smaps_rollup"), &["Pss:"]);
    processes.iter().map(of).sum()
}

/// The memory in KiB that the kernel uses for everybody's processes, sockets, descriptors, pipes
/// (their buffers, if there are any in them, are not included) and page tables.
pub(crate) fn kernel_memory() -> u64 {
    kibibytes(
        "/proc/meminfo",
        &["Slab:", "KernelStack:", "PageTables:", "Percpu:"],
    )
}

/// The sum of these lines.
fn kibibytes(file: &str, wanted: &[&str]) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let values = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|name| wanted.contains(name))?;
        words.next()?.parse::<u64>().ok()
    });
    values.sum()
}
