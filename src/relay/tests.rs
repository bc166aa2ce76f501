//! Relay cases in which it matters what is ready when: both ends of both connections are in the
//! test's hands before the relay begins, and time is counted in the thread that runs it.
//! `tests/relay*.rs` has the cases that can be seen from outside.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::socket::sockopt::{Linger, SndBuf};
use nix::sys::socket::{MsgFlags, send, setsockopt};

use super::machine::{End, Machine, Ready};
use super::{Engine, Outcome, Settings, Side, run_by, set_urgent_in_line};
use crate::sys;
use crate::terms::reason::Reason;

const PATIENCE: Duration = Duration::from_secs(20);

/// Two connected TCP sockets: the peer's end, and the relay's.
pub(super) fn tcp() -> (TcpStream, OwnedFd) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_nodelay(true).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    (peer, listener.accept().unwrap().0.into())
}

/// The same of the unix domain, where a peer's end that is closed hangs up at once.
pub(super) fn unix() -> (UnixStream, OwnedFd) {
    let (peer, ours) = UnixStream::pair().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    (peer, ours.into())
}

/// A relay in a thread of its own, and the processor time it took.
pub(super) fn start(
    client: OwnedFd,
    upstream: OwnedFd,
    engine: Engine,
    idle_timeout: Option<Duration>,
) -> JoinHandle<(Outcome, Duration)> {
    for socket in [&client, &upstream] {
        set_urgent_in_line(socket.as_fd(), true);
    }
    thread::spawn(move || {
        let settings = Settings {
            buffer_size: 1 << 20,
            idle_timeout,
            half_close_timeout: None,
        };
        let sockets = [client.as_fd(), upstream.as_fd()];
        let outcome = run_by(engine, sockets, settings, None, None, || {}).unwrap();
        (outcome, cpu_time_of_this_thread())
    })
}

fn cpu_time_of_this_thread() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

fn read_all(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

pub(super) fn reset(stream: TcpStream) {
    let abort = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, Linger, &abort).unwrap();
}

fn outcome(reason: Reason, sent: u64, received: u64) -> Outcome {
    Outcome {
        reason,
        sent,
        received,
    }
}

#[test]
fn what_was_sent_and_ended_before_the_relay_began_is_delivered() {
    for &engine in Engine::ALL {
        let (mut client, ours) = tcp();
        let (mut server, theirs) = tcp();
        client.write_all(b"request").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        server.write_all(b"reply").unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        let (ended, _) = start(ours, theirs, engine, None).join().unwrap();
        assert_eq!((ended.sent, ended.received), (7, 5), "{engine:?}");
        assert_eq!(read_all(client), b"reply", "{engine:?}");
        assert_eq!(read_all(server), b"request", "{engine:?}");
    }
}

#[test]
fn a_reset_from_before_the_relay_began_is_passed_on_behind_what_had_arrived() {
    for &engine in Engine::ALL {
        let (mut client, ours) = tcp();
        let (mut server, theirs) = tcp();
        client.write_all(b"request").unwrap();
        reset(client);
        let (ended, _) = start(ours, theirs, engine, None).join().unwrap();
        assert_eq!(ended, outcome(Reason::ClientReset, 7, 0), "{engine:?}");
        let mut request = [0; 7];
        server.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"request", "{engine:?}");
        let after = server.read(&mut request).unwrap_err().kind();
        assert_eq!(after, ErrorKind::ConnectionReset, "{engine:?}");
    }
}

#[test]
fn urgent_data_from_before_the_relay_began_is_in_its_place() {
    for &engine in Engine::ALL {
        for (before, urgent, after) in [
            (&b""[..], &b"!"[..], &b""[..]),
            (b"", b"!", b"after"),
            (b"before", b"!", b""),
            (b"before", b"ab!", b"after"),
        ] {
            let (mut client, ours) = tcp();
            let (server, theirs) = tcp();
            server.shutdown(Shutdown::Write).unwrap();
            client.write_all(before).unwrap();
            send(client.as_raw_fd(), urgent, MsgFlags::MSG_OOB).unwrap();
            client.write_all(after).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let (ended, _) = start(ours, theirs, engine, None).join().unwrap();
            let expected = [before, urgent, after].concat();
            assert_eq!(ended.sent, expected.len() as u64, "{engine:?}");
            assert_eq!(read_all(server), expected, "{engine:?}");
        }
    }
}

