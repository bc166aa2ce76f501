//! Limits per client count announced clients, wherever the counts are kept.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bytes::{v1_tcp, v2, v2_tcp};
use crate::harness::clients::connect;
use crate::harness::peers::{assert_echoes, read_to_ending};
use crate::harness::processes::{assert_quiet, children, descriptors, only_child};
use crate::harness::reloading::Reloadable;
use crate::harness::super_server::SuperServer;
use crate::harness::upstreams::{Forbidden, echo};
use crate::harness::{
    Scratch, Standalone, end_of, eventually, field, free_port, launched_by, needs_root, patient,
    share, under_inetd,
};

fn start(arguments: &[&str]) -> Standalone {
    let upstream = echo().to_string();
    Standalone::start(&[&["--accept-proxy", "ANY"], arguments, &[&upstream]].concat())
}

fn header(client: &str) -> Vec<u8> {
    v1_tcp(&format!("{client}:50123"), "198.51.100.1:25")
}

/// Announces a client.
fn announce(mut stream: TcpStream, client: &str) -> TcpStream {
    stream.write_all(&header(client)).unwrap();
    stream
}

/// Whether a client that was announced is served, rather than closed without a byte.
fn is_served(mut client: &TcpStream) -> bool {
    // It may have been closed already.
    let _ = client.write_all(b"x");
    client.read_exact(&mut [0; 1]).is_ok()
}

fn refused(proxy: &Standalone, session: u64) -> String {
    let closed = proxy
        .process
        .log
        .wait_for(&format!("session {session} closed: "));
    field(&closed, "reason").to_owned()
}

#[test]
fn sessions_at_once_are_counted_for_the_announced_client() {
    let proxy = start(&["--max-per-source", "2"]);
    let served = [(); 2].map(|()| announce(proxy.connect(), "192.0.2.7"));
    served.iter().for_each(assert_echoes);
    let third = announce(proxy.connect(), "192.0.2.7");
    assert_eq!(read_to_ending(&third).0, b"");
    assert_eq!(refused(&proxy, 3), "too-many-from-client");
    let closed = proxy.process.log.wait_for("session 3 closed: ");
    assert!(
        closed.contains("client=192.0.2.7:50123 via=127.0.0.1:"),
        "{closed}"
    );
    let lines = proxy.process.log.all();
    assert!(!lines.iter().any(|line| line.contains("session 3 opened")));
    // Others have not, whichever proxy they come by.
    for client in ["192.0.2.8", "192.0.2.9"] {
        assert_echoes(&announce(proxy.connect(), client));
    }
    // A session's end makes place, even if nobody could tell of it.
    let sessions = children(proxy.process.pid());
    kill(sessions[0], Signal::SIGKILL).unwrap();
    eventually("a place", || {
        is_served(&announce(proxy.connect(), "192.0.2.7")).then_some(())
    });
    proxy.process.signal(Signal::SIGUSR1);
    let totals = proxy.process.log.wait_for("sessions: live=");
    assert!(
        field(&totals, "refused").parse::<u32>().unwrap() >= 1,
        "{totals}"
    );
}

#[test]
fn who_announces_nobody_is_counted_itself() {
    let proxy = start(&["--max-per-source", "1"]);
    let local = v2(0x20, 0, b"");
    let mut first = proxy.connect();
    first.write_all(&local).unwrap();
    assert_echoes(&first);
    let mut second = proxy.connect();
    second.write_all(&local).unwrap();
    assert_eq!(read_to_ending(&second).0, b"");
    assert_eq!(refused(&proxy, 2), "too-many-from-client");
    assert_echoes(&announce(proxy.connect(), "192.0.2.7"));
}

#[test]
fn a_rate_is_the_announced_clients() {
    let proxy = start(&["--rate", "1/1h:2"]);
    for _ in 0..2 {
        assert_echoes(&announce(proxy.connect(), "192.0.2.7"));
    }
    assert!(!is_served(&announce(proxy.connect(), "192.0.2.7")));
    assert_eq!(refused(&proxy, 3), "too-fast-from-client");
    let v6 = |client| {
        let mut stream = proxy.connect();
        let header = v2_tcp(client, "[2001:db8::1]:25", b"");
        stream.write_all(&header).unwrap();
        is_served(&stream)
    };
    // One /64.
    assert!(v6("[2001:db8:0:1::1]:1") && v6("[2001:db8:0:1::2]:1"));
    assert!(!v6("[2001:db8:0:1:ffff::3]:1") && v6("[2001:db8:0:2::3]:1"));
}

