//! Relay cases around the moments at which a direction changes the way of its bytes: from small
//! copies to a pipe, to large copies, and back.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::{RcvBuf, SndBuf};
use nix::sys::socket::{MsgFlags, send, setsockopt};

use super::Bounds;
use super::tests::{Mode, reset, run, start, tcp, unix};
use crate::terms::reason::Reason;

/// Numbers that look random, and are the same for the same seed (xorshift).
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Chance {
        Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below this one.
    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .take(count)
            .collect()
    }
}

/// Around every size at which a direction may change its way, and far beyond.
const AMOUNTS: [usize; 10] = [
    1, 16_383, 16_384, 16_385, 32_768, 32_769, 98_304, 1_048_576, 1_400_000, 12_000_000,
];

/// Reads until the end, in pieces of any size with pauses between them.
fn read_haltingly(mut stream: impl Read + Send + 'static, seed: u64) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut chance = Chance::new(seed);
        let mut all = Vec::new();
        let mut piece = vec![0; 1 << 20];
        loop {
            let most = match chance.below(3) {
                0 => 1 + chance.below(100),
                1 => 1 + chance.below(20_000),
                _ => 1 << 20,
            };
            match stream.read(&mut piece[..most as usize]).unwrap() {
                0 => return all,
                count => all.extend_from_slice(&piece[..count]),
            }
            // Long enough for the sink to count as slow, sometimes.
            match chance.below(400) {
                0 => thread::sleep(Duration::from_millis(150)),
                1..5 => thread::sleep(Duration::from_millis(chance.below(40))),
                _ => {}
            }
        }
    })
}

/// Writes everything, single messages and bulk by turns, with pauses that let a relay give back
/// what it does not need.
fn write_haltingly(
    mut stream: impl Write + Send + 'static,
    bytes: Vec<u8>,
    seed: u64,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut chance = Chance::new(seed);
        let mut left = &bytes[..];
        while !left.is_empty() {
            let burst = match chance.below(4) {
                0 | 1 => 1 + chance.below(500),
                2 => 1 + chance.below(70_000),
                _ => 1 + chance.below(3_000_000),
            };
            let (now, later) = left.split_at(left.len().min(burst as usize));
            stream.write_all(now).unwrap();
            left = later;
            match chance.below(6) {
                0 => thread::sleep(Duration::from_millis(30)),
                1 => thread::sleep(Duration::from_millis(1)),
                _ => {}
            }
        }
    })
}

/// Both ways at once, through a relay that holds at most so much each way. `narrow` sinks block
/// often.
fn exchange_in_bursts(mode: Mode, buffer_size: usize, narrow: bool, seed: u64) {
    let context = format!("{mode:?}, {buffer_size}, narrow {narrow}, seed {seed}");
    let (client, ours) = tcp();
    let (server, theirs) = tcp();
    if narrow {
        for socket in [ours.as_fd(), theirs.as_fd()] {
            setsockopt(&socket, SndBuf, &30_000).unwrap();
        }
        setsockopt(&client, RcvBuf, &30_000).unwrap();
    }
    let relay = thread::spawn(move || {
        let bounds = Bounds {
            buffer_size,
            idle_timeout: None,
            half_close_timeout: None,
        };
        run(mode, [ours, theirs], bounds)
    });
    let amount = match buffer_size {
        300 => 100_000,
        _ => 5_000_000,
    };
    let ends = [(client, 2 * seed), (server, 2 * seed + 1)].map(|(stream, seed)| {
        let said = Chance::new(seed).bytes(amount);
        let writing = stream.try_clone().unwrap();
        let writer = write_haltingly(writing, said.clone(), seed);
        let reader = read_haltingly(stream.try_clone().unwrap(), seed);
        (stream, said, writer, reader)
    });
    let [(up, heard_down), (down, heard_up)] = ends.map(|(stream, said, writer, reader)| {
        writer.join().unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        (said, reader)
    });
    assert!(heard_up.join().unwrap() == up, "{context}: up");
    assert!(heard_down.join().unwrap() == down, "{context}: down");
    let ended = relay.join().unwrap();
    let moved = (ended.sent, ended.received);
    assert_eq!(moved, (amount as u64, amount as u64), "{context}");
}

#[test]
fn bursts_of_any_size_arrive_whole_through_every_change_of_way() {
    for seed in 0..2 {
        thread::scope(|scope| {
            for &mode in Mode::ALL {
                for buffer_size in [300, 20_000, 1 << 20] {
                    for narrow in [false, true] {
                        scope.spawn(move || exchange_in_bursts(mode, buffer_size, narrow, seed));
                    }
                }
            }
        });
    }
}

#[test]
fn an_end_of_input_at_any_moment_comes_behind_everything() {
    for &mode in Mode::ALL {
        for amount in AMOUNTS {
            let (client, ours) = tcp();
            let (mut server, theirs) = tcp();
            let relay = start(ours, theirs, mode, None);
            let said = Chance::new(amount as u64).bytes(amount);
            let there = read_haltingly(server.try_clone().unwrap(), 3);
            (&client).write_all(&said).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert!(there.join().unwrap() == said, "{mode:?} {amount}");
            // The other direction has not been touched yet.
            let reply = Chance::new(amount as u64 + 1).bytes(amount);
            let back = read_haltingly(client, 4);
            server.write_all(&reply).unwrap();
            drop(server);
            assert!(back.join().unwrap() == reply, "{mode:?} {amount}");
            let (ended, _) = relay.join().unwrap();
            assert_eq!(ended.reason, Reason::ClientClosed, "{mode:?} {amount}");
        }
    }
}

