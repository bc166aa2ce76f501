//! Whatever a server says, there is no more to listen for than the client has asked, and what we answer
//! instead is one reply of one line.
//!
//! Run with `cargo fuzz run -s none ftp_replies` (cargo-fuzz).
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpproxy::ftp::{Dialogue, Ends, FirstLine, Heard, Told, first_line};

const COMMANDS: [&[u8]; 8] = [
    b"NOOP\r\n",
    b"PASV\r\n",
    b"EPSV\r\n",
    b"PORT 192,0,2,1,4,1\r\n",
    b"PORT 192,0,2,1,0,25\r\n",
    b"AUTH TLS\r\n",
    b"ABOR\r\n",
    b"EPSV 2\r\n",
];

fuzz_target!(|bytes: &[u8]| {
    // The commands are three bits each of the first bytes, which end with the first that has the highest.
    let Some(end) = bytes.iter().position(|byte| byte & 0x80 != 0) else {
        return;
    };
    let (commands, mut rest) = bytes.split_at(end);
    let mut dialogue = Dialogue::new(Ends {
        client: [192, 0, 2, 1].into(),
        server: [192, 0, 2, 2].into(),
        named: Some([192, 0, 2, 9].into()),
    });
    let mut asked_for = 0;
    for command in commands {
        if dialogue.client_is_to_wait() {
            break;
        }
        let line = COMMANDS[usize::from(command & 7)];
        match dialogue.command(line) {
            Told::Listen(active) => {
                dialogue.listening(active, Some("192.0.2.9:2000".parse().unwrap()));
            }
            Told::Pass if &line[1..4] == b"ASV" || &line[1..4] == b"PSV" => asked_for += 1,
            Told::Pass | Told::Instead(_) | Told::Answered(_) => {}
        }
    }
    while let FirstLine::Whole(length) = first_line(rest) {
        let (line, behind) = rest.split_at(length);
        rest = behind;
        while let Some(answer) = dialogue.own_answer() {
            assert!(answer.ends_with("\r\n") && answer.lines().count() == 1);
        }
        match dialogue.reply(line) {
            Heard::Listen { asked, port } => {
                assert!(port > 0 && asked_for > 0);
                asked_for -= 1;
                let answer = asked.reply(Some(port));
                assert!(answer.starts_with("22") && answer.lines().count() == 1);
            }
            Heard::Unreadable => {
                assert!(asked_for > 0);
                asked_for -= 1;
            }
            Heard::Pass | Heard::Withheld => {}
            Heard::Opaque => return,
        }
    }
});
