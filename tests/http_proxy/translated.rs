//! What requests become on their way, and what they stay.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::upstreams::Upstream;
use crate::harness::{field, patient};
use crate::{OK, answer_all, before, converse, read_count, read_head};

/// What a proxy behind us gets of what a client says to us, who was not redirected.
fn passed(said: &str, arguments: &[&str]) -> String {
    let proxy = Upstream::new(answer_all);
    let ours = before(&proxy.name(), arguments);
    converse(ours.connect(), said.as_bytes());
    proxy.result()
}

#[test]
fn paths_become_urls_and_everything_else_stays() {
    for (said, expected) in [
        (
            "GET / HTTP/1.1\r\nHost: a.example",
            "GET http://a.example/ HTTP/1.1",
        ),
        (
            "GET /b?c=http://d/ HTTP/1.1\r\nHost: a",
            "GET http://a/b?c=http://d/ HTTP/1.1",
        ),
        ("GET //b HTTP/1.1\r\nHost: a", "GET http://a//b HTTP/1.1"),
        ("HEAD / HTTP/1.0\r\nHost: a:80", "HEAD http://a/ HTTP/1.0"),
        (
            "GET / HTTP/1.1\r\nHost: a:8080",
            "GET http://a:8080/ HTTP/1.1",
        ),
        (
            "GET / HTTP/1.1\r\nHost: [2001:db8::1]:81",
            "GET http://[2001:db8::1]:81/ HTTP/1.1",
        ),
        (
            "GET http://b/c HTTP/1.1\r\nHost: a",
            "GET http://b/c HTTP/1.1",
        ),
        ("GET ftp://b/c HTTP/1.0", "GET ftp://b/c HTTP/1.0"),
        ("OPTIONS * HTTP/1.1\r\nHost: a", "OPTIONS * HTTP/1.1"),
        (
            "CONNECT a:443 HTTP/1.1\r\nHost: a:443",
            "CONNECT a:443 HTTP/1.1",
        ),
    ] {
        let fields = "\r\nX-Any:  \tthing \r\ncookie: a=b; c\r\n\r\n";
        let got = passed(&format!("{said}{fields}"), &[]);
        let (_, of_its_own) = said.split_once("HTTP/1.").unwrap();
        assert_eq!(got, format!("{expected}{}{fields}", &of_its_own[1..]));
    }
}

#[test]
fn every_request_of_a_connection_is_translated_however_it_is_cut() {
    let get = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nGET /x \r\n";
    let chunked = "PUT /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                   7;ext=\"1\"\r\nGET /x \r\n0\r\nTrailer: GET /\r\n\r\n";
    let said = [get, post, "\r\n", chunked, get].concat();
    let expected = [get, post, chunked, get].concat();
    let expected = expected.replace(" /1", " http://a/1");
    let expected = expected.replace("POST /2", "POST http://a/2");
    let expected = expected.replace("PUT /3", "PUT http://a/3");
    for piece in [1, 5, 1000] {
        let wanted = expected.len();
        let proxy = Upstream::new(move |stream| read_count(&stream, wanted));
        let ours = before(&proxy.name(), &[]);
        let mut client = ours.connect();
        client.set_nodelay(true).unwrap();
        for piece in said.as_bytes().chunks(piece) {
            client.write_all(piece).unwrap();
        }
        assert_eq!(proxy.result(), expected, "{piece}");
    }
}

