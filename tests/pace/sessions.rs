//! What a held-back session's peers see, and what ends it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::config_file::Configured;
use crate::harness::noise::Noise;
use crate::harness::peers::{Ending, Through, read_to_ending};
use crate::harness::upstreams::{Upstream, echo};
use crate::harness::{Engine, PATIENCE, end_of, field, free_port, read_all, under_inetd};

#[test]
fn each_way_moves_no_more_than_was_asked_for() {
    Engine::each(|engine| {
        let session = Through::start(engine, &["--bandwidth", "300k:1m"]);
        let (client, upstream) = (&session.client, &session.upstream);
        let begin = Instant::now();
        thread::scope(|scope| {
            for (from, to, bytes) in [(client, upstream, 450 << 10), (upstream, client, 3 << 19)] {
                scope.spawn(move || {
                    Noise::new(5).send(from, bytes);
                    from.shutdown(Shutdown::Write).unwrap();
                });
                scope.spawn(move || {
                    Noise::new(5).expect(to, bytes);
                    assert_eq!(read_all(to), b"");
                    let took = begin.elapsed().as_millis();
                    assert!(took >= 1_425, "{engine:?}: {took} ms for 1.5 s");
                });
            }
        });
        let closed = session.proxy.closed();
        assert_eq!(field(&closed, "sent"), "460800");
        assert_eq!(field(&closed, "received"), "1572864");
    });
}

#[test]
fn being_held_back_is_not_idleness() {
    let cases = [["--bandwidth", "2"], ["--delay", "700ms"]];
    Engine::each(|engine| {
        for case in cases {
            let arguments = [&["-t", "300ms"][..], &case].concat();
            let mut session = Through::start(engine, &arguments);
            session.client.write_all(b"abc").unwrap();
            session.client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(&session.upstream), b"abc", "{engine:?} {case:?}");
            session.upstream.write_all(b"de").unwrap();
            drop(session.upstream);
            assert_eq!(read_all(&session.client), b"de", "{engine:?} {case:?}");
            let reason = session.proxy.closed();
            assert_eq!(field(&reason, "reason"), "client-closed", "{case:?}");
        }
    });
}

#[test]
fn what_is_held_back_holds_nobody_back_who_ends_the_session() {
    for (pacing, arguments) in [("--bandwidth", "10"), ("--delay", "60")] {
        let mut session = Through::start(Engine::Adaptive, &[pacing, arguments]);
        session.client.write_all(&[7; 10_000]).unwrap();
        if pacing == "--bandwidth" {
            session.upstream.read_exact(&mut [0; 2]).unwrap();
        }
        let begin = Instant::now();
        session.proxy.process.signal(Signal::SIGTERM);
        assert_eq!(session.proxy.process.status().code(), Some(0), "{pacing}");
        assert!(begin.elapsed() < Duration::from_secs(2), "{pacing}");
        assert_eq!(field(&session.proxy.closed(), "reason"), "terminated");
        // What it got is not the whole, and does not look like it.
        let ended = read_to_ending(&session.upstream).1;
        assert_eq!(ended, Ending::Reset, "{pacing}");
    }
}

#[test]
fn its_longest_duration_ends_a_session_that_is_held_back() {
    for (pacing, value) in [("--bandwidth", "10"), ("--delay", "60")] {
        let arguments = [pacing, value, "--max-duration", "500ms"];
        let mut session = Through::start(Engine::Adaptive, &arguments);
        session.client.write_all(&[7; 10_000]).unwrap();
        let begin = Instant::now();
        let ended = read_to_ending(&session.upstream).1;
        assert_eq!(ended, Ending::Reset, "{pacing}");
        assert!(begin.elapsed() < PATIENCE / 2, "{pacing}");
        assert_eq!(field(&session.proxy.closed(), "reason"), "max-duration");
    }
}

#[test]
fn a_service_says_for_itself_what_holds_it_back() {
    let (slow, fast) = (free_port(), free_port());
    let server = echo();
    let text = format!(
        "bandwidth 5\ndelay 0\n\
         bind 127.0.0.1:{slow}\nserver {server}\n\
         bind 127.0.0.1:{fast}\nserver {server}\nbandwidth 0\n"
    );
    let configured = Configured::start(&text, 2);
    let mut answered_after = [slow, fast].map(|port| {
        let begin = Instant::now();
        let mut client = configured.connect("127.0.0.1", port);
        client.write_all(b"sixteen letters!").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(client), b"sixteen letters!");
        begin.elapsed()
    });
    answered_after.reverse();
    assert!(answered_after.is_sorted(), "{answered_after:?}");
    // Three seconds for 15 bytes behind the first.
    assert!(answered_after[1] >= Duration::from_millis(2_800));
}

#[test]
fn under_inetd_it_is_the_same() {
    let upstream = Upstream::new(read_all);
    let (mut client, mut child) = under_inetd(&["--bandwidth", "10", &upstream.name()]);
    let begin = Instant::now();
    client.write_all(b"sixteen letters!").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(upstream.result(), b"sixteen letters!");
    assert!(begin.elapsed() >= Duration::from_millis(1_400));
    assert_eq!(end_of(&mut child).code(), Some(0));
}

#[test]
fn what_is_not_held_back_has_to_wait_for_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = listener.local_addr().unwrap().to_string();
    // 0 is no limit, each way.
    let pacing = ["--bandwidth", "0:1", "--delay", "0:60", &name];
    let (mut client, mut child) = under_inetd(&pacing);
    let (mut upstream, _) = listener.accept().unwrap();
    let sender = thread::spawn(move || {
        Noise::new(9).send(&client, 8 << 20);
        client.write_all(b"end").unwrap();
        client.shutdown(Shutdown::Both).unwrap();
    });
    Noise::new(9).expect(&upstream, 8 << 20);
    let mut end = [0; 3];
    upstream.read_exact(&mut end).unwrap();
    sender.join().unwrap();
    drop(upstream);
    assert_eq!(end_of(&mut child).code(), Some(0));
}
