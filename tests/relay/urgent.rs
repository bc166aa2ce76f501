//! Urgent data through the relay, under each engine: in line, in its place, none lost.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::harness::narrow_session::NarrowSession;
use crate::harness::noise::Noise;
use crate::harness::peers::{Ending, Side, Through, send_urgent};
use crate::harness::processes::{assert_quiet, only_child};
use crate::harness::upstreams::{BlackHole, Upstream};
use crate::harness::{Engine, Running, Scratch, Standalone, TCPPROXY, field, patient, read_all};

#[test]
fn pieces_of_every_size_before_a_reader_of_every_pace_arrive_in_order() {
    Engine::each(|engine| {
        for seed in 0..6 {
            let NarrowSession {
                mut session,
                client,
                upstream,
                _scratch,
            } = NarrowSession::start(
                engine,
                &["--buffer-size", ["256", "64k", "1m"][seed as usize % 3]],
            );
            let sender = thread::spawn(move || {
                let mut sizes = Noise::new(100 + seed);
                let mut noise = Noise::new(25);
                let mut sent = 0;
                for _ in 0..1_500 {
                    let draw = sizes.take(3);
                    let size = match draw[0] % 4 {
                        0 => 1,
                        1 => 2 + usize::from(draw[1] % 40),
                        2 => 1_000 + usize::from(draw[1]),
                        _ => usize::from(draw[1]) * 8 + 1,
                    };
                    let piece = noise.take(size);
                    // Now and then urgent: in line, and nothing lost.
                    match draw[2] % 10 {
                        0 => send_urgent(&upstream, &piece),
                        _ => (&upstream).write_all(&piece).unwrap(),
                    }
                    sent += size as u64;
                }
                upstream.shutdown(Shutdown::Write).unwrap();
                (sent, read_all(&upstream))
            });
            let mut paces = Noise::new(200 + seed);
            let mut noise = Noise::new(25);
            let mut got = 0;
            let mut buffer = vec![0; 65_536];
            for _ in 0..200 {
                let pace = paces.take(2);
                thread::sleep(Duration::from_micros(u64::from(pace[0]) * 4));
                let size = usize::from(pace[1]) * 16 + 1;
                let count = (&client).read(&mut buffer[..size]).unwrap();
                assert!(count > 0);
                assert!(
                    noise.take(count) == buffer[..count],
                    "{engine:?} {seed}: after {got}"
                );
                got += count as u64;
            }
            let (rest, ending) = noise.expect_until_end(&client);
            assert_eq!(ending, Ending::Clean);
            drop(client);
            let (sent, back) = sender.join().unwrap();
            assert_eq!(got + rest, sent, "{engine:?} {seed}");
            assert_eq!(back, b"");
            let closed = session.log.wait_for(" closed: ");
            assert_eq!(field(&closed, "received"), sent.to_string(), "{engine:?}");
            assert_eq!(session.status().code(), Some(0));
        }
    });
}

#[test]
fn urgent_data_is_delivered_in_its_place() {
    Engine::each(|engine| {
        for side in Side::ALL {
            let (_proxy, mut near, mut far) = Through::start(engine, &[]).seen_from(side);
            let mut expect = |bytes: &[u8], what: &str| {
                let mut seen = vec![0; bytes.len()];
                far.read_exact(&mut seen)
                    .unwrap_or_else(|error| panic!("{engine:?} {side:?} {what}: {error}"));
                assert_eq!(seen, bytes, "{engine:?} {side:?} {what}");
            };
            send_urgent(&near, b"!");
            expect(b"!", "as the first byte");
            near.write_all(b"before").unwrap();
            send_urgent(&near, b"urgenT");
            near.write_all(b"after").unwrap();
            expect(b"beforeurgenTafter", "in the middle");
            for _ in 0..50 {
                send_urgent(&near, b"ab");
                near.write_all(b"c").unwrap();
                send_urgent(&near, b"d");
            }
            expect(&b"abcd".repeat(50), "one urgent byte soon after another");
            near.write_all(b"the ").unwrap();
            send_urgent(&near, b"end");
            near.shutdown(Shutdown::Write).unwrap();
            expect(b"the end", "as the last byte");
            assert_eq!(read_all(&far), b"", "{engine:?} {side:?}");
        }
    });
}