#[test]
fn a_thousand_requests_may_be_sent_before_the_first_answer_is_read() {
    let said = "GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    let proxy = Upstream::new(answer_all);
    let ours = before(&proxy.name(), &[]);
    let answers = converse(ours.connect(), said.as_bytes());
    assert_eq!(answers.as_bytes(), OK.repeat(1000));
    let got = proxy.result();
    assert_eq!(got, said.replace(" / ", " http://a/ "));
    let closed = ours.closed();
    assert_eq!(field(&closed, "reason"), "client-closed");
    assert_eq!(field(&closed, "sent"), got.len().to_string());
    assert_eq!(field(&closed, "received"), answers.len().to_string());
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it() {
    let proxy = Upstream::new(|mut stream| {
        let head = read_head(&stream);
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        let body = read_count(&stream, 4);
        stream.write_all(OK).unwrap();
        (head, body, answer_all(stream))
    });
    let ours = before(&proxy.name(), &[]);
    let mut client = ours.connect();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    client.write_all(head.as_bytes()).unwrap();
    assert_eq!(read_head(&client), "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"body").unwrap();
    assert_eq!(read_count(&client, OK.len()).as_bytes(), OK);
    converse(client, b"GET / HTTP/1.0\r\nHost: b\r\n\r\n");
    let (head, body, next) = proxy.result();
    assert!(head.starts_with("POST http://a/ HTTP/1.1\r\n"), "{head}");
    assert_eq!(body, "body");
    assert_eq!(next, "GET http://b/ HTTP/1.0\r\nHost: b\r\n\r\n");
}

const UPGRADE: &str =
    "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Fails if something comes.
fn assert_nothing_comes(mut stream: &TcpStream) {
    stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let error = stream.read(&mut [0]).expect_err("it was to wait");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    stream
        .set_read_timeout(Some(crate::harness::PATIENCE))
        .unwrap();
}

#[test]
fn behind_an_upgrade_the_client_waits_and_after_101_all_goes_through() {
    let frames = b"\x81\x00GET / HTTP/1.1\r\n\n\0";
    let proxy = Upstream::new(move |mut stream| {
        let first = read_head(&stream);
        let head = read_head(&stream);
        assert_nothing_comes(&stream);
        stream.write_all(OK).unwrap();
        assert_nothing_comes(&stream);
        let switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x89\0";
        stream.write_all(switched).unwrap();
        let mut frame = vec![0; frames.len()];
        stream.read_exact(&mut frame).unwrap();
        stream.write_all(&frame).unwrap();
        (first, head, frame)
    });
    let ours = before(&proxy.name(), &[]);
    let mut client = ours.connect();
    let first = "GET /first HTTP/1.1\r\nHost: a\r\n\r\n";
    let said = [first.as_bytes(), UPGRADE.as_bytes(), frames].concat();
    client.write_all(&said).unwrap();
    read_head(&client);
    assert_eq!(read_count(&client, 2), "ok");
    assert!(read_head(&client).starts_with("HTTP/1.1 101 "));
    let mut back = [0; 2];
    (&client).read_exact(&mut back).unwrap();
    assert_eq!(&back, b"\x89\0");
    let mut echoed = vec![0; frames.len()];
    (&client).read_exact(&mut echoed).unwrap();
    assert_eq!(echoed, frames);
    let (first, head, frame) = proxy.result();
    assert!(first.starts_with("GET http://a/first "), "{first}");
    assert!(head.starts_with("GET http://a/chat HTTP/1.1\r\n"), "{head}");
    assert_eq!(frame, frames);
}

#[test]
fn behind_an_upgrade_that_is_declined_requests_go_on() {
    let proxy = Upstream::new(|mut stream| {
        let head = read_head(&stream);
        assert_nothing_comes(&stream);
        stream.write_all(OK).unwrap();
        (head, answer_all(stream))
    });
    let ours = before(&proxy.name(), &[]);
    let said = format!("{UPGRADE}GET /next HTTP/1.1\r\nHost: b\r\n\r\n");
    let answers = converse(ours.connect(), said.as_bytes());
    assert_eq!(answers.as_bytes(), OK.repeat(2));
    let (_, next) = proxy.result();
    assert_eq!(next, "GET http://b/next HTTP/1.1\r\nHost: b\r\n\r\n");
}

#[test]
fn after_connect_the_rest_goes_through_as_it_is() {
    let hello = b"\x16\x03\x01\x00\xfc GET / HTTP/1.1\n\n";
    let proxy = Upstream::new(move |mut stream| {
        let head = read_head(&stream);
        let mut rest = vec![0; hello.len()];
        stream.read_exact(&mut rest).unwrap();
        stream
            .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n\x16\x03")
            .unwrap();
        (head, rest)
    });
    let ours = before(&proxy.name(), &[]);
    let mut client = ours.connect();
    let head = "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n";
    client
        .write_all(&[head.as_bytes(), hello].concat())
        .unwrap();
    assert!(read_head(&client).starts_with("HTTP/1.1 200 "));
    let mut back = [0; 2];
    patient(client).read_exact(&mut back).unwrap();
    assert_eq!(&back, b"\x16\x03");
    assert_eq!(proxy.result(), (head.to_owned(), hello.to_vec()));
}

#[test]
fn every_request_is_sent_to_one_page_unless_it_comes_from_there() {
    let page = "http://login.example/?from=here";
    let said = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n\
                POST http://b/c HTTP/1.1\r\nHost: b\r\nReferer: http://login.example/\r\n\r\n\
                OPTIONS * HTTP/1.1\r\nHost: c\r\n\r\n\
                GET /logo HTTP/1.1\r\nHost: login.example\r\nReferer: http://login.example/?from=here\r\n\r\n";
    let got = passed(said, &["--http-force", page]);
    let lines: Vec<&str> = got
        .lines()
        .filter(|line| line.contains(" HTTP/1.1"))
        .collect();
    assert_eq!(
        lines,
        [
            &format!("GET {page} HTTP/1.1"),
            &format!("POST {page} HTTP/1.1"),
            &format!("OPTIONS {page} HTTP/1.1"),
            "GET http://login.example/logo HTTP/1.1",
        ]
    );
}
