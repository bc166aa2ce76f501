//! Connections and listeners from real super-servers, each of which passes them in its own way.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;

use nix::sys::signal::Signal;
use nix::sys::socket::{self, shutdown};

use crate::harness::processes::wait_until_stopped;
use crate::harness::super_server::{SuperServer, activate, connect_to};
use crate::harness::upstreams::{Forbidden, Upstream};
use crate::harness::{
    Running, eventually, field, free_port, launched_by, needs_root, patient, read_all,
};

const LOOPBACKS: [&str; 2] = ["127.0.0.1", "::1"];

/// What a client reads that sends a request and ends its side.
fn reply_to(mut client: TcpStream, request: &[u8]) -> Vec<u8> {
    client.write_all(request).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    read_all(client)
}

/// An upstream for any number of clients, at once or in turn, that answers each request with
/// "reply to" it at its end.
fn answering_upstream() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let name = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = patient(stream.unwrap());
            thread::spawn(move || {
                let request = read_all(&stream);
                let reply = [b"reply to ".as_slice(), &request].concat();
                stream.write_all(&reply).unwrap();
            });
        }
    });
    name
}

#[test]
fn a_half_closed_request_is_forwarded_and_its_reply_arrives() {
    needs_root();
    for server in SuperServer::ALL {
        for ip in LOOPBACKS {
            let upstream = Upstream::new(|mut stream| {
                let request = read_all(&stream);
                stream.write_all(b"reply").unwrap();
                request
            });
            let activated = server.start(ip, &[&upstream.name()]);
            let client = activated.connect();
            let client_address = client.local_addr().unwrap();
            assert_eq!(reply_to(client, b"request"), b"reply", "{server:?} {ip}");
            assert_eq!(upstream.result(), b"request", "{server:?} {ip}");
            let opened = activated.log(" opened: ");
            assert_eq!(field(&opened, "client"), client_address.to_string());
            assert_eq!(field(&opened, "local"), activated.address.to_string());
            assert_eq!(field(&opened, "user"), "65535:65534", "{server:?} {ip}");
            let closed = activated.log(" closed: ");
            assert_eq!(field(&closed, "reason"), "client-closed", "{server:?} {ip}");
            assert_eq!(field(&closed, "sent"), "7", "{server:?} {ip}");
            assert_eq!(field(&closed, "received"), "5", "{server:?} {ip}");
        }
    }
}

#[test]
fn a_handler_serves_the_client_without_root() {
    needs_root();
    let ids = "/^(Uid|Gid|Groups|CapEff):/p";
    for server in SuperServer::ALL {
        for ip in LOOPBACKS {
            let activated = server.start(ip, &["/bin/sed", "-nE", ids, "/proc/self/status"]);
            let text = String::from_utf8(reply_to(activated.connect(), b"")).unwrap();
            let words: Vec<&str> = text.split_whitespace().collect();
            assert_eq!(
                words.join(" "),
                "Uid: 65535 65535 65535 65535 Gid: 65534 65534 65534 65534 Groups: \
                 CapEff: 0000000000000000",
                "{server:?} {ip}"
            );
        }
    }
}

#[test]
fn a_denied_client_reads_nothing_and_the_upstream_hears_of_nobody() {
    needs_root();
    for server in SuperServer::ALL {
        for (ip, rule) in [("127.0.0.1", "127.0.0.0/8"), ("::1", "::1/128")] {
            let upstream = Forbidden::new();
            let activated = server.start(ip, &["--deny", rule, &upstream.name()]);
            assert_eq!(read_all(activated.connect()), b"", "{server:?} {ip}");
            let closed = activated.log(" closed: ");
            assert_eq!(field(&closed, "reason"), "denied-by-rule", "{server:?}");
            upstream.assert_untouched();
        }
    }
}

#[test]
fn a_listener_that_was_handed_over_serves_many_clients_at_once() {
    needs_root();
    for server in SuperServer::WITH_LISTENER {
        let activated = server.start("127.0.0.1", &[&answering_upstream()]);
        let mut first = activated.connect();
        first.write_all(b"first").unwrap();
        for request in ["second", "third"] {
            let reply = reply_to(activated.connect(), request.as_bytes());
            assert_eq!(reply, format!("reply to {request}").as_bytes());
        }
        // It has been open all the while.
        assert_eq!(reply_to(first, b"!"), b"reply to first!", "{server:?}");
        // One tcpproxy has counted them all.
        let closed: Vec<String> = (1..=3)
            .map(|serial| activated.log(&format!("session {serial} closed: ")))
            .collect();
        assert!(closed.iter().all(|line| line.contains("client-closed")));
    }
}

