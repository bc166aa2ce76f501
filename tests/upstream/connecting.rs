//! How an upstream is reached: names, several addresses, time, and what becomes of the client
//! meanwhile. Most cases run in a network and with a hosts file of their own.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Backlog, listen};

use crate::harness::name_server::{Answer, name_server, names};
use crate::harness::namespaces::{add_address, privately};
use crate::harness::peers::{Ending, read_to_ending, reset};
use crate::harness::processes::only_child;
use crate::harness::upstreams::{BlackHole, Upstream};
use crate::harness::{
    Scratch, Standalone, eventually, field, free_port, patient, read_all, under_inetd,
};

/// An upstream that says its name to whoever connects, until the test ends.
fn speaker(address: impl std::net::ToSocketAddrs, name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // Who has gone by now does not matter.
            let _ = stream.and_then(|mut stream| stream.write_all(name.as_bytes()));
        }
    });
    address
}

/// What a new client of the proxy reads, and how long that takes.
fn heard_through(proxy: &Standalone) -> (String, Duration) {
    let start = Instant::now();
    let heard = read_all(proxy.connect());
    (String::from_utf8(heard).unwrap(), start.elapsed())
}

/// Runs a session as inetd would, whose client waits for its end. Returns the exit status, the
/// log, and how long it took. The client must not have got a byte.
fn turned_away(arguments: &[&str]) -> (i32, String, Duration) {
    let scratch = Scratch::new();
    let log = format!("file:{}", scratch.join("log").display());
    let start = Instant::now();
    let (client, mut child) = under_inetd(&[&["--log", &log], arguments].concat());
    let status = child.wait().unwrap().code().unwrap();
    let took = start.elapsed();
    assert_eq!(read_to_ending(&client).0, b"", "{arguments:?}");
    let log = fs::read_to_string(scratch.join("log")).unwrap();
    (status, log, took)
}

fn assert_turned_away(arguments: &[&str], reason: &str) {
    let (status, log, _) = turned_away(arguments);
    assert_eq!(status, 69, "{arguments:?}: {log}");
    let closed = log.lines().find(|line| line.contains(" closed: ")).unwrap();
    assert_eq!(field(closed, "reason"), reason, "{log}");
    assert_eq!(field(closed, "sent"), "0", "{log}");
    assert_eq!(field(closed, "received"), "0", "{log}");
}

#[test]
fn a_missing_port_is_the_one_that_the_client_connected_to() {
    privately(|| {
        let port = speaker("127.0.0.2:0", "two").port();
        let place = format!("127.0.0.1:{port}");
        let proxy = Standalone::start(&["-b", &place, "127.0.0.2"]);
        proxy.process.log.wait_for_count("listening on ", 2);
        let client = patient(TcpStream::connect(&place).unwrap());
        assert_eq!(read_all(client), b"two");
        let closed = proxy.closed();
        assert_eq!(field(&closed, "server"), format!("127.0.0.2:{port}"));
    });
}

#[test]
fn every_form_of_an_ipv6_upstream_is_reached() {
    privately(|| {
        let scratch = Scratch::new();
        let _names = names(&scratch, "::1 six.example\n");
        let port = speaker("[::1]:0", "six").port();
        let place = format!("127.0.0.1:{port}");
        for server in [
            format!("[::1]:{port}"),
            "[::1]".to_owned(),
            "::1".to_owned(),
            format!("six.example:{port}"),
            "six.example".to_owned(),
        ] {
            let proxy = Standalone::start(&["-b", &place, &server]);
            proxy.process.log.wait_for_count("listening on ", 2);
            let client = patient(TcpStream::connect(&place).unwrap());
            assert_eq!(read_all(client), b"six", "{server}");
            let closed = proxy.closed();
            assert!(field(&closed, "server").ends_with(&format!(":{port}")));
        }
    });
}

/// A name with an address of each family, IPv6 being preferred (RFC 6724).
const DUAL: &str = "2001:db8::1 dual.example\n127.0.0.1 dual.example\n";

