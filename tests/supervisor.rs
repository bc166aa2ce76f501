//! The server that accepts and forks: crowds, shortages, sessions that die, and its own end.

mod harness;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use harness::peers::{BlackHole, Through, read_to_ending, reset};
use harness::processes::{children, cpu_time, descriptors, is_alive, only_child};
use harness::{
    Engine, Running, Scratch, Standalone, TCPPROXY, eventually, field, needs_root, patient,
    read_all,
};

/// An upstream that gives everybody back what they say, until the test ends.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || {
                // A client that resets is none of the echo's business.
                let _ = std::io::copy(&mut &stream, &mut &stream);
            });
        }
    });
    address
}

/// Starts the server with these arguments, and returns where it listens.
fn listening(arguments: &[&str], count: usize) -> (Running, Vec<SocketAddr>) {
    let mut command = Command::new(TCPPROXY);
    command
        .args(["--log", "stderr"])
        .args(arguments)
        .stdin(Stdio::null());
    let server = Running::start(&mut command);
    let lines = server.log.wait_for_count("listening on ", count);
    let address = |line: &String| line.rsplit(' ').next().unwrap().parse().unwrap();
    (server, lines.iter().map(address).collect())
}

fn assert_echoes(mut stream: &TcpStream) {
    stream.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

#[test]
fn two_thousand_connections_at_once_are_served_and_nothing_is_left_of_them() {
    const COUNT: usize = 2_000;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let proxy = Standalone::start(&[&listener.local_addr().unwrap().to_string()]);
    let pid = proxy.process.pid();
    let before = descriptors(pid);
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
fn clients_that_are_gone_before_they_are_accepted_do_no_harm() {
    let proxy = Standalone::start(&[&echo().to_string()]);
    let pid = proxy.process.pid();
    let before = descriptors(pid);
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
    let taken = descriptors(pid);
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
const LONELY: &str = "54321";

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
    let mut proxy = Standalone::start(&[&hole.address().to_string()]);
    let client = proxy.connect();
    proxy.process.log.wait_for("session 1 opened: ");
    let start = Instant::now();
    proxy.process.signal(Signal::SIGTERM);
    assert_eq!(proxy.process.status().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(field(&proxy.closed(), "reason"), "terminated");
    assert_eq!(read_to_ending(&client).0, b"");
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
    let before = (cpu_time(pid), harness::processes::context_switches(pid));
    thread::sleep(Duration::from_secs(1));
    assert_eq!(cpu_time(pid), before.0);
    let switches = harness::processes::context_switches(pid) - before.1;
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

/// Whether a connection to this address is served.
fn is_served(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok_and(|stream| {
        assert_echoes(&patient(stream));
        true
    })
}

fn on(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse().unwrap(), port)
}

#[test]
fn several_places_are_listened_on_at_once() {
    let upstream = echo().to_string();
    let binds = ["-b", "127.0.0.1:0", "--bind", "127.0.0.2:0", "-b[::1]:0"];
    let arguments = [&binds[..], &[upstream.as_str()]].concat();
    let (_server, places) = listening(&arguments, 3);
    let hosts: Vec<String> = places.iter().map(|place| place.ip().to_string()).collect();
    assert_eq!(hosts, ["127.0.0.1", "127.0.0.2", "::1"]);
    for &place in &places {
        assert_ne!(place.port(), 0);
        assert!(is_served(place), "{place}");
    }
    assert!(!is_served(on("127.0.0.3", places[0].port())));
}

#[test]
fn an_interface_stands_for_its_addresses() {
    let upstream = echo().to_string();
    let (_server, places) = listening(&["-b", "lo:0", &upstream], 2);
    let mut hosts: Vec<String> = places.iter().map(|place| place.ip().to_string()).collect();
    hosts.sort();
    assert_eq!(hosts, ["127.0.0.1", "::1"]);
    assert!(places.iter().all(|&place| is_served(place)));
}

#[test]
fn a_host_name_stands_for_its_addresses() {
    let upstream = echo().to_string();
    let (_server, places) = listening(&["-b", "localhost:0", &upstream], 1);
    assert!(places[0].ip().is_loopback());
    assert!(is_served(places[0]));
}

#[test]
fn a_bare_port_serves_both_families() {
    let upstream = echo().to_string();
    for bind in ["0", ":0", "*:0", "[::]:0"] {
        let (server, places) = listening(&["-b", bind, &upstream], 1);
        let port = places[0].port();
        assert!(is_served(on("127.0.0.1", port)), "{bind}");
        assert!(is_served(on("::1", port)), "{bind}");
        // IPv4 clients of an IPv6 listener are IPv4 clients.
        let opened = server.log.wait_for("session 1 opened: ");
        assert!(
            field(&opened, "client").starts_with("127.0.0.1:"),
            "{opened}"
        );
        assert_eq!(field(&opened, "local"), format!("127.0.0.1:{port}"));
        let opened = server.log.wait_for("session 2 opened: ");
        assert_eq!(field(&opened, "local"), format!("[::1]:{port}"));
    }
}

#[test]
fn both_wildcards_on_one_port_are_listened_on_at_once() {
    let upstream = echo().to_string();
    for order in [["0.0.0.0", "[::]"], ["[::]", "0.0.0.0"]] {
        let port = harness::free_port();
        let binds = order.map(|host| format!("{host}:{port}"));
        let (_server, places) = listening(&["-b", &binds[0], "-b", &binds[1], &upstream], 2);
        assert_eq!(places.len(), 2, "{order:?}");
        assert!(is_served(on("127.0.0.1", port)), "{order:?}");
        assert!(is_served(on("::1", port)), "{order:?}");
    }
}

/// Runs the program to its end; its exit status, and its standard error.
fn fails(command: &mut Command) -> (i32, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), text)
}

#[test]
fn a_place_that_is_taken_is_an_error_that_names_it() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let place = taken.local_addr().unwrap().to_string();
    let (status, text) = fails(Command::new(TCPPROXY).args(["-b", &place, "127.0.0.1:1"]));
    assert_eq!(status, 71, "{text}");
    assert_eq!(
        text,
        format!("tcpproxy: cannot listen on {place}: Address already in use\n")
    );
    // The same with another place that would have been free: nothing is served half.
    let free = format!("127.0.0.1:{}", harness::free_port());
    let (status, text) =
        fails(Command::new(TCPPROXY).args(["--log", "syslog", "-b", &free, "-b", &place, "h:1"]));
    assert_eq!(status, 71, "{text}");
    assert!(text.contains(&place), "{text}");
}

