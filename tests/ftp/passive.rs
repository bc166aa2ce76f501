//! PASV and EPSV: the client connects to us, and we to the server.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::harness::clients::connect_from;
use crate::harness::{PATIENCE, eventually, field, free_port, patient, read_all};
use crate::session::{Session, named_in, port_in};

/// Whether nobody takes connections there any more.
fn is_closed(at: SocketAddr) -> bool {
    TcpStream::connect_timeout(&at, PATIENCE).is_err()
}

#[test]
fn a_227_names_us_and_its_data_goes_to_the_servers_own_address() {
    let mut session = Session::start(&[]);
    let at = session.passive_at();
    assert_eq!(at.ip(), session.address.ip());
    assert_ne!(at.port(), session.data.local_addr().unwrap().port());
    let mut client = patient(TcpStream::connect(at).unwrap());
    let (mut server, _) = session.data.accept().unwrap();
    // Both ways, and one end after the other.
    client.write_all(b"upload").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&server), b"upload");
    server.write_all(b"a reply").unwrap();
    drop(server);
    assert_eq!(read_all(&client), b"a reply");
    let line = session.data_line();
    assert_eq!(field(&line, "mode"), "passive");
    assert_eq!(
        field(&line, "client"),
        client.local_addr().unwrap().to_string()
    );
    let server = session.data.local_addr().unwrap();
    assert_eq!(field(&line, "server"), server.to_string());
    assert_eq!((field(&line, "sent"), field(&line, "received")), ("6", "7"));
    assert_eq!(field(&line, "reason"), "client-closed");
    assert!(field(&line, "duration").ends_with('s'), "{line}");
    // It was for one connection.
    assert!(is_closed(at));
    session.assert_goes_on();
}

#[test]
fn the_end_of_the_control_connection_counts_its_own_bytes() {
    let mut session = Session::start(&[]);
    let (_client, server) = session.passive_data();
    drop(server);
    session.client.says("QUIT\r\n");
    session.server.hears("QUIT\r\n");
    session.server.says("221 bye\r\n");
    session.client.hears("221 bye\r\n");
    drop(session.server);
    assert_eq!(read_all(session.client.into_stream()), b"");
    let closed = session.proxy.log.wait_for(" closed: ");
    assert_eq!(field(&closed, "sent"), "12");
    assert_eq!(field(&closed, "reason"), "server-closed");
}

#[test]
fn every_form_of_a_227_is_understood() {
    let mut session = Session::start(&[]);
    let port = session.data.local_addr().unwrap().port();
    let numbers = format!("0,0,0,0,{},{}", port >> 8, port & 0xff);
    for form in [
        "Entering Passive Mode (N)",
        "Entering Passive Mode. N",
        "=N",
        "ok [N].",
        "N",
    ] {
        session.client.says("pasv\r\n");
        session.server.hears("pasv\r\n");
        session
            .server
            .says(format!("227 {}\r\n", form.replace('N', &numbers)));
        let at = named_in(&session.client.hears_start("227 "));
        let client = TcpStream::connect(at).unwrap();
        let (mut server, _) = session.data.accept().unwrap();
        server.write_all(form.as_bytes()).unwrap();
        drop(server);
        assert_eq!(read_all(client), form.as_bytes());
    }
    session.client.says("PASV\r\n");
    session.server.hears("PASV\r\n");
    session.server.says("227 somewhere\r\n");
    session.client.hears_start("425 ");
    session.assert_goes_on();
}

#[test]
fn epsv_is_answered_by_a_port_of_ours() {
    let mut session = Session::start(&[]);
    for asks in ["EPSV", "EPSV 1", "epsv"] {
        let port = port_in(&session.passive(asks, asks));
        let client = TcpStream::connect((session.address.ip(), port)).unwrap();
        let (mut server, _) = session.data.accept().unwrap();
        server.write_all(b"data").unwrap();
        drop(server);
        assert_eq!(read_all(client), b"data", "{asks}");
    }
    session.client.says("EPSV 2\r\n");
    session
        .client
        .hears("522 Network protocol not supported, use (1)\r\n");
    session.client.says("EPSV ALL\r\n");
    session.server.hears("EPSV ALL\r\n");
}

