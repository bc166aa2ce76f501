//! Whatever a client says, its server is told of no other address than our own, and of nothing in more
//! lines than it was.
//!
//! Run with `cargo fuzz run -s none ftp_commands` (cargo-fuzz).
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use tcpproxy::ftp::{Dialogue, Ends, FirstLine, LONGEST_LINE, Told, first_line};

const ADDRESSES: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const OURS: [&str; 2] = ["192.0.2.9:2000", "[2001:db8::9]:2000"];
const NAMED: [&str; 3] = ["192,0,2,9,7,208", "|192.0.2.9|2000|", "|2001:db8::9|2000|"];

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, mut rest)) = bytes.split_first() else {
        return;
    };
    let (client_is, server_is) = (usize::from(first & 1), usize::from(first >> 1 & 1));
    let mut dialogue = Dialogue::new(Ends {
        client: ADDRESSES[client_is].parse().unwrap(),
        server: ADDRESSES[server_is].parse::<IpAddr>().unwrap(),
        named: (client_is == 0).then_some([192, 0, 2, 9].into()),
    });
    loop {
        let length = match first_line(rest) {
            FirstLine::Whole(length) => length,
            FirstLine::Part => {
                assert!(rest.len() < LONGEST_LINE && !rest.contains(&b'\n'));
                return;
            }
            FirstLine::TooLong => {
                assert!(!rest[..LONGEST_LINE].contains(&b'\n'));
                return;
            }
        };
        let (line, behind) = rest.split_at(length);
        assert_eq!(
            line.iter().position(|&byte| byte == b'\n'),
            Some(length - 1)
        );
        rest = behind;
        while dialogue.client_is_to_wait() {
            dialogue.reply(b"500 no\r\n");
            while dialogue.own_answer().is_some() {}
        }
        let command = match dialogue.command(line) {
            Told::Pass => {
                let parts = line.split(|&byte| matches!(byte, b'\r' | b'\0'));
                for part in parts {
                    let part = part.trim_ascii_start().to_ascii_uppercase();
                    let named = [&b"PORT "[..], b"EPRT ", b"LPRT "].into_iter().any(|verb| {
                        part.starts_with(verb) && part[5..].iter().any(u8::is_ascii_graphic)
                    });
                    assert!(!named, "{}", line.escape_ascii());
                }
                continue;
            }
            Told::Instead(command) => command,
            Told::Listen(active) => {
                assert!(active.port >= 1024);
                let ours = (first & 4 == 0).then(|| OURS[server_is].parse().unwrap());
                let Some(command) = dialogue.listening(active, ours) else {
                    continue;
                };
                let text = String::from_utf8_lossy(&command).into_owned();
                assert!(NAMED.iter().any(|named| text.contains(named)), "{text}");
                command
            }
            Told::Answered(_) => continue,
        };
        assert!(command.ends_with(b"\r\n"));
        let ends = command.iter().filter(|&&byte| byte == b'\n').count();
        assert_eq!(ends, 1, "{}", command.escape_ascii());
    }
});
