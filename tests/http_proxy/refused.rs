//! What is no request, or two at once: answered by us, and seen by no proxy.

use std::io::Write;
use std::net::TcpStream;

use crate::harness::peers::{Ending, read_to_ending};
use crate::harness::upstreams::Upstream;
use crate::harness::{Standalone, field, read_all};
use crate::{OK, before, read_count, read_head};

/// Fails unless a session has ended because of what its client said.
fn assert_protocol_error(ours: &Standalone, why: &str) {
    let closed = ours.closed();
    assert_eq!(
        field(&closed, "reason"),
        "protocol-error",
        "{why}: {closed}"
    );
    let said = ours.process.log.wait_for("session 1: bad request: ");
    assert!(said.contains(why), "{why}: {said}");
}

/// Fails unless this is refused with this status, and nothing of it goes on.
fn assert_refused(said: &[u8], status: &str, why: &str) {
    let proxy = Upstream::new(read_all);
    let ours = before(&proxy.name(), &[]);
    let mut client = ours.connect();
    client.write_all(said).unwrap();
    let answer = String::from_utf8(read_all(&client)).unwrap();
    let shown = said[..said.len().min(200)].escape_ascii();
    assert!(
        answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
        "{shown}: {answer}"
    );
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("\r\nConnection: close"), "{head}");
    assert!(
        head.contains(&format!("\r\nContent-Length: {}", body.len())),
        "{head}"
    );
    assert!(body.contains(why), "{shown}: {body}");
    assert_eq!(proxy.result(), b"", "{shown}");
    assert_protocol_error(&ours, why);
}

#[test]
fn what_two_readers_could_take_for_two_things_is_refused() {
    let bad = |fields: &str, why: &str| {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\nGET / HTTP/1.1\r\n\r\n");
        assert_refused(head.as_bytes(), "400 Bad Request", why);
    };
    bad(
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "both Content-Length and Transfer-Encoding",
    );
    bad(
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "more than one Content-Length",
    );
    bad("Content-Length: 5, 6\r\n", "Content-Length is malformed");
    bad("Host: b\r\n", "more than one Host");
    bad("Transfer-Encoding: xchunked\r\n", "other than chunked");
    bad("Transfer-Encoding : chunked\r\n", "a field is malformed");
    bad(
        "A: b\r\n Transfer-Encoding: chunked\r\n",
        "a field is malformed",
    );
    bad(
        "A: b\nTransfer-Encoding: chunked\r\n",
        "does not end in CRLF",
    );
    bad(
        "A: b\rTransfer-Encoding: chunked\r\n",
        "does not end in CRLF",
    );
    bad("A: \0\r\n", "a field is malformed");
}

#[test]
fn what_is_no_http_is_refused() {
    for (said, why) in [
        (
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
            "no HTTP request",
        ),
        (b"\0\0\0\x05", "no HTTP request"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP request"),
        (b"GET /\r\n\r\n", "no HTTP request"),
        (b"GET / HTTP/1.1\r\n\r\n", "no Host"),
        (b"GET / HTTP/1.0\r\n\r\n", "nothing says which host"),
        (
            b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "nothing says which host",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "Host field is malformed",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
            "Host field is malformed",
        ),
        (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", "target is malformed"),
        (
            b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",
            "target is malformed",
        ),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "not of HTTP/1"),
    ] {
        assert_refused(said, "400 Bad Request", why);
    }
}

#[test]
fn a_head_that_is_too_large_is_refused_with_431() {
    let status = "431 Request Header Fields Too Large";
    let endless = [b"GET / HTTP/1.1\r\nHost: a\r\nA: ", &[b'a'; 70_000][..]].concat();
    assert_refused(&endless, status, "longer than 64 KiB");
    let many = format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "A: b\r\n".repeat(300)
    );
    assert_refused(many.as_bytes(), status, "too many fields");
}

