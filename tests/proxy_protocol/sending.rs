//! The header that an upstream is sent: before anything else, and that is all.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::thread;

use crate::bytes::{LOCAL, PROXY, v1_tcp, v2, v2_tcp};
use crate::harness::upstreams::Upstream;
use crate::harness::{
    Engine, PATIENCE, Running, Scratch, Standalone, TCPPROXY, end_of, field, free_port, needs_root,
    patient, read_all, under_inetd,
};

const VERSIONS: [&str; 2] = ["v1", "v2"];

fn header(version: &str, source: &str, destination: &str) -> Vec<u8> {
    match version {
        "v1" => v1_tcp(source, destination),
        _ => v2_tcp(source, destination, b""),
    }
}

#[test]
fn an_upstream_reads_the_header_and_then_the_client() {
    Engine::each(|engine| {
        for version in VERSIONS {
            let upstream = Upstream::new(|mut stream| {
                let all = read_all(&stream);
                stream.write_all(b"reply").unwrap();
                all
            });
            let arguments = ["--send-proxy", version, &upstream.name()];
            let proxy = Standalone::start_with(engine, &arguments);
            let mut client = proxy.connect();
            let ends =
                [client.local_addr(), client.peer_addr()].map(|end| end.unwrap().to_string());
            client.write_all(b"request").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(&client), b"reply");
            let expected = [&header(version, &ends[0], &ends[1])[..], b"request"].concat();
            assert_eq!(upstream.result(), expected, "{version} {engine:?}");
            let closed = proxy.closed();
            assert_eq!(field(&closed, "sent"), "7", "{closed}");
            assert_eq!(field(&closed, "received"), "5", "{closed}");
        }
    });
}

#[test]
fn a_server_that_speaks_first_reads_the_header_before_it_does() {
    for version in VERSIONS {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let name = listener.local_addr().unwrap().to_string();
        let proxy = Standalone::start(&["--send-proxy", version, &name]);
        let mut client = proxy.connect();
        let ends = [client.local_addr(), client.peer_addr()].map(|end| end.unwrap().to_string());
        let expected = header(version, &ends[0], &ends[1]);
        let mut upstream = patient(listener.accept().unwrap().0);
        let mut found = vec![0; expected.len()];
        upstream.read_exact(&mut found).unwrap();
        assert_eq!(found, expected, "{version}");
        upstream.write_all(b"220 hello\r\n").unwrap();
        let mut greeting = [0; 11];
        client.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"220 hello\r\n");
        drop(client);
        assert_eq!(read_all(upstream), b"");
    }
}

#[test]
fn what_was_announced_to_us_is_announced_to_the_upstream() {
    let [client, reached] = ["192.0.2.7:50123", "198.51.100.1:25"];
    for (from, to) in [("v1", "v2"), ("v2", "v1"), ("v2", "v2")] {
        let upstream = Upstream::new(|stream| read_all(&stream));
        let proxy = Standalone::start(&[
            "--accept-proxy",
            "ANY",
            "--send-proxy",
            to,
            &upstream.name(),
        ]);
        let mut stream = proxy.connect();
        stream.write_all(&header(from, client, reached)).unwrap();
        stream.write_all(b"data").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&stream), b"");
        let expected = [&header(to, client, reached)[..], b"data"].concat();
        assert_eq!(upstream.result(), expected, "{from} {to}");
    }
}

#[test]
fn a_chain_of_ours_passes_the_client_on() {
    let last = Standalone::start(&["--accept-proxy", "127.0.0.1", "/usr/bin/env"]);
    let last_name = last.address.to_string();
    let options = ["--accept-proxy", "127.0.0.1", "--send-proxy", "v2"];
    let middle = Standalone::start(&[&options[..], &[&last_name]].concat());
    let first = Standalone::start(&["--send-proxy", "v1", &middle.address.to_string()]);
    let client = first.connect();
    let own = client.local_addr().unwrap();
    let said = String::from_utf8(read_all(client)).unwrap();
    for line in [
        format!("\nPROXY_CLIENTPORT={}\n", own.port()),
        format!("\nPROXY_PORT={}\n", first.address.port()),
    ] {
        assert!(said.contains(&line), "{line} in {said}");
    }
}

#[test]
fn ends_of_different_families_are_both_written_as_ipv6() {
    for version in VERSIONS {
        let upstream = Upstream::new(|stream| read_all(&stream));
        let proxy = Standalone::start(&[
            "--accept-proxy",
            "ANY",
            "--send-proxy",
            version,
            &upstream.name(),
        ]);
        let mut stream = proxy.connect();
        let mixed = "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 1 2\r\n";
        stream.write_all(mixed.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&stream), b"");
        let expected = match version {
            "v1" => b"PROXY TCP6 ::ffff:c000:207 2001:db8::1 1 2\r\n".to_vec(),
            _ => v2_tcp("[::ffff:192.0.2.7]:1", "[2001:db8::1]:2", b""),
        };
        assert_eq!(upstream.result(), expected);
    }
}

