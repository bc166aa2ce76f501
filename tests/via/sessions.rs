//! Sessions through a proxy: what it is asked, and that all else is as without one.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use nix::sys::signal::{Signal, kill};

use crate::harness::config_file::Configured;
use crate::harness::forward_proxies::{Asked, Scripted};
use crate::harness::name_server::names;
use crate::harness::namespaces::privately;
use crate::harness::noise::Noise;
use crate::harness::peers::{
    Ending, Side, assert_sigterm_ends, bytes_in_flight, read_to_ending, reset, send_until_blocked,
};
use crate::harness::processes::{assert_quiet, only_child};
use crate::harness::{
    Engine, PATIENCE, Scratch, Standalone, eventually, field, free_port, patient, read_all,
    under_inetd,
};

const YES: &str = "HTTP/1.1 200 OK\r\n\r\n";

/// A session through a proxy, whose end behind that the test holds, too.
struct Led {
    server: Standalone,
    client: TcpStream,
    upstream: TcpStream,
}

impl Led {
    fn start(engine: Engine, options: &[&str]) -> Led {
        let (sender, receiver) = mpsc::channel();
        let proxy = Scripted::new(move |asked, _| {
            asked.connect();
            asked.say(YES);
            sender.send(asked.stream).unwrap();
        });
        let via = ["--via", &proxy.http(), "mail.example:25"];
        let server = Standalone::start_with(engine, &[options, &via].concat());
        let client = server.connect();
        let upstream = receiver.recv_timeout(PATIENCE).unwrap();
        Led {
            server,
            client,
            upstream,
        }
    }
}

#[test]
fn each_side_can_end_and_still_hear_the_other() {
    Engine::each(|engine| {
        for side in Side::ALL {
            let led = Led::start(engine, &[]);
            let (mut near, mut far) = match side {
                Side::Client => (led.client, led.upstream),
                Side::Upstream => (led.upstream, led.client),
            };
            near.write_all(b"request").unwrap();
            near.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(&far), b"request", "{engine:?} {side:?}");
            let (mut sent, mut heard) = (Noise::new(2), Noise::new(2));
            thread::scope(|scope| {
                scope.spawn(|| {
                    sent.send(&mut far, 1 << 20);
                    far.shutdown(Shutdown::Write).unwrap();
                });
                assert_eq!(heard.expect_until_end(&near), (1 << 20, Ending::Clean));
            });
            let closed = led.server.closed();
            let expected = match side {
                Side::Client => ("client-closed", "7", "1048576"),
                Side::Upstream => ("server-closed", "1048576", "7"),
            };
            let found = ["reason", "sent", "received"].map(|key| field(&closed, key));
            assert_eq!(found, [expected.0, expected.1, expected.2], "{closed}");
        }
    });
}

#[test]
fn a_reset_of_each_side_is_passed_on() {
    Engine::each(|engine| {
        for side in Side::ALL {
            let led = Led::start(engine, &[]);
            let (near, far, reason) = match side {
                Side::Client => (led.client, led.upstream, "client-reset"),
                Side::Upstream => (led.upstream, led.client, "server-reset"),
            };
            (&near).write_all(b"all that was said").unwrap();
            reset(near);
            let expected = (b"all that was said".to_vec(), Ending::Reset);
            assert_eq!(read_to_ending(&far), expected, "{engine:?} {side:?}");
            assert_eq!(field(&led.server.closed(), "reason"), reason);
        }
    });
}

#[test]
fn a_slow_reader_holds_the_other_side_back() {
    let led = Led::start(Engine::Adaptive, &["--buffer-size", "64k"]);
    let mut noise = Noise::new(3);
    let sent = send_until_blocked(&led.client, &mut noise);
    led.client.set_nonblocking(false).unwrap();
    led.client.shutdown(Shutdown::Write).unwrap();
    let mut expected = Noise::new(3);
    let heard = expected.expect_until_end(&led.upstream);
    assert_eq!(heard, (sent, Ending::Clean));
}