#[test]
fn passive_commands_are_translated_between_the_families() {
    for (listens, serves, asks, heard) in [
        ("127.0.0.1", "::1", "PASV", "EPSV"),
        ("127.0.0.1", "::1", "EPSV", "EPSV"),
        ("::1", "127.0.0.1", "EPSV", "PASV"),
        ("::1", "127.0.0.1", "EPSV 2", "PASV"),
        ("::1", "::1", "EPSV", "EPSV"),
    ] {
        let what = format!("{listens} {serves} {asks}");
        let mut session = Session::between(listens, serves, &[]);
        let answer = session.passive(asks, heard);
        let at = if asks == "PASV" {
            named_in(&answer)
        } else {
            SocketAddr::new(session.address.ip(), port_in(&answer))
        };
        let client = TcpStream::connect(at).expect(&what);
        let (mut server, _) = session.data.accept().unwrap();
        server.write_all(what.as_bytes()).unwrap();
        drop(server);
        assert_eq!(read_all(client), what.as_bytes());
    }
    let mut session = Session::between("::1", "127.0.0.1", &[]);
    session.client.says("PASV\r\nEPSV 1\r\nEPSV ALL\r\n");
    session.client.hears_start("425 ");
    session
        .client
        .hears("522 Network protocol not supported, use (2)\r\n");
    session.client.hears_start("200 ");
    session.client.says("EPRT |2|::1|2000|\r\n");
    session.client.hears_start("501 ");
    session.assert_goes_on();
}

#[test]
fn an_ipv4_client_of_an_ipv6_listener_is_one_of_ipv4() {
    let (proxy, address, control) = crate::session::proxy_between("::", "127.0.0.1", &[]);
    let client = TcpStream::connect(("127.0.0.1", address.port())).unwrap();
    let (mut client, mut server) = (
        crate::session::Talk::new(patient(client)),
        crate::session::Talk::new(patient(control.accept().unwrap().0)),
    );
    server.says("220 ready\r\n");
    client.hears("220 ready\r\n");
    client.says("PASV\r\n");
    server.hears("PASV\r\n");
    server.says("227 (127,0,0,1,4,1)\r\n");
    let at = named_in(&client.hears_start("227 "));
    assert_eq!(at.ip(), SocketAddr::from(([127, 0, 0, 1], 0)).ip());
    drop(proxy);
}

#[test]
fn ftp_address_is_named_and_not_listened_at() {
    let mut session = Session::start(&["--ftp-address", "192.0.2.99"]);
    let named = session.passive_at();
    assert_eq!(named.ip().to_string(), "192.0.2.99");
    let at = SocketAddr::new(session.address.ip(), named.port());
    let client = TcpStream::connect(at).unwrap();
    let (mut server, _) = session.data.accept().unwrap();
    server.write_all(b"data").unwrap();
    drop(server);
    assert_eq!(read_all(client), b"data");
}

#[test]
fn where_no_port_is_free_425_says_so_and_the_session_goes_on() {
    let port = free_port();
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let range = format!("{port}-{port}");
    let mut session = Session::start(&["--ftp-ports", &range]);
    for (asks, answer) in [("PASV", "227 (1,2,3,4,5,6)"), ("EPSV", "229 (|||1286|)")] {
        session.client.says(format!("{asks}\r\n"));
        session.server.hears(format!("{asks}\r\n"));
        session.server.says(format!("{answer}\r\n"));
        session
            .client
            .hears("425 Can't open a data connection.\r\n");
    }
    session.client.says("PORT 127,0,0,1,4,1\r\n");
    session
        .client
        .hears("425 Can't open a data connection.\r\n");
    session
        .proxy
        .log
        .wait_for("no port to take a data connection on: ");
    drop(taken);
    // Another process that is started just now may hold a copy for a moment.
    let at = eventually("the port to be free", || {
        let answer = {
            session.client.says("PASV\r\n");
            session.server.hears("PASV\r\n");
            let [high, low] = session.data.local_addr().unwrap().port().to_be_bytes();
            session
                .server
                .says(format!("227 (1,2,3,4,{high},{low})\r\n"));
            String::from_utf8(session.client.line()).unwrap()
        };
        answer.starts_with("227").then(|| named_in(&answer))
    });
    assert_eq!(at.port(), port);
    // One after the other, on the same port.
    let _one = TcpStream::connect(at).unwrap();
    session.data.accept().unwrap();
    assert_eq!(session.passive_at().port(), port);
    // Nobody has come: the next command ends it first.
    assert_eq!(session.passive_at().port(), port);
}

#[test]
fn a_refusal_of_the_servers_is_passed_on() {
    let mut session = Session::start(&[]);
    session.client.says("EPSV\r\n");
    session.server.hears("EPSV\r\n");
    session.server.says("500 what?\r\n");
    session.client.hears("500 what?\r\n");
    session.passive_data();
}