#[test]
fn the_second_family_wins_soon_where_the_first_is_dead() {
    privately(|| {
        let scratch = Scratch::new();
        add_address("2001:db8::1/128");
        let _names = names(&scratch, DUAL);
        let port = speaker("127.0.0.1:0", "four").port();
        let _hole = BlackHole::at(("2001:db8::1", port));
        let proxy = Standalone::start(&[&format!("dual.example:{port}")]);
        for _ in 0..3 {
            let (heard, took) = heard_through(&proxy);
            assert_eq!(heard, "four");
            assert!((200..1_000).contains(&took.as_millis()), "{took:?}");
        }
    });
}

#[test]
fn the_first_family_wins_at_once_where_the_second_is_dead() {
    privately(|| {
        let scratch = Scratch::new();
        add_address("2001:db8::1/128");
        let _names = names(&scratch, DUAL);
        let port = speaker("[2001:db8::1]:0", "six").port();
        let _hole = BlackHole::at(("127.0.0.1", port));
        let proxy = Standalone::start(&[&format!("dual.example:{port}")]);
        let (heard, took) = heard_through(&proxy);
        assert_eq!(heard, "six");
        assert!(took < Duration::from_millis(240), "{took:?}");
    });
}

#[test]
fn after_a_refusal_the_next_address_does_not_wait() {
    privately(|| {
        let scratch = Scratch::new();
        add_address("2001:db8::1/128");
        let _names = names(&scratch, DUAL);
        let port = speaker("127.0.0.1:0", "four").port();
        let proxy = Standalone::start(&[&format!("dual.example:{port}")]);
        let (heard, took) = heard_through(&proxy);
        assert_eq!(heard, "four");
        assert!(took < Duration::from_millis(240), "{took:?}");
    });
}

#[test]
fn after_a_refusal_the_next_address_does_not_wait_for_one_that_is_still_tried() {
    privately(|| {
        let scratch = Scratch::new();
        add_address("2001:db8::1/128");
        add_address("2001:db8::2/128");
        // The families take turns: dead, refusing, alive.
        let hosts = "2001:db8::1 three.example\n2001:db8::2 three.example\n\
                     127.0.0.1 three.example\n";
        let _names = names(&scratch, hosts);
        let port = speaker("[2001:db8::2]:0", "three").port();
        let _hole = BlackHole::at(("2001:db8::1", port));
        let proxy = Standalone::start(&[&format!("three.example:{port}")]);
        let (heard, took) = heard_through(&proxy);
        assert_eq!(heard, "three");
        assert!((200..480).contains(&took.as_millis()), "{took:?}");
    });
}

#[test]
fn the_last_of_many_addresses_wins_where_the_others_are_dead() {
    privately(|| {
        let scratch = Scratch::new();
        let hosts: String = (1..=5)
            .map(|host| format!("127.0.1.{host} many.example\n"))
            .collect();
        let _names = names(&scratch, &hosts);
        let port = free_port();
        let mut holes: Vec<BlackHole> = (1..=5)
            .map(|host| BlackHole::at((Ipv4Addr::new(127, 0, 1, host), port)))
            .collect();
        // Which address comes last is the resolver's choice: the last that is tried is opened.
        let proxy = Standalone::start(&[&format!("many.example:{port}")]);
        let client = proxy.connect();
        thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        let mut upstream = holes[4].open();
        upstream.write_all(b"five").unwrap();
        drop(upstream);
        assert_eq!(read_all(client), b"five");
        // The SYN was lost, if it had been sent, and is repeated after a second.
        assert!(start.elapsed() < Duration::from_secs(3));
    });
}

#[test]
fn where_every_address_is_dead_the_time_for_all_is_limited() {
    privately(|| {
        let scratch = Scratch::new();
        add_address("2001:db8::1/128");
        let _names = names(&scratch, DUAL);
        let hole = BlackHole::at("127.0.0.1:0");
        let port = hole.address().port();
        let _other = BlackHole::at(("2001:db8::1", port));
        let server = format!("dual.example:{port}");
        let (status, log, took) = turned_away(&["--connect-timeout", "700ms", &server]);
        assert_eq!(status, 69, "{log}");
        assert!(log.contains(" reason=connect-timeout"), "{log}");
        assert!((700..2_000).contains(&took.as_millis()), "{took:?}");
    });
}