#[test]
fn urgent_data_from_before_the_session_is_delivered_in_its_place() {
    Engine::each(|engine| {
        let upstreams = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (client, accepted) = crate::harness::socket_pair();
        (&client).write_all(b"very ").unwrap();
        send_urgent(&client, b"urgent");
        (&client).write_all(b" indeed").unwrap();
        let scratch = Scratch::new();
        let mut command = Command::new(TCPPROXY);
        command.args(["--log", "stderr"]);
        if engine == Engine::Copy {
            command.arg("-w").arg(scratch.join("transcript"));
        }
        command
            .arg(upstreams.local_addr().unwrap().to_string())
            .stdin(Stdio::from(OwnedFd::from(accepted)));
        let _session = Running::start(&mut command);
        drop(command);
        let upstream = patient(upstreams.accept().unwrap().0);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&upstream), b"very urgent indeed", "{engine:?}");
    });
}

/// Urgent bytes of which each is the next to be read when the one behind it arrives: where they
/// are not to be in line, the kernel drops all but the last.
fn send_urgent_one_by_one(stream: &TcpStream) {
    for byte in b"urgent" {
        send_urgent(stream, std::slice::from_ref(byte));
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn urgent_data_of_a_client_that_is_not_accepted_yet_is_delivered() {
    Engine::each(|engine| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Standalone::start_with(engine, &[&listener.local_addr().unwrap().to_string()]);
        // A session shows that the server is at its work; this is about the next one.
        drop(proxy.connect());
        drop(listener.accept().unwrap());
        proxy.process.signal(Signal::SIGSTOP);
        let client = proxy.connect();
        send_urgent_one_by_one(&client);
        client.shutdown(Shutdown::Write).unwrap();
        proxy.process.signal(Signal::SIGCONT);
        let upstream = patient(listener.accept().unwrap().0);
        assert_eq!(read_all(upstream), b"urgent", "{engine:?}");
    });
}

#[test]
fn urgent_data_of_an_upstream_from_before_the_relay_began_is_delivered() {
    Engine::each(|engine| {
        let mut hole = BlackHole::at("127.0.0.1:0");
        let proxy = Standalone::start_with(engine, &[&hole.address().to_string()]);
        let client = proxy.connect();
        proxy.process.log.wait_for("session 1 opened: ");
        let session = only_child(proxy.process.pid());
        thread::sleep(Duration::from_millis(100));
        kill(session, Signal::SIGSTOP).unwrap();
        let upstream = hole.open();
        send_urgent_one_by_one(&upstream);
        upstream.shutdown(Shutdown::Write).unwrap();
        kill(session, Signal::SIGCONT).unwrap();
        assert_eq!(read_all(client), b"urgent", "{engine:?}");
    });
}

#[test]
fn urgent_data_of_a_client_that_an_access_program_is_asked_about_is_delivered() {
    Engine::each(|engine| {
        let upstream = Upstream::new(|stream| read_all(&stream));
        let name = upstream.name();
        let proxy = Standalone::start_with(engine, &["--acp", "sleep 0.3", &name]);
        let client = proxy.connect();
        send_urgent_one_by_one(&client);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(upstream.result(), b"urgent", "{engine:?}");
    });
}

#[test]
fn urgent_data_behind_a_stall_is_delivered_in_its_place() {
    Engine::each(|engine| {
        let narrow = NarrowSession::start(engine, &[]);
        let mut noise = Noise::new(26);
        for round in 0..3_000 {
            let piece = noise.take(13);
            match round % 7 {
                3 => send_urgent(&narrow.upstream, &piece),
                _ => (&narrow.upstream).write_all(&piece).unwrap(),
            }
        }
        assert_quiet(
            narrow.pid(),
            &format!("{engine:?}: with urgent data behind a stall"),
        );
        let last = noise.take(5);
        send_urgent(&narrow.upstream, &last);
        narrow.upstream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(
            Noise::new(26).expect_until_end(&narrow.client),
            (39_005, Ending::Clean),
            "{engine:?}"
        );
    });
}
