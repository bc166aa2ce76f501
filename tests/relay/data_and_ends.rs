//! The relay as its two peers see it, under each engine: data, its ends, and what is counted.
//! Resets are in `resets.rs`, pressure and time in `flow.rs`, much data in `bulk.rs`, urgent data in
//! `urgent.rs`.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{KeepAlive, TcpKeepIdle, TcpNoDelay};

use crate::harness::noise::Noise;
use crate::harness::peers::{Side, Through, read_to_ending};
use crate::harness::processes::{
    borrow_descriptor, context_switches, cpu_time, descriptors_of_kind,
};
use crate::harness::upstreams::Upstream;
use crate::harness::{Engine, Scratch, Standalone, field, free_port, read_all, under_inetd};

const MB: u64 = 1 << 20;

#[test]
fn reply_arrives_after_the_client_half_closes() {
    for engine in Engine::ALL {
        let upstream = Upstream::new(|mut stream| {
            let request = read_all(&stream);
            stream.write_all(b"reply").unwrap();
            request
        });
        let proxy = Standalone::start_with(engine, &[&upstream.name()]);
        let mut client = proxy.connect();
        client.write_all(b"request").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(client), b"reply", "{engine:?}");
        assert_eq!(upstream.result(), b"request", "{engine:?}");
        let closed = proxy.closed();
        assert_eq!(field(&closed, "reason"), "client-closed", "{engine:?}");
        assert_eq!(field(&closed, "sent"), "7", "{engine:?}");
        assert_eq!(field(&closed, "received"), "5", "{engine:?}");
    }
}

#[test]
fn request_arrives_after_the_upstream_half_closes() {
    for engine in Engine::ALL {
        let Through {
            proxy,
            mut client,
            mut upstream,
        } = Through::start(engine, &[]);
        upstream.write_all(b"banner").unwrap();
        upstream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&client), b"banner", "{engine:?}");
        client.write_all(b"late request").unwrap();
        let mut request = [0; 12];
        upstream.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"late request", "{engine:?}");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&upstream), b"", "{engine:?}");
        let closed = proxy.closed();
        assert_eq!(field(&closed, "reason"), "server-closed", "{engine:?}");
        assert_eq!(field(&closed, "sent"), "12", "{engine:?}");
        assert_eq!(field(&closed, "received"), "6", "{engine:?}");
    }
}

#[test]
fn each_engine_is_the_one_it_is_taken_for() {
    for engine in Engine::ALL {
        let mut through = Through::start(engine, &[]);
        let session = through.session();
        let own = descriptors_of_kind(through.proxy.process.pid(), "pipe").len();
        let pipes = || descriptors_of_kind(session, "pipe").len() - own;
        through.client.write_all(b"seen").unwrap();
        through.upstream.read_exact(&mut [0; 4]).unwrap();
        assert_eq!(pipes(), 0, "{engine:?}: pipes for a message");
        let transcripts = through.proxy.transcripts().len();
        let Through {
            client, upstream, ..
        } = &through;
        const MUCH: u64 = 20 << 20;
        thread::scope(|scope| {
            scope.spawn(|| Noise::new(8).send(client, MUCH));
            Noise::new(8).expect(upstream, MUCH);
        });
        // A pipe is kept for a while.
        match engine {
            Engine::Adaptive => assert_eq!((pipes(), transcripts), (2, 0)),
            Engine::Copy => assert_eq!((pipes(), transcripts), (0, 1)),
        }
    }
}

#[test]
fn the_server_may_speak_first() {
    for engine in Engine::ALL {
        let mut through = Through::start(engine, &[]);
        through.upstream.write_all(b"220 hello\r\n").unwrap();
        let mut banner = [0; 11];
        through.client.read_exact(&mut banner).unwrap();
        assert_eq!(&banner, b"220 hello\r\n", "{engine:?}");
        through.client.write_all(b"QUIT\r\n").unwrap();
        let mut command = [0; 6];
        through.upstream.read_exact(&mut command).unwrap();
        assert_eq!(&command, b"QUIT\r\n", "{engine:?}");
    }
}

