//! What operators do with a running server: signals, the service manager, the log.

use std::fs;
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::harness::clients::{connect, is_refused};
use crate::harness::peers::{assert_echoes, assert_sigterm_ends, read_to_ending};
use crate::harness::processes::{children, is_alive, only_child};
use crate::harness::upstreams::echo;
use crate::harness::{
    PATIENCE, Running, Scratch, Standalone, TCPPROXY, eventually, field, free_port, patient,
    read_all,
};

#[test]
fn sigusr1_lists_the_live_sessions_and_the_totals() {
    let upstream = echo().to_string();
    let proxy = Standalone::start(&["--deny", "127.0.0.9", "--max-per-source", "2", &upstream]);
    let clients = [proxy.connect(), proxy.connect()];
    clients.iter().for_each(assert_echoes);
    assert_eq!(read_to_ending(&proxy.connect()).0, b"");
    proxy.process.log.wait_for("session 3 closed: ");
    proxy.process.signal(Signal::SIGUSR1);
    let totals = proxy.process.log.wait_for("sessions: ");
    assert!(
        totals.ends_with("sessions: live=2 total=3 refused=1"),
        "{totals}"
    );
    let lines = proxy.process.log.wait_for_count(" live: ", 2);
    for (index, (line, client)) in lines.iter().zip(&clients).enumerate() {
        assert!(
            line.contains(&format!("session {} live: ", index + 1)),
            "{line}"
        );
        let address = client.local_addr().unwrap().to_string();
        assert_eq!(field(line, "client"), address);
        assert_eq!(field(line, "local"), proxy.address.to_string());
        assert_eq!(field(line, "server"), upstream);
        let age: f64 = field(line, "age")
            .strip_suffix('s')
            .unwrap()
            .parse()
            .unwrap();
        assert!((0.0..20.0).contains(&age), "{line}");
    }
    clients.iter().for_each(assert_echoes);
}

#[test]
fn sigquit_closes_the_listener_and_ends_the_server_after_its_last_session() {
    let mut proxy = Standalone::start(&[&echo().to_string()]);
    let client = proxy.connect();
    assert_echoes(&client);
    proxy.process.signal(Signal::SIGQUIT);
    proxy
        .process
        .log
        .wait_for("asked to end when the 1 live have ended");
    assert!(is_refused(proxy.address.port()));
    // It still answers, and opens its log anew.
    proxy.process.signal(Signal::SIGHUP);
    proxy.process.log.wait_for("log files reopened");
    proxy.process.signal(Signal::SIGUSR1);
    proxy
        .process
        .log
        .wait_for("sessions: live=1 total=1 refused=0");
    assert_echoes(&client);
    drop(client);
    assert_eq!(proxy.process.status().code(), Some(0));
    assert_eq!(field(&proxy.closed(), "reason"), "client-closed");
}

