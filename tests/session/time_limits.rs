//! Limits on time, each with its own reason in the log.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::peers::{
    Side, Through, assert_echoes, assert_sigterm_ends, read_to_ending, reset,
};
use crate::harness::processes::{cpu_time, only_child};
use crate::harness::upstreams::{BlackHole, Forbidden, echo};
use crate::harness::{
    Engine, Scratch, Standalone, end_of, eventually, field, free_port, patient, under_inetd,
};

/// Fails unless so many milliseconds have passed since then, and not many more.
fn assert_took(start: Instant, milliseconds: u64, what: &str) {
    let took = start.elapsed();
    let least = Duration::from_millis(milliseconds.saturating_sub(30));
    assert!(took >= least, "{what}: only {took:?}");
    let most = Duration::from_millis(milliseconds + 1_500);
    assert!(took <= most, "{what}: {took:?}");
}

/// Accepts a connection that comes in time.
fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let (stream, _) = eventually("a connection", || listener.accept().ok());
    stream.set_nonblocking(false).unwrap();
    patient(stream)
}

/// Sends a byte every 50 ms from one end to the other for so long.
fn trickle(mut from: &TcpStream, mut to: &TcpStream, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        from.write_all(b"x").unwrap();
        to.read_exact(&mut [0; 1]).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn one_side_that_has_ended_leaves_the_other_so_long_in_silence() {
    Engine::each(|engine| {
        for side in [Side::Client, Side::Upstream] {
            let through = Through::start(engine, &["--half-close-timeout", "400ms", "-t", "60"]);
            let (proxy, ends, goes_on) = through.seen_from(side);
            ends.shutdown(Shutdown::Write).unwrap();
            assert_eq!((&goes_on).read(&mut [0; 1]).unwrap(), 0);
            // Bytes keep it going, well beyond the time.
            trickle(&goes_on, &ends, Duration::from_millis(900));
            let start = Instant::now();
            assert_eq!(read_to_ending(&ends).0, b"", "{side:?}");
            assert_took(start, 350, "half-closed");
            let closed = proxy.closed();
            assert_eq!(field(&closed, "reason"), "half-close-timeout", "{closed}");
        }
    });
}

#[test]
fn the_half_close_timeout_does_not_concern_sessions_with_both_sides_open() {
    let through = Through::start(Engine::Adaptive, &["--half-close-timeout", "100ms"]);
    thread::sleep(Duration::from_millis(500));
    trickle(
        &through.client,
        &through.upstream,
        Duration::from_millis(60),
    );
    trickle(
        &through.upstream,
        &through.client,
        Duration::from_millis(60),
    );
}

#[test]
fn a_half_close_timeout_of_0_ends_the_other_side_at_once() {
    let through = Through::start(Engine::Adaptive, &["--half-close-timeout", "0"]);
    through.client.shutdown(Shutdown::Write).unwrap();
    let start = Instant::now();
    assert_eq!(read_to_ending(&through.client).0, b"");
    assert!(start.elapsed() < Duration::from_secs(1));
    let closed = through.proxy.closed();
    assert_eq!(field(&closed, "reason"), "half-close-timeout");
}

#[test]
fn the_idle_timeout_is_that_of_half_closed_sessions_too() {
    let through = Through::start(Engine::Adaptive, &["-t", "300ms"]);
    through.client.shutdown(Shutdown::Write).unwrap();
    let start = Instant::now();
    assert_eq!(read_to_ending(&through.client).0, b"");
    assert_took(start, 300, "idle");
    let closed = through.proxy.closed();
    assert_eq!(field(&closed, "reason"), "idle-timeout");
}

#[test]
fn every_unit_of_time_is_as_long_as_its_name_says() {
    for (time, expected) in [("250ms", 250), ("1", 1_000), ("1s", 1_000)] {
        let start = Instant::now();
        let proxy = Standalone::start(&["-t", time, &echo().to_string()]);
        assert_eq!(read_to_ending(&proxy.connect()).0, b"");
        assert_took(start, expected, time);
        assert_eq!(field(&proxy.closed(), "reason"), "idle-timeout");
    }
    // These are longer than anybody waits here.
    for time in ["1m", "1h"] {
        let proxy = Standalone::start(&["-t", time, "--max-duration", time, &echo().to_string()]);
        let client = proxy.connect();
        assert_echoes(&client);
        thread::sleep(Duration::from_millis(300));
        assert_echoes(&client);
    }
}

#[test]
fn an_idle_session_ends_after_its_longest_duration() {
    let start = Instant::now();
    let proxy = Standalone::start(&["--max-duration", "500ms", "-t", "0", &echo().to_string()]);
    let client = proxy.connect();
    assert_echoes(&client);
    assert_eq!(read_to_ending(&client).0, b"");
    assert_took(start, 500, "max-duration");
    let closed = proxy.closed();
    assert_eq!(field(&closed, "reason"), "max-duration");
    assert_eq!(field(&closed, "sent"), "5");
}

#[test]
fn a_session_that_is_busy_both_ways_ends_after_its_longest_duration() {
    Engine::each(|engine| {
        let upstream = echo().to_string();
        let proxy = Standalone::start_with(engine, &["--max-duration", "700ms", &upstream]);
        let client = proxy.connect();
        let start = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                let block = [7; 65_536];
                while (&client).write_all(&block).is_ok() {}
            });
            let mut block = [0; 65_536];
            while matches!((&client).read(&mut block), Ok(1..)) {}
            // Its sender may be waiting for room.
            let _ = client.shutdown(Shutdown::Both);
        });
        assert_took(start, 700, "busy");
        let closed = proxy.closed();
        assert_eq!(field(&closed, "reason"), "max-duration", "{engine:?}");
        let sent: u64 = field(&closed, "sent").parse().unwrap();
        assert!(sent > 1_000_000, "{closed}");
    });
}