#[test]
fn several_listeners_are_served_by_one_process() {
    let addresses = LOOPBACKS.map(|ip| SocketAddr::new(ip.parse().unwrap(), free_port()));
    let upstream = answering_upstream();
    let mut command = activate(&[], &addresses, &["--log", "stderr", &upstream]);
    let server = Running::start(command.stdin(Stdio::null()));
    for (serial, address) in [1, 2, 3, 4].iter().zip(addresses.iter().chain(&addresses)) {
        assert_eq!(reply_to(connect_to(*address), b"x"), b"reply to x");
        // Counted across the listeners: it is one process that accepts on all of them.
        let opened = server.log.wait_for(&format!("session {serial} opened: "));
        assert_eq!(field(&opened, "local"), address.to_string());
    }
}

/// The sockets that a process holds, as their inodes.
fn sockets_of(pid: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    all.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.to_str().unwrap().starts_with("socket:"))
        .collect()
}

#[test]
fn no_session_holds_a_listener() {
    needs_root();
    let upstream = answering_upstream();
    // As inetd passes it, or as systemd does; the shell moves it where it is wanted.
    let on_3 = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0 </dev/null 1>&2";
    for (way, script) in [("on 0 and 1", "exec \"$0\" \"$@\""), ("on 3", on_3)] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = || Stdio::from(OwnedFd::from(listener.try_clone().unwrap()));
        let mut command = launched_by(&["sh", "-c", script], &["--log", "stderr", &upstream]);
        let server = Running::start(command.stdin(shared()).stdout(shared()));
        let client = connect_to(address);
        let opened = server.log.wait_for(" opened: ");
        let session = opened.split(['[', ']']).nth(1).unwrap();
        let session = sockets_of(session);
        assert!(!session.is_empty(), "{way}: it holds the client");
        eventually("a supervisor that holds listeners alone", || {
            // Until it gets to closing it, it holds the client as well.
            let supervisor = sockets_of(&server.pid().to_string());
            assert!(!supervisor.is_empty(), "{way}: it holds the listener");
            let shared = session.iter().any(|socket| supervisor.contains(socket));
            (!shared).then_some(())
        });
        assert_eq!(reply_to(client, b"x"), b"reply to x", "{way}");
    }
}

#[test]
fn a_client_is_served_while_another_listener_is_lost() {
    let upstream = answering_upstream();
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (stays, is_lost) = (bind(), bind());
    // As systemd passes two; the shell moves them where they are wanted.
    let script = "LISTEN_PID=$$ LISTEN_FDS=2 exec \"$0\" \"$@\" 3<&0 4<&1 </dev/null 1>&2";
    let mut command = launched_by(&["sh", "-c", script], &["--log", "stderr", &upstream]);
    let share = |listener: &TcpListener| Stdio::from(OwnedFd::from(listener.try_clone().unwrap()));
    let server = Running::start(command.stdin(share(&stays)).stdout(share(&is_lost)));
    let connect = || connect_to(stays.local_addr().unwrap());
    assert_eq!(reply_to(connect(), b"x"), b"reply to x");
    server.log.wait_for(" closed: ");

    // So that it learns of both at once. The client is then given the number of the lost one.
    server.signal(Signal::SIGSTOP);
    wait_until_stopped(server.pid());
    let client = connect();
    shutdown(is_lost.as_raw_fd(), socket::Shutdown::Both).unwrap();
    server.signal(Signal::SIGCONT);
    server.log.wait_for("lost the listener");
    assert_eq!(reply_to(client, b"y"), b"reply to y");
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once() {
    needs_root();
    for server in SuperServer::ALL {
        let upstream = Upstream::new(|mut stream| {
            stream.write_all(b"220 ready\r\n").unwrap();
            read_all(&stream)
        });
        let activated = server.start("127.0.0.1", &[&upstream.name()]);
        let mut client = activated.connect();
        let mut greeting = [0; 11];
        client.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"220 ready\r\n", "{server:?}");
        assert_eq!(reply_to(client, b"QUIT\r\n"), b"", "{server:?}");
        assert_eq!(upstream.result(), b"QUIT\r\n", "{server:?}");
    }
}