#[test]
fn both_may_close_at_once() {
    for engine in Engine::ALL {
        for _ in 0..20 {
            let Through {
                proxy,
                mut client,
                mut upstream,
            } = Through::start(engine, &[]);
            let ends = [Side::Client, Side::Upstream].map(|side| {
                let stream = match side {
                    Side::Client => &mut client,
                    Side::Upstream => &mut upstream,
                };
                let mut stream = stream.try_clone().unwrap();
                thread::spawn(move || {
                    stream.write_all(b"bye").unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                    read_all(stream)
                })
            });
            for end in ends {
                assert_eq!(end.join().unwrap(), b"bye", "{engine:?}");
            }
            let closed = proxy.closed();
            let reason = field(&closed, "reason");
            assert!(
                ["client-closed", "server-closed"].contains(&reason),
                "{engine:?}: {closed}"
            );
            assert_eq!(field(&closed, "sent"), "3", "{engine:?}");
            assert_eq!(field(&closed, "received"), "3", "{engine:?}");
        }
    }
}

#[test]
fn a_client_that_closes_without_a_word_ends_the_session() {
    for engine in Engine::ALL {
        let Through {
            proxy,
            client,
            upstream,
        } = Through::start(engine, &[]);
        drop(client);
        assert_eq!(read_all(&upstream), b"", "{engine:?}");
        drop(upstream);
        let closed = proxy.closed();
        assert_eq!(field(&closed, "reason"), "client-closed", "{engine:?}");
        assert_eq!(field(&closed, "sent"), "0", "{engine:?}");
        assert_eq!(field(&closed, "received"), "0", "{engine:?}");
    }
}

/// Fails if the session does anything for a while.
fn assert_sleeps(through: &Through, when: &str) {
    let session = through.session();
    // What it was woken up for last is done within this time.
    thread::sleep(Duration::from_millis(300));
    let before = (context_switches(session), cpu_time(session));
    thread::sleep(Duration::from_millis(1000));
    let switches = context_switches(session) - before.0;
    let cpu = cpu_time(session) - before.1;
    assert!(
        switches <= 2 && cpu <= Duration::from_millis(10),
        "{when}: {switches} context switches, {cpu:?} of processor time"
    );
}

#[test]
fn a_session_in_which_nobody_says_anything_sleeps() {
    Engine::each(|engine| {
        let through = Through::start(engine, &[]);
        assert_sleeps(&through, &format!("{engine:?}: open"));
        through.client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&through.upstream), b"");
        assert_sleeps(&through, &format!("{engine:?}: half-closed by the client"));
        let through = Through::start(engine, &[]);
        through.upstream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&through.client), b"");
        assert_sleeps(&through, &format!("{engine:?}: half-closed by the server"));
    });
}

#[test]
fn a_reply_arrives_whole_from_a_server_that_closes_before_it_has_read_everything() {
    for engine in Engine::ALL {
        // Whether what it leaves unread makes its close a reset or not.
        for reads in [false, true] {
            let Through {
                proxy,
                client,
                mut upstream,
            } = Through::start(engine, &[]);
            let mut sending = client.try_clone().unwrap();
            let sender = thread::spawn(move || {
                // Until there is nobody to send to any more.
                while sending.write_all(&[b'x'; 65_536]).is_ok() {}
            });
            let mut some = [0; 1000];
            upstream.read_exact(&mut some).unwrap();
            upstream.write_all(b"413 too large").unwrap();
            if reads {
                upstream.shutdown(Shutdown::Write).unwrap();
                upstream.read_exact(&mut [0; 100_000]).unwrap();
            }
            drop(upstream);
            let mut reply = [0; 13];
            (&client).read_exact(&mut reply).unwrap();
            assert_eq!(&reply, b"413 too large", "{engine:?} {reads}");
            sender.join().unwrap();
            let closed = proxy.closed();
            assert_eq!(field(&closed, "received"), "13", "{engine:?} {reads}");
            assert_eq!(
                field(&closed, "reason"),
                "server-reset",
                "{engine:?} {reads}"
            );
        }
    }
}

