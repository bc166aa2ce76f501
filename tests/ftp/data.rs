//! Data connections: they are relayed as sessions are, and end with theirs, but not too soon.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::noise::Noise;
use crate::harness::peers::reset;
use crate::harness::{PATIENCE, field, patient, read_all};
use crate::session::Session;

const MUCH: u64 = 30_000_000;

#[test]
fn much_arrives_whole_both_ways() {
    let mut session = Session::start(&[]);
    let (client, server) = session.passive_data();
    for (from, to, seed) in [(&client, &server, 1), (&server, &client, 2)] {
        let sender = from.try_clone().unwrap();
        let writer = thread::spawn(move || {
            Noise::new(seed).send(&sender, MUCH);
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let (count, _) = Noise::new(seed).expect_until_end(to);
        assert_eq!(count, MUCH);
        writer.join().unwrap();
    }
    let line = session.data_line();
    let much = MUCH.to_string();
    assert_eq!(field(&line, "sent"), much);
    assert_eq!(field(&line, "received"), much);
}

#[test]
fn several_run_beside_each_other_and_beside_commands() {
    let mut session = Session::start(&[]);
    let pairs: Vec<(TcpStream, TcpStream)> = (0..5).map(|_| session.passive_data()).collect();
    for (number, (client, server)) in pairs.iter().enumerate() {
        (&*server).write_all(&[number as u8]).unwrap();
        let mut got = [9];
        std::io::Read::read_exact(&mut &*client, &mut got).unwrap();
        assert_eq!(got, [number as u8]);
        session.assert_goes_on();
    }
    drop(pairs);
    session.proxy.log.wait_for_count(" data: mode=passive", 5);
}

#[test]
fn there_are_16_at_once_and_no_more() {
    let mut session = Session::start(&[]);
    let _pairs: Vec<(TcpStream, TcpStream)> = (0..16).map(|_| session.passive_data()).collect();
    session.client.says("PASV\r\n");
    session.server.hears("PASV\r\n");
    session.server.says("227 (1,2,3,4,5,6)\r\n");
    session.client.hears_start("425 ");
    session.assert_goes_on();
}

#[test]
fn a_reset_of_one_half_resets_the_other() {
    for of_server in [false, true] {
        let mut session = Session::start(&[]);
        let (client, server) = session.passive_data();
        let (breaks, sees) = if of_server {
            (server, client)
        } else {
            (client, server)
        };
        reset(breaks);
        assert_eq!(
            sees.peek(&mut [0]).unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        let expected = if of_server {
            "server-reset"
        } else {
            "client-reset"
        };
        assert_eq!(field(&session.data_line(), "reason"), expected);
        session.assert_goes_on();
    }
}

#[test]
fn what_is_under_way_is_delivered_when_the_control_connection_ends() {
    for server_ends in [true, false] {
        let mut session = Session::start(&[]);
        let (client, server) = session.passive_data();
        let sender = thread::spawn(move || {
            Noise::new(3).send(&server, MUCH);
            drop(server);
        });
        // Everything is full before the end comes.
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.peek(&mut [0]).unwrap();
        if server_ends {
            drop(session.server);
            assert_eq!(read_all(session.client.into_stream()), b"");
        } else {
            drop(session.client);
            assert_eq!(read_all(session.server.into_stream()), b"");
        }
        // Longer than anything may be quiet that has nothing under way.
        thread::sleep(Duration::from_secs(3));
        let (count, _) = Noise::new(3).expect_until_end(&client);
        assert_eq!(count, MUCH);
        sender.join().unwrap();
        drop(client);
        let closed = session.proxy.log.wait_for(" closed: ");
        let expected = if server_ends {
            "server-closed"
        } else {
            "client-closed"
        };
        assert_eq!(field(&closed, "reason"), expected);
        let line = session.proxy.log.wait_for(" data: mode=");
        assert_eq!(field(&line, "received"), MUCH.to_string());
        assert_eq!(field(&line, "reason"), "server-closed");
    }
}

#[test]
fn a_data_connection_with_nothing_under_way_ends_with_the_control_connection() {
    let mut session = Session::start(&[]);
    let (client, server) = session.passive_data();
    drop(session.client);
    assert_eq!(read_all(session.server.into_stream()), b"");
    assert_eq!(read_all(client), b"");
    assert_eq!(read_all(server), b"");
    let line = session.proxy.log.wait_for(" data: mode=");
    assert_eq!(field(&line, "reason"), "client-closed");
    session.proxy.log.wait_for(" closed: ");
}

#[test]
fn a_listener_ends_with_the_control_connection() {
    let mut session = Session::start(&[]);
    let at = session.passive_at();
    drop((session.client, session.server));
    session.proxy.log.wait_for(" closed: ");
    assert!(TcpStream::connect(at).is_err());
}

#[test]
fn bytes_of_data_count_against_idleness() {
    let mut session = Session::start(&["-t", "1500ms"]);
    let (client, server) = session.passive_data();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        (&server).write_all(b"x").unwrap();
        std::io::Read::read_exact(&mut &client, &mut [0]).unwrap();
        thread::sleep(Duration::from_millis(100));
    }
    session.assert_goes_on();
    let closed = session.proxy.log.wait_for(" closed: ");
    assert_eq!(field(&closed, "reason"), "idle-timeout");
    assert_eq!(field(&session.data_line(), "reason"), "idle-timeout");
    assert_eq!(read_all(client), b"");
    assert_eq!(read_all(server), b"");
}

#[test]
fn the_half_close_timeout_holds_for_the_control_connection() {
    let session = Session::start(&["--half-close-timeout", "300ms"]);
    session.client.stream().shutdown(Shutdown::Write).unwrap();
    let closed = session.proxy.log.wait_for(" closed: ");
    assert_eq!(field(&closed, "reason"), "half-close-timeout");
}

#[test]
fn max_duration_and_sigterm_end_everything_at_once() {
    for (options, reason) in [
        (&["--max-duration", "2"][..], "max-duration"),
        (&[], "terminated"),
    ] {
        let mut session = Session::start(options);
        let (client, server) = session.passive_data();
        let at = session.passive_at();
        if options.is_empty() {
            let child = crate::harness::processes::only_child(session.proxy.pid());
            nix::sys::signal::kill(child, Signal::SIGTERM).unwrap();
        }
        let closed = session.proxy.log.wait_for(" closed: ");
        assert_eq!(field(&closed, "reason"), reason);
        assert_eq!(field(&session.data_line(), "reason"), reason);
        assert_eq!(read_all(client), b"");
        assert_eq!(read_all(server), b"");
        assert!(TcpStream::connect(at).is_err());
    }
}

#[test]
fn a_session_that_waits_for_data_sleeps() {
    let mut session = Session::start(&[]);
    let (client, server) = session.passive_data();
    let _waiting = session.passive_at();
    let child = crate::harness::processes::only_child(session.proxy.pid());
    crate::harness::processes::assert_quiet(child, "idle, with a listener");
    // One half has ended, and nobody goes on.
    drop(server);
    assert_eq!(read_all(&client), b"");
    crate::harness::processes::assert_quiet(child, "half closed");
    session.assert_goes_on();
    drop(patient(client));
}
