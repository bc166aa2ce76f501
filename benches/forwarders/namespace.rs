//! Namespaces of the benchmark's own: ports, connections in TIME_WAIT and kernel settings disturb
//! nobody and are disturbed by nobody, and with the last process of the driver's pid namespace
//! everything that it started ends, however it ends.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, wait};

use crate::processes::Scratch;
use crate::{Outcome, role};

/// As root; as the user who runs it otherwise, who keeps the right to set up the network there.
/// tcpproxy then serves as that user, because it does not see a root.
const WAYS: [&[&str]; 2] = [&[], &["--user", "--map-current-user", "--keep-caps"]];
const FLAGS: [&str; 5] = ["--net", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Runs the driver inside, and waits for it.
pub(crate) fn run_inside(words: &[String]) -> Outcome<ExitStatus> {
    let Some(way) = WAYS.into_iter().find(|way| permitted(way)) else {
        let problem = "no network namespace can be made here: it takes unshare(1), and root or \
                       user namespaces";
        return Err(problem.into());
    };
    Scratch::sweep();
    let me = std::env::current_exe()?;
    let run = std::process::id().to_string();
    let inside = unshare(way);
    let mut command = Command::new(&me);
    command.arg(role::MORTAL).arg(inside.get_program());
    command.args(inside.get_args()).arg(&me);
    command.args([role::INIT, &run]).args(words);
    // cargo sets LD_LIBRARY_PATH: every program that is started would look there first, for each of
    // its libraries, which more than doubles its system calls.
    command.env_clear();
    for kept in ["PATH", "HOME", "TMPDIR"] {
        command.envs(std::env::var_os(kept).map(|value| (kept, value)));
    }
    Ok(command.status()?)
}

/// Becomes a program that dies with its parent. unshare itself ignores what the keyboard sends, and
/// the first process of a pid namespace every signal from inside.
pub(crate) fn mortal(words: &[String]) -> Outcome<()> {
    let (program, arguments) = words.split_first().ok_or("started by hand")?;
    set_pdeathsig(Signal::SIGKILL)?;
    Err(Command::new(program).args(arguments).exec().into())
}

fn unshare(way: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(way).args(FLAGS).arg("--");
    command
}

fn permitted(way: &[&str]) -> bool {
    let mut attempt = unshare(way);
    let attempt = attempt.arg("true").stderr(Stdio::null()).status();
    attempt.is_ok_and(|status| status.success())
}

/// The first process inside. It starts the driver and inherits what others leave behind: without it,
/// the driver would collect the zombies of forwarders that fork twice.
pub(crate) fn init(words: &[String]) -> ExitCode {
    let me = std::env::current_exe();
    let driver = me.and_then(|me| Command::new(me).arg(role::DRIVER).args(words).spawn());
    let driver = match driver {
        Ok(driver) => driver.id() as i32,
        Err(_) => return ExitCode::FAILURE,
    };
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, 0)) if pid.as_raw() == driver => return ExitCode::SUCCESS,
            Ok(status) if status.pid().is_some_and(|pid| pid.as_raw() != driver) => {}
            _ => return ExitCode::FAILURE,
        }
    }
}

/// The network is set up, and descriptors are plenty.
pub(crate) fn prepare() -> Outcome<()> {
    let status = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    match status {
        Ok(status) if status.success() => {}
        _ => return Err("the loopback interface does not come up (ip link set lo up)".into()),
    }
    // The clients of a fast forwarder leave more ports in TIME_WAIT than the usual range has.
    // Where one of these cannot be set, the rest still helps.
    for (setting, value) in [
        ("ip_local_port_range", "10000 65535"),
        ("tcp_tw_reuse", "1"),
        ("tcp_tw_reuse_delay", "0"),
    ] {
        let _ = fs::write(format!("/proc/sys/net/ipv4/{setting}"), value);
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Root may go beyond the hard limit; whoever may not takes what there is.
    let wanted = hard.max(ENOUGH_DESCRIPTORS);
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// For client and backend, with 5,000 sessions.
const ENOUGH_DESCRIPTORS: u64 = 20_000;