#[test]
fn a_session_that_is_still_connecting_ends_after_its_longest_duration() {
    let hole = BlackHole::at((Ipv4Addr::LOCALHOST, 0));
    let name = hole.address().to_string();
    let proxy = Standalone::start(&["--max-duration", "400ms", &name]);
    let start = Instant::now();
    assert_eq!(read_to_ending(&proxy.connect()).0, b"");
    assert_took(start, 400, "connecting");
    assert_eq!(field(&proxy.closed(), "reason"), "max-duration");
    // As does one whose upstream refuses, and is tried again and again.
    let name = format!("127.0.0.1:{}", free_port());
    let proxy = Standalone::start(&["--max-duration", "400ms", "--connect-retry", "60", &name]);
    let start = Instant::now();
    assert_eq!(read_to_ending(&proxy.connect()).0, b"");
    assert_took(start, 400, "retrying");
    assert_eq!(field(&proxy.closed(), "reason"), "max-duration");
}

#[test]
fn a_session_whose_access_program_is_asked_ends_after_its_longest_duration() {
    let scratch = Scratch::new();
    let program = scratch.script("acp", "exec sleep 30");
    let upstream = Forbidden::new();
    let acp = program.to_str().unwrap();
    let proxy = Standalone::start(&["--max-duration", "400ms", "-a", acp, &upstream.name()]);
    let start = Instant::now();
    assert_eq!(read_to_ending(&proxy.connect()).0, b"");
    assert_took(start, 400, "access program");
    assert_eq!(field(&proxy.closed(), "reason"), "max-duration");
    upstream.assert_untouched();
}

#[test]
fn a_handler_ends_after_its_longest_duration() {
    let proxy = Standalone::start(&["--max-duration", "400ms", "/bin/cat"]);
    let client = proxy.connect();
    let start = Instant::now();
    assert_echoes(&client);
    let session = only_child(proxy.process.pid());
    let handler = only_child(session);
    assert_eq!(read_to_ending(&client).0, b"");
    assert_took(start, 400, "handler");
    assert_eq!(field(&proxy.closed(), "reason"), "max-duration");
    eventually("the handler to end", || {
        (!crate::harness::processes::is_alive(handler)).then_some(())
    });
}

#[test]
fn a_handler_under_inetd_is_sent_sigalrm_after_its_longest_duration() {
    let arguments = ["--log", "syslog", "--max-duration", "400ms", "/bin/cat"];
    let (client, mut child) = under_inetd(&arguments);
    let start = Instant::now();
    assert_echoes(&client);
    assert_eq!(read_to_ending(&client).0, b"");
    assert_took(start, 400, "handler");
    assert_eq!(end_of(&mut child).signal(), Some(Signal::SIGALRM as i32));
}

#[test]
fn a_session_under_inetd_ends_after_its_longest_duration() {
    let scratch = Scratch::new();
    let log = scratch.join("log");
    let target = format!("file:{}", log.display());
    let arguments = [
        "--log",
        &target,
        "--max-duration",
        "400ms",
        &echo().to_string(),
    ];
    let (client, mut child) = under_inetd(&arguments);
    assert_echoes(&client);
    assert_eq!(read_to_ending(&client).0, b"");
    assert_eq!(end_of(&mut child).code(), Some(0));
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains(" reason=max-duration"), "{text}");
}

