//! Headers in every form and every packet, and what is behind them.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::bytes::{LOCAL, PROXY, v1_tcp, v2, v2_tcp};
use crate::harness::peers::{read_to_ending, reset};
use crate::harness::processes::{assert_quiet, only_child};
use crate::harness::upstreams::{Forbidden, echo};
use crate::harness::{Standalone, end_of, field, read_all, under_inetd};

const CLIENT: &str = "192.0.2.7:50123";
const REACHED: &str = "198.51.100.1:25";

/// Takes everybody for a proxy, and has time for them however busy this machine is.
const PATIENT: [&str; 4] = ["--accept-proxy", "ANY", "--proxy-timeout", "60"];

fn start(arguments: &[&str]) -> Standalone {
    Standalone::start(&[&PATIENT, arguments].concat())
}

/// Headers that are right, of both versions.
fn headers() -> Vec<Vec<u8>> {
    vec![
        v1_tcp(CLIENT, REACHED),
        v1_tcp("[2001:db8::7]:1", "[2001:db8::1]:65535"),
        b"PROXY UNKNOWN\r\n".to_vec(),
        v2_tcp(CLIENT, REACHED, b""),
        v2_tcp(
            "[2001:db8::7]:1",
            "[2001:db8::1]:65535",
            b"\x04\0\x03\r\n\r\xe0\0\0",
        ),
        v2(LOCAL, 0, b""),
        v2(PROXY, 0x31, &[0; 216]),
    ]
}

/// Sends the rest, and reads what comes back.
fn exchange(mut client: TcpStream, rest: &[u8]) -> Vec<u8> {
    client.write_all(rest).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    read_all(client)
}

/// However a header is cut into two packets, the stream behind it is whole. All are cut before any is
/// completed, so that each first part is seen alone.
fn assert_cut_anywhere(connect: impl Fn() -> TcpStream) {
    for header in headers() {
        let all = [&header[..], b"data\r\nPROXY right behind"].concat();
        let clients: Vec<(usize, TcpStream)> = (0..=header.len())
            .map(|cut| {
                let mut client = connect();
                client.set_nodelay(true).unwrap();
                client.write_all(&all[..cut]).unwrap();
                (cut, client)
            })
            .collect();
        for (cut, client) in clients {
            let back = exchange(client, &all[cut..]);
            assert_eq!(back, all[header.len()..], "{cut} of {header:?}");
        }
    }
}

#[test]
fn a_header_may_be_cut_anywhere_and_the_relay_finds_the_stream_whole() {
    let proxy = start(&[&echo().to_string()]);
    assert_cut_anywhere(|| proxy.connect());
}

#[test]
fn a_header_may_be_cut_anywhere_and_a_handler_finds_the_stream_whole() {
    let proxy = start(&["/bin/cat"]);
    assert_cut_anywhere(|| proxy.connect());
}

#[test]
fn a_header_may_be_cut_anywhere_in_front_of_a_program_that_replaces_us() {
    let header = v2_tcp(CLIENT, REACHED, b"");
    let all = [&header[..], b"data right behind"].concat();
    let sessions: Vec<(usize, TcpStream, Child)> = (0..=header.len())
        .map(|cut| {
            let (mut client, child) = under_inetd(&[&PATIENT[..], &["/bin/cat"]].concat());
            client.write_all(&all[..cut]).unwrap();
            (cut, client, child)
        })
        .collect();
    for (cut, client, mut child) in sessions {
        assert_eq!(exchange(client, &all[cut..]), b"data right behind", "{cut}");
        assert!(end_of(&mut child).success());
    }
}

#[test]
fn a_header_may_come_byte_by_byte() {
    let proxy = start(&[&echo().to_string()]);
    thread::scope(|scope| {
        for header in headers() {
            let mut client = proxy.connect();
            scope.spawn(move || {
                client.set_nodelay(true).unwrap();
                for byte in [&header[..], b"data"].concat() {
                    client.write_all(&[byte]).unwrap();
                    thread::sleep(Duration::from_millis(2));
                }
                assert_eq!(exchange(client, b"!"), b"data!");
            });
        }
    });
}

