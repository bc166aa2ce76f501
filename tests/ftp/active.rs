//! PORT and EPRT: the server connects to us, and we to the client.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use crate::harness::clients::connect_from;
use crate::harness::upstreams::BlackHole;
use crate::harness::{field, patient, read_all};
use crate::session::{Session, named_in, port_in};

/// Has the client name where it listens, and returns where the server is told to connect to.
fn asks(session: &mut Session, listener: SocketAddr) -> SocketAddr {
    let [high, low] = listener.port().to_be_bytes();
    session
        .client
        .says(format!("PORT 127,0,0,1,{high},{low}\r\n"));
    let at = named_in(&session.server.hears_start("PORT "));
    session.server.says("200 ok\r\n");
    session.client.hears("200 ok\r\n");
    assert_ne!(at, listener);
    at
}

fn at(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

#[test]
fn the_server_is_told_of_us_and_what_it_sends_gets_to_the_client() {
    let mut session = Session::start(&[]);
    let (listener, place) = at("127.0.0.1");
    let told = asks(&mut session, place);
    let mut server = TcpStream::connect(told).unwrap();
    session.server.says("150 here it comes\r\n");
    let (client, from) = listener.accept().unwrap();
    // From the address that it has reached us at.
    assert_eq!(from.ip(), session.address.ip());
    session.client.hears("150 here it comes\r\n");
    server.write_all(b"a file").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&client), b"a file");
    drop(client);
    let line = session.data_line();
    assert_eq!(field(&line, "mode"), "active");
    assert_eq!(field(&line, "client"), place.to_string());
    assert_eq!(
        field(&line, "server"),
        server.local_addr().unwrap().to_string()
    );
    assert_eq!((field(&line, "sent"), field(&line, "received")), ("0", "6"));
    assert_eq!(field(&line, "reason"), "server-closed");
    assert!(
        TcpStream::connect(told).is_err(),
        "it was for one connection"
    );
    session.assert_goes_on();
}

#[test]
fn commands_that_name_an_address_are_translated_between_the_families() {
    for (listens, serves, command) in [
        ("127.0.0.1", "127.0.0.1", "EPRT |1|127.0.0.1|N|"),
        ("127.0.0.1", "::1", "EPRT |1|127.0.0.1|N|"),
        ("::1", "127.0.0.1", "EPRT |2|::1|N|"),
        ("::1", "::1", "eprt !2!::1!N!"),
    ] {
        let mut session = Session::between(listens, serves, &[]);
        let (listener, place) = at(listens);
        session
            .client
            .says(command.replace('N', &place.port().to_string()) + "\r\n");
        let told = String::from_utf8(session.server.line()).unwrap();
        let to = match told.split_once(' ').unwrap().0 {
            "PORT" => named_in(&told),
            "EPRT" => SocketAddr::new(serves.parse().unwrap(), port_in(&told)),
            other => panic!("{other}"),
        };
        let is_port = told.starts_with("PORT");
        assert_eq!(is_port, (listens, serves) == ("::1", "127.0.0.1"), "{told}");
        let mut server = TcpStream::connect(to).unwrap();
        server.write_all(command.as_bytes()).unwrap();
        drop(server);
        assert_eq!(read_all(listener.accept().unwrap().0), command.as_bytes());
    }
}

#[test]
fn no_address_but_the_clients_own_and_no_low_port_is_told_to_the_server() {
    let mut session = Session::start(&[]);
    for (command, code) in [
        ("PORT 127,0,0,9,4,1", "501 "),
        ("PORT 192,0,2,1,0,25", "501 "),
        ("PORT 127,0,0,1,0,25", "501 "),
        ("PORT 127,0,0,1,3,255", "501 "),
        ("PORT 127,0,0,1", "501 "),
        ("port 127,0,0,9,4,1", "501 "),
        ("\tPORT 127,0,0,9,4,1", "501 "),
        ("EPRT |1|127.0.0.9|2000|", "501 "),
        ("EPRT |1|127.0.0.1|1023|", "501 "),
        ("EPRT |1|127.0.0.1|2000", "501 "),
        ("EPRT |2|::1|2000|", "522 "),
        ("EPRT |3|127.0.0.1|2000|", "522 "),
        ("NOOP\rPORT 127,0,0,9,4,1", "501 "),
        ("NOOP\0PORT 127,0,0,9,4,1", "501 "),
        ("LPRT 4,4,127,0,0,9,2,4,1", "502 "),
    ] {
        session.client.says(format!("{command}\r\n"));
        session.client.hears_start(code);
    }
    session
        .proxy
        .log
        .wait_for("refused: 'PORT 127,0,0,9,4,1' does not name the client's own");
    session.assert_goes_on();
}

#[test]
fn a_stranger_is_not_taken_for_the_server() {
    let mut session = Session::start(&[]);
    let (listener, place) = at("127.0.0.1");
    let told = asks(&mut session, place);
    let stranger = connect_from("127.0.0.9", told);
    assert_eq!(read_all(stranger), b"");
    session.proxy.log.wait_for("refused: 127.0.0.9:");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nobody has come to the client");
    listener.set_nonblocking(false).unwrap();
    drop(TcpStream::connect(told).unwrap());
    assert_eq!(read_all(listener.accept().unwrap().0), b"");
}

#[test]
fn the_servers_replies_wait_until_we_have_reached_the_client() {
    let mut session = Session::start(&[]);
    let mut hole = BlackHole::at("127.0.0.1:0");
    let told = asks(&mut session, hole.address());
    let mut server = TcpStream::connect(told).unwrap();
    session.server.says("150 here it comes\r\n");
    session.client.hears_nothing();
    // Commands do not wait.
    session.client.says("ABOR\r\n");
    session.server.hears("ABOR\r\n");
    let mut client = hole.open();
    session.client.hears("150 here it comes\r\n");
    server.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_client_that_cannot_be_reached_has_the_servers_connection_reset() {
    let mut session = Session::start(&[]);
    let (listener, place) = at("127.0.0.1");
    let told = asks(&mut session, place);
    drop(listener);
    let server = patient(TcpStream::connect(told).unwrap());
    session.server.says("150 here it comes\r\n");
    session.client.hears("150 here it comes\r\n");
    assert_eq!(
        server.peek(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(field(&session.data_line(), "reason"), "connect-refused");
    session.assert_goes_on();
}

#[test]
fn one_that_does_not_answer_in_time_neither() {
    let mut session = Session::start(&["--connect-timeout", "500ms"]);
    let hole = BlackHole::at("127.0.0.1:0");
    let told = asks(&mut session, hole.address());
    let server = patient(TcpStream::connect(told).unwrap());
    session.server.says("150 here it comes\r\n");
    session.client.hears("150 here it comes\r\n");
    assert_eq!(
        server.peek(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(field(&session.data_line(), "reason"), "connect-timeout");
}
