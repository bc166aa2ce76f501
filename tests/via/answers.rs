//! What a proxy may answer: in any pieces, with anything behind it, or nothing that is an answer.

use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::forward_proxies::{Asked, Scripted};
use crate::harness::peers::{Ending, read_to_ending, reset};
use crate::harness::{Engine, Scratch, Standalone, field, read_all, under_inetd};

const YES: &[u8] = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 x\r\n\r\n";
const SOCKS_YES: &[u8] = b"\x05\0\0\x03\x04name\0\x19";
const GREETING: &[u8] = b"220 \r\n\r\n\x05\0 first words\r\n";

/// Sends bytes in these pieces, each in a packet of its own as far as that can be had: what comes of it
/// must not depend on that.
fn in_pieces<'a>(asked: &Asked, pieces: impl IntoIterator<Item = &'a [u8]>) {
    for piece in pieces {
        asked.say(piece);
        thread::sleep(Duration::from_millis(2));
    }
}

/// Fails unless a new client of the server hears the greeting, and the proxy hears the client.
fn assert_heard(server: &Standalone, what: &str) {
    let mut client = server.connect();
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (heard, ending) = read_to_ending(&client);
    assert_eq!(heard, [GREETING, b"hello"].concat(), "{what}");
    assert_eq!(ending, Ending::Clean, "{what}");
}

/// Gives back what the client says.
fn echo(stream: &TcpStream) {
    let _ = std::io::copy(&mut &*stream, &mut &*stream);
    let _ = stream.shutdown(Shutdown::Write);
}

#[test]
fn the_servers_first_words_are_whole_wherever_the_answer_is_cut() {
    let all = [YES, GREETING].concat();
    let cuts = all.len();
    let proxy = Scripted::new(move |asked, count| {
        asked.connect();
        let (first, second) = all.split_at(count % cuts);
        in_pieces(&asked, [first, second]);
        echo(&asked.stream);
    });
    thread::scope(|scope| {
        for engine in Engine::ALL {
            let proxy = &proxy;
            scope.spawn(move || {
                let arguments = ["--via", &proxy.http(), "mail.example:25"];
                let server = Standalone::start_with(engine, &arguments);
                for _ in 0..cuts {
                    assert_heard(&server, "CONNECT");
                }
            });
        }
    });
    let all = [SOCKS_YES, GREETING].concat();
    let cuts = all.len();
    let proxy = Scripted::new(move |asked, count| {
        asked.socks();
        let (first, second) = all.split_at(count % cuts);
        in_pieces(&asked, [first, second]);
        echo(&asked.stream);
    });
    let server = Standalone::start(&["--via", &proxy.socks(), "mail.example:25"]);
    for _ in 0..cuts {
        assert_heard(&server, "SOCKS");
    }
}

#[test]
fn an_answer_may_come_byte_by_byte_and_interim_ones_before_it() {
    let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
    let all = [interim, YES, GREETING].concat();
    let proxy = Scripted::new(move |asked, count| {
        asked.connect();
        match count {
            0 => in_pieces(&asked, all.chunks(1)),
            _ => asked.say(&all),
        }
        echo(&asked.stream);
    });
    let server = Standalone::start(&["--via", &proxy.http(), "mail.example:25"]);
    assert_heard(&server, "byte by byte");
    assert_heard(&server, "all at once");
    let proxy = Scripted::new(|asked, _| {
        asked.socks();
        in_pieces(&asked, [SOCKS_YES, GREETING].concat().chunks(1));
        echo(&asked.stream);
    });
    let server = Standalone::start(&["--via", &proxy.socks(), "mail.example:25"]);
    assert_heard(&server, "SOCKS, byte by byte");
}

#[test]
fn a_yes_of_16_kib_is_taken_with_what_comes_behind_it() {
    let start = "HTTP/1.1 200 OK\r\n";
    let field = format!("X: {}\r\n", "x".repeat(995));
    let mut head = start.to_owned();
    while head.len() + field.len() + 2 <= 16 << 10 {
        head += &field;
    }
    head += &format!("Y: {}\r\n\r\n", "y".repeat((16 << 10) - head.len() - 7));
    assert_eq!(head.len(), 16 << 10);
    let all = [head.as_bytes(), GREETING].concat();
    let proxy = Scripted::new(move |asked, _| {
        asked.connect();
        asked.say(&all);
        echo(&asked.stream);
    });
    let server = Standalone::start(&["--via", &proxy.http(), "mail.example:25"]);
    assert_heard(&server, "16 KiB");
}