#[test]
fn unix_sockets_end_their_directions_one_by_one_too() {
    for &engine in Engine::ALL {
        let (mut client, ours) = unix();
        let (mut server, theirs) = unix();
        let relay = start(ours, theirs, engine, None);
        client.write_all(b"request").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&server), b"request", "{engine:?}");
        server.write_all(b"reply").unwrap();
        drop(server);
        assert_eq!(read_all(&client), b"reply", "{engine:?}");
        let (ended, _) = relay.join().unwrap();
        assert_eq!(ended, outcome(Reason::ClientClosed, 7, 5), "{engine:?}");
    }
}

#[test]
fn a_side_that_has_hung_up_costs_no_time_while_the_other_is_open() {
    for &engine in Engine::ALL {
        let (client, ours) = unix();
        let (server, theirs) = unix();
        let idle = Some(Duration::from_millis(800));
        let relay = start(ours, theirs, engine, idle);
        // Closed both ways: poll(2) reports POLLHUP from now on, whatever it is asked.
        drop(server);
        assert_eq!(read_all(&client), b"");
        let (ended, cpu) = relay.join().unwrap();
        assert_eq!(ended, outcome(Reason::IdleTimeout, 0, 0), "{engine:?}");
        assert!(cpu <= Duration::from_millis(30), "{engine:?}: {cpu:?}");
    }
}

#[test]
fn a_side_that_hangs_up_with_its_reader_stalled_costs_no_time_and_loses_nothing() {
    for &engine in Engine::ALL {
        let (client, ours) = unix();
        let (mut server, theirs) = unix();
        setsockopt(&ours, SndBuf, &4096).unwrap();
        // More than the client's side takes, and than a buffer holds.
        server.set_nonblocking(true).unwrap();
        let relay = start(ours, theirs, engine, None);
        let mut said = Vec::new();
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(300) {
            let piece: Vec<u8> = (0..997).map(|i| (said.len() + i) as u8).collect();
            match server.write(&piece) {
                Ok(count) => {
                    said.extend_from_slice(&piece[..count]);
                    last = Instant::now();
                }
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
        drop(server);
        thread::sleep(Duration::from_millis(500));
        assert!(read_all_with_end(&client, said.len()) == said, "{engine:?}");
        drop(client);
        let (ended, cpu) = relay.join().unwrap();
        assert_eq!(ended.received, said.len() as u64, "{engine:?}");
        assert!(cpu <= Duration::from_millis(100), "{engine:?}: {cpu:?}");
    }
}

fn read_all_with_end(mut stream: impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    bytes
}

#[test]
fn single_bytes_before_a_stalled_sink_of_either_kind_cost_no_time() {
    for &engine in Engine::ALL {
        for unix_sink in [true, false] {
            let (mut server, theirs) = tcp();
            let (client, ours): (Box<dyn Read>, OwnedFd) = if unix_sink {
                let (client, ours) = unix();
                (Box::new(client), ours)
            } else {
                let (client, ours) = tcp();
                (Box::new(client), ours)
            };
            setsockopt(&ours, SndBuf, &4096).unwrap();
            let relay = start(ours, theirs, engine, None);
            // A unix socket counts each byte as a message, and blocks soon.
            let said: Vec<u8> = (0..3_000_u32).map(|i| (i * i) as u8).collect();
            for byte in &said {
                server.write_all(std::slice::from_ref(byte)).unwrap();
            }
            server.shutdown(Shutdown::Write).unwrap();
            thread::sleep(Duration::from_millis(700));
            let mut client = client;
            assert!(
                read_all_with_end(&mut client, said.len()) == said,
                "{engine:?} {unix_sink}"
            );
            drop(client);
            let (ended, cpu) = relay.join().unwrap();
            assert_eq!(ended.received, 3_000, "{engine:?}");
            assert!(
                cpu <= Duration::from_millis(150),
                "{engine:?}, unix {unix_sink}: {cpu:?}"
            );
        }
    }
}

#[test]
fn the_idle_clock_runs_from_the_last_byte() {
    for &engine in Engine::ALL {
        let (mut client, ours) = tcp();
        let (mut server, theirs) = tcp();
        let begin = Instant::now();
        let relay = start(ours, theirs, engine, Some(Duration::from_millis(400)));
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(150));
            client.write_all(b"x").unwrap();
            server.read_exact(&mut [0]).unwrap();
        }
        let last = begin.elapsed();
        let (ended, _) = relay.join().unwrap();
        assert_eq!(ended, outcome(Reason::IdleTimeout, 4, 0), "{engine:?}");
        let waited = begin.elapsed() - last;
        assert!(
            (300..2_000).contains(&waited.as_millis()),
            "{engine:?}: {waited:?}"
        );
    }
}

