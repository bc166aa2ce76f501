//! What it costs to be started for one connection: system calls, pages, and the size of the program
//! as it is installed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;

use crate::harness::namespaces::{bare_dev, privately, system_log};
use crate::harness::{Scratch, TCPPROXY, hand_over, patient, read_all};

/// The bounds are those of the program as it is linked by default.
const IS_STATIC: bool = cfg!(target_feature = "crt-static");

/// The program as it is installed: optimised and stripped.
fn release() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let target = Path::new(TCPPROXY).ancestors().nth(2).unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--release", "--locked", "--quiet"]);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        build.arg("--target-dir").arg(target);
        assert!(build.status().unwrap().success());
        // A copy, as install(1) makes one: what the linker has written through a mapping lies in the page
        // cache in smaller pieces, of which a start touches up to a fifth more.
        let installed = target.join("release/tcpproxy-as-installed");
        fs::copy(target.join("release/tcpproxy"), &installed).unwrap();
        installed
    })
}

/// An upstream that reads to the end of input, and then replies.
fn upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = patient(client.unwrap());
            let mut request = Vec::new();
            client.read_to_end(&mut request).unwrap();
            client.write_all(b"reply").unwrap();
        }
    });
    address.to_string()
}

/// One short session, as inetd would start it with this command and its arguments: a request, the
/// end of input, a reply. Returns the process's page faults that needed no disk.
fn session(command: &mut Command) -> i64 {
    // cargo sets it, and the loader would look for each library there first.
    let (mut client, child) = hand_over(command.env_remove("LD_LIBRARY_PATH"));
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&client), b"reply");
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both places are writable, and the child is ours to wait for.
    let waited = unsafe { libc::wait4(child.id() as i32, &mut status, 0, usage.as_mut_ptr()) };
    assert_eq!((waited, status), (child.id() as i32, 0));
    // SAFETY: wait4(2) has filled it in.
    unsafe { usage.assume_init() }.ru_minflt
}

/// How often the program makes each system call for a short session, started by `launcher`.
fn system_calls(launcher: &[&str]) -> BTreeMap<String, usize> {
    let scratch = Scratch::new();
    let trace = scratch.join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o"]).arg(&trace).args(launcher);
    session(command.arg(release()).arg(upstream()));
    let mut calls = BTreeMap::new();
    let text = fs::read_to_string(&trace).unwrap();
    // PID NAME(ARGUMENTS) = RESULT; what the launcher did ends with the program's execve.
    let ours = text.rfind("execve(").expect(&text);
    for line in text[ours..].lines() {
        let call = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        if let Some((name, _)) = call.split_once('(') {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    calls
}

#[test]
fn a_short_session_under_inetd_makes_few_system_calls() {
    // From execve to main, what the C library takes: glibc that is linked statically sets up memory
    // (5) and the thread (4), looks for itself, at a limit, and for chance (3), and protects a part
    // of itself.
    let start = if IS_STATIC { 14 } else { 44 };
    // Descriptor 2 is kept from the client (3), signals are ignored, noted and blocked (5), the
    // client is looked at and prepared (7), and the process at its ids (3) and its number.
    let client = 19;
    // The upstream is reached (4) and prepared (3).
    let upstream = 7;
    // Four waits, four reads, two writes, two ends; and the process's own.
    let relay = 13;
    let plain = start + client + upstream + relay;
    // /dev/log is looked for in vain (3); or is connected to (2) and told two lines with the
    // process's number (4), for whose times the file of the local zone is read (8).
    let (no_log, log) = (3, 14);
    // Groups, gid and uid are set, read back, and shown to be without a way back; without root the
    // effective ids are asked for instead (2).
    let root = 7 - 2;
    let nobody = &[
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ][..];
    for (launcher, has_log, most) in [
        (nobody, false, plain + no_log),
        (&[], false, plain + no_log + root),
        (&[], true, plain + log + root),
    ] {
        privately(|| {
            let scratch = Scratch::new();
            bare_dev(&scratch);
            let log = has_log.then(system_log);
            let calls = system_calls(launcher);
            let count: usize = calls.values().sum();
            let case = format!("{launcher:?}, log: {has_log}: {count} of {most} calls: {calls:?}");
            assert!(count <= most, "{case}");
            drop(log);
        });
    }
}

#[test]
fn little_is_touched_to_start() {
    let mut faults: Vec<i64> = (0..9)
        .map(|_| session(Command::new(release()).arg(upstream())))
        .collect();
    faults.sort_unstable();
    // 8 are the launcher's, before execve; 27 a program's in C that is linked in this way and
    // forwards: the stretches of 64 KiB of its file that are read, and the pages that are written.
    // The others are our own code, its data, and the clock.
    let most = if IS_STATIC { 43 } else { 85 };
    assert!(faults[4] <= most, "{faults:?}");
}

#[test]
fn the_program_is_small() {
    // 0.7 MB of it is glibc with its resolver, and half of the rest std's.
    let most = if IS_STATIC { 2_200_000 } else { 1_300_000 };
    let size = fs::metadata(release()).unwrap().len();
    assert!(size <= most, "{size} bytes");
}
