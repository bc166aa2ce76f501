//! Relay cases in which it matters what is ready when: both ends of both connections are in the
//! test's hands before the relay begins, and time is counted in the thread that runs it.
//! `tests/relay/` has the cases that can be seen from outside.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::{Linger, SndBuf};
use nix::sys::socket::{MsgFlags, send, setsockopt};

use super::{
    Bounds, Desk, Engine, Hunch, Interest, Machine, Outcome, Pacing, Ready, Relay, Side, turn,
};
use crate::sys;
use crate::sys::sockets::set_urgent_in_line;
use crate::terms::reason::Reason;

const PATIENCE: Duration = Duration::from_secs(20);

/// How a relay is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Adaptive,
    Copy,
    Splice,
    /// Adaptively, and it is parked and resumed at each quiet moment.
    Parking,
    /// By hand, with everything passed on as it is.
    Edited,
}

impl Mode {
    pub(super) const ALL: &[Mode] = &[
        Mode::Adaptive,
        Mode::Copy,
        Mode::Splice,
        Mode::Parking,
        Mode::Edited,
    ];

    fn engine(self) -> Engine {
        match self {
            Mode::Adaptive | Mode::Parking => Engine::Adaptive,
            Mode::Copy => Engine::Copy,
            Mode::Splice => Engine::Splice,
            Mode::Edited => Engine::Edited,
        }
    }
}

/// Long enough for what the machine keeps for a while to come and go.
const QUIET: Duration = Duration::from_millis(3);

/// Relays until the end.
pub(super) fn run(mode: Mode, sockets: [OwnedFd; 2], bounds: Bounds) -> Outcome {
    run_paced(mode, sockets, bounds, &Pacing::default())
}

fn run_paced(mode: Mode, sockets: [OwnedFd; 2], bounds: Bounds, pacing: &Pacing) -> Outcome {
    let mut machine = Machine::new(sockets, bounds, mode.engine(), None, Instant::now());
    machine.pace(pacing, Instant::now());
    let mut hunch = match mode {
        Mode::Parking => Hunch::eager(),
        Mode::Adaptive | Mode::Copy | Mode::Splice | Mode::Edited => Hunch::default(),
    };
    loop {
        let quiet_at = (mode == Mode::Parking).then(|| Instant::now() + QUIET);
        let now = turn_of(&mut machine, &mut hunch, quiet_at);
        if let Some(outcome) = machine.end() {
            return outcome;
        }
        if quiet_at.is_some_and(|quiet_at| quiet_at <= now) {
            machine = park_and_resume(machine);
        }
    }
}

fn turn_of(machine: &mut Machine, hunch: &mut Hunch, until: Option<Instant>) -> Instant {
    let tap = None;
    let now = turn(&mut [Relay { machine, tap }], &[], hunch, until).unwrap();
    pass_on(machine, now);
    now
}

/// Passes everything on, as far as there is room, that is for somebody to edit.
fn pass_on(machine: &mut Machine, now: Instant) {
    let mut is_moved = Side::BOTH.iter().any(|&side| machine.desk(side).is_some());
    while is_moved {
        is_moved = false;
        for side in Side::BOTH {
            if let Some(desk) = machine.desk(side)
                && desk.onward.len() < Desk::MOST_ONWARD
            {
                is_moved |= !desk.arrived.is_empty();
                desk.onward.append(&mut desk.arrived);
            }
        }
        machine.advance([Ready::default(); 2], now, None);
    }
}

/// Parks a machine, if it can be parked, and goes on with it.
fn park_and_resume(machine: Machine) -> Machine {
    match machine.park() {
        Ok(parked) => Machine::resume(parked),
        Err(machine) => machine,
    }
}

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
    mode: Mode,
    idle_timeout: Option<Duration>,
) -> JoinHandle<(Outcome, Duration)> {
    start_paced(client, upstream, mode, idle_timeout, Pacing::default())
}

