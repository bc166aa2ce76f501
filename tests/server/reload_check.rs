//! The check that SIGHUP begins: in a process of its own, so that the server neither waits for it nor
//! ends by it.

use std::fs;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::clients::{connect, is_refused};
use crate::harness::name_server::{Answer, name_server, names};
use crate::harness::namespaces::privately;
use crate::harness::peers::assert_echoes;
use crate::harness::processes::{children, cpu_time, descriptors, is_alive, only_child};
use crate::harness::reloading::Reloadable;
use crate::harness::upstreams::echo;
use crate::harness::{
    PATIENCE, Running, Scratch, TCPPROXY, eventually, free_port, launched_by, patient,
    wait_for_line,
};

/// A service on a port of 127.0.0.1.
fn service(port: u16) -> String {
    format!("port {port}\ninterface 127.0.0.1\nserver {}\n", echo())
}

/// One whose interface has to be looked up.
fn named(port: u16, name: &str) -> String {
    format!("port {port}\ninterface {name}\nserver {}\n", echo())
}

/// A name server that says nothing until it is told to, and then 127.0.0.2. Counts the questions for
/// IPv4 addresses.
fn slow_name_server() -> (Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (speaks, asked) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let (server_speaks, counted) = (Arc::clone(&speaks), Arc::clone(&asked));
    name_server(move |_, kind| {
        if kind == 1 {
            AtomicUsize::fetch_add(&counted, 1, Ordering::SeqCst);
        }
        match server_speaks.load(Ordering::SeqCst) {
            true => Answer::Address([127, 0, 0, 2]),
            false => Answer::Silence,
        }
    });
    (speaks, asked)
}

fn wait_until_asked(asked: &AtomicUsize) {
    eventually("the name server to be asked", || {
        (asked.load(Ordering::SeqCst) > 0).then_some(())
    });
}

/// Has the resolver wait for a silent name server for longer than a test is patient.
fn silent_names(scratch: &Scratch) {
    names(scratch, "127.0.0.1 localhost\n");
    let resolv = "nameserver 127.0.0.1\noptions timeout:30 attempts:3\n";
    fs::write(scratch.join("resolv.conf.ours"), resolv).unwrap();
}

#[test]
fn a_silent_name_server_keeps_nobody_waiting_and_nothing_from_ending() {
    privately(|| {
        let scratch = Scratch::new();
        silent_names(&scratch);
        let (_, asked) = slow_name_server();
        let port = free_port();
        let plain = service(port);
        let mut server = Reloadable::start(&plain, &[]);
        let old = connect(port);
        assert_echoes(&old);
        let session = only_child(server.pid());
        let text = format!("{plain}{}", named(free_port(), "slow.example"));
        fs::write(server.file(), text).unwrap();
        server.process.signal(Signal::SIGHUP);
        wait_until_asked(&asked);
        let started = Instant::now();
        // Clients are served, signals heard, sessions' ends noticed.
        for _ in 0..10 {
            assert_echoes(&connect(port));
        }
        server.process.signal(Signal::SIGUSR1);
        server.process.log.wait_for("sessions: live=");
        drop(old);
        eventually("the session to be reaped", || {
            (!children(server.pid()).contains(&session)).then_some(())
        });
        let check = only_child(server.pid());
        // It has none of the server's sockets, and no session has what it is to leave.
        let held = |pid| -> Vec<String> {
            let all = descriptors(pid).into_iter();
            all.map(|(_, path)| path.to_string_lossy().into_owned())
                .collect()
        };
        let listeners =
            |all: Vec<String>| all.into_iter().filter(|t| t.starts_with("socket:")).count();
        assert!(
            held(check)
                .iter()
                .all(|target| !target.contains("eventpoll"))
        );
        let new = connect(port);
        assert_echoes(&new);
        let session = children(server.pid())
            .into_iter()
            .find(|child| *child != check)
            .unwrap();
        assert!(held(session).iter().all(|target| !target.contains("memfd")));
        // The resolver's own.
        assert!(listeners(held(check)) <= 1, "{:?}", held(check));
        server.process.signal(Signal::SIGTERM);
        assert_eq!(server.process.status().code(), Some(0));
        eventually("the check to end", || (!is_alive(check)).then_some(()));
        assert!(started.elapsed() < Duration::from_secs(10));
    });
}