#[test]
fn a_privileged_port_without_the_privilege_is_not_permitted() {
    needs_root();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", LONELY, "--regid", LONELY, "--clear-groups"])
        .arg(TCPPROXY)
        .args(["-b", "127.0.0.1:79", "127.0.0.1:1"]);
    let (status, text) = fails(&mut command);
    assert_eq!(status, 77, "{text}");
    assert_eq!(
        text,
        "tcpproxy: cannot listen on 127.0.0.1:79: Permission denied\n"
    );
}

#[test]
fn a_host_or_interface_that_is_unknown_is_an_error_that_names_it() {
    for name in ["no-such-host.invalid", "eth99"] {
        let place = format!("{name}:0");
        let (status, text) = fails(Command::new(TCPPROXY).args(["-b", &place, "127.0.0.1:1"]));
        assert_eq!(status, 71, "{text}");
        assert!(text.contains(name), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn an_address_of_another_machine_is_an_error_that_names_it() {
    let (status, text) = fails(Command::new(TCPPROXY).args(["-b", "192.0.2.1:0", "127.0.0.1:1"]));
    assert_eq!(status, 71, "{text}");
    assert!(text.contains("192.0.2.1:0"), "{text}");
}

#[test]
fn a_restart_does_not_wait_for_connections_of_the_past() {
    let upstream = echo().to_string();
    let (mut server, places) = listening(&["-b", "127.0.0.1:0", &upstream], 1);
    // The server's side closes first, and so is left in TIME-WAIT.
    let client = patient(TcpStream::connect(places[0]).unwrap());
    assert_echoes(&client);
    let session = only_child(server.pid());
    kill(session, Signal::SIGTERM).unwrap();
    assert_eq!(read_to_ending(&client).0, b"");
    drop(client);
    server.signal(Signal::SIGTERM);
    server.status();
    let (_again, same) = listening(&["-b", &places[0].to_string(), &upstream], 1);
    assert_eq!(same, places);
    assert!(is_served(places[0]));
}