#[test]
fn sigterm_ends_a_session_with_its_reason() {
    for engine in Engine::ALL {
        let through = Through::start(engine, &[]);
        nix::sys::signal::kill(through.session(), Signal::SIGTERM).unwrap();
        assert_eq!(read_to_ending(&through.client).0, b"");
        assert_eq!(read_to_ending(&through.upstream).0, b"");
        let closed = through.proxy.closed();
        assert_eq!(field(&closed, "reason"), "terminated", "{engine:?}");
    }
}

#[test]
fn sigterm_ends_a_session_under_inetd_with_status_0() {
    for engine in Engine::ALL {
        let scratch = Scratch::new();
        let log = format!("file:{}", scratch.join("log").display());
        let base = scratch.join("transcript");
        let upstream = Upstream::new(|stream| read_to_ending(&stream));
        let name = upstream.name();
        let mut arguments = vec!["--log", &log];
        if engine == Engine::Copy {
            arguments.extend(["-w", base.to_str().unwrap()]);
        }
        arguments.push(&name);
        let (mut client, mut child) = under_inetd(&arguments);
        client.write_all(b"x").unwrap();
        crate::harness::eventually("the session to open", || {
            let log = std::fs::read_to_string(scratch.join("log")).ok()?;
            log.contains(" opened: ").then_some(())
        });
        thread::sleep(Duration::from_millis(100));
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(child.id() as i32),
            Signal::SIGTERM,
        )
        .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{engine:?}");
        assert_eq!(read_to_ending(&client).0, b"", "{engine:?}");
        assert_eq!(upstream.result().0, b"x", "{engine:?}");
        let log = std::fs::read_to_string(scratch.join("log")).unwrap();
        assert!(log.contains(" reason=terminated\n"), "{log}");
    }
}

#[test]
fn a_unix_upstream_is_served_like_any_other() {
    for engine in Engine::ALL {
        let scratch = Scratch::new();
        let path = scratch.join("upstream.sock");
        let listener = UnixListener::bind(&path).unwrap();
        allow_everybody(&path);
        let name = format!("unix:{}", path.display());
        let proxy = Standalone::start_with(engine, &[&name]);
        // The client half-closes first.
        let mut client = proxy.connect();
        client.write_all(b"request").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut upstream = listener.accept().unwrap().0;
        assert_eq!(read_all(&upstream), b"request", "{engine:?}");
        upstream.write_all(b"reply").unwrap();
        drop(upstream);
        assert_eq!(read_all(&client), b"reply", "{engine:?}");
        let closed = proxy.process.log.wait_for("session 1 closed: ");
        assert_eq!(field(&closed, "reason"), "client-closed", "{engine:?}");
        assert_eq!(field(&closed, "server"), name, "{engine:?}");
        // The upstream half-closes first.
        let mut client = proxy.connect();
        let mut upstream = listener.accept().unwrap().0;
        upstream.write_all(b"banner").unwrap();
        upstream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&client), b"banner", "{engine:?}");
        client.write_all(b"answer").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&upstream), b"answer", "{engine:?}");
        let closed = proxy.process.log.wait_for("session 2 closed: ");
        assert_eq!(field(&closed, "reason"), "server-closed", "{engine:?}");
        // Much, both ways at once.
        let client = proxy.connect();
        let upstream = listener.accept().unwrap().0;
        let receiving = upstream.try_clone().unwrap();
        let there = thread::spawn(move || Noise::new(4).expect(receiving, 16 * MB));
        let sender = thread::spawn(move || Noise::new(5).send(&upstream, 16 * MB));
        let receiving = client.try_clone().unwrap();
        let back = thread::spawn(move || Noise::new(5).expect(receiving, 16 * MB));
        Noise::new(4).send(&client, 16 * MB);
        for thread in [there, sender, back] {
            thread.join().unwrap();
        }
    }
}