#[test]
fn a_check_that_takes_too_long_leaves_the_old_configuration() {
    privately(|| {
        let scratch = Scratch::new();
        silent_names(&scratch);
        let (_, asked) = slow_name_server();
        let port = free_port();
        let plain = service(port);
        let server = Reloadable::start(&plain, &[]);
        let text = format!("{plain}{}", named(free_port(), "slow.example"));
        fs::write(server.file(), text).unwrap();
        let started = Instant::now();
        server.process.signal(Signal::SIGHUP);
        wait_until_asked(&asked);
        while started.elapsed() < Duration::from_secs(25) {
            assert_echoes(&connect(port));
            thread::sleep(Duration::from_secs(1));
        }
        let line = server.process.log.wait_for("not reloaded: ");
        assert!(
            line.ends_with("the check of the configuration took longer than 30 s"),
            "{line}"
        );
        assert_echoes(&connect(port));
        server
            .process
            .log
            .wait_for("the configuration stays as it was");
    });
}

#[test]
fn what_is_applied_is_what_was_checked_and_each_name_is_asked_for_once() {
    privately(|| {
        let scratch = Scratch::new();
        silent_names(&scratch);
        fs::write(
            scratch.join("resolv.conf.ours"),
            "nameserver 127.0.0.1\noptions timeout:1 attempts:15\n",
        )
        .unwrap();
        let (speaks, asked) = slow_name_server();
        let (port, other, never) = (free_port(), free_port(), free_port());
        let manager = scratch.join("notify");
        let notified = UnixDatagram::bind(&manager).unwrap();
        notified.set_read_timeout(Some(PATIENCE)).unwrap();
        let file = scratch.join("tcpproxy.conf");
        fs::write(&file, service(port)).unwrap();
        let mut command = Command::new(TCPPROXY);
        command.args(["--log", "stderr", "-f"]).arg(&file);
        command.env("NOTIFY_SOCKET", &manager).stdin(Stdio::null());
        let server = Running::start(&mut command);
        server.log.wait_for("listening on ");
        let message = || loop {
            let mut buffer = [0; 200];
            let length = notified.recv(&mut buffer).unwrap();
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if !text.starts_with("STATUS=") {
                return text;
            }
        };
        assert_eq!(message(), "READY=1");
        let both = named(other, "slow.example") + &named(port, "slow.example");
        fs::write(&file, &both).unwrap();
        server.signal(Signal::SIGHUP);
        assert!(message().starts_with("RELOADING=1"));
        wait_until_asked(&asked);
        // Without a further SIGHUP this is not what is asked for; with several, once.
        fs::write(&file, both.replace(&other.to_string(), &never.to_string())).unwrap();
        speaks.store(true, Ordering::SeqCst);
        server.log.wait_for("]: reloaded");
        assert_eq!(message(), "READY=1");
        let at = |port: u16| TcpStream::connect(("127.0.0.2", port)).map(patient);
        assert_echoes(&at(other).unwrap());
        assert_echoes(&at(port).unwrap());
        at(never).unwrap_err();
        assert!(is_refused(port));

        speaks.store(false, Ordering::SeqCst);
        asked.store(0, Ordering::SeqCst);
        server.signal(Signal::SIGHUP);
        assert!(message().starts_with("RELOADING=1"));
        wait_until_asked(&asked);
        fs::write(&file, service(port)).unwrap();
        for _ in 0..3 {
            server.signal(Signal::SIGHUP);
            assert_echoes(&at(port).unwrap());
        }
        speaks.store(true, Ordering::SeqCst);
        server.log.wait_for_count("]: reloaded", 3);
        assert_eq!(message(), "READY=1");
        assert!(message().starts_with("RELOADING=1"));
        assert_eq!(message(), "READY=1");
        assert_echoes(&connect(port));
        at(never).unwrap_err();
        // Where it is answered at once, one question is all.
        asked.store(0, Ordering::SeqCst);
        fs::write(&file, &both).unwrap();
        server.signal(Signal::SIGHUP);
        server.log.wait_for_count("]: reloaded", 4);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(message().starts_with("RELOADING=1"));
        assert_eq!(message(), "READY=1");
    });
}