#[test]
fn the_longest_header_there_may_be_is_read_and_nothing_behind_it() {
    let proxy = start(&[&echo().to_string()]);
    let tlvs = [&b"\xe1"[..], &4081_u16.to_be_bytes(), &[b'x'; 4081]].concat();
    let header = v2_tcp(CLIENT, REACHED, &tlvs);
    assert_eq!(header.len(), 16 + 4096);
    let data = vec![b'y'; 100_000];
    let client = proxy.connect();
    assert_eq!(exchange(client, &[&header[..], &data].concat()), data);
    let longer = v2(PROXY, 0x11, &[0; 4097]);
    assert_refused(&proxy, &longer, "4097 bytes are to follow");
}

/// Fails unless a client that sends this is closed without a byte, and the log says what was wrong.
fn assert_refused(proxy: &Standalone, bytes: &[u8], why: &str) {
    let mut client = proxy.connect();
    let source = client.local_addr().unwrap().to_string();
    client.write_all(bytes).unwrap();
    assert_eq!(read_to_ending(&client).0, b"", "{bytes:?}");
    let closed = proxy.process.log.wait_for(&format!("client={source} "));
    assert_eq!(field(&closed, "reason"), "bad-proxy-header", "{bytes:?}");
    assert!(!closed.contains(" via="), "{closed}");
    let session = closed.split("session ").nth(1).unwrap();
    let session = session.split(' ').next().unwrap();
    let start = format!("session {session}: bad PROXY header: ");
    let notice = proxy.process.log.wait_for(&start);
    assert!(notice.contains(why), "{notice}, not {why}: {bytes:?}");
}

#[test]
fn what_is_no_header_is_refused_and_the_log_says_why() {
    let upstream = Forbidden::new();
    let proxy = start(&[&upstream.name()]);
    let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
    assert_eq!(too_long.len(), 108);
    let two = |family| v2(PROXY, family, &[0; 216]);
    let start = "what the connection begins with is no PROXY header";
    let form = "with one blank each";
    for (bytes, why) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), start),
        (b"EHLO".to_vec(), start),
        (b"\x16\x03\x01".to_vec(), start),
        (b"proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), start),
        (b"PROXY\r\n".to_vec(), start),
        (b"PROXY \r\n".to_vec(), form),
        (b"PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), form),
        (b"PROXY TCP4 1.1.1.1  2.2.2.2 1 2\r\n".to_vec(), form),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n".to_vec(), form),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n".to_vec(), form),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n".to_vec(), "CR and LF"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\t".to_vec(), "CR and LF"),
        (b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), "family"),
        (b"PROXY TCP4 1.1.1.01 2.2.2.2 1 2\r\n".to_vec(), "IPv4"),
        (b"PROXY TCP4 ::1 ::2 1 2\r\n".to_vec(), "IPv4"),
        (b"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), "IPv6"),
        (
            b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n".to_vec(),
            "leading zeros",
        ),
        (
            b"PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n".to_vec(),
            "0 to 65535",
        ),
        (too_long.into_bytes(), "more than 107 bytes"),
        ([b'P'; 1].repeat(108), start),
        (v2(0x22, 0x11, &[0; 12]), "0x22"),
        (v2(0x11, 0x11, &[0; 12]), "0x11"),
        (two(0x12), "0x12"),
        (two(0x22), "0x22"),
        (two(0x32), "0x32"),
        (two(0x01), "0x01"),
        (v2(PROXY, 0x11, &[0; 11]), "too few"),
        (v2(PROXY, 0x21, &[0; 35]), "too few"),
        (v2(PROXY, 0x31, &[0; 215]), "too few"),
        (
            v2_tcp(CLIENT, REACHED, b"\x04\0\x01"),
            "longer than the header",
        ),
        (v2_tcp(CLIENT, REACHED, b"\x04\0"), "cut short"),
        (v2_tcp(CLIENT, REACHED, b"\x03\0\x04abcd"), "CRC32c"),
    ] {
        assert_refused(&proxy, &bytes, why);
    }
    upstream.assert_untouched();
}