#[test]
fn a_name_server_that_says_nothing_is_waited_for_no_longer_than_a_connection() {
    privately(|| {
        let scratch = Scratch::new();
        let _names = names(&scratch, "");
        name_server(|_, _| Answer::Silence);
        let arguments = ["--connect-timeout", "700ms", "slow.example:25"];
        let (status, log, took) = turned_away(&arguments);
        assert_eq!(status, 69, "{log}");
        assert!(log.contains(" reason=connect-timeout"), "{log}");
        assert!((700..2_000).contains(&took.as_millis()), "{took:?}");
    });
}

#[test]
fn every_reason_not_to_be_connected_has_its_word_and_status_69() {
    privately(|| {
        let scratch = Scratch::new();
        let _names = names(&scratch, "192.0.2.1 far.example\n");
        name_server(|_, _| Answer::Unknown);
        assert_turned_away(&["nobody.example:25"], "name-not-found");
        assert_turned_away(&["far.example:25"], "connect-failed");
        assert_turned_away(&["192.0.2.1:25"], "connect-failed");
        let refusing = format!("127.0.0.1:{}", free_port());
        assert_turned_away(&[&refusing], "connect-refused");
        let hole = BlackHole::at("127.0.0.1:0");
        let hole = hole.address().to_string();
        assert_turned_away(&["--connect-timeout", "0.3", &hole], "connect-timeout");
        let missing = format!("unix:{}", scratch.join("missing").display());
        assert_turned_away(&[&missing], "connect-failed");
        let stale = scratch.join("stale");
        drop(UnixListener::bind(&stale).unwrap());
        // A process that another thread forks just now has a copy, until it is its program.
        eventually("nobody to listen there", || {
            UnixStream::connect(&stale).is_err().then_some(())
        });
        open_to_all(&stale);
        assert_turned_away(&[&format!("unix:{}", stale.display())], "connect-refused");
        let private = scratch.join("private");
        let _listener = UnixListener::bind(&private).unwrap();
        fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
        assert_turned_away(&[&format!("unix:{}", private.display())], "connect-failed");
    });
}

#[test]
fn what_failed_is_logged_with_its_address() {
    let port = free_port();
    let proxy = Standalone::start(&[&format!("127.0.0.1:{port}")]);
    let (heard, _) = heard_through(&proxy);
    assert_eq!(heard, "");
    proxy.process.log.wait_for(&format!(
        "session 1: 127.0.0.1:{port}: connect to 127.0.0.1:{port}: Connection refused"
    ));
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
}

#[test]
fn a_client_that_resets_while_a_name_is_looked_up_ends_its_session_at_once() {
    privately(|| {
        let scratch = Scratch::new();
        let _names = names(&scratch, "");
        name_server(|_, _| Answer::Silence);
        let proxy = Standalone::start(&["slow.example:25"]);
        let client = proxy.connect();
        let session = only_child(proxy.process.pid());
        // The lookup is a child's.
        let lookup = only_child(session);
        let start = Instant::now();
        reset(client);
        let closed = proxy.closed();
        assert_eq!(field(&closed, "reason"), "client-reset");
        assert!(start.elapsed() < Duration::from_secs(1));
        eventually("the session and its lookup to end", || {
            let alive = crate::harness::processes::is_alive;
            (!alive(session) && !alive(lookup)).then_some(())
        });
    });
}

#[test]
fn a_client_that_resets_while_an_upstream_is_connected_to_ends_its_session_at_once() {
    let hole = BlackHole::at("127.0.0.1:0");
    let proxy = Standalone::start(&[&hole.address().to_string()]);
    // Whether it has said something before or not.
    for (number, said) in [(1, &b""[..]), (2, b"request")] {
        let mut client = proxy.connect();
        client.write_all(said).unwrap();
        proxy
            .process
            .log
            .wait_for(&format!("session {number} opened"));
        thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        reset(client);
        let closed = proxy
            .process
            .log
            .wait_for(&format!("session {number} closed"));
        assert_eq!(field(&closed, "reason"), "client-reset");
        assert!(start.elapsed() < Duration::from_secs(1));
    }
}

