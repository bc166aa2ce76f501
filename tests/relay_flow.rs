//! The relay under pressure and in time, under each engine: readers that stall, bytes that
//! dribble, urgent data, and sessions in which nothing moves any more.

mod harness;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBuf, SndBuf};
use nix::unistd::Pid;

use harness::peers::{
    BlackHole, Ending, Noise, Side, Through, read_to_ending, send_until_blocked, send_urgent,
};
use harness::processes::{context_switches, cpu_time, only_child, private_memory};
use harness::{Engine, Running, Scratch, Standalone, TCPPROXY, Upstream, field, patient, read_all};

const MB: u64 = 1 << 20;

/// A session as inetd would start it, with a client towards which the kernel holds next to
/// nothing: it blocks after a few kilobytes. The test holds both ends.
struct Narrow {
    session: Running,
    client: TcpStream,
    upstream: TcpStream,
    _scratch: Scratch,
}

impl Narrow {
    fn start(engine: Engine, arguments: &[&str]) -> Narrow {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let upstreams = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // Before the connection is made, or the first window is larger.
        setsockopt(&listener, SndBuf, &4096).unwrap();
        let client = connect_with_small_window(&listener);
        let (accepted, _) = listener.accept().unwrap();
        let scratch = Scratch::new();
        let mut command = Command::new(TCPPROXY);
        command.args(["--log", "stderr"]).args(arguments);
        if engine == Engine::Copy {
            command.arg("-w").arg(scratch.join("transcript"));
        }
        command
            .arg(upstreams.local_addr().unwrap().to_string())
            .stdin(Stdio::from(OwnedFd::from(accepted)))
            .stdout(Stdio::null());
        let session = Running::start(&mut command);
        drop(command);
        let upstream = patient(upstreams.accept().unwrap().0);
        upstream.set_nodelay(true).unwrap();
        Narrow {
            session,
            client,
            upstream,
            _scratch: scratch,
        }
    }

    fn pid(&self) -> Pid {
        self.session.pid()
    }
}

fn connect_with_small_window(listener: &TcpListener) -> TcpStream {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    setsockopt(&socket, RcvBuf, &4096).unwrap();
    let address = SockaddrStorage::from(listener.local_addr().unwrap());
    connect(socket.as_raw_fd(), &address).unwrap();
    patient(TcpStream::from(socket))
}

/// Fails if a process does more than a little for a second.
fn assert_quiet(pid: Pid, when: &str) {
    thread::sleep(Duration::from_millis(200));
    let before = (context_switches(pid), cpu_time(pid));
    thread::sleep(Duration::from_millis(1000));
    let switches = context_switches(pid) - before.0;
    let cpu = cpu_time(pid) - before.1;
    assert!(
        switches <= 20 && cpu <= Duration::from_millis(20),
        "{when}: {switches} context switches, {cpu:?} of processor time"
    );
}

#[test]
fn a_reader_that_stalls_holds_back_its_sender_and_gets_everything_later() {
    Engine::each(|engine| {
        for side in Side::ALL {
            let through = Through::start(engine, &[]);
            let session = through.session();
            let (proxy, near, far) = through.seen_from(side);
            let mut noise = Noise::new(21);
            let held = send_until_blocked(&near, &mut noise);
            // What the kernel holds in four socket buffers (tcp_wmem, tcp_rmem), and ours.
            assert!(held < 64 * MB, "{engine:?} {side:?}: {held} bytes are held");
            assert_quiet(session, &format!("{engine:?}: while a reader stalls"));
            let memory = private_memory(session);
            assert!(memory < 1 << 20, "{engine:?}: {memory} bytes of memory");
            let sender = thread::spawn(move || {
                noise.send(&near, 10 * MB);
                near.shutdown(Shutdown::Write).unwrap();
                near
            });
            assert_eq!(
                Noise::new(21).expect_until_end(&far),
                (held + 10 * MB, Ending::Clean),
                "{engine:?} from {side:?}"
            );
            sender.join().unwrap();
            drop(far);
            proxy.closed();
        }
    });
}

#[test]
fn one_direction_goes_on_while_the_other_is_stalled() {
    Engine::each(|engine| {
        for side in Side::ALL {
            let (_proxy, mut near, mut far) = Through::start(engine, &[]).seen_from(side);
            send_until_blocked(&near, &mut Noise::new(22));
            for round in 0..100_u8 {
                far.write_all(&[round]).unwrap();
                let mut seen = [0];
                near.read_exact(&mut seen).unwrap();
                assert_eq!(seen[0], round, "{engine:?} from {side:?}");
            }
        }
    });
}

#[test]
fn a_half_close_behind_a_stall_arrives_when_the_stall_ends() {
    Engine::each(|engine| {
        for side in Side::ALL {
            let through = Through::start(engine, &[]);
            let session = through.session();
            let (_proxy, near, far) = through.seen_from(side);
            let held = send_until_blocked(&near, &mut Noise::new(23));
            near.shutdown(Shutdown::Write).unwrap();
            far.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(&near), b"");
            assert_quiet(session, &format!("{engine:?} from {side:?}"));
            assert_eq!(
                Noise::new(23).expect_until_end(&far),
                (held, Ending::Clean),
                "{engine:?} from {side:?}"
            );
        }
    });
}