/// A machine that is told again and again that everything is ready, whether it is or not.
#[test]
fn a_machine_that_is_told_of_readiness_that_is_not_there_neither_blocks_nor_loses_a_byte() {
    for &engine in Engine::ALL {
        let (mut client, ours) = tcp();
        let (mut server, theirs) = tcp();
        for socket in [ours.as_fd(), theirs.as_fd()] {
            sys::set_blocking(socket, false).unwrap();
        }
        let mut machine = Machine::new(ours.as_fd(), theirs.as_fd(), engine, 1024, None);
        let everything = || [Ready::from(Some(PollFlags::POLLIN | PollFlags::POLLOUT)); 2];
        for _ in 0..100 {
            machine.advance(everything());
        }
        assert_eq!(machine.end(), None, "{engine:?}");
        let said: Vec<u8> = (0..50_000_u32).map(|i| (i % 251) as u8).collect();
        client.write_all(&said).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while machine.delivered_to(Side::Upstream) < 50_000 {
            machine.advance(everything());
            assert!(Instant::now() < deadline, "{engine:?}");
        }
        machine.advance(everything());
        assert_eq!(machine.end(), None, "{engine:?}: one direction is open");
        assert!(read_all(&server) == said, "{engine:?}");
        server.write_all(b"reply").unwrap();
        drop(server);
        while machine.end().is_none() {
            machine.advance(everything());
            assert!(Instant::now() < deadline, "{engine:?}");
        }
        assert_eq!(
            machine.end(),
            Some(End::Orderly(Side::Client)),
            "{engine:?}"
        );
        assert_eq!(read_all(client), b"reply", "{engine:?}");
    }
}

#[test]
fn nothing_is_wanted_from_a_source_while_its_buffer_is_full() {
    for &engine in Engine::ALL {
        let (mut client, ours) = tcp();
        let (_server, theirs) = tcp();
        for socket in [ours.as_fd(), theirs.as_fd()] {
            sys::set_blocking(socket, false).unwrap();
        }
        setsockopt(&theirs, SndBuf, &4096).unwrap();
        let mut machine = Machine::new(ours.as_fd(), theirs.as_fd(), engine, 4096, None);
        client.set_nonblocking(true).unwrap();
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(300) {
            if client.write(&[7; 10_000]).is_ok() {
                last = Instant::now();
            }
            machine.advance([
                Ready::from(Some(PollFlags::POLLIN)),
                Ready::from(Some(PollFlags::empty())),
            ]);
        }
        let reads = |flags: Option<PollFlags>| flags.is_some_and(|f| f.contains(PollFlags::POLLIN));
        let writes =
            |flags: Option<PollFlags>| flags.is_some_and(|f| f.contains(PollFlags::POLLOUT));
        assert!(!reads(machine.wants(Side::Client)), "{engine:?}");
        assert!(writes(machine.wants(Side::Upstream)), "{engine:?}");
        assert!(reads(machine.wants(Side::Upstream)), "{engine:?}");
        assert!(!writes(machine.wants(Side::Client)), "{engine:?}");
    }
}