#[test]
fn what_a_client_said_before_the_upstream_was_reached_arrives() {
    let mut hole = BlackHole::at("127.0.0.1:0");
    let proxy = Standalone::start(&[&hole.address().to_string()]);
    let mut client = proxy.connect();
    client.write_all(b"early request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    proxy.process.log.wait_for("session 1 opened: ");
    thread::sleep(Duration::from_millis(100));
    let session = only_child(proxy.process.pid());
    let before = crate::harness::processes::cpu_time(session);
    let mut upstream = hole.open();
    // The end of input was no reason to be busy meanwhile.
    assert!(crate::harness::processes::cpu_time(session) - before < Duration::from_millis(50));
    assert_eq!(read_all(&upstream), b"early request");
    upstream.write_all(b"late reply").unwrap();
    drop(upstream);
    assert_eq!(read_all(client), b"late reply");
    assert_eq!(field(&proxy.closed(), "reason"), "client-closed");
}

#[test]
fn a_client_that_resets_when_the_upstream_has_just_been_reached_is_a_reset_there_too() {
    let mut hole = BlackHole::at("127.0.0.1:0");
    let proxy = Standalone::start(&[&hole.address().to_string()]);
    let mut client = proxy.connect();
    client.write_all(b"last words").unwrap();
    proxy.process.log.wait_for("session 1 opened: ");
    let session = only_child(proxy.process.pid());
    thread::sleep(Duration::from_millis(100));
    // Stopped, so that it learns of the connection and of the reset at once.
    kill(session, Signal::SIGSTOP).unwrap();
    let upstream = hole.open();
    reset(client);
    kill(session, Signal::SIGCONT).unwrap();
    assert_eq!(
        read_to_ending(&upstream),
        (b"last words".to_vec(), Ending::Reset)
    );
    let closed = proxy.closed();
    assert_eq!(field(&closed, "reason"), "client-reset");
    assert_eq!(field(&closed, "sent"), "10");
}

#[test]
fn an_upstream_that_resets_behind_bytes_before_it_was_looked_at_is_a_reset_to_the_client_too() {
    for said in [&b"last words"[..], b""] {
        let mut hole = BlackHole::at("127.0.0.1:0");
        let proxy = Standalone::start(&[&hole.address().to_string()]);
        let client = proxy.connect();
        proxy.process.log.wait_for("session 1 opened: ");
        let session = only_child(proxy.process.pid());
        thread::sleep(Duration::from_millis(100));
        kill(session, Signal::SIGSTOP).unwrap();
        let mut upstream = hole.open();
        upstream.write_all(said).unwrap();
        reset(upstream);
        kill(session, Signal::SIGCONT).unwrap();
        assert_eq!(read_to_ending(&client), (said.to_vec(), Ending::Reset));
        let closed = proxy.closed();
        assert_eq!(field(&closed, "reason"), "server-reset");
        assert_eq!(field(&closed, "received"), said.len().to_string());
    }
}

#[test]
fn an_upstream_that_accepts_and_resets_at_once_never_looks_like_an_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Standalone::start(&[&listener.local_addr().unwrap().to_string()]);
    let server = thread::spawn(move || {
        for _ in 0..50 {
            reset(listener.accept().unwrap().0);
        }
    });
    for number in 1..=50 {
        match TcpStream::connect(proxy.address) {
            Ok(client) => assert_eq!(read_to_ending(&patient(client)), (vec![], Ending::Reset)),
            // It may be there before connect(2) has returned.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        let closed = proxy
            .process
            .log
            .wait_for(&format!("session {number} closed"));
        assert_eq!(field(&closed, "reason"), "server-reset");
    }
    server.join().unwrap();
}

#[test]
fn the_source_address_is_the_one_that_was_given() {
    let upstream = Upstream::new(|stream| stream.peer_addr().unwrap().ip().to_string());
    let proxy = Standalone::start(&["--source", "127.0.0.9", &upstream.name()]);
    assert_eq!(heard_through(&proxy).0, "");
    assert_eq!(upstream.result(), "127.0.0.9");
}

#[test]
fn the_source_address_chooses_the_family() {
    privately(|| {
        let scratch = Scratch::new();
        add_address("2001:db8::1/128");
        let _names = names(&scratch, DUAL);
        let port = speaker("127.0.0.1:0", "four").port();
        speaker(("2001:db8::1", port), "six");
        let server = format!("dual.example:{port}");
        let proxy = Standalone::start(&["--source", "127.0.0.9", &server]);
        assert_eq!(heard_through(&proxy).0, "four");
        let proxy = Standalone::start(&["--source", "::1", &server]);
        assert_eq!(heard_through(&proxy).0, "six");
        assert_turned_away(
            &["--source", "::1", &format!("127.0.0.1:{port}")],
            "connect-failed",
        );
        // Not an address of this machine.
        assert_turned_away(&["--source", "192.0.2.9", &server], "connect-failed");
    });
}

#[test]
fn a_port_on_which_nobody_listens_is_refused_even_if_it_becomes_our_own() {
    privately(|| {
        let scratch = Scratch::new();
        let log = format!("file:{}", scratch.join("log").display());
        let (client, accepted) = crate::harness::socket_pair();
        // Every connection from now on comes from this port, one to itself too.
        let port = 33_333;
        fs::write(
            "/proc/sys/net/ipv4/ip_local_port_range",
            format!("{port} {port}"),
        )
        .unwrap();
        // A reset, so that no TIME-WAIT keeps the port.
        reset(TcpStream::connect(("127.0.0.1", port)).expect("one can connect to oneself here"));
        let mut child = std::process::Command::new(crate::harness::TCPPROXY)
            .args(["--log", &log, &format!("127.0.0.1:{port}")])
            .stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(
                accepted,
            )))
            .spawn()
            .unwrap();
        (&client).write_all(b"echo?").unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(69));
        assert_eq!(read_to_ending(&client).0, b"");
        let log = fs::read_to_string(scratch.join("log")).unwrap();
        assert!(log.contains(" reason=connect-refused"), "{log}");
    });
}