#[test]
fn sigquit_without_sessions_ends_the_server_at_once() {
    let mut proxy = Standalone::start(&[&echo().to_string()]);
    assert_echoes(&proxy.connect());
    proxy.process.log.wait_for("session 1 closed: ");
    let start = Instant::now();
    proxy.process.signal(Signal::SIGQUIT);
    assert_eq!(proxy.process.status().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn sigterm_ends_a_server_that_waits_for_its_sessions() {
    let proxy = Standalone::start(&[&echo().to_string()]);
    let client = proxy.connect();
    assert_echoes(&client);
    proxy.process.signal(Signal::SIGQUIT);
    proxy.process.log.wait_for("asked to end when");
    assert_sigterm_ends(proxy, &client);
}

#[test]
fn the_lifetime_of_a_server_that_waits_for_its_sessions_goes_on() {
    let mut proxy = Standalone::start(&["--lifetime", "2", &echo().to_string()]);
    let client = proxy.connect();
    assert_echoes(&client);
    proxy.process.signal(Signal::SIGQUIT);
    proxy.process.log.wait_for("asked to end when");
    proxy.process.log.wait_for("the server's lifetime is over");
    assert_eq!(field(&proxy.closed(), "reason"), "terminated");
    assert_eq!(proxy.process.status().code(), Some(0));
}

#[test]
fn a_session_does_not_mind_what_a_server_is_told() {
    let proxy = Standalone::start(&[&echo().to_string()]);
    let client = proxy.connect();
    assert_echoes(&client);
    let session = only_child(proxy.process.pid());
    let (inetd_client, mut inetd) = crate::harness::under_inetd(&[&echo().to_string()]);
    assert_echoes(&inetd_client);
    let inetd_pid = nix::unistd::Pid::from_raw(inetd.id() as i32);
    for signal in [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1] {
        for _ in 0..3 {
            kill(session, signal).unwrap();
            kill(inetd_pid, signal).unwrap();
            assert_echoes(&client);
            assert_echoes(&inetd_client);
        }
    }
    assert!(is_alive(session) && is_alive(inetd_pid));
    assert_eq!(children(proxy.process.pid()), [session]);
    kill(inetd_pid, Signal::SIGTERM).unwrap();
    assert_eq!(crate::harness::end_of(&mut inetd).code(), Some(0));
}

/// The next message to the service manager that is no STATUS.
fn message(manager: &UnixDatagram) -> String {
    loop {
        let text = any_message(manager);
        if !text.starts_with("STATUS=") {
            return text;
        }
    }
}

fn any_message(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = manager.recv(&mut buffer).expect("a message in time");
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

fn microseconds() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() as u64 * 1_000_000 + now.tv_nsec() as u64 / 1_000
}

#[test]
fn the_service_manager_is_told_of_the_start_of_every_reload_and_of_the_end() {
    let scratch = Scratch::new();
    let abstract_name = format!("tcpproxy-test-{}", std::process::id());
    let path = scratch.join("notify");
    let by_name = SocketAddr::from_abstract_name(&abstract_name).unwrap();
    let managers = [
        (
            UnixDatagram::bind(&path).unwrap(),
            path.to_str().unwrap().to_owned(),
        ),
        (
            UnixDatagram::bind_addr(&by_name).unwrap(),
            format!("@{abstract_name}"),
        ),
    ];
    for (manager, name) in managers {
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = free_port();
        let file = scratch.join("tcpproxy.conf");
        let right = format!("port {port}\ninterface 127.0.0.1\nserver {}\n", echo());
        fs::write(&file, &right).unwrap();
        let mut command = Command::new(TCPPROXY);
        command
            .args(["--log", "stderr", "-f"])
            .arg(&file)
            .env("NOTIFY_SOCKET", &name)
            .stdin(Stdio::null());
        let mut server = Running::start(&mut command);
        assert_eq!(any_message(&manager), "READY=1");
        assert_echoes(&connect(port));
        for text in [&right, "wrong\n", &right] {
            fs::write(&file, text).unwrap();
            let before = microseconds();
            server.signal(Signal::SIGHUP);
            let reloading = message(&manager);
            let (first, when) = reloading.split_once('\n').unwrap();
            assert_eq!(first, "RELOADING=1");
            let when: u64 = when
                .strip_prefix("MONOTONIC_USEC=")
                .unwrap()
                .parse()
                .unwrap();
            assert!((before..=microseconds()).contains(&when), "{reloading}");
            assert_eq!(message(&manager), "READY=1");
        }
        server.signal(Signal::SIGTERM);
        assert_eq!(message(&manager), "STOPPING=1");
        assert_eq!(server.status().code(), Some(0));
    }
}

#[test]
fn the_service_manager_is_told_how_many_sessions_there_are_within_a_second() {
    let scratch = Scratch::new();
    let path = scratch.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let variable = format!("NOTIFY_SOCKET={}", path.display());
    let proxy = Standalone::launched_by(&["env", &variable], &[&echo().to_string()]);
    let within_a_second = |expected: &str| {
        let start = Instant::now();
        while any_message(&manager) != format!("STATUS={expected}") {}
        let took = start.elapsed();
        assert!(took < Duration::from_millis(1_400), "{expected}: {took:?}");
    };
    within_a_second("0 live, 0 in total");
    let clients: Vec<TcpStream> = (0..3).map(|_| proxy.connect()).collect();
    clients.iter().for_each(assert_echoes);
    within_a_second("3 live, 3 in total");
    drop(clients);
    within_a_second("0 live, 3 in total");
    // A server that goes away when asked to goes on telling until its last session has ended.
    let clients = [proxy.connect(), proxy.connect()];
    clients.iter().for_each(assert_echoes);
    proxy.process.signal(Signal::SIGQUIT);
    assert_eq!(message(&manager), "STOPPING=1");
    let [one, _other] = clients;
    drop(one);
    within_a_second("1 live, 5 in total");
}

#[test]
fn programs_are_not_told_where_the_service_manager_is() {
    let scratch = Scratch::new();
    let path = scratch.join("notify");
    let _manager = UnixDatagram::bind(&path).unwrap();
    let seen = scratch.join("seen");
    let program = scratch.script("acp", &format!("env >{}", seen.display()));
    let variable = format!("NOTIFY_SOCKET={}", path.display());
    let acp = program.to_str().unwrap();
    let proxy = Standalone::launched_by(&["env", &variable], &["-a", acp, "/usr/bin/env"]);
    let environment = String::from_utf8(read_all(proxy.connect())).unwrap();
    for text in [environment, fs::read_to_string(&seen).unwrap()] {
        assert!(text.contains("PROXY_CLIENT=127.0.0.1"), "{text}");
        assert!(!text.contains("NOTIFY_SOCKET"), "{text}");
    }
}

#[test]
fn a_serial_number_ties_the_lines_of_a_session_together() {
    let scratch = Scratch::new();
    let body = "echo \"asked for $PROXY_SESSION\" >&2";
    let program = scratch.script("acp", body);
    let arguments = ["-a", program.to_str().unwrap(), &echo().to_string()];
    let proxy = Standalone::start(&arguments);
    let clients: Vec<TcpStream> = (0..3).map(|_| proxy.connect()).collect();
    clients.iter().for_each(assert_echoes);
    proxy.process.signal(Signal::SIGUSR1);
    proxy.process.log.wait_for("sessions: live=3");
    kill(children(proxy.process.pid())[1], Signal::SIGKILL).unwrap();
    drop(clients);
    proxy.process.log.wait_for_count(" closed: ", 3);
    let all = proxy.process.log.all();
    for number in 1..=3 {
        let start = format!("session {number} ");
        let ours: Vec<&String> = all
            .iter()
            .filter(|line| line.contains(&start) || line.contains(&format!("session {number}: ")))
            .collect();
        let opened = ours.iter().find(|line| line.contains(" opened: ")).unwrap();
        let client = field(opened, "client");
        for what in [" live: ", " closed: "] {
            let line = ours.iter().find(|line| line.contains(what)).unwrap();
            assert_eq!(field(line, "client"), client, "{line}");
        }
        let asked = format!("asked for {number}");
        assert!(ours.iter().any(|line| line.contains(&asked)), "{ours:#?}");
    }
}

#[test]
fn a_server_that_is_asked_to_end_twice_while_it_drains_ends_at_once() {
    let scratch = Scratch::new();
    let handler = scratch.script(
        "stubborn",
        "trap '' TERM\necho ready\nwhile :; do sleep 0.2; done",
    );
    let mut proxy = Standalone::start(&[handler.to_str().unwrap()]);
    let client = patient(proxy.connect());
    std::io::Read::read_exact(&mut &client, &mut [0; 6]).unwrap();
    proxy.process.signal(Signal::SIGQUIT);
    proxy.process.log.wait_for("asked to end when");
    let start = Instant::now();
    proxy.process.signal(Signal::SIGTERM);
    // Two at once would be one.
    eventually("the first to be heard", || {
        let pid = proxy.process.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.contains("ShdPnd:\t0000000000000000").then_some(())
    });
    proxy.process.signal(Signal::SIGTERM);
    assert_eq!(proxy.process.status().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(field(&proxy.closed(), "reason"), "terminated");
}
