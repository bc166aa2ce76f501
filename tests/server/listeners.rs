//! Where a server listens: every form of a place, and what is said when it cannot be had.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};

use crate::harness::namespaces::{add_address, privately};
use crate::harness::peers::{assert_echoes, read_to_ending};
use crate::harness::processes::only_child;
use crate::harness::upstreams::echo;
use crate::harness::{Running, TCPPROXY, field, needs_root, patient, read_all};

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
        let port = crate::harness::free_port();
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
    let free = format!("127.0.0.1:{}", crate::harness::free_port());
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
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
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

#[test]
fn a_link_local_address_is_listened_on_and_forwarded_to_with_its_zone() {
    privately(|| {
        add_address("fe80::1/64");
        let handler = link_local(&["/bin/echo", "hello"]);
        let proxy = link_local(&[&format!("[fe80::1%lo]:{}", handler.1)]);
        let lo = nix::net::if_::if_nametoindex("lo").unwrap();
        let address = SocketAddrV6::new("fe80::1".parse().unwrap(), proxy.1, 0, lo);
        assert_eq!(read_all(TcpStream::connect(address).unwrap()), b"hello\n");
    });
}

/// A server on fe80::1%lo, and its port.
fn link_local(arguments: &[&str]) -> (Running, u16) {
    let mut command = Command::new(TCPPROXY);
    command.args(["-b", "[fe80::1%lo]:0", "--log", "stderr"]);
    let server = Running::start(command.args(arguments).stdin(Stdio::null()));
    let line = server.log.wait_for("listening on [fe80::1%");
    let port = line.rsplit(':').next().unwrap().parse().unwrap();
    (server, port)
}
