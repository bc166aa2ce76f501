//! Resets through the relay, under each engine and from each side: a connection that broke off
//! never looks complete to the other side, and what arrived before the break is delivered.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::noise::Noise;
use crate::harness::peers::{
    Ending, Side, Through, bytes_in_flight, read_to_ending, reset, reset_shared, send_until_blocked,
};
use crate::harness::processes::{context_switches, cpu_time};
use crate::harness::{Engine, Standalone, eventually, field};

const MB: u64 = 1 << 20;

/// Runs a case under each engine, with each side as the one that resets, all at once. The case
/// is given the end that will, and the other.
fn on_each_side(case: impl Fn(Engine, TcpStream, TcpStream, &Standalone) + Sync) {
    thread::scope(|scope| {
        for engine in Engine::ALL {
            for side in Side::ALL {
                let case = &case;
                scope.spawn(move || {
                    let (proxy, near, far) = Through::start(engine, &[]).seen_from(side);
                    case(engine, near, far, &proxy);
                    let closed = proxy.closed();
                    let reason = match side {
                        Side::Client => "client-reset",
                        Side::Upstream => "server-reset",
                    };
                    assert_eq!(field(&closed, "reason"), reason, "{engine:?}: {closed}");
                });
            }
        }
    });
}

#[test]
fn a_reset_before_any_byte_is_passed_on() {
    on_each_side(|engine, near, far, _| {
        reset(near);
        assert_eq!(read_to_ending(&far), (vec![], Ending::Reset), "{engine:?}");
    });
}

#[test]
fn a_reset_behind_bytes_is_passed_on_behind_them() {
    on_each_side(|engine, near, far, _| {
        // It is at the proxy before the reset is, as loopback keeps the order.
        (&near).write_all(b"all that was said").unwrap();
        reset(near);
        assert_eq!(
            read_to_ending(&far),
            (b"all that was said".to_vec(), Ending::Reset),
            "{engine:?}"
        );
    });
}

#[test]
fn many_sessions_that_are_reset_behind_bytes_lose_none() {
    for engine in Engine::ALL {
        for side in Side::ALL {
            for _ in 0..30 {
                let (_proxy, near, far) = Through::start(engine, &[]).seen_from(side);
                let said = Noise::new(1).take(30_000);
                (&near).write_all(&said).unwrap();
                reset(near);
                let (heard, ending) = read_to_ending(&far);
                assert_eq!(
                    (heard.len(), ending),
                    (said.len(), Ending::Reset),
                    "{engine:?} {side:?}"
                );
                assert!(heard == said, "{engine:?} {side:?}");
            }
        }
    }
}

#[test]
fn a_reset_in_the_middle_of_a_transfer_never_looks_like_its_end() {
    on_each_side(|engine, near, far, _| {
        let sending = near.try_clone().unwrap();
        let sender = thread::spawn(move || {
            let mut noise = Noise::new(8);
            // Until the other thread has reset the connection.
            while let Ok(count) = (&sending).write(noise.next_piece()) {
                noise.advance(count);
            }
        });
        Noise::new(8).expect(&far, 3 * MB);
        reset_shared(&near);
        sender.join().unwrap();
        let mut rest = Noise::new(8);
        rest.take(3 << 20);
        let (_, ending) = rest.expect_until_end(&far);
        assert_eq!(ending, Ending::Reset, "{engine:?}");
    });
}

#[test]
fn a_reset_by_a_side_that_had_half_closed_is_passed_on() {
    on_each_side(|engine, near, mut far, proxy| {
        (&near).write_all(b"request").unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        // This end is a true one, and was seen before the reset.
        assert_eq!(read_to_ending(&far), (b"request".to_vec(), Ending::Clean));
        reset(near);
        proxy.closed();
        // The other side finds out as soon as it says something, or is told before.
        let deadline = Instant::now() + Duration::from_secs(10);
        while far.write_all(b"reply").is_ok() {
            assert!(Instant::now() < deadline, "{engine:?}: nobody is told");
            thread::sleep(Duration::from_millis(5));
        }
    });
}

#[test]
fn a_reset_is_passed_on_to_a_side_that_had_half_closed() {
    on_each_side(|engine, mut near, far, _| {
        far.shutdown(Shutdown::Write).unwrap();
        near.read_to_end(&mut Vec::new()).unwrap();
        near.write_all(b"half a rep").unwrap();
        reset(near);
        assert_eq!(
            read_to_ending(&far),
            (b"half a rep".to_vec(), Ending::Reset),
            "{engine:?}"
        );
    });
}

