//! The server that accepts and forks: crowds, shortages, sessions that die, and its own end.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::peers::{Through, assert_echoes, assert_sigterm_ends, read_to_ending, reset};
use crate::harness::processes::{
    children, cpu_time, descriptors, descriptors_of_server, is_alive, wait_until_stopped,
};
use crate::harness::upstreams::{BlackHole, echo};
use crate::harness::{
    Engine, Running, Scratch, Standalone, TCPPROXY, eventually, field, needs_root, patient,
    read_all,
};

#[test]
fn two_thousand_connections_at_once_are_served_and_nothing_is_left_of_them() {
    const COUNT: usize = 2_000;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let proxy = Standalone::start(&[&listener.local_addr().unwrap().to_string()]);
    let pid = proxy.process.pid();
    let before = descriptors_of_server(pid);
    let server = thread::spawn(move || {
        for _ in 0..COUNT {
            let mut stream = patient(listener.accept().unwrap().0);
            let mut name = [0; 4];
            stream.read_exact(&mut name).unwrap();
            stream.write_all(&name).unwrap();
        }
    });
    let clients: Vec<TcpStream> = (0..COUNT as u32)
        .map(|number| {
            let mut client = proxy.connect();
            client.write_all(&number.to_le_bytes()).unwrap();
            client
        })
        .collect();
    for (number, mut client) in clients.into_iter().enumerate() {
        let mut name = [0; 4];
        client.read_exact(&mut name).unwrap();
        assert_eq!(u32::from_le_bytes(name), number as u32);
    }
    server.join().unwrap();
    let closed = proxy.process.log.wait_for_count(" closed: ", COUNT);
    assert_eq!(closed.len(), COUNT);
    for line in closed {
        assert_eq!((field(&line, "sent"), field(&line, "received")), ("4", "4"));
    }
    eventually("every child to be reaped", || {
        children(pid).is_empty().then_some(())
    });
    assert_eq!(descriptors(pid), before);
}

#[test]
fn a_signal_is_heard_before_all_of_many_listeners_have_had_their_turn() {
    const COUNT: usize = 100;
    let binds = ["-b", "127.0.0.1:0"].repeat(COUNT);
    let arguments = ["--log", "stderr", "--deny", "ANY", "127.0.0.1:9"];
    let mut command = Command::new(TCPPROXY);
    command.args(binds).args(arguments).stdin(Stdio::null());
    let mut server = Running::start(&mut command);
    let listening = server.log.wait_for_count("listening on ", COUNT);
    // Stopped, so that it learns of all at once, of the signal last.
    server.signal(Signal::SIGSTOP);
    wait_until_stopped(server.pid());
    let clients = listening.iter().map(|line| {
        let address = line.rsplit(' ').next().unwrap();
        TcpStream::connect(address).unwrap()
    });
    let clients: Vec<TcpStream> = clients.collect();
    server.signal(Signal::SIGTERM);
    server.signal(Signal::SIGCONT);
    assert!(server.status().success());
    let asked = server.log.wait_for("asked to end");
    drop(clients);
    let sessions = server.log.all().into_iter();
    let sessions = sessions.filter(|line| line.contains(" closed: ")).count();
    assert!(sessions < COUNT / 2, "{sessions} sessions: {asked}");
}

#[test]
fn clients_that_are_gone_before_they_are_accepted_do_no_harm() {
    let proxy = Standalone::start(&[&echo().to_string()]);
    let pid = proxy.process.pid();
    let before = descriptors_of_server(pid);
    // Stopped, so that they are gone for certain.
    proxy.process.signal(Signal::SIGSTOP);
    for number in 0..300 {
        let client = proxy.connect();
        match number % 3 {
            0 => reset(client),
            1 => drop(client),
            _ => {
                (&client).write_all(b"x").unwrap();
                reset(client);
            }
        }
    }
    proxy.process.signal(Signal::SIGCONT);
    assert_echoes(&proxy.connect());
    eventually("every child to be reaped", || {
        children(pid).is_empty().then_some(())
    });
    assert_eq!(descriptors(pid), before);
}

/// Sets a limit of a process that runs as this user, by prlimit(1).
fn limit(pid: Pid, user: &str, what: &str) {
    let done = Command::new("setpriv")
        .args(["--reuid", user, "--regid", user, "--clear-groups"])
        .args(["prlimit", "--pid", &pid.to_string(), what])
        .status()
        .expect("setpriv is missing: run tests/setup");
    assert!(done.success(), "prlimit: run tests/setup");
}

/// How many lines of the log contain a text, so far.
fn count_of(server: &Running, text: &str) -> usize {
    let all = server.log.all();
    all.iter().filter(|line| line.contains(text)).count()
}

