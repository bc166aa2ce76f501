//! Relay cases in which bytes are held back on purpose, whichever way they are moved.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, send};

use super::tests::{Mode, outcome, read_all, reset, start_paced, tcp, unix};
use super::{Bandwidth, Delay, Pacing};
use crate::terms::reason::Reason;

fn bandwidth(text: &str) -> Pacing {
    Pacing {
        bandwidth: Bandwidth::parse(text).unwrap(),
        ..Pacing::default()
    }
}

fn delay(text: &str) -> Pacing {
    Pacing {
        delay: Delay::parse(text).unwrap(),
        ..Pacing::default()
    }
}

/// Runs a case in every mode, at the same time: they mostly wait.
fn in_each(case: impl Fn(Mode) + Sync) {
    thread::scope(|scope| {
        for &mode in Mode::ALL {
            let case = &case;
            scope.spawn(move || case(mode));
        }
    });
}

/// Bytes of which no two stretches are alike.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 7_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(next).collect()
}

/// Sends everything and the end of input, while the reader reads all of it. Returns what was read, and
/// how long that took.
fn pass(mut from: &TcpStream, mut to: &TcpStream, bytes: &[u8]) -> (Vec<u8>, Duration) {
    let begin = Instant::now();
    let got = thread::scope(|scope| {
        scope.spawn(move || {
            from.write_all(bytes).unwrap();
            from.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        to.read_to_end(&mut got).unwrap();
        got
    });
    (got, begin.elapsed())
}

#[test]
fn three_seconds_of_a_bandwidth_take_three_seconds_each_way_for_itself() {
    in_each(|mode| {
        // What others do with the processors can only make it longer, and is not there each time.
        let mut times = Vec::new();
        for _ in 0..3 {
            let (client, ours) = tcp();
            let (server, theirs) = tcp();
            let pacing = bandwidth("200000:20m");
            let relay = start_paced(ours, theirs, mode, None, pacing);
            let (request, reply) = (noise(600_000), noise(60 << 20));
            let (sent, received) = thread::scope(|scope| {
                let sent = scope.spawn(|| pass(&client, &server, &request));
                let received = scope.spawn(|| pass(&server, &client, &reply));
                (sent.join().unwrap(), received.join().unwrap())
            });
            assert!(sent.0 == request && received.0 == reply, "{mode:?}");
            let (ended, _) = relay.join().unwrap();
            assert_eq!((ended.sent, ended.received), (600_000, 60 << 20));
            let took = [sent.1, received.1].map(|took| took.as_millis());
            assert!(took.iter().all(|took| *took >= 2_850), "{mode:?}: {took:?}");
            times.push(took);
            if took.iter().all(|took| *took <= 3_150) {
                return;
            }
        }
        panic!("{mode:?}: {times:?}");
    });
}

#[test]
fn a_byte_a_second_is_neither_idle_nor_busy() {
    in_each(|mode| {
        let (mut client, ours) = tcp();
        let (server, theirs) = tcp();
        server.shutdown(Shutdown::Write).unwrap();
        let idle = Some(Duration::from_millis(600));
        let relay = start_paced(ours, theirs, mode, idle, bandwidth("1"));
        let begin = Instant::now();
        client.write_all(b"abcd").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(server), b"abcd", "{mode:?}");
        assert!(begin.elapsed() >= Duration::from_millis(2_900), "{mode:?}");
        let (ended, cpu) = relay.join().unwrap();
        assert_eq!(ended, outcome(Reason::ServerClosed, 4, 0), "{mode:?}");
        assert!(cpu <= Duration::from_millis(100), "{mode:?}: {cpu:?}");
    });
}

#[test]
fn who_is_held_back_no_longer_and_says_nothing_is_idle() {
    in_each(|mode| {
        let (mut client, ours) = tcp();
        let (mut server, theirs) = tcp();
        let idle = Some(Duration::from_millis(300));
        let relay = start_paced(ours, theirs, mode, idle, bandwidth("5"));
        client.write_all(b"ab").unwrap();
        server.read_exact(&mut [0; 2]).unwrap();
        let (ended, _) = relay.join().unwrap();
        assert_eq!(ended, outcome(Reason::IdleTimeout, 2, 0), "{mode:?}");
    });
}

#[test]
fn a_reply_comes_behind_a_request_that_has_ended_although_both_are_held_back() {
    in_each(|mode| {
        for pacing in [bandwidth("2000"), delay("50ms")] {
            let (mut client, ours) = tcp();
            let (mut server, theirs) = tcp();
            let relay = start_paced(ours, theirs, mode, None, pacing);
            let request = noise(700);
            client.write_all(&request).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert!(read_all(&server) == request, "{mode:?}");
            server.write_all(b"reply").unwrap();
            drop(server);
            assert_eq!(read_all(client), b"reply", "{mode:?}");
            let (ended, _) = relay.join().unwrap();
            assert_eq!(ended, outcome(Reason::ClientClosed, 700, 5), "{mode:?}");
        }
    });
}

#[test]
fn a_reset_is_passed_on_soon_although_what_came_before_is_held_back() {
    in_each(|mode| {
        let (mut client, ours) = tcp();
        let (mut server, theirs) = tcp();
        let relay = start_paced(ours, theirs, mode, None, bandwidth("1000"));
        let said = noise(20_000);
        client.write_all(&said).unwrap();
        server.read_exact(&mut [0]).unwrap();
        reset(client);
        let begin = Instant::now();
        let mut got = vec![said[0]];
        let ending = server.read_to_end(&mut got).unwrap_err().kind();
        assert_eq!(ending, ErrorKind::ConnectionReset, "{mode:?}");
        assert!(said.starts_with(&got), "{mode:?}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{mode:?}");
        let (ended, _) = relay.join().unwrap();
        assert_eq!(ended.reason, Reason::ClientReset, "{mode:?}");
        // What arrives at the last moment is not counted, as it is not acknowledged yet.
        let got = got.len() as u64;
        let sent = ended.sent;
        assert!(
            (got.saturating_sub(100)..=got).contains(&sent),
            "{mode:?}: {sent} of {got}"
        );
    });
}

#[test]
fn a_reset_comes_behind_what_was_delayed() {
    in_each(|mode| {
        let (mut client, ours) = tcp();
        let (mut server, theirs) = tcp();
        let relay = start_paced(ours, theirs, mode, None, delay("1500ms"));
        client.write_all(b"request").unwrap();
        // It has to be read before the reset: the kernel would say so first.
        thread::sleep(Duration::from_millis(50));
        reset(client);
        let mut got = Vec::new();
        let ending = server.read_to_end(&mut got).unwrap_err().kind();
        assert_eq!(ending, ErrorKind::ConnectionReset, "{mode:?}");
        assert_eq!(got, b"request", "{mode:?}");
        let (ended, _) = relay.join().unwrap();
        assert_eq!(ended, outcome(Reason::ClientReset, 7, 0), "{mode:?}");
    });
}

#[test]
fn urgent_data_stays_in_its_place_when_it_is_held_back() {
    in_each(|mode| {
        for pacing in [bandwidth("60"), delay("20ms")] {
            let (mut client, ours) = tcp();
            let (server, theirs) = tcp();
            server.shutdown(Shutdown::Write).unwrap();
            let relay = start_paced(ours, theirs, mode, None, pacing);
            client.write_all(b"before it").unwrap();
            send(client.as_raw_fd(), b"ab!", MsgFlags::MSG_OOB).unwrap();
            client.write_all(b"after it").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(server), b"before itab!after it", "{mode:?}");
            let (ended, _) = relay.join().unwrap();
            assert_eq!(ended.sent, 20, "{mode:?}");
        }
    });
}