/// The same, held back.
pub(super) fn start_paced(
    client: OwnedFd,
    upstream: OwnedFd,
    mode: Mode,
    idle_timeout: Option<Duration>,
    pacing: Pacing,
) -> JoinHandle<(Outcome, Duration)> {
    for socket in [&client, &upstream] {
        set_urgent_in_line(socket.as_fd(), true);
    }
    thread::spawn(move || {
        let bounds = Bounds {
            buffer_size: 1 << 20,
            idle_timeout,
            half_close_timeout: None,
        };
        let outcome = run_paced(mode, [client, upstream], bounds, &pacing);
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

pub(super) fn read_all(mut stream: impl Read) -> Vec<u8> {
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

pub(super) fn outcome(reason: Reason, sent: u64, received: u64) -> Outcome {
    Outcome {
        reason,
        sent,
        received,
    }
}

#[test]
fn what_was_sent_and_ended_before_the_relay_began_is_delivered() {
    for &mode in Mode::ALL {
        let (mut client, ours) = tcp();
        let (mut server, theirs) = tcp();
        client.write_all(b"request").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        server.write_all(b"reply").unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        let (ended, _) = start(ours, theirs, mode, None).join().unwrap();
        assert_eq!((ended.sent, ended.received), (7, 5), "{mode:?}");
        assert_eq!(read_all(client), b"reply", "{mode:?}");
        assert_eq!(read_all(server), b"request", "{mode:?}");
    }
}

#[test]
fn a_reset_from_before_the_relay_began_is_passed_on_behind_what_had_arrived() {
    for &mode in Mode::ALL {
        let (mut client, ours) = tcp();
        let (mut server, theirs) = tcp();
        client.write_all(b"request").unwrap();
        reset(client);
        let (ended, _) = start(ours, theirs, mode, None).join().unwrap();
        assert_eq!(ended, outcome(Reason::ClientReset, 7, 0), "{mode:?}");
        let mut request = [0; 7];
        server.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"request", "{mode:?}");
        let after = server.read(&mut request).unwrap_err().kind();
        assert_eq!(after, ErrorKind::ConnectionReset, "{mode:?}");
    }
}

#[test]
fn urgent_data_from_before_the_relay_began_is_in_its_place() {
    for &mode in Mode::ALL {
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
            let (ended, _) = start(ours, theirs, mode, None).join().unwrap();
            let expected = [before, urgent, after].concat();
            assert_eq!(ended.sent, expected.len() as u64, "{mode:?}");
            assert_eq!(read_all(server), expected, "{mode:?}");
        }
    }
}

#[test]
fn unix_sockets_end_their_directions_one_by_one_too() {
    for &mode in Mode::ALL {
        let (mut client, ours) = unix();
        let (mut server, theirs) = unix();
        let relay = start(ours, theirs, mode, None);
        client.write_all(b"request").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&server), b"request", "{mode:?}");
        server.write_all(b"reply").unwrap();
        drop(server);
        assert_eq!(read_all(&client), b"reply", "{mode:?}");
        let (ended, _) = relay.join().unwrap();
        assert_eq!(ended, outcome(Reason::ClientClosed, 7, 5), "{mode:?}");
    }
}

#[test]
fn a_side_that_has_hung_up_costs_no_time_while_the_other_is_open() {
    for &mode in Mode::ALL {
        let (client, ours) = unix();
        let (server, theirs) = unix();
        let idle = Some(Duration::from_millis(800));
        let relay = start(ours, theirs, mode, idle);
        // Closed both ways: poll(2) reports POLLHUP from now on, whatever it is asked.
        drop(server);
        assert_eq!(read_all(&client), b"");
        let (ended, cpu) = relay.join().unwrap();
        assert_eq!(ended, outcome(Reason::IdleTimeout, 0, 0), "{mode:?}");
        assert!(cpu <= Duration::from_millis(30), "{mode:?}: {cpu:?}");
    }
}

#[test]
fn a_side_that_hangs_up_with_its_reader_stalled_costs_no_time_and_loses_nothing() {
    for &mode in Mode::ALL {
        let (client, ours) = unix();
        let (mut server, theirs) = unix();
        setsockopt(&ours, SndBuf, &4096).unwrap();
        // More than the client's side takes, and than a buffer holds.
        server.set_nonblocking(true).unwrap();
        let relay = start(ours, theirs, mode, None);
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
        assert!(read_all_with_end(&client, said.len()) == said, "{mode:?}");
        drop(client);
        let (ended, cpu) = relay.join().unwrap();
        assert_eq!(ended.received, said.len() as u64, "{mode:?}");
        assert!(cpu <= Duration::from_millis(100), "{mode:?}: {cpu:?}");
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
    for &mode in Mode::ALL {
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
            let relay = start(ours, theirs, mode, None);
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
                "{mode:?} {unix_sink}"
            );
            drop(client);
            let (ended, cpu) = relay.join().unwrap();
            assert_eq!(ended.received, 3_000, "{mode:?}");
            assert!(
                cpu <= Duration::from_millis(150),
                "{mode:?}, unix {unix_sink}: {cpu:?}"
            );
        }
    }
}