#[test]
fn a_start_that_waits_for_a_name_can_be_ended() {
    privately(|| {
        let scratch = Scratch::new();
        silent_names(&scratch);
        let (_, asked) = slow_name_server();
        let file = scratch.join("tcpproxy.conf");
        fs::write(&file, named(free_port(), "slow.example")).unwrap();
        for arguments in [
            &["-f", file.to_str().unwrap()][..],
            &["-b", "slow.example:0", "h:1"],
        ] {
            for signal in [Signal::SIGTERM, Signal::SIGINT] {
                asked.store(0, Ordering::SeqCst);
                let mut command = launched_by(&[], arguments);
                let mut starting = Running::start(command.stdin(Stdio::null()));
                wait_until_asked(&asked);
                // This one is for later.
                starting.signal(Signal::SIGHUP);
                starting.signal(signal);
                assert_eq!(starting.status().code(), Some(0), "{arguments:?}");
            }
        }
    });
}

#[test]
fn a_file_that_needs_more_memory_than_there_is_does_not_end_the_server() {
    let port = free_port();
    let plain = service(port);
    let scratch = Scratch::new();
    let file = scratch.join("tcpproxy.conf");
    fs::write(&file, &plain).unwrap();
    let arguments = ["--log", "stderr", "-f", file.to_str().unwrap()];
    let mut command = launched_by(&["prlimit", "--as=100000000", "--core=0"], &arguments);
    let server = Running::start(command.stdin(Stdio::null()));
    server.log.wait_for("listening on ");
    let old = connect(port);
    assert_echoes(&old);
    // 12 MB, of which ten times as much is made.
    let rules: String = (0..800_000_u32)
        .map(|n| format!("deny 11.{}.{}.{}\n", n >> 16, n >> 8 & 255, n & 255))
        .collect();
    for round in 1..=3 {
        fs::write(&file, format!("{rules}{plain}")).unwrap();
        server.signal(Signal::SIGHUP);
        let lines = server.log.wait_for_count("not reloaded: ", round);
        let expected =
            "the check of the configuration was ended by SIGABRT, as where memory is short";
        assert!(lines[round - 1].ends_with(expected), "{lines:?}");
        assert_echoes(&old);
        assert_echoes(&connect(port));
        // What there is memory for is taken up.
        fs::write(&file, format!("timeout {}\n{plain}", 10 + round)).unwrap();
        server.signal(Signal::SIGHUP);
        server.log.wait_for_count("]: reloaded", round);
        assert_echoes(&connect(port));
    }
    // Every line is ours.
    for line in server.log.all() {
        assert!(line.starts_with("tcpproxy["), "{line}");
    }
}

#[test]
fn thousands_of_services_are_reloaded_in_little_time_of_the_servers_own() {
    const SERVICES: usize = 6_000;
    privately(|| {
        let scratch = Scratch::new();
        let file = scratch.join("tcpproxy.conf");
        let upstream = echo();
        let text: String = (0..SERVICES)
            .map(|number| format!("bind 127.0.0.1:{}\nserver {upstream}\n", 10_240 + number))
            .collect();
        fs::write(&file, text).unwrap();
        // So many lines at once would be too much for a pipe, and lost.
        let log = scratch.join("log");
        let target = format!("file:{}", log.display());
        let arguments = ["--log", &target, "-f", file.to_str().unwrap()];
        let mut command = launched_by(&["prlimit", "--nofile=20000"], &arguments);
        let server = Running::start(command.stdin(Stdio::null()));
        wait_for_line(
            &log,
            &format!("listening on 127.0.0.1:{}", 10_239 + SERVICES),
        );
        assert_echoes(&connect(10_240));
        let before = cpu_time(server.pid());
        server.signal(Signal::SIGHUP);
        wait_for_line(&log, "]: reloaded");
        let taken = cpu_time(server.pid()) - before;
        // In a build that is not optimised: 0.4 s. When each was compared with all others, 10 s.
        assert!(taken < Duration::from_secs(2), "{taken:?}");
        assert_echoes(&connect(10_240 + SERVICES as u16 - 1));
    });
}
