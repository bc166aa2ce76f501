//! Much data through the relay, under each engine: every byte compared, with buffers of every
//! size, many sessions at once, and where the system is short of what splicing needs.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use crate::harness::noise::Noise;
use crate::harness::peers::{Ending, Side, Through};
use crate::harness::processes::{descriptors_of_kind, written_memory};
use crate::harness::{
    Engine, Running, Standalone, field, many_descriptors, needs_root, patient, read_all,
};

const MB: u64 = 1 << 20;

#[test]
fn much_data_arrives_one_way() {
    for engine in Engine::ALL {
        for side in Side::ALL {
            let (proxy, near, far) = Through::start(engine, &[]).seen_from(side);
            let sender = thread::spawn(move || {
                Noise::new(7).send(&near, 64 * MB);
                near.shutdown(Shutdown::Write).unwrap();
                read_all(&near)
            });
            assert_eq!(
                Noise::new(7).expect_until_end(&far),
                (64 * MB, Ending::Clean),
                "{engine:?} from {side:?}"
            );
            drop(far);
            assert_eq!(sender.join().unwrap(), b"");
            let closed = proxy.closed();
            let (there, back, reason) = match side {
                Side::Client => ("sent", "received", "client-closed"),
                Side::Upstream => ("received", "sent", "server-closed"),
            };
            assert_eq!(field(&closed, there), (64 * MB).to_string(), "{engine:?}");
            assert_eq!(field(&closed, back), "0", "{engine:?}");
            assert_eq!(field(&closed, "reason"), reason, "{engine:?}");
        }
    }
}

/// Has both sides send this much at once, and compares every byte.
fn exchange(client: TcpStream, upstream: TcpStream, amount: u64) {
    let ends = [(client, 1, 2), (upstream, 2, 1)].map(|(stream, mine, theirs)| {
        let sending = stream.try_clone().unwrap();
        let sender = thread::spawn(move || {
            Noise::new(mine).send(&sending, amount);
            sending.shutdown(Shutdown::Write).unwrap();
        });
        let receiver = thread::spawn(move || Noise::new(theirs).expect_until_end(&stream));
        (sender, receiver)
    });
    for (sender, receiver) in ends {
        sender.join().unwrap();
        assert_eq!(receiver.join().unwrap(), (amount, Ending::Clean));
    }
}

#[test]
fn two_hundred_megabytes_arrive_both_ways_at_once() {
    for engine in Engine::ALL {
        let Through {
            proxy,
            client,
            upstream,
        } = Through::start(engine, &[]);
        exchange(client, upstream, 200 * MB);
        let closed = proxy.closed();
        assert_eq!(field(&closed, "sent"), (200 * MB).to_string(), "{engine:?}");
        assert_eq!(
            field(&closed, "received"),
            (200 * MB).to_string(),
            "{engine:?}"
        );
    }
}

#[test]
fn buffers_of_every_size_deliver_everything() {
    for engine in Engine::ALL {
        for (size, amount) in [
            ("256", MB),
            ("4097", 4 * MB),
            ("64k", 8 * MB),
            ("1m", 8 * MB),
            ("64m", 8 * MB),
        ] {
            let Through {
                proxy,
                client,
                upstream,
            } = Through::start(engine, &["--buffer-size", size]);
            exchange(client, upstream, amount);
            let closed = proxy.closed();
            assert_eq!(
                field(&closed, "sent"),
                amount.to_string(),
                "{engine:?} {size}"
            );
        }
    }
}

#[test]
fn a_large_reply_arrives_whole_from_a_server_that_closes_at_once() {
    for engine in Engine::ALL {
        let Through {
            proxy,
            mut client,
            upstream,
        } = Through::start(engine, &[]);
        client.write_all(b"GET").unwrap();
        let server = thread::spawn(move || {
            (&upstream).read_exact(&mut [0; 3]).unwrap();
            Noise::new(3).send(&upstream, 16 * MB);
            // Dropped: closed both ways, with data still queued.
        });
        thread::sleep(Duration::from_millis(200));
        assert_eq!(
            Noise::new(3).expect_until_end(&client),
            (16 * MB, Ending::Clean),
            "{engine:?}"
        );
        server.join().unwrap();
        drop(client);
        assert_eq!(
            field(&proxy.closed(), "reason"),
            "server-closed",
            "{engine:?}"
        );
    }
}