#[test]
fn the_idle_clock_runs_from_the_last_byte() {
    for &mode in Mode::ALL {
        let (mut client, ours) = tcp();
        let (mut server, theirs) = tcp();
        let begin = Instant::now();
        let relay = start(ours, theirs, mode, Some(Duration::from_millis(400)));
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(150));
            client.write_all(b"x").unwrap();
            server.read_exact(&mut [0]).unwrap();
        }
        let last = begin.elapsed();
        let (ended, _) = relay.join().unwrap();
        assert_eq!(ended, outcome(Reason::IdleTimeout, 4, 0), "{mode:?}");
        let waited = begin.elapsed() - last;
        assert!(
            (300..2_000).contains(&waited.as_millis()),
            "{mode:?}: {waited:?}"
        );
    }
}

/// What a machine holds that may hold so much each way, between sockets that do not block.
fn machine(mode: Mode, ours: OwnedFd, theirs: OwnedFd, buffer_size: usize) -> Machine {
    let sockets = [ours, theirs];
    for socket in &sockets {
        sys::set_blocking(socket.as_fd(), false).unwrap();
    }
    let bounds = Bounds {
        buffer_size,
        idle_timeout: None,
        half_close_timeout: None,
    };
    Machine::new(sockets, bounds, mode.engine(), None, Instant::now())
}

const READABLE: Ready = Ready {
    readable: true,
    writable: false,
    failed: false,
    hung_up: false,
};

const EVERYTHING: Ready = Ready {
    writable: true,
    ..READABLE
};

/// A machine that is told again and again that everything is ready, whether it is or not.
#[test]
fn a_machine_that_is_told_of_readiness_that_is_not_there_neither_blocks_nor_loses_a_byte() {
    for &mode in Mode::ALL {
        let (mut client, ours) = tcp();
        let (mut server, theirs) = tcp();
        let mut machine = machine(mode, ours, theirs, 1024);
        let advance = |mut machine: Machine| {
            machine.advance([EVERYTHING; 2], Instant::now(), None);
            pass_on(&mut machine, Instant::now());
            match mode {
                Mode::Parking => park_and_resume(machine),
                Mode::Adaptive | Mode::Copy | Mode::Splice | Mode::Edited => machine,
            }
        };
        for _ in 0..100 {
            machine = advance(machine);
        }
        assert_eq!(machine.end(), None, "{mode:?}");
        let said: Vec<u8> = (0..50_000_u32).map(|i| (i % 251) as u8).collect();
        client.write_all(&said).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while machine.delivered_to(Side::Upstream) < 50_000 {
            machine = advance(machine);
            assert!(Instant::now() < deadline, "{mode:?}");
        }
        machine = advance(machine);
        assert_eq!(machine.end(), None, "{mode:?}: one direction is open");
        assert!(read_all(&server) == said, "{mode:?}");
        server.write_all(b"reply").unwrap();
        drop(server);
        while machine.end().is_none() {
            machine = advance(machine);
            assert!(Instant::now() < deadline, "{mode:?}");
        }
        let expected = outcome(Reason::ClientClosed, 50_000, 5);
        assert_eq!(machine.end(), Some(expected), "{mode:?}");
        assert_eq!(read_all(client), b"reply", "{mode:?}");
    }
}

#[test]
fn nothing_is_wanted_from_a_source_while_its_buffer_is_full() {
    for &mode in Mode::ALL {
        let (mut client, ours) = tcp();
        let (_server, theirs) = tcp();
        setsockopt(&theirs, SndBuf, &4096).unwrap();
        let mut machine = machine(mode, ours, theirs, 4096);
        client.set_nonblocking(true).unwrap();
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(300) {
            if client.write(&[7; 10_000]).is_ok() {
                last = Instant::now();
            }
            machine.advance([READABLE, Ready::default()], Instant::now(), None);
            pass_on(&mut machine, Instant::now());
        }
        let both = Interest {
            readable: true,
            writable: true,
        };
        let wanted = Side::BOTH.map(|side| machine.wants(side));
        assert_eq!(wanted, [Some(Interest::FAILURES), Some(both)], "{mode:?}");
        // What is on its way cannot be told to another process.
        assert!(machine.park().is_err(), "{mode:?}");
    }
}

