//! Going to the background: what whoever starts the server sees of it, and what is left behind.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getsid};

use crate::harness::clients::connect;
use crate::harness::config_file::Conf;
use crate::harness::peers::assert_echoes;
use crate::harness::processes::{descriptors_of_server, is_alive};
use crate::harness::upstreams::echo;
use crate::harness::{
    PATIENCE, Said, Scratch, TCPPROXY, eventually, free_port, share, socket_pair, wait_for_line,
};

/// A server in the background, which is ended with the test.
struct Daemon(Pid);

impl Daemon {
    /// The one whose number is in a pid file.
    fn of(pid_file: &Path) -> Daemon {
        let number = fs::read_to_string(pid_file).unwrap();
        Daemon(Pid::from_raw(number.trim().parse().unwrap()))
    }

    fn end(&self) {
        kill(self.0, Signal::SIGTERM).unwrap();
        eventually("the daemon's end", || (!is_alive(self.0)).then_some(()));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if is_alive(self.0) {
            let _ = kill(self.0, Signal::SIGTERM);
        }
    }
}

#[test]
fn who_starts_it_goes_on_when_it_listens_and_holds_nothing_of_it() {
    let scratch = Scratch::new();
    let (pid_file, log) = (scratch.join("pid"), scratch.join("log"));
    let port = free_port();
    let mut command = Command::new(TCPPROXY);
    command
        .args(["--daemon", "-b", &format!("127.0.0.1:{port}")])
        .args([&format!("--log=file:{}", log.display())])
        .arg(format!("--pidfile={}", pid_file.display()))
        .arg(echo().to_string());
    // Both pipes of ours end although it goes on.
    assert_eq!(Said::by(&mut command).ok(), "");
    let daemon = Daemon::of(&pid_file);
    assert_echoes(&connect(port));
    for (number, path) in descriptors_of_server(daemon.0) {
        assert!(
            number > 2 || path == Path::new("/dev/null"),
            "{number} {path:?}"
        );
    }
    assert_eq!(getsid(Some(daemon.0)), Ok(daemon.0), "a session of its own");
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.0)).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    assert_eq!(fields.split(' ').nth(4), Some("0"), "no terminal");
    wait_for_line(&log, " opened: ");
    daemon.end();
    wait_for_line(&log, "asked to end");
    assert!(!pid_file.exists());
}

#[test]
fn who_starts_it_is_told_why_it_cannot_listen_or_have_its_pid_file() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let scratch = Scratch::new();
    let missing = scratch.join("no/such/pid").display().to_string();
    for (arguments, status, complaint) in [
        (vec!["-b".to_owned(), address], 71, "Address already in use"),
        (
            vec![
                "-b".to_owned(),
                "127.0.0.1:0".to_owned(),
                format!("--pidfile={missing}"),
            ],
            71,
            "No such file or directory",
        ),
    ] {
        let mut command = Command::new(TCPPROXY);
        command.arg("--daemon").args(&arguments).arg("127.0.0.1:1");
        let said = Said::by(&mut command);
        let lines = said.refused(status);
        assert!(
            lines.len() == 1 && lines[0].contains(complaint),
            "{lines:?}"
        );
    }
}

#[test]
fn it_needs_listeners_of_its_own_and_a_log_that_outlasts_its_start() {
    let says = |arguments: &[&str]| {
        let arguments = [&["--daemon"], arguments].concat();
        Said::by(Command::new(TCPPROXY).args(arguments))
    };
    for (arguments, complaint) in [
        (
            &["server"][..],
            "daemon: only a server with listeners of its own",
        ),
        (&["server", "--check"], "daemon: only a server with"),
        (
            &["-b", "127.0.0.1:0", "--log", "stderr", "a"],
            "option --log: 'stderr' and daemon",
        ),
        (
            &["-b", "127.0.0.1:0", "--log=syslog", "--log=stdout", "a"],
            "'stdout' and daemon",
        ),
    ] {
        let said = says(arguments);
        assert!(said.refused(64)[0].contains(complaint), "{said:?}");
    }
    let services = "port 25\nserver a\n";
    let conf = |text: &str| Conf::new(format!("{text}{services}"));
    let said = conf("log stderr\n  daemon\n").says(&["--check"]);
    let expected = "conf:2:3: daemon: log: 'stderr' and daemon exclude each other: \
                    write syslog or file:PATH";
    assert_eq!(said.refused(78), [format!("tcpproxy: {expected}")]);
    let said = conf("log stdout\n").says(&["--daemon", "--check"]);
    assert!(said.refused(64)[0].contains("option --daemon: the file's log: 'stdout'"));
    let said = conf("standalone no\ndaemon yes\n").says(&[]);
    assert!(said.refused(64)[0].contains("daemon: only a server"));
    assert_eq!(
        conf("log file:/x\ndaemon\n").says(&["--check"]).ok(),
        "ok\n"
    );
}

#[test]
fn what_was_handed_over_is_not_served_in_the_background() {
    let conf = Conf::new("daemon yes\nport 25\nserver a\n");
    let (_client, accepted) = socket_pair();
    let mut command = conf.command(&["-f", "conf"]);
    let mut child = command
        .stdin(share(&accepted))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = crate::harness::read_all(child.stderr.take().unwrap());
    assert_eq!(child.wait().unwrap().code(), Some(64));
    assert!(
        String::from_utf8(said)
            .unwrap()
            .contains("daemon: only a server")
    );
}

#[test]
fn a_relative_file_is_found_again_at_sighup() {
    let port = free_port();
    let service = |port| format!("bind 127.0.0.1:{port}\nserver {}\n", echo());
    let head = "daemon\npidfile pid\nlog file:log\n";
    let conf = Conf::new(format!("{head}{}", service(port)));
    let said = Said::by(&mut conf.command(&["-f", "conf"]));
    assert_eq!(said.ok(), "");
    let daemon = Daemon::of(&conf.scratch().join("pid"));
    assert_echoes(&connect(port));
    let other = free_port();
    fs::write(
        conf.path(),
        format!("{head}{}{}", service(port), service(other)),
    )
    .unwrap();
    kill(daemon.0, Signal::SIGHUP).unwrap();
    let log = conf.scratch().join("log");
    wait_for_line(&log, ": reloaded");
    assert_echoes(&connect(other));
    fs::write(conf.path(), service(port)).unwrap();
    kill(daemon.0, Signal::SIGHUP).unwrap();
    wait_for_line(
        &log,
        "whether it is in the background changes only with a restart",
    );
    daemon.end();
}

#[test]
fn a_service_manager_is_told_which_process_is_the_server() {
    let scratch = Scratch::new();
    let (path, pid_file) = (scratch.join("notify"), scratch.join("pid"));
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new(TCPPROXY);
    command
        .args([
            "--daemon",
            "-b",
            "127.0.0.1:0",
            "--log",
            "syslog",
            "127.0.0.1:1",
        ])
        .arg(format!("--pidfile={}", pid_file.display()))
        .env("NOTIFY_SOCKET", &path);
    assert_eq!(Said::by(&mut command).ok(), "");
    let daemon = Daemon::of(&pid_file);
    let message = || {
        let mut bytes = [0; 1000];
        let count = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    };
    assert_eq!(message(), format!("MAINPID={}", daemon.0));
    assert_eq!(message(), "READY=1");
    daemon.end();
}
