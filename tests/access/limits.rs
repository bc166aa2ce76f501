//! Limits on sessions, in a server of our own: how many at once, how many from one client, and how
//! often.

use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::harness::clients::{connect, connect_from};
use crate::harness::namespaces::{add_address, privately};
use crate::harness::peers::{assert_echoes, read_to_ending};
use crate::harness::processes::{children, cpu_time};
use crate::harness::reloading::Reloadable;
use crate::harness::upstreams::{Forbidden, echo};
use crate::harness::{Scratch, Standalone, eventually, field, free_port, needs_root, patient};

fn start(arguments: &[&str]) -> Standalone {
    let upstream = echo().to_string();
    Standalone::start(&[arguments, &[&upstream]].concat())
}

/// Connects, and is served.
fn served(proxy: &Standalone) -> TcpStream {
    let client = proxy.connect();
    assert_echoes(&client);
    client
}

/// Whether this client is served, rather than closed without a byte.
fn is_served(client: &TcpStream) -> bool {
    use std::io::Write;
    let mut client = client;
    // It may have been closed already.
    let _ = client.write_all(b"x");
    std::io::Read::read_exact(&mut client, &mut [0; 1]).is_ok()
}

/// Fails unless the session was refused for this reason, before it was opened.
fn assert_refused(proxy: &Standalone, session: u64, reason: &str) {
    let start = format!("session {session} ");
    let closed = proxy.process.log.wait_for(&format!("{start}closed: "));
    assert_eq!(field(&closed, "reason"), reason, "{closed}");
    assert_eq!(field(&closed, "server"), "-", "{closed}");
    let all = proxy.process.log.all();
    let lines = all.iter().filter(|line| line.contains(&start));
    assert_eq!(lines.count(), 1, "{all:#?}");
}

#[test]
fn a_client_too_many_waits_in_the_backlog_and_is_served_then() {
    for overflow in [&[][..], &["--overflow", "defer"]] {
        let proxy = start(&[&["--max-sessions", "2"], overflow].concat());
        let first = served(&proxy);
        let _second = served(&proxy);
        let waiting = proxy.connect();
        let short = Some(Duration::from_millis(300));
        waiting.set_read_timeout(short).unwrap();
        let before = cpu_time(proxy.process.pid());
        assert!(!is_served(&waiting));
        let cpu = cpu_time(proxy.process.pid()) - before;
        assert!(cpu <= Duration::from_millis(20), "{cpu:?} of waiting");
        assert_eq!(children(proxy.process.pid()).len(), 2);
        let patient = patient(waiting);
        drop(first);
        let mut back = [0; 1];
        std::io::Read::read_exact(&mut &patient, &mut back).unwrap();
        assert_eq!(&back, b"x");
        let opened = proxy.process.log.wait_for("session 3 opened: ");
        // Twice it had as many as may be; that is said once a minute.
        let said = "2 live, as many as --max-sessions allows: further clients wait";
        let lines = proxy.process.log.all();
        assert_eq!(lines.iter().filter(|line| line.contains(said)).count(), 1);
        let address = patient.local_addr().unwrap().to_string();
        assert_eq!(field(&opened, "client"), address);
    }
}

#[test]
fn a_client_too_many_is_dropped_at_once_where_that_was_asked_for() {
    let proxy = start(&["--max-sessions", "1", "--overflow", "drop"]);
    let first = served(&proxy);
    for session in 2..=4 {
        let start = Instant::now();
        assert_eq!(read_to_ending(&proxy.connect()).0, b"");
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_refused(&proxy, session, "too-many-sessions");
    }
    drop(first);
    proxy.process.log.wait_for("session 1 closed: ");
    eventually("a place", || is_served(&proxy.connect()).then_some(()));
}

#[test]
fn five_hundred_sessions_are_the_default_and_0_is_no_limit() {
    let proxy = start(&["--overflow", "drop", "--max-sessions", "500"]);
    let by_default = start(&["--overflow", "drop"]);
    let unlimited = start(&["--overflow", "drop", "--max-sessions", "0"]);
    for (proxy, extra) in [(&proxy, false), (&by_default, false), (&unlimited, true)] {
        let clients: Vec<TcpStream> = (0..500).map(|_| proxy.connect()).collect();
        clients.iter().for_each(assert_echoes);
        assert_eq!(is_served(&proxy.connect()), extra);
    }
}

#[test]
fn so_many_from_one_client_and_no_limit_for_others() {
    let proxy = start(&["--max-per-source", "2"]);
    let first = served(&proxy);
    let second = served(&proxy);
    assert_eq!(read_to_ending(&proxy.connect()).0, b"");
    assert_refused(&proxy, 3, "too-many-from-client");
    // A client is an address, whatever its port.
    let others = ["127.0.0.2", "127.0.0.2", "127.0.0.3"];
    let others = others.map(|source| connect_from(source, proxy.address));
    others.iter().for_each(assert_echoes);
    assert!(!is_served(&connect_from("127.0.0.2", proxy.address)));
    drop(first);
    proxy.process.log.wait_for("session 1 closed: ");
    eventually("a place", || is_served(&proxy.connect()).then_some(()));
    assert_echoes(&second);
}

