//! The control connection: lines in any shape arrive as they were said, and in their order.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;

use crate::harness::peers::send_urgent;
use crate::harness::{PATIENCE, field, patient, read_all};
use crate::session::{Session, named_in};

#[test]
fn lines_pass_as_they_are_whatever_is_in_them() {
    let mut session = Session::start(&[]);
    for line in [
        &b"USER a\r\n"[..],
        b"user \xe9\xff\xff\xf6\n",
        b"STOR a\rb\r\n",
        b"RETR PORT 1,2,3,4,5,6\r\n",
        b"\r\n",
        b"\n",
        b"\xff\xf4\xff\xf2ABOR\r\n",
        b"\0\x01\x02\x80\xfe\r\n",
        b"SITE PASV\r\n",
        b"no command at all: 227 (1,2,3,4,5,6)\r\n",
    ] {
        session.client.says(line);
        session.server.hears(line);
    }
    for line in [
        &b"150 once\n"[..],
        b"226-more\r\n",
        b"227 (1,2,3,4,5,6)\r\n",
        b"\xff\xfb\x01\xe9 any bytes \r \0\r\n",
        b"226 twice\r\n",
        b"500\r\n",
        b"no reply\r\n",
        b"\r\n",
    ] {
        session.server.says(line);
        session.client.hears(line);
    }
    session.assert_goes_on();
}

#[test]
fn single_bytes_and_several_lines_at_once_make_no_difference() {
    let mut session = Session::start(&[]);
    let [high, low] = session.data.local_addr().unwrap().port().to_be_bytes();
    let reply = format!("227 Entering Passive Mode (1,2,3,4,{high},{low})\r\n");
    let (_listener, place) = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let place = listener.local_addr().unwrap();
        (listener, place)
    };
    let [port_high, port_low] = place.port().to_be_bytes();
    let commands = format!(
        "NOOP\r\nPASV\r\nPORT 127,0,0,1,{port_high},{port_low}\r\nPORT 1,2,3,4,5,6\r\nQUIT\r\n"
    );
    let replies = format!("200-a\r\n227 text\r\n200 b\r\n{reply}200 port\r\n221 bye\r\n");
    for pieces in [1, 7, 10_000] {
        for piece in commands.as_bytes().chunks(pieces) {
            session.client.says(piece);
        }
        for line in ["NOOP\r\n", "PASV\r\n"] {
            session.server.hears(line);
        }
        let told = session.server.hears_start("PORT ");
        assert_ne!(named_in(&told), place);
        session.server.hears("QUIT\r\n");
        for piece in replies.as_bytes().chunks(pieces) {
            session.server.says(piece);
        }
        for line in ["200-a\r\n", "227 text\r\n", "200 b\r\n"] {
            session.client.hears(line);
        }
        assert_eq!(
            named_in(&session.client.hears_start("227 ")).ip(),
            session.address.ip()
        );
        session.client.hears("200 port\r\n");
        session.client.hears_start("501 ");
        session.client.hears("221 bye\r\n");
    }
}

#[test]
fn our_own_answers_keep_their_place() {
    let mut session = Session::start(&[]);
    session
        .client
        .says("NOOP\r\nPORT 1,2,3,4,5,6\r\nHELP\r\nEPSV 2\r\nEPSV 9\r\nSTAT\r\n");
    for line in ["NOOP\r\n", "HELP\r\n", "STAT\r\n"] {
        session.server.hears(line);
    }
    session.client.hears_nothing();
    session.server.says("200 noop\r\n");
    session.client.hears("200 noop\r\n");
    session.client.hears_start("501 ");
    session.server.says("214-help\r\n");
    session.client.hears("214-help\r\n");
    session.client.hears_nothing();
    session.server.says("214 end\r\n211 stat\r\n");
    session.client.hears("214 end\r\n");
    session.client.hears_start("522 ");
    session.client.hears_start("522 ");
    session.client.hears("211 stat\r\n");
}