#[test]
fn a_unix_upstream_that_has_closed_costs_no_time_while_its_client_keeps_quiet() {
    Engine::each(|engine| {
        let scratch = Scratch::new();
        let path = scratch.join("upstream.sock");
        let listener = UnixListener::bind(&path).unwrap();
        allow_everybody(&path);
        let proxy = Standalone::start_with(engine, &[&format!("unix:{}", path.display())]);
        let client = proxy.connect();
        drop(listener.accept().unwrap());
        assert_eq!(read_all(&client), b"");
        let session = crate::harness::processes::only_child(proxy.process.pid());
        let before = (context_switches(session), cpu_time(session));
        thread::sleep(Duration::from_secs(1));
        let switches = context_switches(session) - before.0;
        let cpu = cpu_time(session) - before.1;
        assert!(
            switches <= 3 && cpu <= Duration::from_millis(10),
            "{engine:?}: {switches} context switches, {cpu:?}"
        );
        // What the client still says finds nobody.
        (&client).write_all(b"hello?").unwrap();
        let closed = proxy.closed();
        assert_eq!(field(&closed, "reason"), "server-reset", "{engine:?}");
    });
}

/// Sessions do not run as root: they may connect to the socket even so.
fn allow_everybody(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
}

#[test]
fn both_sides_are_kept_alive_and_small_messages_are_not_held_back() {
    for engine in Engine::ALL {
        let mut through = Through::start(engine, &[]);
        through.client.write_all(b"x").unwrap();
        through.upstream.read_exact(&mut [0]).unwrap();
        let session = through.session();
        let mut seen = 0;
        for number in descriptors_of_kind(session, "socket") {
            let socket = borrow_descriptor(session, number);
            // The log's socket is not TCP's.
            let Ok(no_delay) = getsockopt(&socket, TcpNoDelay) else {
                continue;
            };
            assert!(
                no_delay,
                "{engine:?}: descriptor {number} holds messages back"
            );
            assert!(
                getsockopt(&socket, KeepAlive).unwrap(),
                "{engine:?}: descriptor {number} is not kept alive"
            );
            seen += 1;
        }
        assert_eq!(seen, 2, "{engine:?}: sockets of the session");
    }
}

#[test]
fn silent_peers_are_asked_when_they_are_to_be_and_never_if_not() {
    for (arguments, asked, after) in [
        (&["--keepalive", "61"][..], true, Some(61)),
        (&["--keepalive", "0"], false, None),
    ] {
        let mut through = Through::start(Engine::Adaptive, arguments);
        through.client.write_all(b"x").unwrap();
        through.upstream.read_exact(&mut [0]).unwrap();
        let session = through.session();
        let mut seen = 0;
        for number in descriptors_of_kind(session, "socket") {
            let socket = borrow_descriptor(session, number);
            // The log's socket is not TCP's.
            let Ok(idle) = getsockopt(&socket, TcpKeepIdle) else {
                continue;
            };
            assert_eq!(getsockopt(&socket, KeepAlive), Ok(asked), "{arguments:?}");
            assert!(after.is_none_or(|after| after == idle), "{idle}");
            seen += 1;
        }
        assert_eq!(seen, 2, "{arguments:?}");
    }
}

#[test]
fn what_nobody_listens_on_refuses_and_the_client_sees_an_end_without_a_byte() {
    let port = free_port();
    let proxy = Standalone::start(&[&format!("127.0.0.1:{port}")]);
    let client = proxy.connect();
    assert_eq!(read_to_ending(&client).0, b"");
    let closed = proxy.closed();
    assert_eq!(field(&closed, "reason"), "connect-refused");
    assert_eq!(field(&closed, "server"), format!("127.0.0.1:{port}"));
}

#[test]
fn an_idle_session_stays_under_300_kib_of_memory_of_its_own() {
    for engine in Engine::ALL {
        let mut through = Through::start(engine, &[]);
        through.client.write_all(b"x").unwrap();
        through.upstream.read_exact(&mut [0]).unwrap();
        let memory = crate::harness::processes::written_memory(through.session());
        assert!(memory < 300 << 10, "{engine:?}: {memory} bytes");
    }
}