#[test]
fn messages_between_bulk_arrive_at_once_and_in_their_place() {
    for &mode in Mode::ALL {
        let (mut client, ours) = tcp();
        let (mut server, theirs) = tcp();
        let relay = start(ours, theirs, mode, None);
        let mut chance = Chance::new(9);
        for round in 0..6 {
            for amount in AMOUNTS {
                let said = chance.bytes(amount);
                let mut sending = client.try_clone().unwrap();
                let sent = said.clone();
                let sender = thread::spawn(move || sending.write_all(&sent).unwrap());
                let mut got = vec![0; amount];
                server.read_exact(&mut got).unwrap();
                sender.join().unwrap();
                assert!(got == said, "{mode:?}, round {round}: {amount}");
                // Back, with nothing else on its way.
                server.write_all(&[round]).unwrap();
                let mut answer = [0];
                client.read_exact(&mut answer).unwrap();
                assert_eq!(answer, [round], "{mode:?}: {amount}");
            }
            // Everything is given back meanwhile, or not.
            thread::sleep(Duration::from_millis(u64::from(round % 2) * 60));
        }
        drop(client);
        drop(server);
        assert_eq!(relay.join().unwrap().0.reason, Reason::ClientClosed);
    }
}

#[test]
fn urgent_data_at_any_moment_is_in_its_place() {
    for &mode in Mode::ALL {
        for amount in AMOUNTS {
            let (client, ours) = tcp();
            let (server, theirs) = tcp();
            let relay = start(ours, theirs, mode, None);
            let there = read_haltingly(server.try_clone().unwrap(), 5);
            let mut chance = Chance::new(amount as u64);
            let mut said = Vec::new();
            for _ in 0..3 {
                let piece = chance.bytes(amount);
                (&client).write_all(&piece).unwrap();
                send(client.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
                said.extend_from_slice(&piece);
                said.push(b'!');
            }
            client.shutdown(Shutdown::Write).unwrap();
            assert!(there.join().unwrap() == said, "{mode:?} {amount}");
            drop((client, server));
            assert_eq!(relay.join().unwrap().0.sent, said.len() as u64);
        }
    }
}

#[test]
fn a_reset_at_any_moment_is_passed_on_behind_a_part_of_what_was_said() {
    for &mode in Mode::ALL {
        for amount in AMOUNTS {
            let (mut client, ours) = tcp();
            let (mut server, theirs) = tcp();
            let relay = start(ours, theirs, mode, None);
            let said = Chance::new(amount as u64).bytes(amount);
            let copy = said.clone();
            let client = thread::spawn(move || {
                client.write_all(&copy).unwrap();
                client
            });
            let half = amount.div_ceil(2);
            let mut got = vec![0; half];
            server.read_exact(&mut got).unwrap();
            reset(client.join().unwrap());
            let ending = server.read_to_end(&mut got).unwrap_err().kind();
            assert_eq!(ending, ErrorKind::ConnectionReset, "{mode:?} {amount}");
            assert!(said.starts_with(&got), "{mode:?} {amount}");
            let (ended, _) = relay.join().unwrap();
            assert_eq!(ended.reason, Reason::ClientReset, "{mode:?} {amount}");
            assert!(ended.sent <= amount as u64 && ended.sent >= half as u64);
        }
    }
}

/// Has a relay move much, and then stall: everybody's buffers are full. Returns how much it took.
fn fill_up(mut client: &TcpStream, said: &[u8]) -> usize {
    client.set_nonblocking(true).unwrap();
    let mut taken = 0;
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(200) {
        match client.write(&said[taken..]) {
            Ok(count) => {
                taken += count;
                last = Instant::now();
            }
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    client.set_nonblocking(false).unwrap();
    taken
}

#[test]
fn a_sink_that_stalls_in_bulk_data_gets_everything_later() {
    for &mode in Mode::ALL {
        let (client, ours) = tcp();
        let (mut server, theirs) = tcp();
        let relay = start(ours, theirs, mode, None);
        let said = Chance::new(11).bytes(60_000_000);
        let mut read = 0;
        let mut sent = 0;
        // Each time it stalls at another moment, and is slow from the first on.
        for take in [1, 3_000_000, 5_000_000, 40_000] {
            sent += fill_up(&client, &said[sent..]);
            let mut got = vec![0; take];
            server.read_exact(&mut got).unwrap();
            assert!(got == said[read..read + take], "{mode:?} from {read}");
            read += take;
        }
        assert!(sent > 0 && sent < said.len(), "{mode:?}: nothing held it");
        client.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).unwrap();
        assert!(rest == said[read..sent], "{mode:?}");
        drop((client, server));
        let (ended, _) = relay.join().unwrap();
        assert_eq!(ended.sent, sent as u64, "{mode:?}");
    }
}

#[test]
fn unix_sockets_change_their_ways_too() {
    for &mode in Mode::ALL {
        for amount in AMOUNTS {
            let (mut client, ours) = unix();
            let (mut server, theirs) = tcp();
            let relay = start(ours, theirs, mode, None);
            let said = Chance::new(amount as u64).bytes(amount);
            let there = read_haltingly(server.try_clone().unwrap(), 6);
            client.write_all(&said).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert!(there.join().unwrap() == said, "{mode:?} {amount}");
            let back = read_haltingly(client, 7);
            server.write_all(&said).unwrap();
            drop(server);
            assert!(back.join().unwrap() == said, "{mode:?} {amount}");
            let moved = relay.join().unwrap().0;
            assert_eq!((moved.sent, moved.received), (amount as u64, amount as u64));
        }
    }
}