#[test]
fn names_are_looked_up_anew_for_every_session() {
    privately(|| {
        let scratch = Scratch::new();
        let hosts = names(&scratch, "127.0.0.2 moving.example\n");
        let port = speaker("127.0.0.2:0", "two").port();
        speaker(("127.0.0.3", port), "three");
        let proxy = Standalone::start(&[&format!("moving.example:{port}")]);
        assert_eq!(heard_through(&proxy).0, "two");
        hosts.change("127.0.0.3 moving.example\n");
        assert_eq!(heard_through(&proxy).0, "three");
    });
}

#[test]
fn names_come_from_the_dns_too() {
    privately(|| {
        let scratch = Scratch::new();
        let _names = names(&scratch, "");
        name_server(|name, _| match name {
            "far.example" => Answer::Address([127, 0, 0, 2]),
            _ => Answer::Unknown,
        });
        let port = speaker("127.0.0.2:0", "two").port();
        let proxy = Standalone::start(&[&format!("far.example:{port}")]);
        assert_eq!(heard_through(&proxy).0, "two");
        let closed = proxy.closed();
        assert_eq!(field(&closed, "server"), format!("far.example:{port}"));
    });
}

/// A unix-domain listener whose backlog is full, and what fills it.
fn full_listener(path: &Path) -> (UnixListener, Vec<UnixStream>) {
    let listener = UnixListener::bind(path).unwrap();
    open_to_all(path);
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    // 0 leaves room for one.
    let filling = vec![UnixStream::connect(path).unwrap()];
    (listener, filling)
}

#[test]
fn a_unix_upstream_with_a_full_backlog_is_waited_for() {
    let scratch = Scratch::new();
    let path = scratch.join("full.sock");
    let (listener, filling) = full_listener(&path);
    let server = format!("unix:{}", path.display());
    let (status, log, took) = turned_away(&["--connect-timeout", "500ms", &server]);
    assert_eq!(status, 69);
    assert!(log.contains(" reason=connect-timeout"), "{log}");
    assert!((500..2_000).contains(&took.as_millis()), "{took:?}");
    // A client that resets is not waited with.
    let proxy = Standalone::start(&[&server]);
    let client = proxy.connect();
    proxy.process.log.wait_for("session 1 opened: ");
    reset(client);
    let closed = proxy.process.log.wait_for("session 1 closed: ");
    assert_eq!(field(&closed, "reason"), "client-reset");
    // Another is served as soon as there is room.
    let mut client = proxy.connect();
    proxy.process.log.wait_for("session 2 opened: ");
    client.write_all(b"patient").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    thread::sleep(Duration::from_millis(100));
    drop(filling);
    drop(listener.accept().unwrap());
    let upstream = listener.accept().unwrap().0;
    assert_eq!(read_all(upstream), b"patient");
}
