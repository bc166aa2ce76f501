//! Surroundings of a test's own: a network without the machine's addresses, and mounts that
//! nobody else sees. Everything that the test starts in there is in there too.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::errno::Errno;

use super::{PATIENCE, Scratch, needs_root};

/// Runs a test in namespaces of its own, in a thread of its own: network (with `lo` up) and
/// mounts. Threads and processes that it starts are in them too.
pub fn privately(test: impl FnOnce() + Send) {
    needs_root();
    let in_namespaces = || {
        // SAFETY: unshare(2) takes an integer. It concerns this thread alone, which ends with
        // the test.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
        Errno::result(done).expect("namespaces of one's own need root");
        run("mount", &["--make-rprivate", "/"]);
        run("ip", &["link", "set", "lo", "up"]);
        test();
    };
    let ended = thread::scope(|scope| scope.spawn(in_namespaces).join());
    if let Err(panic) = ended {
        resume_unwind(panic);
    }
}

/// Runs a program that has to succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}: run tests/setup"));
    let says = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {says}");
}

/// Gives the loopback interface another address, `ADDRESS/LENGTH`.
pub fn add_address(address: &str) {
    let mut arguments = vec!["addr", "add", address, "dev", "lo"];
    if address.contains(':') {
        // No time is lost on finding out whether somebody else has it.
        arguments.push("nodad");
    }
    run("ip", &arguments);
}

/// A /dev of the test's own, without /dev/log.
pub fn bare_dev(scratch: &Scratch) {
    let place = scratch.join("dev");
    fs::create_dir(&place).unwrap();
    let place = place.to_str().unwrap();
    run("mount", &["-t", "tmpfs", "-o", "mode=755", "none", place]);
    for device in ["null", "zero", "full", "urandom"] {
        fs::write(format!("{place}/{device}"), "").unwrap();
        let ours = format!("{place}/{device}");
        run("mount", &["--bind", &format!("/dev/{device}"), &ours]);
    }
    fs::create_dir(format!("{place}/pts")).unwrap();
    let options = "newinstance,ptmxmode=0666";
    let pts = format!("{place}/pts");
    run("mount", &["-t", "devpts", "-o", options, "none", &pts]);
    symlink("pts/ptmx", format!("{place}/ptmx")).unwrap();
    run("mount", &["--move", place, "/dev"]);
}

/// The system's log, as far as programs see it.
pub fn system_log() -> UnixDatagram {
    let _ = fs::remove_file("/dev/log");
    let socket = UnixDatagram::bind("/dev/log").unwrap();
    fs::set_permissions("/dev/log", fs::Permissions::from_mode(0o666)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A file of the system that the test has its own version of.
pub struct Replaced<'a> {
    path: &'a Path,
}

impl<'a> Replaced<'a> {
    /// Puts a file with this content over a system's file.
    pub fn with(scratch: &Scratch, path: &'a str, content: &str) -> Replaced<'a> {
        let path = Path::new(path);
        let ours = scratch.join(&format!("{}.ours", path.file_name().unwrap().display()));
        fs::write(&ours, content).unwrap();
        run(
            "mount",
            &["--bind", ours.to_str().unwrap(), path.to_str().unwrap()],
        );
        Replaced { path }
    }

    /// Makes a program of it, which it is not at first.
    pub fn executable(self) -> Replaced<'a> {
        fs::set_permissions(self.path, Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// Changes the content.
    pub fn change(&self, content: &str) {
        fs::write(self.path, content).unwrap();
    }
}