#[test]
fn single_bytes_arrive_each_at_once() {
    Engine::each(|engine| {
        for side in Side::ALL {
            let (_proxy, mut near, mut far) = Through::start(engine, &[]).seen_from(side);
            near.set_nodelay(true).unwrap();
            let start = Instant::now();
            for round in 0..500_u32 {
                near.write_all(&[round as u8]).unwrap();
                let mut seen = [0];
                far.read_exact(&mut seen).unwrap();
                assert_eq!(seen[0], round as u8, "{engine:?} from {side:?}");
            }
            // A byte that waited for Nagle's algorithm or a timer would take 40 ms.
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "{engine:?} {side:?}"
            );
        }
    });
}

#[test]
fn single_bytes_that_pile_up_before_a_stalled_reader_all_arrive_and_cost_no_time() {
    // More segments than a pipe has slots, and fewer bytes than it has room for.
    Engine::each(|engine| {
        for count in [17, 100, 600, 8_000] {
            let Narrow {
                session,
                client,
                upstream,
                _scratch,
            } = Narrow::start(engine, &[]);
            let said = Noise::new(24).take(count);
            for byte in &said {
                (&upstream).write_all(std::slice::from_ref(byte)).unwrap();
            }
            upstream.shutdown(Shutdown::Write).unwrap();
            if count == 8_000 {
                assert_quiet(
                    session.pid(),
                    &format!("{engine:?}: with single bytes piled up"),
                );
            }
            assert_eq!(
                Noise::new(24).expect_until_end(&client),
                (count as u64, Ending::Clean),
                "{engine:?}: {count}"
            );
        }
    });
}

#[test]
fn pieces_of_every_size_before_a_reader_of_every_pace_arrive_in_order() {
    Engine::each(|engine| {
        for seed in 0..6 {
            let Narrow {
                mut session,
                client,
                upstream,
                _scratch,
            } = Narrow::start(
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
        let (client, accepted) = harness::socket_pair();
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
        let narrow = Narrow::start(engine, &[]);
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

/// The session's duration in the closed line, in seconds.
fn duration(closed: &str) -> f64 {
    let text = field(closed, "duration");
    text.strip_suffix('s').unwrap().parse().unwrap()
}

#[test]
fn a_session_without_a_byte_ends_when_its_time_is_up() {
    Engine::each(|engine| {
        let Through {
            proxy,
            client,
            upstream,
        } = Through::start(engine, &["-t", "700ms"]);
        let start = Instant::now();
        assert_eq!(read_to_ending(&client).0, b"", "{engine:?}");
        assert!(start.elapsed() > Duration::from_millis(500), "{engine:?}");
        assert_eq!(read_to_ending(&upstream).0, b"", "{engine:?}");
        let closed = proxy.closed();
        assert_eq!(field(&closed, "reason"), "idle-timeout", "{engine:?}");
        assert!((0.69..3.0).contains(&duration(&closed)), "{closed}");
    });
}

#[test]
fn one_active_direction_keeps_a_session_alive() {
    Engine::each(|engine| {
        for side in Side::ALL {
            let (proxy, mut near, mut far) =
                Through::start(engine, &["--timeout", "1"]).seen_from(side);
            for _ in 0..8 {
                thread::sleep(Duration::from_millis(300));
                near.write_all(b".").unwrap();
                far.read_exact(&mut [0]).unwrap();
            }
            assert_eq!(read_to_ending(&far).0, b"", "{engine:?} {side:?}");
            let closed = proxy.closed();
            assert_eq!(field(&closed, "reason"), "idle-timeout", "{engine:?}");
            assert!((3.3..6.0).contains(&duration(&closed)), "{closed}");
        }
    });
}

#[test]
fn a_stalled_session_ends_when_its_time_is_up_and_who_misses_bytes_is_reset() {
    Engine::each(|engine| {
        for side in Side::ALL {
            let (proxy, near, far) = Through::start(engine, &["-t", "1"]).seen_from(side);
            let sent = send_until_blocked(&near, &mut Noise::new(27));
            let closed = proxy.closed();
            assert_eq!(field(&closed, "reason"), "idle-timeout", "{engine:?}");
            let (heard, ending) = Noise::new(27).expect_until_end(&far);
            assert!(heard < sent, "{engine:?} {side:?}: {heard} of {sent}");
            assert_eq!(ending, Ending::Reset, "{engine:?} {side:?}");
        }
    });
}

#[test]
fn a_half_closed_session_ends_when_its_time_is_up() {
    Engine::each(|engine| {
        let Through {
            proxy,
            client,
            upstream,
        } = Through::start(engine, &["-t", "500ms"]);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&upstream), b"");
        assert_eq!(read_to_ending(&client).0, b"", "{engine:?}");
        assert_eq!(
            field(&proxy.closed(), "reason"),
            "idle-timeout",
            "{engine:?}"
        );
    });
}

#[test]
fn timeout_0_means_never() {
    Engine::each(|engine| {
        let mut through = Through::start(engine, &["-t", "0"]);
        thread::sleep(Duration::from_millis(1500));
        through.client.write_all(b"still here").unwrap();
        let mut seen = [0; 10];
        through.upstream.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"still here", "{engine:?}");
    });
}