#[test]
fn a_server_out_of_descriptors_waits_and_recovers() {
    let proxy = Standalone::start(&[&echo().to_string()]);
    let pid = proxy.process.pid();
    let taken = descriptors_of_server(pid);
    let lowest_free = (0..).find(|free| taken.iter().all(|(number, _)| number != free));
    limit(pid, "0", &format!("--nofile={}:", lowest_free.unwrap()));
    let client = proxy.connect();
    proxy.process.log.wait_for("accept: ");
    let before = cpu_time(pid);
    let complaints = count_of(&proxy.process, "accept: ");
    thread::sleep(Duration::from_millis(2_500));
    let complaints = count_of(&proxy.process, "accept: ") - complaints;
    assert!((1..=3).contains(&complaints), "{complaints} in 2.5 s");
    let cpu = cpu_time(pid) - before;
    assert!(cpu <= Duration::from_millis(50), "{cpu:?} in 2.5 s");
    limit(pid, "0", "--nofile=1024:");
    // It has waited all the while, and is served now.
    assert_echoes(&client);
    assert_eq!(count_of(&proxy.process, "session 2 "), 0);
}

/// A user that nothing else runs as, whose processes can be counted.
const LONELY: &str = "54323";

#[test]
fn a_server_that_cannot_fork_turns_clients_away_and_recovers() {
    needs_root();
    let upstream = echo().to_string();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", LONELY, "--regid", LONELY, "--clear-groups"])
        .arg(TCPPROXY)
        .args(["-b", "127.0.0.1:0", "--log", "stderr", &upstream])
        .stdin(Stdio::null());
    let server = Running::start(&mut command);
    let line = server.log.wait_for("listening on ");
    let address: SocketAddr = line.rsplit(' ').next().unwrap().parse().unwrap();
    let connect = || patient(TcpStream::connect(address).unwrap());
    assert_echoes(&connect());
    server.log.wait_for("session 1 closed: ");
    limit(server.pid(), LONELY, "--nproc=1:");
    let before = cpu_time(server.pid());
    for number in 2..=12 {
        let refused = connect();
        assert_eq!(read_to_ending(&refused).0, b"");
        let closed = server.log.wait_for(&format!("session {number} closed: "));
        assert_eq!(field(&closed, "reason"), "internal-error");
    }
    assert!((1..=3).contains(&count_of(&server, "fork: ")));
    assert!(cpu_time(server.pid()) - before <= Duration::from_millis(100));
    limit(server.pid(), LONELY, "--nproc=1000:");
    assert_echoes(&connect());
}

#[test]
fn a_session_that_dies_gets_its_closed_line_and_takes_nothing_with_it() {
    let proxy = Standalone::start(&[&echo().to_string()]);
    let first = proxy.connect();
    assert_echoes(&first);
    let second = proxy.connect();
    assert_echoes(&second);
    let pid = proxy.process.pid();
    let sessions = children(pid);
    assert_eq!(sessions.len(), 2);
    kill(sessions[0], Signal::SIGKILL).unwrap();
    let closed = proxy.process.log.wait_for("session 1 closed: ");
    assert_eq!(field(&closed, "reason"), "internal-error");
    assert_eq!(
        field(&closed, "client"),
        first.local_addr().unwrap().to_string()
    );
    assert!(closed.contains("SIGKILL"), "{closed}");
    assert_eq!(read_to_ending(&first).0, b"");
    assert_echoes(&second);
    assert_echoes(&proxy.connect());
}

#[test]
fn sessions_go_on_without_their_supervisor_and_none_holds_its_listener() {
    for engine in Engine::ALL {
        let through = Through::start(engine, &[]);
        let session = through.session();
        let Through {
            mut proxy,
            mut client,
            mut upstream,
        } = through;
        client.write_all(b"before").unwrap();
        upstream.read_exact(&mut [0; 6]).unwrap();
        let listener = descriptors(proxy.process.pid())
            .into_iter()
            .filter(|(_, target)| target.to_string_lossy().starts_with("socket:"))
            .collect::<Vec<_>>();
        assert_eq!(listener.len(), 1, "{listener:?}");
        let held = descriptors(session);
        assert!(
            held.iter().all(|(_, target)| *target != listener[0].1),
            "{held:?} and {listener:?}"
        );
        proxy.process.signal(Signal::SIGKILL);
        proxy.process.status();
        client.write_all(b"after").unwrap();
        upstream.read_exact(&mut [0; 5]).unwrap();
        let refused = TcpStream::connect(proxy.address).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        drop(upstream);
        assert_eq!(read_all(&client), b"");
        drop(client);
        let closed = proxy.closed();
        assert_eq!(field(&closed, "reason"), "server-closed");
        assert_eq!(field(&closed, "sent"), "11");
        eventually("the session to end", || (!is_alive(session)).then_some(()));
    }
}