#[test]
fn an_ipv4_client_of_an_ipv6_listener_is_announced_as_ipv4() {
    let upstream = Upstream::new(|stream| read_all(&stream));
    let port = free_port();
    let bind = format!("[::]:{port}");
    let arguments = [
        "-b",
        &bind,
        "--log",
        "stderr",
        "--send-proxy",
        "v1",
        &upstream.name(),
    ];
    let process = Running::start(Command::new(TCPPROXY).args(arguments).stdin(Stdio::null()));
    process.log.wait_for("listening on ");
    let client = patient(TcpStream::connect(("127.0.0.1", port)).unwrap());
    let own = client.local_addr().unwrap().to_string();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(client), b"");
    assert_eq!(
        upstream.result(),
        v1_tcp(&own, &format!("127.0.0.1:{port}"))
    );
}

#[test]
fn a_unix_domain_client_is_unknown_or_local() {
    for (version, expected) in [
        ("v1", b"PROXY UNKNOWN\r\n".to_vec()),
        ("v2", v2(LOCAL, 0, b"")),
    ] {
        let upstream = Upstream::new(|stream| read_all(&stream));
        let (client, server) = UnixStream::pair().unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut child = Command::new(TCPPROXY)
            .args(["--send-proxy", version, &upstream.name()])
            .stdin(Stdio::from(OwnedFd::from(server)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&client), b"");
        assert_eq!(upstream.result(), expected);
        end_of(&mut child);
    }
    // The same for one that a proxy announces.
    let upstream = Upstream::new(|stream| read_all(&stream));
    let options = ["--accept-proxy", "ANY", "--send-proxy", "v2"];
    let proxy = Standalone::start(&[&options[..], &[&upstream.name()]].concat());
    let mut stream = proxy.connect();
    stream.write_all(&v2(PROXY, 0x31, &[b'x'; 216])).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&stream), b"");
    assert_eq!(upstream.result(), v2(LOCAL, 0, b""));
    assert_eq!(field(&proxy.closed(), "client"), "unix");
}

#[test]
fn an_upstream_over_a_unix_domain_socket_reads_it_too() {
    let scratch = Scratch::new();
    let path = scratch.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let upstream = thread::spawn(move || read_all(listener.accept().unwrap().0));
    let server = format!("unix:{}", path.display());
    let (client, mut child) = under_inetd(&["--send-proxy", "v1", &server]);
    let ends = [client.local_addr(), client.peer_addr()].map(|end| end.unwrap().to_string());
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(client), b"");
    assert_eq!(upstream.join().unwrap(), v1_tcp(&ends[0], &ends[1]));
    end_of(&mut child);
}

#[test]
fn each_upstream_that_is_tried_reads_it_once() {
    let closed = format!("127.0.0.1:{}", free_port());
    let upstream = Upstream::new(|stream| read_all(&stream));
    let scratch = Scratch::new();
    let file = scratch.join("conf");
    let port = free_port();
    let servers = format!("server {closed}\nserver {}", upstream.name());
    let text = format!("send-proxy v1\nbind 127.0.0.1:{port}\n{servers}\n");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(TCPPROXY);
    command.args(["--log", "stderr", "-f"]).arg(&file);
    let process = Running::start(command.stdin(Stdio::null()));
    process.log.wait_for("listening on ");
    let client = patient(TcpStream::connect(("127.0.0.1", port)).unwrap());
    let own = client.local_addr().unwrap().to_string();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(client), b"");
    assert_eq!(
        upstream.result(),
        v1_tcp(&own, &format!("127.0.0.1:{port}"))
    );
}

#[test]
fn what_the_client_has_said_by_then_comes_with_the_header() {
    needs_root();
    let upstream = Upstream::new(|mut stream| {
        let mut all = vec![0; 4096];
        let count = stream.read(&mut all).unwrap();
        all.truncate(count);
        all
    });
    // The program's time is enough for the client's first bytes to be there.
    let proxy = Standalone::start(&[
        "--acp",
        "/bin/sleep 1",
        "--send-proxy",
        "v1",
        &upstream.name(),
    ]);
    let mut client = proxy.connect();
    client.write_all(b"hello").unwrap();
    let first = upstream.result();
    assert!(first.starts_with(b"PROXY TCP4 127.0.0.1 "), "{first:?}");
    assert!(first.ends_with(b"\r\nhello"), "{first:?}");
}