/// Runs a session as inetd would, whose client waits for its end. Returns the notice about the upstream.
/// The client must not have got a byte, and the reason must be this.
fn turned_away(url: &str, options: &[&str], reason: &str) -> String {
    let scratch = Scratch::new();
    let log = format!("file:{}", scratch.join("log").display());
    let arguments = ["--log", &log, "--via", url, "mail.example:25"];
    let (client, mut child) = under_inetd(&[&arguments, options].concat());
    let status = child.wait().unwrap().code().unwrap();
    assert_eq!(read_to_ending(&client).0, b"");
    let log = fs::read_to_string(scratch.join("log")).unwrap();
    assert_eq!(status, 69, "{log}");
    let closed = log.lines().find(|line| line.contains(" closed: ")).unwrap();
    assert_eq!(field(closed, "reason"), reason, "{log}");
    assert_eq!(field(closed, "server"), "mail.example:25", "{log}");
    assert_eq!(field(closed, "sent"), "0", "{log}");
    assert_eq!(field(closed, "received"), "0", "{log}");
    let start = format!(": mail.example:25: through {url}: ");
    let notice = log.lines().find_map(|line| line.split_once(&start));
    notice.unwrap_or_else(|| panic!("{log}")).1.to_owned()
}

#[test]
fn what_an_http_proxy_says_instead_of_yes_is_in_the_log_escaped_and_cut() {
    let wants = ": it wants a user and a password (via-auth)";
    let long = format!("HTTP/1.1 200 {}", "x".repeat(20_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}", "A: b\r\n".repeat(5000));
    let cut = format!("'HTTP/1.1 200 {}...'", "x".repeat(87));
    for (answer, expected) in [
        (
            "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\nbody",
            format!("it answered 'HTTP/1.1 407 Proxy Authentication Required'{wants}"),
        ),
        (
            "HTTP/1.0 403 \x1b[31m\r\n",
            "its answer does not begin with a status: 'HTTP/1.0 403 \\x1b[31m'".to_owned(),
        ),
        (
            "HTTP/1.1 403 Forb\u{ec}dden\nno field",
            "it answered 'HTTP/1.1 403 Forb\u{ec}dden'".to_owned(),
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 502 Bad\r\n\r\n",
            "it answered 'HTTP/1.1 502 Bad'".to_owned(),
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "it answered 'HTTP/1.1 101 Switching Protocols'".to_owned(),
        ),
        (
            "SSH-2.0-OpenSSH_9.2\r\n",
            "its answer is no HTTP/1: 'SSH-2.0-OpenSSH_9.2'".to_owned(),
        ),
        (
            &long,
            format!("its answer has more than 16384 bytes: {cut}"),
        ),
        (
            &many,
            "its answer has more than 16384 bytes: 'HTTP/1.1 200 OK'".to_owned(),
        ),
        (
            "HTTP/1.1 200 OK\r\nnot a field\r\n\0\r\n",
            "its answer, 'HTTP/1.1 200 OK', has no field in 'not a field'".to_owned(),
        ),
        (
            "",
            "it ended the connection after 0 bytes of its answer".to_owned(),
        ),
        (
            "HTTP/1.1 200 OK\r\n",
            "it ended the connection after 17 bytes of its answer".to_owned(),
        ),
    ] {
        let text = answer.to_owned();
        let proxy = Scripted::new(move |asked, _| {
            asked.connect();
            asked.say(&text);
        });
        let notice = turned_away(&proxy.http(), &[], "connect-failed");
        assert_eq!(notice, expected, "{answer:?}");
    }
}

#[test]
fn what_a_socks_proxy_says_instead_of_yes_is_in_the_log_in_words() {
    for (code, reason, words) in [
        (1, "connect-failed", "it answered 1: general failure"),
        (
            2,
            "connect-failed",
            "it answered 2: not allowed by its rules",
        ),
        (3, "connect-failed", "it answered 3: network unreachable"),
        (4, "connect-failed", "it answered 4: host unreachable"),
        (5, "connect-refused", "it answered 5: connection refused"),
        (6, "connect-failed", "it answered 6: time to live expired"),
        (7, "connect-failed", "it answered 7: command not supported"),
        (
            8,
            "connect-failed",
            "it answered 8: address type not supported",
        ),
        (
            9,
            "connect-failed",
            "it answered 9: a reason that is not known",
        ),
    ] {
        let proxy = Scripted::new(move |asked, _| {
            asked.socks();
            // Without the rest, and without an end.
            asked.say([5, code]);
            let _ = read_to_ending(&asked.stream);
        });
        assert_eq!(turned_away(&proxy.socks(), &[], reason), words);
    }
    let wants = "it said no: it wants a user and a password (via-auth)";
    for (first, expected) in [
        (&b"\x05\xff"[..], wants),
        (b"\x05\x02", wants),
        (b"\x05\x01", "its answer has method 1, which is not known"),
        (b"\x04\0", "its answer is no SOCKS5: it begins with 0x04"),
        (b"HTTP/1.1", "its answer is no SOCKS5: it begins with 0x48"),
        (b"", "it ended the connection after 0 bytes of its answer"),
        (
            b"\x05",
            "it ended the connection after 1 bytes of its answer",
        ),
    ] {
        let proxy = Scripted::new(move |asked, _| {
            asked.read(3);
            asked.say(first);
        });
        let notice = turned_away(&proxy.socks(), &[], "connect-failed");
        assert_eq!(notice, expected, "{first:?}");
    }
    for (reply, expected) in [
        (
            &b"\x05\0\0\x02"[..],
            "its answer has an address of type 2, which is not known",
        ),
        (b"x", "its answer is no SOCKS5: it begins with 0x78"),
        (
            b"\x05\0\0\x01\0\0",
            "it ended the connection after 6 bytes of its answer",
        ),
    ] {
        let proxy = Scripted::new(move |asked, _| {
            asked.socks();
            asked.say(reply);
        });
        let notice = turned_away(&proxy.socks(), &[], "connect-failed");
        assert_eq!(notice, expected, "{reply:?}");
    }
}

#[test]
fn a_name_that_socks_has_no_room_for_is_not_asked_for() {
    let proxy = Scripted::new(|asked, _| {
        let _ = read_to_ending(&asked.stream);
    });
    let name = format!("{}:25", "x".repeat(256));
    let server = Standalone::start(&["--via", &proxy.socks(), &name]);
    assert_eq!(read_all(server.connect()), b"");
    server
        .process
        .log
        .wait_for("SOCKS5 has room for names of 255 bytes, and this has 256");
    assert_eq!(field(&server.closed(), "reason"), "connect-failed");
}

#[test]
fn a_proxy_that_resets_has_not_reached_the_upstream() {
    let at_once = Scripted::new(|asked, _| reset(asked.stream));
    let later = Scripted::new(|asked, _| {
        asked.connect();
        asked.say("HTTP/1.1 2");
        reset(asked.stream);
    });
    for proxy in [at_once, later] {
        let notice = turned_away(&proxy.http(), &[], "connect-failed");
        assert!(notice.ends_with(": Connection reset by peer"), "{notice}");
    }
}

#[test]
fn a_proxy_has_as_much_time_as_an_upstream() {
    let silent = |asked: Asked, _| {
        let _ = read_to_ending(&asked.stream);
    };
    let trickling = |asked: Asked, _| {
        asked.connect();
        asked.say("HTTP/1.1 200 OK\r\nX: ");
        while (&asked.stream).write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
    };
    let options = ["--connect-timeout", "300ms"];
    for proxy in [Scripted::new(silent), Scripted::new(trickling)] {
        let started = Instant::now();
        let notice = turned_away(&proxy.http(), &options, "connect-timeout");
        assert_eq!(notice, "no answer in time");
        assert!(started.elapsed() >= Duration::from_millis(300));
        if proxy.requests().is_empty() {
            let notice = turned_away(&proxy.socks(), &options, "connect-timeout");
            assert_eq!(notice, "no answer in time");
        }
    }
}
