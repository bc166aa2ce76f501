//! The pid file: who may take it, and what becomes of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;

use crate::harness::clients::connect;
use crate::harness::peers::assert_echoes;
use crate::harness::processes::{is_alive, only_child};
use crate::harness::upstreams::echo;
use crate::harness::{Running, Scratch, TCPPROXY, free_port};

/// Starts a server with these arguments on a port of its own.
fn start(arguments: &[&str]) -> (Running, u16) {
    let port = free_port();
    let mut command = Command::new(TCPPROXY);
    command.args(["-b", &format!("127.0.0.1:{port}"), "--log", "stderr"]);
    let server = Running::start(command.args(arguments).stdin(Stdio::null()));
    server.log.wait_for("listening on ");
    (server, port)
}

#[test]
fn every_form_of_the_pid_file_option_names_the_file_which_goes_with_the_server() {
    let upstream = echo().to_string();
    let scratch = Scratch::new();
    let path = scratch.join("pid");
    let name = path.to_str().unwrap();
    let long = format!("--pidfile={name}");
    for form in [&["-p", "-p", name][..], &["-pp", name], &[long.as_str()]] {
        let (mut server, port) = start(&[form, &[&upstream]].concat());
        assert_echoes(&connect(port));
        let expected = format!("{}\n", server.pid());
        assert_eq!(fs::read_to_string(&path).unwrap(), expected, "{form:?}");
        server.signal(Signal::SIGTERM);
        assert_eq!(server.status().code(), Some(0));
        assert!(!path.exists(), "{form:?}");
    }
}

#[test]
fn a_pid_file_that_a_server_has_left_behind_is_taken_over() {
    let upstream = echo().to_string();
    let scratch = Scratch::new();
    let path = scratch.join("pid");
    // As long as the new number, and longer; of a process that lives, and of none.
    for left in ["1\n", "4194999\nand more\n", "rubbish", ""] {
        fs::write(&path, left).unwrap();
        let form = format!("--pidfile={}", path.display());
        let (server, port) = start(&[&form, &upstream]);
        assert_echoes(&connect(port));
        let expected = format!("{}\n", server.pid());
        assert_eq!(fs::read_to_string(&path).unwrap(), expected, "{left:?}");
    }
}

/// Starts a server that cannot start, and returns what it says.
fn refused_to_start(pid_file: &Path) -> String {
    let output = Command::new(TCPPROXY)
        .args(["-b", "127.0.0.1:0", "--log", "stderr"])
        .arg(format!("--pidfile={}", pid_file.display()))
        .arg("127.0.0.1:1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(71));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_pid_file_of_a_running_server_is_refused_with_its_number() {
    let scratch = Scratch::new();
    let path = scratch.join("pid");
    let form = format!("--pidfile={}", path.display());
    let (server, port) = start(&[&form, &echo().to_string()]);
    assert_echoes(&connect(port));
    for _ in 0..2 {
        let text = refused_to_start(&path);
        let expected = format!("its server is running: {}", server.pid());
        assert!(text.contains(&expected), "{text}");
        assert!(text.contains(path.to_str().unwrap()), "{text}");
    }
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        format!("{}\n", server.pid())
    );
    assert_echoes(&connect(port));
}

#[test]
fn a_pid_file_that_is_no_plain_file_is_refused_and_left_alone() {
    let scratch = Scratch::new();
    let precious = scratch.join("precious");
    fs::write(&precious, "precious").unwrap();
    let link = scratch.join("link");
    std::os::unix::fs::symlink(&precious, &link).unwrap();
    let text = refused_to_start(&link);
    assert!(text.contains(link.to_str().unwrap()), "{text}");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    let fifo = scratch.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused_to_start(&fifo);
    refused_to_start(scratch.path());
    refused_to_start(&scratch.join("missing/pid"));
    assert!(fifo.exists() && link.is_symlink());
}

#[test]
fn a_session_that_outlives_its_server_does_not_keep_the_next_one_from_starting() {
    let scratch = Scratch::new();
    let path = scratch.join("pid");
    let form = format!("--pidfile={}", path.display());
    let upstream = echo().to_string();
    let (mut server, port) = start(&[&form, &upstream]);
    let client = connect(port);
    assert_echoes(&client);
    let session = only_child(server.pid());
    server.signal(Signal::SIGKILL);
    server.status();
    assert!(path.exists());
    let place = format!("127.0.0.1:{port}");
    let mut command = Command::new(TCPPROXY);
    command.args(["-b", &place, "--log", "stderr", &form, &upstream]);
    let next = Running::start(command.stdin(Stdio::null()));
    next.log.wait_for("listening on ");
    assert_echoes(&connect(port));
    assert_echoes(&client);
    assert!(is_alive(session));
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        format!("{}\n", next.pid())
    );
}

#[test]
fn a_pid_file_that_somebody_else_has_put_there_is_left_alone() {
    let scratch = Scratch::new();
    let path = scratch.join("pid");
    let form = format!("--pidfile={}", path.display());
    let (mut server, port) = start(&[&form, &echo().to_string()]);
    assert_echoes(&connect(port));
    fs::remove_file(&path).unwrap();
    fs::write(&path, "another").unwrap();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.status().code(), Some(0));
    assert_eq!(fs::read_to_string(&path).unwrap(), "another");
}

#[test]
fn a_pid_file_that_somebody_only_reads_keeps_nobody_from_starting() {
    let scratch = Scratch::new();
    let path = scratch.join("pid");
    let form = format!("--pidfile={}", path.display());
    let upstream = echo().to_string();
    let (mut crashed, port) = start(&[&form, &upstream]);
    assert_echoes(&connect(port));
    crashed.signal(Signal::SIGKILL);
    crashed.status();
    let left = fs::read_to_string(&path).unwrap();
    // As everybody may lock it who may read it.
    let reader = fs::File::open(&path).unwrap();
    let lock = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&reader, FcntlArg::F_OFD_SETLK(&lock)).unwrap();

    let (mut server, port) = start(&[&form, &upstream]);
    assert_echoes(&connect(port));
    let expected = format!("{}\n", server.pid());
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
    // It cannot be locked by readers any more, and is no other server's.
    let again = fs::File::open(&path).unwrap();
    let refused = fcntl(&again, FcntlArg::F_OFD_SETLK(&lock));
    assert_eq!(refused, Err(Errno::EAGAIN));
    let text = refused_to_start(&path);
    assert!(text.contains("its server is running: "), "{text}");
    let beside: Vec<_> = fs::read_dir(scratch.path()).unwrap().collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
    // What was there before is nobody's.
    assert_eq!(std::io::read_to_string(&reader).unwrap(), left);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.status().code(), Some(0));
    assert!(!path.exists());
}