#[test]
fn a_line_may_have_4096_bytes() {
    let mut session = Session::start(&[]);
    let line = [&[b'a'; 4094][..], b"\r\n"].concat();
    session.client.says(&line);
    session.server.hears(&line);
    let line = [b"200 ", &[b'a'; 4090][..], b"\r\n"].concat();
    session.server.says(&line);
    session.client.hears(&line);
    session.assert_goes_on();
}

#[test]
fn longer_lines_are_a_protocol_error() {
    for (length, of_server) in [
        (4097, false),
        (1 << 20, false),
        (4097, true),
        (1 << 20, true),
    ] {
        let session = Session::start(&[]);
        let (speaker, other) = if of_server {
            (session.server.into_stream(), session.client.into_stream())
        } else {
            (session.client.into_stream(), session.server.into_stream())
        };
        let writer = thread::spawn(move || {
            // It may be cut short by the end.
            let _ = (&speaker).write_all(&vec![b'a'; length]);
            speaker
        });
        let closed = session.proxy.log.wait_for(" closed: ");
        assert_eq!(field(&closed, "reason"), "protocol-error");
        let side = if of_server { "server" } else { "client" };
        let line = format!("a line of the {side}'s is longer than 4096 bytes");
        session.proxy.log.wait_for(&line);
        let mut got = Vec::new();
        // An end or a reset, and not a byte of it.
        let _ = (&other).read_to_end(&mut got);
        assert_eq!(got, b"");
        writer.join().unwrap();
    }
}