#[test]
fn a_server_that_is_full_or_about_to_end_still_answers() {
    let mut proxy = start(&["--max-sessions", "2", "--max-per-source", "1"]);
    let mut waiting = [proxy.connect(), proxy.connect()];
    for stream in &mut waiting {
        stream.write_all(b"PROXY ").unwrap();
    }
    proxy
        .process
        .log
        .wait_for("2 live, as many as --max-sessions allows");
    let pid = proxy.process.pid();
    assert_quiet(pid, "while headers are waited for");
    let mut send_rest = |number: usize, client: &str| {
        let rest = header(client).split_off(6);
        waiting[number].write_all(&rest).unwrap();
        is_served(&waiting[number])
    };
    assert!(send_rest(0, "192.0.2.7"));
    proxy.process.signal(Signal::SIGQUIT);
    proxy
        .process
        .log
        .wait_for("asked to end when the 2 live have ended");
    assert!(!send_rest(1, "192.0.2.7"));
    assert_eq!(refused(&proxy, 2), "too-many-from-client");
    drop(waiting);
    assert!(proxy.process.status().success());
}

#[test]
fn sessions_that_wait_for_their_headers_hold_nothing_of_one_another() {
    let proxy = start(&["--max-per-source", "1000"]);
    let waiting: Vec<TcpStream> = (0..8).map(|_| proxy.connect()).collect();
    let pid = proxy.process.pid();
    eventually("the sessions", || (children(pid).len() == 8).then_some(()));
    // Their client, their bell, and what standard streams are.
    for session in children(pid) {
        let found = eventually("the session's own descriptors", || {
            let found = descriptors(session);
            let own = found.iter().filter(|(number, _)| *number > 2).count();
            (own <= 2).then_some(found)
        });
        let is_set = |path: &std::path::PathBuf| path.to_string_lossy().contains("eventpoll");
        assert!(!found.iter().any(|(_, path)| is_set(path)), "{found:?}");
    }
    drop(waiting);
    // And the server keeps nothing of those that have gone.
    let before = descriptors(pid).len();
    eventually("the server to let go", || {
        (children(pid).is_empty() && descriptors(pid).len() + 8 <= before + 8).then_some(())
    });
    for _ in 0..20 {
        assert_echoes(&announce(proxy.connect(), "192.0.2.7"));
    }
    eventually("the server to have as few as before", || {
        (children(pid).is_empty() && descriptors(pid).len() <= before).then_some(())
    });
}

#[test]
fn the_number_of_announced_sessions_is_not_limited_by_descriptors() {
    let upstream = echo().to_string();
    for limits in [&[][..], &["--max-per-source", "1"]] {
        let arguments = [&["--accept-proxy", "ANY"], limits, &[&upstream]].concat();
        let launcher = ["prlimit", "--nofile=20:20"];
        let proxy = Standalone::launched_by(&launcher, &arguments);
        let clients: Vec<TcpStream> = (0..60)
            .map(|number| {
                let client = announce(proxy.connect(), &format!("192.0.2.{number}"));
                assert_echoes(&client);
                client
            })
            .collect();
        assert_eq!(children(proxy.process.pid()).len(), clients.len());
    }
}

#[test]
fn a_session_whose_server_is_gone_lets_nobody_in() {
    let mut proxy = start(&["--max-per-source", "1"]);
    let mut client = proxy.connect();
    only_child(proxy.process.pid());
    proxy.process.signal(Signal::SIGKILL);
    proxy.process.status();
    client.write_all(&header("192.0.2.7")).unwrap();
    assert_eq!(read_to_ending(&client).0, b"");
    assert_eq!(refused(&proxy, 1), "internal-error");
    proxy
        .process
        .log
        .wait_for("session 1: no answer from the server");
}

#[test]
fn limits_that_a_reload_brings_count_those_who_were_announced_before() {
    let port = free_port();
    let forward = format!(
        "accept-proxy ANY\nport {port}\ninterface 127.0.0.1\nserver {}\n",
        echo()
    );
    let mut server = Reloadable::start(&forward, &[]);
    let first = announce(connect(port), "192.0.2.7");
    assert_echoes(&first);
    server.change(&format!("max-per-source 1\n{forward}"));
    assert!(!is_served(&announce(connect(port), "192.0.2.7")));
    assert!(is_served(&announce(connect(port), "192.0.2.8")));
    drop(first);
    eventually("a place", || {
        is_served(&announce(connect(port), "192.0.2.7")).then_some(())
    });
}