#[test]
fn what_is_delayed_is_not_idle_and_comes_in_order_and_whole() {
    in_each(|mode| {
        let (client, ours) = tcp();
        let (server, theirs) = tcp();
        server.shutdown(Shutdown::Write).unwrap();
        let idle = Some(Duration::from_millis(500));
        let relay = start_paced(ours, theirs, mode, idle, delay("400ms:0"));
        let mut said = noise(300_000);
        let messages = said.split_off(200_000);
        thread::scope(|scope| {
            let (said, messages, mut client) = (&said, &messages, &client);
            scope.spawn(move || {
                // More of them than are held at once.
                for message in messages.chunks(200) {
                    client.write_all(message).unwrap();
                    thread::sleep(Duration::from_millis(1));
                }
                client.write_all(said).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            });
            let expected = [&messages[..], said].concat();
            assert!(read_all(&server) == expected, "{mode:?}");
        });
        let (ended, cpu) = relay.join().unwrap();
        assert_eq!(ended, outcome(Reason::ServerClosed, 300_000, 0), "{mode:?}");
        assert!(cpu <= Duration::from_millis(500), "{mode:?}: {cpu:?}");
    });
}

#[test]
fn each_way_has_its_own_delay_of_0_to_twice_what_was_asked_for() {
    in_each(|mode| {
        let (client, ours) = tcp();
        let (server, theirs) = tcp();
        let relay = start_paced(ours, theirs, mode, None, delay("0:100ms"));
        let mut longest = [Duration::ZERO; 2];
        for _ in 0..20 {
            for (way, mut from, mut to) in [(0, &client, &server), (1, &server, &client)] {
                let begin = Instant::now();
                from.write_all(b"x").unwrap();
                to.read_exact(&mut [0]).unwrap();
                longest[way] = longest[way].max(begin.elapsed());
            }
        }
        // All of 20 are below a tenth of the longest with a chance of 1 to 10^20.
        assert!(longest[1] >= Duration::from_millis(20), "{longest:?}");
        drop(client);
        drop(server);
        relay.join().unwrap();
    });
}

#[test]
fn a_sink_that_is_slower_still_is_what_counts() {
    in_each(|mode| {
        let (mut client, ours) = tcp();
        let (server, theirs) = unix();
        let relay = start_paced(ours, theirs, mode, None, bandwidth("8m"));
        let said = noise(4 << 20);
        let copy = said.clone();
        let writer = thread::spawn(move || {
            client.write_all(&copy).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            client
        });
        thread::sleep(Duration::from_millis(700));
        assert!(read_all(&server) == said, "{mode:?}");
        drop(server);
        drop(writer.join().unwrap());
        let (ended, cpu) = relay.join().unwrap();
        assert_eq!(ended, outcome(Reason::ClientClosed, 4 << 20, 0), "{mode:?}");
        assert!(cpu <= Duration::from_millis(500), "{mode:?}: {cpu:?}");
    });
}
