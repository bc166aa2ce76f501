//! Much data through the relay, under each engine: every byte compared, with buffers of every
//! size, many sessions at once, and where the system is short of what splicing needs.

mod harness;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use harness::peers::{Ending, Noise, Side, Through};
use harness::{Engine, Running, Standalone, field, patient, read_all};

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
    // 0, 1, 2 and the upstream, and then none, one or three of the four that two pipes need.
    for limit in [4, 5, 7] {
        let upstreams = TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, accepted) = harness::socket_pair();
        let script = format!(
            "ulimit -n {limit}; exec {} --log stderr {}",
            harness::TCPPROXY,
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

#[test]
fn a_session_among_so_many_that_pipes_are_scarce_delivers_everything() {
    // Past 64 MiB of pipes (pipe-user-pages-soft, pipe(7)), a user's new ones have two slots.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = listener.local_addr().unwrap().to_string();
    let proxy = Standalone::start(&["--max-sessions", "0", &name]);
    let others: Vec<_> = (0..600)
        .map(|_| {
            let mut client = proxy.connect();
            client.write_all(b"x").unwrap();
            let mut upstream = patient(listener.accept().unwrap().0);
            // Its pipes are there when this has come through.
            upstream.read_exact(&mut [0]).unwrap();
            (client, upstream)
        })
        .collect();
    for _ in 0..3 {
        let client = proxy.connect();
        let upstream = patient(listener.accept().unwrap().0);
        exchange(client, upstream, 8 * MB);
    }
    let (mut client, mut upstream) = others.into_iter().next_back().unwrap();
    client.write_all(b"still here").unwrap();
    upstream.read_exact(&mut [0; 10]).unwrap();
}