fn uid_of(process: Pid) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Starts tcpproxy as inetd does, for a client of this listener.
fn handed_over(listener: &TcpListener, arguments: &[&str]) -> (TcpStream, Child) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let child = launched_by(&[], arguments)
        .stdin(share(&accepted))
        .stdout(share(&accepted))
        .stderr(share(&accepted))
        .spawn()
        .unwrap();
    (patient(client), child)
}

#[test]
fn processes_that_share_a_directory_count_announced_clients_and_read_them_without_rights() {
    needs_root();
    let scratch = Scratch::new();
    let directory = scratch.join("state");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = echo().to_string();
    let options = [
        "--accept-proxy",
        "ANY",
        "--max-per-source",
        "1",
        "--state-dir",
        directory.to_str().unwrap(),
        &upstream,
    ];
    let (mut first, mut first_child) = handed_over(&listener, &options);
    first.write_all(b"PROXY TCP4 ").unwrap();
    // Who reads is not who counts.
    let parent = Pid::from_raw(first_child.id() as i32);
    let reader = only_child(parent);
    eventually("the reader to have no rights", || {
        (uid_of(reader) == Some(65535)).then_some(())
    });
    assert_eq!(uid_of(parent), Some(0));
    assert_quiet(reader, "in the middle of a header");
    first.write_all(&header("192.0.2.7")[11..]).unwrap();
    assert_echoes(&first);
    assert_eq!(uid_of(parent), Some(65535));
    assert_eq!(children(parent), []);
    let (second, mut child) = handed_over(&listener, &options);
    assert_eq!(read_to_ending(&announce(second, "192.0.2.7")).0, b"");
    end_of(&mut child);
    let (third, mut child) = handed_over(&listener, &options);
    let third = announce(third, "192.0.2.8");
    assert_echoes(&third);
    drop((first, third));
    end_of(&mut child);
    end_of(&mut first_child);
    let (fourth, mut child) = handed_over(&listener, &options);
    let fourth = announce(fourth, "192.0.2.7");
    assert_echoes(&fourth);
    drop(fourth);
    end_of(&mut child);
}

#[test]
fn a_reader_without_rights_refuses_what_is_no_header_and_ends_with_its_session() {
    needs_root();
    let scratch = Scratch::new();
    let directory = scratch.join("state");
    let upstream = Forbidden::new();
    let log = scratch.join("log");
    let log_to = format!("file:{}", log.display());
    let options = [
        "--accept-proxy",
        "ANY",
        "--rate",
        "1/1h",
        "--state-dir",
        directory.to_str().unwrap(),
        "--log",
        &log_to,
        &upstream.name(),
    ];
    for (bytes, notice) in [
        (&b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n"[..], "leading zeros"),
        (b"\0", "no PROXY header"),
    ] {
        let (mut client, mut child) = under_inetd(&options);
        client.write_all(bytes).unwrap();
        assert_eq!(read_to_ending(&client).0, b"");
        assert!(end_of(&mut child).success());
        crate::harness::wait_for_line(&log, notice);
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let (client, mut child) = under_inetd(&options);
        let parent = Pid::from_raw(child.id() as i32);
        let reader = only_child(parent);
        eventually("the reader to have no rights", || {
            (uid_of(reader) == Some(65535)).then_some(())
        });
        kill(parent, signal).unwrap();
        end_of(&mut child);
        assert_eq!(read_to_ending(&client).0, b"", "{signal}");
    }
    crate::harness::wait_for_line(&log, "reason=terminated");
    upstream.assert_untouched();
}

#[test]
fn every_super_server_has_announced_clients_counted() {
    needs_root();
    for server in [
        SuperServer::OpenbsdInetd,
        SuperServer::Tcpserver,
        SuperServer::ActivateInetd,
    ] {
        let scratch = Scratch::new();
        let directory = scratch.join("state");
        let upstream = echo().to_string();
        let options = ["--accept-proxy", "ANY", "--rate", "1/1h", "--state-dir"];
        let options = [&options[..], &[directory.to_str().unwrap(), &upstream]].concat();
        let activated = server.start("127.0.0.1", &options);
        let connect = |client| announce(activated.connect(), client);
        assert_echoes(&connect("192.0.2.7"));
        assert_eq!(read_to_ending(&connect("192.0.2.7")).0, b"", "{server:?}");
        activated.log("reason=too-fast-from-client");
        assert_echoes(&connect("192.0.2.8"));
    }
}