#[test]
fn a_proxy_is_asked_for_hosts_as_they_are_written() {
    // In a network without a name server: nobody could have looked the names up.
    privately(|| {
        let proxy = Scripted::new(|asked, _| {
            asked.connect();
            asked.say(YES);
        });
        for (host, authority) in [
            ("mail.example:25", "mail.example:25"),
            ("No_Such.Name:1", "No_Such.Name:1"),
            ("192.0.2.1:65535", "192.0.2.1:65535"),
            ("[2001:DB8::0:1]:25", "[2001:DB8::0:1]:25"),
        ] {
            let server = Standalone::start(&["--via", &proxy.http(), host]);
            assert_eq!(read_all(server.connect()), b"");
            let expected = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
            assert_eq!(proxy.requests().pop(), Some(expected));
            assert_eq!(field(&server.closed(), "server"), authority);
        }
        // A missing port is the one that the client connected to.
        let server = Standalone::start(&["--via", &proxy.http(), "mail.example"]);
        assert_eq!(read_all(server.connect()), b"");
        let expected = format!(
            "CONNECT mail.example:{} HTTP/1.1\r\n",
            server.address.port()
        );
        assert!(proxy.requests().pop().unwrap().starts_with(&expected));
        let (sender, receiver) = mpsc::channel();
        let proxy = Scripted::new(move |asked, _| sender.send(asked.socks()).unwrap());
        for (host, expected) in [
            (
                "mail.example:25",
                &b"\x05\x01\0\x03\x0cmail.example\0\x19"[..],
            ),
            ("192.0.2.1:258", b"\x05\x01\0\x01\xc0\0\x02\x01\x01\x02"),
            (
                "[2001:db8::1]:25",
                b"\x05\x01\0\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\0\x19",
            ),
        ] {
            let server = Standalone::start(&["--via", &proxy.socks(), host]);
            assert_eq!(read_all(server.connect()), b"");
            assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), expected, "{host}");
        }
    });
}

#[test]
fn the_proxys_own_name_is_looked_up_and_its_addresses_tried() {
    privately(|| {
        let scratch = Scratch::new();
        let _names = names(
            &scratch,
            "127.0.0.2 proxy.example\n127.0.0.1 proxy.example\n",
        );
        // On one of its addresses alone.
        let proxy = Scripted::new(|asked, _| {
            asked.connect();
            asked.say(format!("{YES}hello"));
        });
        let url = format!("http://proxy.example:{}", proxy.address.port());
        let server = Standalone::start(&["--via", &url, "mail.example:25"]);
        assert_eq!(read_all(server.connect()), b"hello");
        let server = Standalone::start(&["--via", "http://none.example", "mail.example:25"]);
        assert_eq!(read_all(server.connect()), b"");
        let start = "mail.example:25: through http://none.example:3128: ";
        server.process.log.wait_for(start);
        assert_eq!(field(&server.closed(), "reason"), "name-not-found");
    });
}

#[test]
fn the_next_upstream_is_tried_where_the_proxy_cannot_reach_one() {
    let proxy = Scripted::new(|asked, _| {
        let request = asked.connect();
        if request.starts_with("CONNECT third.example:3 ") {
            asked.say(format!("{YES}third"));
        } else if request.starts_with("CONNECT second.example:2 ") {
            reset(asked.stream);
        } else {
            asked.say("HTTP/1.1 504 Gateway Timeout\r\n\r\n");
        }
    });
    let port = free_port();
    let server = Configured::start(
        &format!(
            "via {}\nbind 127.0.0.1:{port}\nserver first.example:1 second.example:2\n\
             server third.example:3 fourth.example:4\n",
            proxy.http()
        ),
        1,
    );
    assert_eq!(server.answer("127.0.0.1", port), "third");
    let log = &server.process.log;
    let notices = log.wait_for_count(": through http://", 2);
    assert!(notices[0].contains("first.example:1: "), "{notices:?}");
    assert!(notices[1].contains("second.example:2: "), "{notices:?}");
    let closed = log.wait_for(" closed: ");
    assert_eq!(field(&closed, "server"), "third.example:3");
    assert_eq!(proxy.requests().len(), 3);
}

#[test]
fn an_upstream_that_a_socks_proxy_finds_refusing_is_tried_again_for_a_while() {
    let proxy = Scripted::new(|asked, count| {
        asked.socks();
        if count < 2 {
            asked.say([5, 5, 0, 1, 0, 0, 0, 0, 0, 0]);
        } else {
            asked.say(b"\x05\0\0\x01\0\0\0\0\0\0hello");
        }
    });
    let arguments = ["--via", &proxy.socks(), "--connect-retry", "20", "a:1"];
    let server = Standalone::start(&arguments);
    assert_eq!(read_all(server.connect()), b"hello");
}

#[test]
fn the_proxy_header_is_for_the_upstream() {
    for version in ["v1", "v2"] {
        let led = Led::start(Engine::Adaptive, &["--send-proxy", version]);
        let [source, destination] =
            [led.client.local_addr(), led.client.peer_addr()].map(|end| end.unwrap());
        (&led.client).write_all(b"data").unwrap();
        led.client.shutdown(Shutdown::Write).unwrap();
        let all = read_all(&led.upstream);
        let header = match version {
            "v1" => format!(
                "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n",
                source.port(),
                destination.port()
            )
            .into_bytes(),
            _ => [
                &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01"[..],
                &source.port().to_be_bytes(),
                &destination.port().to_be_bytes(),
            ]
            .concat(),
        };
        assert_eq!(all, [&header[..], b"data"].concat(), "{version}");
        drop(led.upstream);
        assert_eq!(field(&led.server.closed(), "sent"), "4");
    }
}