#[test]
fn a_parked_relay_keeps_its_counts_its_ends_and_its_clocks() {
    let (mut client, ours) = tcp();
    let (mut server, theirs) = tcp();
    let bounds = Bounds {
        buffer_size: 1 << 20,
        idle_timeout: Some(Duration::from_millis(400)),
        half_close_timeout: Some(Duration::from_millis(200)),
    };
    let began = Instant::now();
    let ends_at = Some(began + PATIENCE);
    let sockets = [ours, theirs];
    let mut machine = Machine::new(sockets, bounds, Engine::Adaptive, ends_at, began);
    assert_eq!(machine.wakes_at(), Some(began + Duration::from_millis(400)));
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all_while(&mut machine, &server), b"request");
    server.write_all(b"more").unwrap();
    while machine.delivered_to(Side::Client) < 4 {
        turn_of(&mut machine, &mut Hunch::default(), None);
    }
    client.read_exact(&mut [0; 4]).unwrap();
    let due = machine.wakes_at();
    let active = machine.last_activity();
    assert_eq!(due, Some(active + Duration::from_millis(200)));
    let Ok(parked) = machine.park() else {
        panic!("nothing is on its way");
    };
    assert_eq!((parked.sent, parked.received), (7, 4));
    assert_eq!(parked.ended, Some(Side::Client));
    assert_eq!((parked.last_activity, parked.ends_at), (active, ends_at));
    thread::sleep(Duration::from_millis(50));
    let mut machine = Machine::resume(parked);
    // Not anew.
    assert_eq!(machine.wakes_at(), due);
    assert_eq!(machine.wants(Side::Client), Some(Interest::FAILURES));
    while machine.end().is_none() {
        turn_of(&mut machine, &mut Hunch::default(), None);
    }
    let ended = outcome(Reason::HalfCloseTimeout, 7, 4);
    assert_eq!(machine.end(), Some(ended));
    assert!(machine.park().is_err(), "it is over");
}

/// Everything until the end, from a relay that this thread drives.
fn read_all_while(machine: &mut Machine, mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.set_nonblocking(true).unwrap();
    while stream.read_to_end(&mut bytes).is_err() {
        turn_of(machine, &mut Hunch::default(), Some(Instant::now() + QUIET));
    }
    stream.set_nonblocking(false).unwrap();
    bytes
}

#[test]
fn what_is_recorded_or_broken_is_not_parked() {
    let (_client, ours) = tcp();
    let (_server, theirs) = tcp();
    assert!(machine(Mode::Copy, ours, theirs, 1024).park().is_err());
    let (client, ours) = tcp();
    let (server, theirs) = tcp();
    let mut machine = machine(Mode::Adaptive, ours, theirs, 1024);
    (&server).write_all(b"unread").unwrap();
    reset(client);
    machine.advance([EVERYTHING; 2], Instant::now(), None);
    assert!(machine.park().is_err());
}

/// A machine whose client has broken off, while its upstream's kernel takes what came before only
/// as it is read.
fn broken_with_bytes_in_flight() -> (Machine, TcpStream) {
    let (mut client, ours) = tcp();
    let (server, theirs) = tcp();
    setsockopt(&theirs, SndBuf, &200_000).unwrap();
    let mut machine = machine(Mode::Adaptive, ours, theirs, 1 << 20);
    client.write_all(&[7; 150_000]).unwrap();
    while machine.delivered_to(Side::Upstream) < 150_000 {
        turn_of(&mut machine, &mut Hunch::default(), None);
    }
    reset(client);
    while machine.wants(Side::Client).is_some() {
        turn_of(&mut machine, &mut Hunch::default(), None);
    }
    assert_eq!(machine.end(), None);
    assert_eq!(machine.wants(Side::Upstream), Some(Interest::FAILURES));
    (machine, server)
}