#[test]
fn a_header_that_does_not_come_in_time_is_refused() {
    let upstream = Forbidden::new();
    let proxy = Standalone::start(&[
        "--accept-proxy",
        "ANY",
        "--proxy-timeout",
        "400ms",
        &upstream.name(),
    ]);
    let begun = Instant::now();
    assert_refused(&proxy, b"", "0 bytes of it came within 400 ms");
    assert_refused(&proxy, b"PROXY TCP4", "10 bytes of it came within 400 ms");
    assert!(begun.elapsed() >= Duration::from_millis(800));
    // Nor does it help to send something now and then.
    let mut client = proxy.connect();
    client.set_nodelay(true).unwrap();
    let begun = Instant::now();
    for byte in v2_tcp(CLIENT, REACHED, &[0; 300]) {
        if client.write_all(&[byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    assert!(begun.elapsed() < Duration::from_secs(3));
    upstream.assert_untouched();
}

#[test]
fn an_end_within_the_header_is_refused() {
    let upstream = Forbidden::new();
    let proxy = start(&[&upstream.name()]);
    for (begun, why) in [
        (&v1_tcp(CLIENT, REACHED)[..20], "ended after 20 bytes"),
        (&v2_tcp(CLIENT, REACHED, b"")[..27], "ended after 27 bytes"),
    ] {
        let mut client = proxy.connect();
        client.write_all(begun).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_ending(&client).0, b"");
        let notice = proxy.process.log.wait_for(why);
        assert!(notice.contains(": bad PROXY header: "), "{notice}");
    }
    let closed = proxy
        .process
        .log
        .wait_for_count("reason=bad-proxy-header", 2);
    assert!(closed.iter().all(|line| line.contains(" closed: ")));
    upstream.assert_untouched();
}

#[test]
fn a_health_check_leaves_a_closed_line_at_level_info_and_no_other() {
    let upstream = Forbidden::new();
    let quiet = start(&["--log-level", "notice", &upstream.name()]);
    let proxy = start(&[&upstream.name()]);
    for proxy in [&quiet, &proxy] {
        drop(proxy.connect());
        // haproxy ends its checks with a reset.
        reset(proxy.connect());
        assert_refused(proxy, b"no header", "no PROXY header");
    }
    for (session, reason) in [("1", "client-closed"), ("2", "client-reset")] {
        let start = format!("session {session} ");
        let closed = proxy.process.log.wait_for(&format!("{start}closed: "));
        assert_eq!(field(&closed, "reason"), reason);
        let all = proxy.process.log.all();
        assert_eq!(all.iter().filter(|line| line.contains(&start)).count(), 1);
    }
    let said = quiet.process.log.all();
    let checks = |line: &&String| line.contains("session 1") || line.contains("session 2");
    assert_eq!(said.iter().filter(checks).count(), 0, "{said:#?}");
    upstream.assert_untouched();
}

#[test]
fn who_waits_for_the_rest_of_a_header_sleeps() {
    let proxy = start(&[&echo().to_string()]);
    for header in headers() {
        let mut client = proxy.connect();
        client.write_all(&header[..header.len() - 1]).unwrap();
        let session = only_child(proxy.process.pid());
        assert_quiet(session, "in the middle of a header");
        drop(client);
        crate::harness::eventually("the session to end", || {
            (!crate::harness::processes::is_alive(session)).then_some(())
        });
    }
}

#[test]
fn a_session_that_waits_for_its_header_ends_when_it_is_asked_to_or_its_time_is_over() {
    let upstream = Forbidden::new();
    let proxy = start(&["--max-duration", "300ms", &upstream.name()]);
    let mut client = proxy.connect();
    client.write_all(b"PROXY TCP4 ").unwrap();
    assert_eq!(read_to_ending(&client).0, b"");
    assert_eq!(field(&proxy.closed(), "reason"), "max-duration");
    let mut proxy = start(&[&upstream.name()]);
    let client = proxy.connect();
    only_child(proxy.process.pid());
    proxy.process.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(proxy.process.status().success());
    assert_eq!(field(&proxy.closed(), "reason"), "terminated");
    assert_eq!(read_to_ending(&client).0, b"");
    upstream.assert_untouched();
}

#[test]
fn a_unix_domain_proxy_is_believed_if_any_is() {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    for (rule, lines) in [
        ("ANY", "PROXY_CLIENT=192.0.2.7\nPROXY_PEER=unix\n"),
        ("0.0.0.0/0", ""),
    ] {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(&v1_tcp(CLIENT, REACHED)).unwrap();
        let handler = "/usr/bin/env | grep -E '^PROXY_(CLIENT|PEER)=' | sort";
        let mut child = Command::new(crate::harness::TCPPROXY)
            .args(["--accept-proxy", rule, "/bin/sh", "-c", handler])
            .stdin(Stdio::from(OwnedFd::from(server.try_clone().unwrap())))
            .stdout(Stdio::from(OwnedFd::from(server)))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = Vec::new();
        // What was sent and not read makes closing it a reset.
        let _ = std::io::Read::read_to_end(&mut client, &mut said);
        assert_eq!(String::from_utf8(said).unwrap(), lines, "{rule}");
        end_of(&mut child);
    }
}