#[test]
fn strangers_are_closed_and_logged_and_the_client_still_gets_through() {
    let mut session = Session::start(&[]);
    let at = session.passive_at();
    for _ in 0..3 {
        let stranger = connect_from("127.0.0.9", at);
        let own = stranger.local_addr().unwrap();
        assert_eq!(read_all(stranger), b"");
        let line = format!("refused: {own} has come for the data connection of 127.0.0.1");
        session.proxy.log.wait_for(&line);
    }
    session.data.set_nonblocking(true).unwrap();
    assert!(
        session.data.accept().is_err(),
        "nobody has come to the server"
    );
    session.data.set_nonblocking(false).unwrap();
    let client = TcpStream::connect(at).unwrap();
    let (mut server, _) = session.data.accept().unwrap();
    server.write_all(b"data").unwrap();
    drop(server);
    assert_eq!(read_all(client), b"data");
}

#[test]
fn data_comes_from_the_client_that_a_proxy_has_announced() {
    let header = b"PROXY TCP4 127.0.0.9 127.0.0.1 50123 21\r\n";
    let mut session = Session::from_client("127.0.0.2", header, &["--accept-proxy", "127.0.0.2"]);
    let at = session.passive_at();
    assert_eq!(at.ip(), session.address.ip());
    assert_eq!(
        read_all(connect_from("127.0.0.2", at)),
        b"",
        "the proxy is a stranger"
    );
    let client = connect_from("127.0.0.9", at);
    let (mut server, _) = session.data.accept().unwrap();
    server.write_all(b"data").unwrap();
    drop(server);
    assert_eq!(read_all(client), b"data");
}

#[test]
fn behind_a_proxy_on_another_machine_its_address_is_named_and_any_is_listened_at() {
    let header = b"PROXY TCP4 127.0.0.9 192.0.2.99 50123 21\r\n";
    let mut session = Session::from_client("127.0.0.2", header, &["--accept-proxy", "127.0.0.2"]);
    let named = session.passive_at();
    assert_eq!(named.ip().to_string(), "192.0.2.99");
    connect_from(
        "127.0.0.9",
        SocketAddr::from(([127, 0, 0, 1], named.port())),
    );
    session.data.accept().unwrap();
}

#[test]
fn data_connections_come_from_the_source_address() {
    let mut session = Session::start(&["--source", "127.0.0.5"]);
    let at = session.passive_at();
    let _client = TcpStream::connect(at).unwrap();
    let (_, from) = session.data.accept().unwrap();
    assert_eq!(from.ip().to_string(), "127.0.0.5");
}

#[test]
fn a_listener_waits_for_its_time_and_no_longer() {
    let mut session = Session::start(&["--ftp-data-timeout", "400ms"]);
    let at = session.passive_at();
    session
        .proxy
        .log
        .wait_for("no data connection has come in time");
    assert!(is_closed(at));
    session.assert_goes_on();
    session.passive_data();
}

#[test]
fn the_next_such_command_ends_a_listener() {
    let mut session = Session::start(&[]);
    let first = session.passive_at();
    let second = session.passive_at();
    eventually("the first to be closed", || is_closed(first).then_some(()));
    let mut client = TcpStream::connect(second).unwrap();
    let (server, _) = session.data.accept().unwrap();
    // What runs already is not ended by it.
    session.passive_at();
    client.write_all(b"data").unwrap();
    drop(client);
    assert_eq!(read_all(server), b"data");
}

#[test]
fn a_server_that_refuses_the_data_connection_resets_the_clients() {
    let mut session = Session::start(&[]);
    let at = session.passive_at();
    session.data = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = patient(TcpStream::connect(at).unwrap());
    let line = session.data_line();
    assert_eq!(field(&line, "reason"), "connect-refused");
    let error = client.peek(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    session.assert_goes_on();
}

#[test]
fn an_unasked_227_is_text() {
    let mut session = Session::start(&[]);
    session.client.says("STAT\r\n");
    session.server.hears("STAT\r\n");
    let text = "211-status\r\n227 Entering Passive Mode (1,2,3,4,5,6)\r\n211 end\r\n";
    session.server.says(format!("{text}227 (1,2,3,4,5,6)\r\n"));
    for line in text.split_inclusive('\n').chain(["227 (1,2,3,4,5,6)\r\n"]) {
        session.client.hears(line);
    }
    session
        .client
        .stream()
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    session.assert_goes_on();
}