#[test]
fn without_limits_a_client_may_have_many() {
    let proxy = start(&[]);
    let clients: Vec<TcpStream> = (0..60).map(|_| served(&proxy)).collect();
    clients.iter().for_each(assert_echoes);
}

#[test]
fn a_session_that_was_killed_frees_its_place() {
    let proxy = start(&["--max-per-source", "1", "--max-sessions", "1"]);
    for _ in 0..5 {
        let client = eventually("a place", || {
            let client = proxy.connect();
            is_served(&client).then_some(client)
        });
        let session = children(proxy.process.pid())[0];
        kill(session, Signal::SIGKILL).unwrap();
        assert_eq!(read_to_ending(&client).0, b"");
    }
}

#[test]
fn an_ipv6_client_is_its_64() {
    needs_root();
    privately(|| {
        for address in [
            "2001:db8::1/128",
            "2001:db8::ffff:1/128",
            "2001:db8:0:1::1/128",
        ] {
            add_address(address);
        }
        let proxy = start(&["-b", "[::]:0", "--max-per-source", "1"]);
        let listening = proxy.process.log.wait_for_count("listening on ", 2);
        let port = listening[1].rsplit(':').next().unwrap().parse().unwrap();
        let to = |host: &str| SocketAddr::new(host.parse().unwrap(), port);
        let first = connect_from("2001:db8::1", to("::1"));
        assert_echoes(&first);
        assert!(!is_served(&connect_from("2001:db8::ffff:1", to("::1"))));
        assert_echoes(&connect_from("2001:db8:0:1::1", to("::1")));
    });
}

#[test]
fn an_ipv4_client_of_an_ipv6_listener_is_its_ipv4_address() {
    let proxy = start(&["-b", "[::]:0", "--max-per-source", "1"]);
    let listening = proxy.process.log.wait_for_count("listening on ", 2);
    let port: u16 = listening[1].rsplit(':').next().unwrap().parse().unwrap();
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    let first = connect_from("127.0.0.2", to);
    assert_echoes(&first);
    // All mapped addresses share a /64, and are not one client.
    let other = connect_from("127.0.0.3", to);
    assert_echoes(&other);
    // The same client at the other listener.
    assert!(!is_served(&connect_from("127.0.0.2", proxy.address)));
}

#[test]
fn a_client_that_is_too_fast_is_refused_and_recovers_by_itself() {
    // A token in 500 ms, 3 of them at most.
    let proxy = start(&["--rate", "2/1:3"]);
    let start = Instant::now();
    for _ in 0..3 {
        served(&proxy);
    }
    assert!(!is_served(&proxy.connect()));
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "too slow a machine"
    );
    assert_refused(&proxy, 4, "too-fast-from-client");
    assert_echoes(&connect_from("127.0.0.2", proxy.address));
    // It tries on without a pause, which costs it nothing: the next token comes when it is due.
    let mut times = Vec::new();
    while times.len() < 3 {
        if is_served(&proxy.connect()) {
            times.push(start.elapsed());
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{times:?}");
    }
    for (index, time) in times.into_iter().enumerate() {
        let due = Duration::from_millis(500 * (index as u64 + 1));
        let late = time.checked_sub(due).expect("no token before its time");
        assert!(late < Duration::from_millis(400), "{index}: {late:?}");
    }
}

#[test]
fn a_burst_is_as_long_as_the_count_unless_it_is_said() {
    for (rate, burst) in [("5/1h", 5), ("1/1h:2", 2), ("5/1h:1", 1), ("1/60", 1)] {
        let proxy = start(&["--rate", rate]);
        for _ in 0..burst {
            served(&proxy);
        }
        assert!(!is_served(&proxy.connect()), "{rate}");
    }
}

#[test]
fn a_client_with_too_many_sessions_spends_no_token() {
    let proxy = start(&["--max-per-source", "1", "--rate", "1/1h:2"]);
    let first = served(&proxy);
    for session in 2..=6 {
        assert!(!is_served(&proxy.connect()));
        assert_refused(&proxy, session, "too-many-from-client");
    }
    drop(first);
    // The second token is still there, and there is no third.
    proxy.process.log.wait_for("session 1 closed: ");
    let second = eventually("a place", || {
        let client = proxy.connect();
        is_served(&client).then_some(client)
    });
    drop(second);
    eventually("the tokens to be what is missing", || {
        assert!(!is_served(&proxy.connect()));
        let all = proxy.process.log.all();
        let fast = |line: &String| line.contains("reason=too-fast-from-client");
        all.iter().any(fast).then_some(())
    });
}