#[test]
fn an_upstream_that_is_about_to_start_is_waited_for() {
    let port = free_port();
    let name = format!("127.0.0.1:{port}");
    let proxy = Standalone::start(&["--connect-retry", "15", &name]);
    let client = proxy.connect();
    let line = proxy.process.log.wait_for("Connection refused");
    assert!(line.contains(&name), "{line}");
    thread::sleep(Duration::from_millis(500));
    let session = only_child(proxy.process.pid());
    assert!(cpu_time(session) <= Duration::from_millis(50));
    let listener = TcpListener::bind(&name).unwrap();
    let upstream = accept(&listener);
    (&client).write_all(b"x").unwrap();
    (&upstream).read_exact(&mut [0; 1]).unwrap();
    drop((upstream, client));
    let closed = proxy.closed();
    assert_eq!(field(&closed, "server"), name);
    assert_eq!(field(&closed, "sent"), "1");
    // The same refusal again and again is told once.
    let all = proxy.process.log.all();
    let refusals = all
        .iter()
        .filter(|line| line.contains("Connection refused"));
    assert_eq!(refusals.count(), 1, "{all:#?}");
}

#[test]
fn a_unix_socket_that_is_not_there_yet_is_waited_for() {
    let scratch = Scratch::new();
    let path = scratch.join("socket");
    let name = format!("unix:{}", path.display());
    let proxy = Standalone::start(&["--connect-retry", "15", &name]);
    let client = proxy.connect();
    proxy.process.log.wait_for("session 1: ");
    // First a socket without a listener, as a crash leaves it, then one with. Each is in its place
    // when everybody may connect to it.
    let bind = || {
        let new = scratch.join("new");
        let listener = UnixListener::bind(&new).unwrap();
        fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        fs::rename(&new, &path).unwrap();
        listener
    };
    drop(bind());
    thread::sleep(Duration::from_millis(250));
    let listener = bind();
    listener.set_nonblocking(true).unwrap();
    let (mut upstream, _) = eventually("the session", || listener.accept().ok());
    upstream.set_nonblocking(false).unwrap();
    (&client).write_all(b"x").unwrap();
    upstream.read_exact(&mut [0; 1]).unwrap();
}

#[test]
fn an_upstream_that_does_not_start_in_time_has_refused() {
    let name = format!("127.0.0.1:{}", free_port());
    let proxy = Standalone::start(&["--connect-retry", "500ms", &name]);
    let start = Instant::now();
    assert_eq!(read_to_ending(&proxy.connect()).0, b"");
    assert_took(start, 500, "connect-retry");
    assert_eq!(field(&proxy.closed(), "reason"), "connect-refused");
    // Without that, there is no wait.
    let proxy = Standalone::start(&[&name]);
    let start = Instant::now();
    assert_eq!(read_to_ending(&proxy.connect()).0, b"");
    assert!(start.elapsed() < Duration::from_millis(400));
}

#[test]
fn a_client_that_gives_up_while_its_upstream_is_waited_for_ends_the_session() {
    let name = format!("127.0.0.1:{}", free_port());
    let proxy = Standalone::start(&["--connect-retry", "60", &name]);
    let client = proxy.connect();
    proxy.process.log.wait_for("Connection refused");
    let start = Instant::now();
    reset(client);
    assert_eq!(field(&proxy.closed(), "reason"), "client-reset");
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn sigterm_ends_a_session_whose_upstream_is_waited_for() {
    let name = format!("127.0.0.1:{}", free_port());
    let proxy = Standalone::start(&["--connect-retry", "60", &name]);
    let client = proxy.connect();
    proxy.process.log.wait_for("Connection refused");
    assert_sigterm_ends(proxy, &client);
}

#[test]
fn several_upstreams_are_tried_in_turn_until_one_has_started() {
    use crate::harness::clients::connect;
    use crate::harness::reloading::Reloadable;
    let [port, one, two] = [free_port(), free_port(), free_port()];
    let text = format!(
        "connect-retry 15\nport {port}\ninterface 127.0.0.1\n\
         server 127.0.0.1:{one}\nserver 127.0.0.1:{two}\n"
    );
    let server = Reloadable::start(&text, &[]);
    let client = connect(port);
    server.process.log.wait_for_count("Connection refused", 2);
    let listener = TcpListener::bind(("127.0.0.1", two)).unwrap();
    let upstream = accept(&listener);
    (&upstream).write_all(b"x").unwrap();
    (&client).read_exact(&mut [0; 1]).unwrap();
    drop((client, upstream));
    let closed = server.process.log.wait_for(" closed: ");
    assert_eq!(field(&closed, "server"), format!("127.0.0.1:{two}"));
}

#[test]
fn a_server_whose_lifetime_is_over_ends_as_if_asked_to() {
    let start = Instant::now();
    let mut proxy = Standalone::start(&["--lifetime", "700ms", &echo().to_string()]);
    let client = proxy.connect();
    assert_echoes(&client);
    assert_eq!(proxy.process.status().code(), Some(0));
    assert_took(start, 700, "lifetime");
    assert_eq!(field(&proxy.closed(), "reason"), "terminated");
    assert_eq!(read_to_ending(&client).0, b"");
    let all = proxy.process.log.all().join("\n");
    assert!(
        all.contains("the server's lifetime is over: ending"),
        "{all}"
    );
}
