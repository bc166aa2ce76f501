//! How sessions end, what is recorded of them, and what bounds their time.

use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};

use crate::harness::peers::{Ending, read_to_ending, reset};
use crate::harness::upstreams::Upstream;
use crate::harness::{Engine, Standalone, field, free_port, read_all};
use crate::{OK, before, converse, read_count, read_head};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn an_answer_arrives_after_the_client_half_closes() {
    let proxy = Upstream::new(|mut stream: TcpStream| {
        read_head(&stream);
        assert_eq!(read_all(&stream), b"");
        stream.write_all(OK).unwrap();
    });
    let ours = before(&proxy.name(), &[]);
    assert_eq!(converse(ours.connect(), GET).as_bytes(), OK);
    assert_eq!(field(&ours.closed(), "reason"), "client-closed");
    proxy.result();
}

#[test]
fn a_request_goes_on_after_the_proxy_half_closes() {
    let proxy = Upstream::new(|mut stream: TcpStream| {
        read_head(&stream);
        stream.write_all(OK).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        read_all(&stream)
    });
    let ours = before(&proxy.name(), &[]);
    let mut client = ours.connect();
    client
        .write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")
        .unwrap();
    assert_eq!(read_all(&client), OK);
    client.write_all(b"body").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(proxy.result(), b"body");
    assert_eq!(field(&ours.closed(), "reason"), "server-closed");
}

#[test]
fn a_body_that_its_client_does_not_finish_ends_as_it_did() {
    for resets in [false, true] {
        let proxy = Upstream::new(|stream: TcpStream| {
            read_head(&stream);
            assert_eq!(read_count(&stream, 2), "in");
            read_to_ending(&stream)
        });
        let ours = before(&proxy.name(), &[]);
        let mut client = ours.connect();
        let said = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nin";
        client.write_all(said).unwrap();
        // Until it has arrived, a reset would take it away.
        ours.process.log.wait_for(" opened: ");
        let (ending, reason) = if resets {
            reset(client);
            (Ending::Reset, "client-reset")
        } else {
            client.shutdown(Shutdown::Write).unwrap();
            drop(client);
            (Ending::Clean, "client-closed")
        };
        assert_eq!(proxy.result(), (Vec::new(), ending));
        assert_eq!(field(&ours.closed(), "reason"), reason);
    }
}

#[test]
fn a_reset_of_the_proxys_is_passed_on() {
    let proxy = Upstream::new(|mut stream: TcpStream| {
        read_head(&stream);
        stream.write_all(&OK[..20]).unwrap();
        reset(stream);
    });
    let ours = before(&proxy.name(), &[]);
    let mut client = ours.connect();
    client.write_all(GET).unwrap();
    let (_, ending) = read_to_ending(&client);
    assert_eq!(ending, Ending::Reset);
    assert_eq!(field(&ours.closed(), "reason"), "server-reset");
    proxy.result();
}

#[test]
fn a_proxy_that_is_down_is_a_bare_close() {
    let nobody = format!("127.0.0.1:{}", free_port());
    let ours = before(&nobody, &[]);
    let mut client = ours.connect();
    client.write_all(GET).unwrap();
    assert_eq!(read_to_ending(&client).0, b"");
    assert_eq!(field(&ours.closed(), "reason"), "connect-refused");
}

#[test]
fn the_transcript_has_what_arrived_and_nothing_is_lost_by_it() {
    let proxy = Upstream::new(crate::answer_all);
    let arguments = ["--helper", "http-proxy", &proxy.name()];
    let ours = Standalone::start_with(Engine::Copy, &arguments);
    assert_eq!(converse(ours.connect(), GET).as_bytes(), OK);
    assert_eq!(proxy.result(), "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n");
    ours.closed();
    let recorded = fs::read_to_string(&ours.transcripts()[0]).unwrap();
    assert!(
        recorded.contains(str::from_utf8(GET).unwrap()),
        "{recorded}"
    );
    assert!(recorded.contains(str::from_utf8(OK).unwrap()), "{recorded}");
}

#[test]
fn times_hold_for_a_client_that_waits_and_for_one_that_drips() {
    for (option, reason) in [
        ("--timeout", "idle-timeout"),
        ("--max-duration", "max-duration"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = listener.local_addr().unwrap().to_string();
        let ours = before(&proxy, &[option, "1"]);
        let mut client = ours.connect();
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: b\r\n\r\nheld")
            .unwrap();
        if option == "--max-duration" {
            while client.write_all(b".").is_ok() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        read_to_ending(&client);
        assert_eq!(field(&ours.closed(), "reason"), reason);
    }
}