#[test]
fn delivering_before_a_reset_is_waited_for_by_the_loop_alone() {
    let (mut machine, mut server) = broken_with_bytes_in_flight();
    // It asks again, ever more seldom, and does nothing else.
    let mut now = Instant::now();
    let pauses: Vec<Duration> = (0..10)
        .map(|_| {
            let due = machine.wakes_at().unwrap();
            let pause = due - now;
            now = due;
            machine.tick(now);
            assert_eq!(machine.end(), None);
            pause
        })
        .collect();
    assert!(pauses[1..].is_sorted(), "{pauses:?}");
    assert!(pauses[1] >= Duration::from_millis(1), "{pauses:?}");
    assert_eq!(pauses.last(), Some(&Duration::from_millis(50)));
    server.set_nonblocking(true).unwrap();
    let mut got = Vec::new();
    let ending = loop {
        match server.read_to_end(&mut got).unwrap_err().kind() {
            ErrorKind::WouldBlock => turn_of(
                &mut machine,
                &mut Hunch::default(),
                Some(Instant::now() + QUIET),
            ),
            ending => break ending,
        };
    };
    assert_eq!((ending, got.len()), (ErrorKind::ConnectionReset, 150_000));
    let ended = outcome(Reason::ClientReset, 150_000, 0);
    assert_eq!(machine.end(), Some(ended));
}

#[test]
fn delivering_before_a_reset_ends_in_time_and_counts_what_was_delivered() {
    for asked_to_end in [false, true] {
        let (mut machine, mut server) = broken_with_bytes_in_flight();
        if asked_to_end {
            machine.give_up(Reason::Terminated);
        } else {
            let last = machine.last_activity() + Duration::from_secs(2);
            machine.tick(last - QUIET);
            assert_eq!(machine.end(), None);
            machine.tick(last);
        }
        let Outcome { reason, sent, .. } = machine.end().unwrap();
        assert_eq!(reason, Reason::ClientReset);
        assert!((1..150_000).contains(&sent), "{sent}");
        let mut got = Vec::new();
        let ending = server.read_to_end(&mut got).unwrap_err().kind();
        assert_eq!(
            (ending, got.len() as u64),
            (ErrorKind::ConnectionReset, sent)
        );
    }
}

fn end_first(one: TcpStream, other: &TcpStream) {
    drop(one);
    read_all_with_end(other, 0);
}

/// Three relays, as a session may have whose protocol opens connections of its own.
#[test]
fn one_loop_drives_several_relays_and_each_ends_for_itself() {
    let mut ends = Vec::new();
    let mut machines: Vec<Machine> = (0..3)
        .map(|_| {
            let (client, ours) = tcp();
            let (server, theirs) = tcp();
            ends.push((client, server));
            machine(Mode::Adaptive, ours, theirs, 1 << 20)
        })
        .collect();
    let peers: Vec<JoinHandle<()>> = ends
        .into_iter()
        .enumerate()
        .map(|(number, (mut client, mut server))| {
            thread::spawn(move || {
                let said: Vec<u8> = (0..3_000_000 * number).map(|i| i as u8).collect();
                let copy = said.clone();
                let reader = thread::spawn(move || {
                    let mut got = vec![0; copy.len()];
                    server.read_exact(&mut got).unwrap();
                    assert!(got == copy);
                    server
                });
                client.write_all(&said).unwrap();
                let server = reader.join().unwrap();
                match number {
                    0 => reset(client),
                    1 => end_first(client, &server),
                    _ => end_first(server, &client),
                }
            })
        })
        .collect();
    let mut reasons = Vec::new();
    let mut hunch = Hunch::eager();
    while !machines.is_empty() {
        let mut relays: Vec<Relay> = machines
            .iter_mut()
            .map(|machine| Relay { machine, tap: None })
            .collect();
        turn(&mut relays, &[], &mut hunch, None).unwrap();
        machines.retain(|machine| match machine.end() {
            None => true,
            Some(Outcome { reason, sent, .. }) => {
                reasons.push((sent, reason));
                false
            }
        });
    }
    for peer in peers {
        peer.join().unwrap();
    }
    reasons.sort_by_key(|(sent, _)| *sent);
    let expected = [
        (0, Reason::ClientReset),
        (3_000_000, Reason::ClientClosed),
        (6_000_000, Reason::ServerClosed),
    ];
    assert_eq!(reasons, expected);
}