#[test]
fn a_million_short_lines_pass_with_the_memory_of_a_few() {
    let session = Session::start(&[]);
    let (client, server) = (session.client.into_stream(), session.server.into_stream());
    let lines = b"NOOP a b c\r\n".repeat(200_000);
    let said = lines.clone();
    let sender = client.try_clone().unwrap();
    let writer = thread::spawn(move || {
        (&sender).write_all(&said).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    assert!(read_all(&server) == lines);
    writer.join().unwrap();
    // The other direction is open still.
    let replies = b"200 ok\r\n".repeat(200_000);
    let said = replies.clone();
    let writer = thread::spawn(move || (&server).write_all(&said).unwrap());
    assert!(read_all(&client) == replies);
    writer.join().unwrap();
    let closed = session.proxy.log.wait_for(" closed: ");
    assert_eq!(field(&closed, "reason"), "client-closed");
    assert_eq!(field(&closed, "sent"), lines.len().to_string());
}

#[test]
fn what_comes_before_an_end_without_a_line_end_arrives() {
    let mut session = Session::start(&[]);
    session.client.says("QUIT");
    session.client.stream().shutdown(Shutdown::Write).unwrap();
    let mut server = session.server.into_stream();
    assert_eq!(read_all(&server), b"QUIT");
    server.write_all(b"221 bye").unwrap();
    drop(server);
    assert_eq!(read_all(session.client.into_stream()), b"221 bye");
    let closed = session.proxy.log.wait_for(" closed: ");
    assert_eq!(field(&closed, "reason"), "client-closed");
}

#[test]
fn resets_stay_resets() {
    for of_server in [false, true] {
        let session = Session::start(&[]);
        let (one, other) = (session.client.into_stream(), session.server.into_stream());
        let (breaks, sees) = if of_server {
            (other, one)
        } else {
            (one, other)
        };
        crate::harness::peers::reset(breaks);
        assert_eq!(
            sees.peek(&mut [0]).unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        let closed = session.proxy.log.wait_for(" closed: ");
        let expected = if of_server {
            "server-reset"
        } else {
            "client-reset"
        };
        assert_eq!(field(&closed, "reason"), expected);
    }
}

#[test]
fn abor_with_its_urgent_telnet_signals_arrives_in_line() {
    let mut session = Session::start(&[]);
    let (mut client_data, server_data) = session.passive_data();
    session.client.says("STOR a\r\n");
    session.server.hears("STOR a\r\n");
    session.server.says("150 go on\r\n");
    session.client.hears("150 go on\r\n");
    client_data.write_all(b"begun").unwrap();
    send_urgent(session.client.stream(), b"\xff\xf4\xff");
    session.client.says(b"\xf2ABOR\r\n");
    session.server.hears(b"\xff\xf4\xff\xf2ABOR\r\n");
    drop(server_data);
    session.server.says("426 aborted\r\n226 done\r\n");
    session.client.hears("426 aborted\r\n");
    session.client.hears("226 done\r\n");
    session.passive_data();
}

#[test]
fn a_server_that_has_no_reply_to_abor_does_not_keep_our_own_answers_back_for_ever() {
    let mut session = Session::start(&[]);
    session
        .client
        .says("RETR a\r\nABOR\r\nPORT 1,2,3,4,5,6\r\n");
    for line in ["RETR a\r\n", "ABOR\r\n"] {
        session.server.hears(line);
    }
    session.client.hears_start("501 ");
    session.assert_goes_on();
}

#[test]
fn behind_an_accepted_auth_everything_passes() {
    let mut session = Session::start(&[]);
    session.client.says("AUTH TLS\r\nPORT 1,2,3,4,5,6\r\n");
    session.server.hears("AUTH TLS\r\n");
    session.server.hears_nothing();
    session.server.says("234-well\r\n");
    session.server.says("234 go on\r\n227 (1,2,3,4,5,6)\r\n");
    for line in ["234-well\r\n", "234 go on\r\n", "227 (1,2,3,4,5,6)\r\n"] {
        session.client.hears(line);
    }
    session.server.hears("PORT 1,2,3,4,5,6\r\n");
    session.proxy.log.wait_for("AUTH was accepted: ");
    let (client, server) = (session.client.into_stream(), session.server.into_stream());
    for (from, to) in [(&client, &server), (&server, &client)] {
        let bytes: Vec<u8> = (0..2_000_000_u32).map(|n| (n * 7 / 8) as u8).collect();
        let (said, mut from) = (bytes.clone(), patient(from.try_clone().unwrap()));
        let writer = thread::spawn(move || from.write_all(&said).unwrap());
        let mut got = vec![0; bytes.len()];
        (&*to).read_exact(&mut got).unwrap();
        assert!(got == bytes);
        writer.join().unwrap();
    }
    drop(client);
    assert_eq!(read_all(&server), b"");
}

#[test]
fn behind_a_refused_auth_lines_are_read_on() {
    let mut session = Session::start(&[]);
    session.client.says("AUTH TLS\r\nPORT 1,2,3,4,5,6\r\n");
    session.server.hears("AUTH TLS\r\n");
    session.server.says("534 no\r\n");
    session.client.hears("534 no\r\n");
    session.client.hears_start("501 ");
    session.passive_data();
}

#[test]
fn a_transcript_has_the_control_connection_as_it_was_said_and_no_data() {
    let scratch = crate::harness::Scratch::new();
    let base = scratch.join("t");
    let mut session = Session::start(&["-w", base.to_str().unwrap()]);
    let (mut client, server) = session.passive_data();
    client.write_all(b"secret").unwrap();
    drop(client);
    assert_eq!(read_all(server), b"secret");
    drop((session.client, session.server));
    session.proxy.log.wait_for(" closed: ");
    let file = std::fs::read_dir(scratch.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let text = String::from_utf8(std::fs::read(file.path()).unwrap()).unwrap();
    // As the server said it.
    assert!(
        text.contains("\n227 Entering Passive Mode (198,51,100,7,"),
        "{text}"
    );
    assert!(
        text.contains("PASV\r\n") && !text.contains("secret"),
        "{text}"
    );
}

#[test]
fn a_client_without_an_address_is_served_without_data_connections() {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::process::Stdio;
    let control = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = control.local_addr().unwrap().to_string();
    let (client, accepted) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let arguments = ["--helper", "ftp", "--log", "stderr", &name];
    let mut command = crate::harness::launched_by(&[], &arguments);
    command
        .stdin(Stdio::from(OwnedFd::from(accepted)))
        .stdout(Stdio::null());
    let process = crate::harness::Running::start(&mut command);
    drop(command);
    let (mut server, _) = control.accept().unwrap();
    process.log.wait_for("a side has no IP address");
    server.write_all(b"227 (1,2,3,4,5,6)\r\n").unwrap();
    drop(server);
    assert_eq!(read_all(client), b"227 (1,2,3,4,5,6)\r\n");
}