#[test]
fn limits_come_before_rules_and_rules_before_programs() {
    let scratch = Scratch::new();
    let asked = scratch.join("asked");
    let program = scratch.script("acp", &format!("touch {}", asked.display()));
    let upstream = Forbidden::new();
    let proxy = Standalone::start(&[
        "--rate",
        "1/1h",
        "--deny",
        "127.0.0.1",
        "-a",
        program.to_str().unwrap(),
        &upstream.name(),
    ]);
    for reason in ["denied-by-rule", "too-fast-from-client"] {
        assert_eq!(read_to_ending(&proxy.connect()).0, b"");
        proxy.process.log.wait_for(&format!("reason={reason}"));
    }
    assert_refused(&proxy, 2, "too-fast-from-client");
    upstream.assert_untouched();
    assert!(!asked.exists());
}

#[test]
fn each_service_counts_for_itself_and_may_have_its_own_limits() {
    let (one, two, three) = (free_port(), free_port(), free_port());
    let forward = format!("interface 127.0.0.1\nserver {}", echo());
    let text = format!(
        "max-per-source 1\nport {one}\n{forward}\nport {two}\n{forward}\n\
         port {three}\nmax-per-source 2\n{forward}\n"
    );
    let server = Reloadable::start(&text, &[]);
    server.process.log.wait_for_count("listening on ", 3);
    let mut clients = Vec::new();
    for (port, most) in [(one, 1), (two, 1), (three, 2)] {
        for _ in 0..most {
            let client = connect(port);
            assert_echoes(&client);
            clients.push(client);
        }
        assert!(!is_served(&connect(port)), "{port}");
    }
}

#[test]
fn a_reload_changes_the_limits_and_remembers_the_sessions() {
    let port = free_port();
    let forward = format!("port {port}\ninterface 127.0.0.1\nserver {}\n", echo());
    let with = |most: usize| format!("max-per-source {most}\n{forward}");
    let mut server = Reloadable::start(&with(2), &[]);
    let clients = [connect(port), connect(port)];
    clients.iter().for_each(assert_echoes);
    assert!(!is_served(&connect(port)));
    server.change(&with(3));
    let third = connect(port);
    assert_echoes(&third);
    assert!(!is_served(&connect(port)));
    server.change(&with(1));
    assert!(!is_served(&connect(port)));
    clients.iter().for_each(assert_echoes);
    server.change(&format!("max-sessions 3\noverflow drop\n{forward}"));
    assert!(!is_served(&connect(port)));
    server.process.log.wait_for("reason=too-many-sessions");
    server.change(&forward);
    assert_echoes(&connect(port));
}

#[test]
fn a_reload_with_another_rate_does_not_leave_a_client_to_the_old_one() {
    let port = free_port();
    let forward = format!("port {port}\ninterface 127.0.0.1\nserver {}\n", echo());
    let mut server = Reloadable::start(&format!("rate 1/1h\n{forward}"), &[]);
    assert_echoes(&connect(port));
    assert!(!is_served(&connect(port)));
    server.change(&format!("rate 1/300ms\n{forward}"));
    let start = Instant::now();
    eventually("a token", || is_served(&connect(port)).then_some(()));
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn clients_of_a_unix_socket_are_not_counted_by_source() {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Stdio};
    let scratch = Scratch::new();
    let path = scratch.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut command = Command::new(crate::harness::TCPPROXY);
    command
        .args(["--log", "stderr", "--max-per-source", "1", "--rate", "1/1h"])
        .arg(echo().to_string())
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    let _server = crate::harness::Running::start(&mut command);
    let clients: Vec<UnixStream> = (0..5)
        .map(|_| {
            let mut client = UnixStream::connect(&path).unwrap();
            client
                .set_read_timeout(Some(crate::harness::PATIENCE))
                .unwrap();
            std::io::Write::write_all(&mut client, b"x").unwrap();
            std::io::Read::read_exact(&mut client, &mut [0; 1]).unwrap();
            client
        })
        .collect();
    assert_eq!(clients.len(), 5);
}

#[test]
fn signals_are_heard_while_clients_are_dropped_without_a_pause() {
    let mut proxy = start(&["--max-sessions", "1", "--overflow", "drop"]);
    let _first = served(&proxy);
    let address = proxy.address;
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    drop(TcpStream::connect(address));
                }
            });
        }
        proxy
            .process
            .log
            .wait_for_count("reason=too-many-sessions", 100);
        let start = Instant::now();
        proxy.process.signal(Signal::SIGTERM);
        let status = proxy.process.status();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(status.code(), Some(0));
        assert!(start.elapsed() < Duration::from_secs(3));
    });
}