#[test]
fn a_reset_is_passed_on_while_the_other_side_does_not_read() {
    on_each_side(|engine, near, far, proxy| {
        let sent = send_until_blocked(&near, &mut Noise::new(9));
        assert!(sent > 0);
        reset(near);
        // The session does not wait for the other side to read.
        let closed = proxy.closed();
        let duration: f64 = field(&closed, "duration")
            .strip_suffix('s')
            .unwrap()
            .parse()
            .unwrap();
        assert!(duration < 10.0, "{engine:?}: {closed}");
        let (heard, ending) = Noise::new(9).expect_until_end(&far);
        assert!(heard <= sent, "{engine:?}");
        assert_eq!(ending, Ending::Reset, "{engine:?}: {heard} of {sent}");
    });
}

#[test]
fn a_reset_by_a_side_that_does_not_read_is_passed_on_while_bytes_wait_for_it() {
    on_each_side(|engine, near, far, proxy| {
        send_until_blocked(&far, &mut Noise::new(9));
        reset(near);
        proxy.closed();
        let ending = writes_fail_with(&far);
        assert!(
            [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&ending),
            "{engine:?}: {ending}"
        );
    });
}

/// How writing to a connection that was reset fails.
fn writes_fail_with(mut stream: &TcpStream) -> ErrorKind {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Err(error) = stream.write_all(b"x") {
            return error.kind();
        }
        assert!(Instant::now() < deadline, "writing goes on");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_reset_by_a_side_whose_own_bytes_wait_reaches_the_other_behind_those_that_arrived() {
    // Both directions are full when one side breaks off; the other reads everything afterwards.
    on_each_side(|engine, near, far, _| {
        let sent = send_until_blocked(&near, &mut Noise::new(11));
        send_until_blocked(&far, &mut Noise::new(12));
        reset(near);
        let (heard, ending) = Noise::new(11).expect_until_end(&far);
        assert!(heard > 0 && heard <= sent, "{engine:?}");
        assert_eq!(ending, Ending::Reset, "{engine:?}: {heard} of {sent}");
    });
}

#[test]
fn a_slow_reader_still_gets_what_arrived_before_the_reset() {
    // More than its own socket takes before it reads: the rest waits at the proxy.
    const SAID: u64 = 400_000;
    on_each_side(|engine, near, far, _| {
        Noise::new(13).send(&near, SAID);
        // A reset discards what has not arrived.
        eventually("the bytes to arrive", || {
            (bytes_in_flight(&near) == 0).then_some(())
        });
        reset(near);
        thread::sleep(Duration::from_millis(200));
        let mut noise = Noise::new(13);
        for _ in 0..19 {
            noise.expect(&far, SAID / 20);
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(
            noise.expect_until_end(&far),
            (SAID / 20, Ending::Reset),
            "{engine:?}"
        );
    });
}

#[test]
fn a_close_with_unread_data_counts_as_a_reset() {
    on_each_side(|engine, near, mut far, _| {
        far.write_all(b"never read").unwrap();
        // It has arrived when it can be peeked at.
        near.peek(&mut [0; 10]).unwrap();
        drop(near);
        assert_eq!(read_to_ending(&far), (vec![], Ending::Reset), "{engine:?}");
    });
}

#[test]
fn a_session_sleeps_while_one_side_is_reset_and_the_other_takes_its_time() {
    Engine::each(|engine| {
        let through = Through::start(engine, &[]);
        let session = through.session();
        send_until_blocked(&through.client, &mut Noise::new(14));
        let before = (context_switches(session), cpu_time(session));
        reset(through.client);
        thread::sleep(Duration::from_millis(800));
        let switches = context_switches(session) - before.0;
        let cpu = cpu_time(session) - before.1;
        assert!(
            switches < 100 && cpu <= Duration::from_millis(30),
            "{engine:?}: {switches} context switches, {cpu:?} of processor time"
        );
    });
}

#[test]
fn both_sides_may_reset_at_once() {
    for engine in Engine::ALL {
        for _ in 0..20 {
            let Through {
                proxy,
                client,
                upstream,
            } = Through::start(engine, &[]);
            reset(client);
            reset(upstream);
            let closed = proxy.closed();
            let reason = field(&closed, "reason");
            assert!(
                ["client-reset", "server-reset"].contains(&reason),
                "{engine:?}: {closed}"
            );
        }
    }
}