#[test]
fn many_sessions_at_once_do_not_mix_their_bytes() {
    for engine in Engine::ALL {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Standalone::start_with(engine, &[&listener.local_addr().unwrap().to_string()]);
        let server = thread::spawn(move || {
            let echoes: Vec<_> = (0..20)
                .map(|_| {
                    let stream = patient(listener.accept().unwrap().0);
                    thread::spawn(move || {
                        std::io::copy(&mut &stream, &mut &stream).unwrap();
                    })
                })
                .collect();
            for echo in echoes {
                echo.join().unwrap();
            }
        });
        let clients: Vec<_> = (0..20)
            .map(|seed| {
                let stream = proxy.connect();
                thread::spawn(move || {
                    let sending = stream.try_clone().unwrap();
                    let sender = thread::spawn(move || {
                        Noise::new(seed).send(&sending, MB);
                        sending.shutdown(Shutdown::Write).unwrap();
                    });
                    let got = Noise::new(seed).expect_until_end(&stream);
                    sender.join().unwrap();
                    got
                })
            })
            .collect();
        for client in clients {
            assert_eq!(client.join().unwrap(), (MB, Ending::Clean), "{engine:?}");
        }
        server.join().unwrap();
    }
}

#[test]
fn a_session_without_descriptors_for_pipes_delivers_everything_even_so() {
    // 0, 1, 2 and the upstream, and then none, one or three of the four that two pipes need. What the
    // tests were started with is closed: they may have inherited a descriptor, as from flock(1).
    for limit in [4, 5, 7] {
        let upstreams = TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, accepted) = crate::harness::socket_pair();
        let script = format!(
            "exec 3>&- 4>&- 5>&- 6>&-; ulimit -n {limit}; exec {} --log stderr {}",
            crate::harness::TCPPROXY,
            upstreams.local_addr().unwrap()
        );
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .stdin(Stdio::from(OwnedFd::from(accepted)));
        let mut session = Running::start(&mut command);
        drop(command);
        let upstream = patient(upstreams.accept().unwrap().0);
        exchange(client, upstream, 4 * MB);
        assert_eq!(session.status().code(), Some(0), "{limit} descriptors");
        let closed = session.log.wait_for(" closed: ");
        assert_eq!(field(&closed, "sent"), (4 * MB).to_string());
    }
}

/// Pipes of an unprivileged user, so many that it gets no large ones any more: past 64 MiB
/// (pipe-user-pages-soft, pipe(7)) its new ones have two slots, and do not grow.
fn exhaust_pipes(uid: u32) -> Vec<OwnedFd> {
    let thread = thread::spawn(move || {
        // SAFETY: the call takes three integers. Made directly, it changes this thread alone.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        let mut pipes = Vec::new();
        loop {
            let (out_of, into) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let grown = fcntl(&into, FcntlArg::F_SETPIPE_SZ(1 << 20));
            pipes.extend([out_of, into]);
            if grown.is_err() {
                return pipes;
            }
            assert!(pipes.len() < 1000, "pipes are not scarce here");
        }
    });
    thread.join().unwrap()
}

#[test]
fn where_pipes_are_scarce_bulk_data_is_copied_in_large_pieces() {
    needs_root();
    many_descriptors();
    let uid = 54_321;
    let _pipes = exhaust_pipes(uid);
    let through = Through::start(Engine::Adaptive, &["-u", &uid.to_string()]);
    let session = through.session();
    let before = written_memory(session);
    let own = descriptors_of_kind(through.proxy.process.pid(), "pipe").len();
    let Through {
        proxy,
        client,
        upstream,
    } = through;
    let receiving = upstream.try_clone().unwrap();
    let receiver = thread::spawn(move || Noise::new(1).expect(receiving, 64 * MB));
    let mut noise = Noise::new(1);
    noise.send(&client, 64 * MB);
    receiver.join().unwrap();
    // A two-slot pipe would be slower than any copy. It has none, and a buffer that has grown.
    let pipes = descriptors_of_kind(session, "pipe").len() - own;
    let grown = written_memory(session).saturating_sub(before);
    assert_eq!(pipes, 0);
    assert!(grown >= 256 << 10, "{grown} bytes more than at the start");
    exchange(client, upstream, 8 * MB);
    assert_eq!(field(&proxy.closed(), "sent"), (72 * MB).to_string());
}

#[test]
fn five_hundred_sessions_of_one_user_all_deliver() {
    many_descriptors();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = listener.local_addr().unwrap().to_string();
    // Of a user of its own, since what one session takes of the pipes others of that user lack.
    let proxy = Standalone::start(&["--max-sessions", "0", "-u", "54322", &name]);
    let ends: Vec<_> = (0..500)
        .map(|_| (proxy.connect(), patient(listener.accept().unwrap().0)))
        .collect();
    // Each has so much at once that it asks for a pipe, twice; there are 64 of that size.
    for round in 0..2 {
        for (client, _) in &ends {
            Noise::new(round).send(client, 300_000);
        }
        for (_, upstream) in &ends {
            Noise::new(round).expect(upstream, 300_000);
        }
    }
    let (client, upstream) = ends.into_iter().next_back().unwrap();
    exchange(client, upstream, 8 * MB);
}