#[test]
fn a_proxy_that_is_the_listener_itself_is_not_asked() {
    let port = free_port();
    let bind = format!("127.0.0.1:{port}");
    let via = format!("--via=http://{bind}");
    let server = Standalone::start(&["-b", &bind, &via, "mail.example:25"]);
    server.process.log.wait_for_count("listening on ", 2);
    let client = patient(TcpStream::connect(("127.0.0.1", port)).unwrap());
    assert_eq!(read_all(client), b"");
    let notice = server.process.log.wait_for("it is the very listener");
    assert!(notice.contains("mail.example:25: through http://127.0.0.1:"));
    assert_eq!(field(&server.closed(), "reason"), "connect-failed");
}

/// A proxy that has read its request and says nothing, and where its connections go.
fn silent() -> (Scripted, mpsc::Receiver<Asked>) {
    let (sender, receiver) = mpsc::channel();
    let proxy = Scripted::new(move |asked, _| {
        asked.connect();
        sender.send(asked).unwrap();
    });
    (proxy, receiver)
}

#[test]
fn a_client_that_resets_meanwhile_ends_it_and_the_proxy_is_reset() {
    let (proxy, asked) = silent();
    let server = Standalone::start(&["--via", &proxy.http(), "mail.example:25"]);
    let client = server.connect();
    let asked = asked.recv_timeout(PATIENCE).unwrap();
    reset(client);
    assert_eq!(read_to_ending(&asked.stream), (vec![], Ending::Reset));
    assert_eq!(field(&server.closed(), "reason"), "client-reset");
}

#[test]
fn a_client_that_has_ended_its_side_is_served_all_the_same() {
    let (proxy, asked) = silent();
    let server = Standalone::start(&["--via", &proxy.http(), "mail.example:25"]);
    let mut client = server.connect();
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let asked = asked.recv_timeout(PATIENCE).unwrap();
    asked.say(YES);
    assert_eq!(read_all(&asked.stream), b"request");
    asked.say("reply");
    drop(asked);
    assert_eq!(read_all(&client), b"reply");
}

#[test]
fn sigterm_and_max_duration_end_it_while_a_proxy_is_silent() {
    let (proxy, asked) = silent();
    let server = Standalone::start(&["--via", &proxy.http(), "mail.example:25"]);
    let client = server.connect();
    let _asked = asked.recv_timeout(PATIENCE).unwrap();
    assert_sigterm_ends(server, &client);
    let options = ["--max-duration", "300ms", "--via", &proxy.http(), "a:1"];
    let server = Standalone::start(&options);
    assert_eq!(read_all(server.connect()), b"");
    assert_eq!(field(&server.closed(), "reason"), "max-duration");
    // The session alone, too.
    let server = Standalone::start(&["--via", &proxy.http(), "mail.example:25"]);
    let client = server.connect();
    let _asked = asked.recv_timeout(PATIENCE).unwrap();
    let _asked = asked.recv_timeout(PATIENCE).unwrap();
    kill(only_child(server.process.pid()), Signal::SIGTERM).unwrap();
    assert_eq!(read_to_ending(&client).0, b"");
    assert_eq!(field(&server.closed(), "reason"), "terminated");
}

#[test]
fn a_session_that_waits_for_a_proxy_sleeps() {
    let (proxy, asked) = silent();
    let server = Standalone::start(&["--via", &proxy.http(), "mail.example:25"]);
    let _client = server.connect();
    let asked = asked.recv_timeout(PATIENCE).unwrap();
    // Incomplete: what has come must not wake it again and again.
    asked.say("HTTP/1.1 200 OK\r\n");
    eventually("the bytes to be taken", || {
        (bytes_in_flight(&asked.stream) == 0).then_some(())
    });
    assert_quiet(only_child(server.process.pid()), "during an answer");
}

#[test]
fn it_works_under_inetd_and_with_an_access_program_which_is_told_the_upstream() {
    let proxy = Scripted::new(|asked, _| {
        asked.connect();
        asked.say(format!("{YES}hello"));
    });
    let scratch = Scratch::new();
    let acp = scratch.script("acp", "echo \"$PROXY_SERVER\"");
    let arguments = [
        "-a",
        acp.to_str().unwrap(),
        "--via",
        &proxy.http(),
        "mail:25",
    ];
    let (client, mut child) = under_inetd(&arguments);
    assert_eq!(read_all(&client), b"mail:25\nhello");
    drop(client);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_local_address_of_source_is_towards_the_proxy() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Standalone::start(&["--source", "127.0.0.7", "--via", &url, "a:1"]);
    let _client = server.connect();
    let (stream, from) = listener.accept().unwrap();
    let mut stream = patient(stream);
    assert_eq!(from.ip().to_string(), "127.0.0.7");
    let mut start = [0; 7];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"CONNECT");
}