#[test]
fn sigterm_and_sigint_end_the_server_and_its_sessions_with_status_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut proxy = Standalone::start(&[&echo().to_string()]);
        let clients: Vec<TcpStream> = (0..5)
            .map(|_| {
                let client = proxy.connect();
                assert_echoes(&client);
                client
            })
            .collect();
        let sessions = children(proxy.process.pid());
        assert_eq!(sessions.len(), 5);
        let start = Instant::now();
        proxy.process.signal(signal);
        assert_eq!(proxy.process.status().code(), Some(0), "{signal}");
        assert!(start.elapsed() < Duration::from_secs(2), "{signal}");
        for line in proxy.process.log.wait_for_count(" closed: ", 5) {
            assert_eq!(field(&line, "reason"), "terminated", "{signal}");
        }
        for client in &clients {
            assert_eq!(read_to_ending(client).0, b"", "{signal}");
        }
        assert!(sessions.iter().all(|&session| !is_alive(session)));
        TcpStream::connect(proxy.address).unwrap_err();
    }
}

#[test]
fn sigterm_ends_a_session_that_is_still_connecting() {
    let hole = BlackHole::at((Ipv4Addr::LOCALHOST, 0));
    let proxy = Standalone::start(&[&hole.address().to_string()]);
    let client = proxy.connect();
    proxy.process.log.wait_for("session 1 opened: ");
    assert_sigterm_ends(proxy, &client);
}

/// A server with one session, whose handler does not mind SIGTERM; and that handler.
fn with_a_stubborn_handler(scratch: &Scratch) -> (Standalone, TcpStream, Pid) {
    let handler = scratch.script(
        "stubborn",
        "trap '' TERM INT\necho $$\nwhile :; do sleep 0.2; done",
    );
    let proxy = Standalone::start(&[handler.to_str().unwrap()]);
    let client = proxy.connect();
    let mut number = String::new();
    let mut lines = std::io::BufReader::new(&client);
    std::io::BufRead::read_line(&mut lines, &mut number).unwrap();
    let handler = Pid::from_raw(number.trim().parse().unwrap());
    (proxy, client, handler)
}

#[test]
fn a_handler_that_ignores_sigterm_is_killed_after_3_seconds() {
    let scratch = Scratch::new();
    let (mut proxy, client, handler) = with_a_stubborn_handler(&scratch);
    let start = Instant::now();
    proxy.process.signal(Signal::SIGTERM);
    assert_eq!(proxy.process.status().code(), Some(0));
    let took = start.elapsed();
    assert!((2.9..5.0).contains(&took.as_secs_f64()), "{took:?}");
    let closed = proxy.closed();
    assert_eq!(field(&closed, "reason"), "terminated");
    let alive = {
        thread::sleep(Duration::from_millis(300));
        is_alive(handler)
    };
    let _ = kill(handler, Signal::SIGKILL);
    assert!(!alive, "the handler goes on without its server");
    assert_eq!(read_to_ending(&client).0, b"");
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    let scratch = Scratch::new();
    let (mut proxy, _client, handler) = with_a_stubborn_handler(&scratch);
    let start = Instant::now();
    proxy.process.signal(Signal::SIGTERM);
    proxy.process.log.wait_for("asked to end");
    proxy.process.signal(Signal::SIGTERM);
    assert_eq!(proxy.process.status().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(field(&proxy.closed(), "reason"), "terminated");
    let alive = {
        thread::sleep(Duration::from_millis(300));
        is_alive(handler)
    };
    let _ = kill(handler, Signal::SIGKILL);
    assert!(!alive, "the handler goes on without its server");
}

#[test]
fn a_server_with_nothing_to_do_sleeps() {
    let proxy = Standalone::start(&[&echo().to_string()]);
    let pid = proxy.process.pid();
    let client = proxy.connect();
    assert_echoes(&client);
    let before = (
        cpu_time(pid),
        crate::harness::processes::context_switches(pid),
    );
    thread::sleep(Duration::from_secs(1));
    assert_eq!(cpu_time(pid), before.0);
    let switches = crate::harness::processes::context_switches(pid) - before.1;
    assert!(switches <= 1, "{switches} context switches");
}

#[test]
fn the_sessions_are_numbered_from_one() {
    let proxy = Standalone::start(&[&echo().to_string()]);
    for number in 1..=3 {
        drop(proxy.connect());
        let closed = proxy
            .process
            .log
            .wait_for(&format!("session {number} closed: "));
        assert!(closed.contains("client=127.0.0.1:"), "{closed}");
    }
}