#[test]
fn a_client_that_goes_on_sending_reads_why_it_was_refused() {
    let proxy = Upstream::new(read_all);
    let ours = before(&proxy.name(), &[]);
    let mut client = ours.connect();
    let writing = client.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        // It may be cut off at any time.
        let _ = (&writing).write_all(&vec![0; 3_000_000]);
    });
    client.write_all(b"\0").unwrap();
    assert!(read_head(&client).starts_with("HTTP/1.1 400 "));
    drop(client);
    writer.join().unwrap();
    assert_eq!(proxy.result(), b"");
}

#[test]
fn an_answer_of_ours_has_its_place_behind_the_proxys() {
    let proxy = Upstream::new(|mut stream: TcpStream| {
        let heads = [read_head(&stream), read_head(&stream)];
        for byte in OK.repeat(2) {
            stream.write_all(&[byte]).unwrap();
        }
        assert_eq!(read_all(&stream), b"");
        heads
    });
    let ours = before(&proxy.name(), &[]);
    let mut client = ours.connect();
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let said = format!("{get}{get}\r\n\0 no request {get}");
    client.write_all(said.as_bytes()).unwrap();
    assert_eq!(read_count(&client, 2 * OK.len()).as_bytes(), OK.repeat(2));
    assert!(read_head(&client).starts_with("HTTP/1.1 400 "));
    let heads = proxy.result();
    assert_eq!(heads[0], heads[1]);
    assert_protocol_error(&ours, "(400)");
}

#[test]
fn behind_an_answer_without_an_end_the_connection_is_closed_without_a_word() {
    let proxy = Upstream::new(|mut stream: TcpStream| {
        read_head(&stream);
        stream
            .write_all(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
            .unwrap();
        read_to_ending(&stream);
    });
    let ours = before(&proxy.name(), &[]);
    let mut client = ours.connect();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let head = read_head(&client);
    assert_eq!(head, "HTTP/1.0 200 OK\r\n\r\n");
    assert_eq!(read_count(&client, 13), "until the end");
    client.write_all(b"\0").unwrap();
    assert_eq!(read_to_ending(&client).0, b"");
    assert_protocol_error(&ours, "(400)");
    proxy.result();
}

#[test]
fn a_body_that_breaks_off_is_reset_so_that_nobody_takes_it_for_whole() {
    for bad in [
        "5\nhello",
        "x\r\n",
        "5\r\nhelloX",
        "-1\r\n",
        "ffffffffffffffff\r\n",
    ] {
        let proxy = Upstream::new(|stream: TcpStream| {
            let head = read_head(&stream);
            (head, read_to_ending(&stream))
        });
        let ours = before(&proxy.name(), &[]);
        let mut client = ours.connect();
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let said = format!("{head}2\r\nok\r\n{bad}");
        client.write_all(said.as_bytes()).unwrap();
        assert!(read_head(&client).starts_with("HTTP/1.1 400 "), "{bad}");
        drop(client);
        let (_, (body, ending)) = proxy.result();
        assert!(b"2\r\nok\r\n5\r\nhello".starts_with(&body[..]), "{bad}");
        assert_eq!(ending, Ending::Reset, "{bad}");
        assert_protocol_error(&ours, "chunk");
    }
}

#[test]
fn a_head_that_breaks_off_is_refused() {
    let proxy = Upstream::new(read_all);
    let ours = before(&proxy.name(), &[]);
    let answer = crate::converse(ours.connect(), b"GET / HTTP/1.1\r\nHost: a\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(proxy.result(), b"");
    assert_protocol_error(&ours, "not complete");
}

#[test]
fn where_everybody_is_sent_to_one_page_there_are_no_tunnels() {
    let proxy = Upstream::new(read_all);
    let ours = before(&proxy.name(), &["--http-force", "http://login.example/"]);
    let answer = crate::converse(ours.connect(), b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(proxy.result(), b"");
}
