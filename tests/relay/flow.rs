//! The relay under pressure and in time, under each engine: readers that stall, bytes that
//! dribble, and sessions in which nothing moves any more.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::narrow_session::NarrowSession;
use crate::harness::noise::Noise;
use crate::harness::peers::{Ending, Side, Through, read_to_ending, send_until_blocked};
use crate::harness::processes::{assert_quiet, descriptors_of_kind, written_memory};
use crate::harness::{Engine, eventually, field, read_all};

const MB: u64 = 1 << 20;

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
            let memory = written_memory(session);
            // The buffer of 1 MiB that one direction may have by default, and what every session has.
            assert!(memory < 3 << 19, "{engine:?}: {memory} bytes of memory");
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
fn what_bulk_data_needed_is_given_back_when_it_is_over() {
    Engine::each(|engine| {
        for (side, talks) in [(Side::Client, false), (Side::Upstream, true)] {
            let through = Through::start(engine, &[]);
            let session = through.session();
            let own = descriptors_of_kind(through.proxy.process.pid(), "pipe").len();
            let before = written_memory(session);
            let (_proxy, mut near, mut far) = through.seen_from(side);
            // The second time as well.
            for seed in [31, 32] {
                let sending = near.try_clone().unwrap();
                let sender = thread::spawn(move || Noise::new(seed).send(&sending, 50 * MB));
                Noise::new(seed).expect(&far, 50 * MB);
                sender.join().unwrap();
                eventually("memory and pipes to be given back", || {
                    if talks {
                        // It is not idle, and yet does not need them.
                        near.write_all(b"x").unwrap();
                        far.read_exact(&mut [0]).unwrap();
                    }
                    let pipes = descriptors_of_kind(session, "pipe").len() - own;
                    let memory = written_memory(session);
                    (pipes == 0 && memory < before + (64 << 10)).then_some(())
                });
            }
            near.write_all(b"still here").unwrap();
            let mut seen = [0; 10];
            far.read_exact(&mut seen).unwrap();
            assert_eq!(&seen, b"still here", "{engine:?}");
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
            let NarrowSession {
                session,
                client,
                upstream,
                _scratch,
            } = NarrowSession::start(engine, &[]);
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
