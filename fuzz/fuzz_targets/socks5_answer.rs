//! Any bytes are a SOCKS proxy's answers, the beginning of one, or none; and it makes no difference in which
//! pieces they come.
//!
//! Run with `cargo fuzz run -s none socks5_answer` (cargo-fuzz).
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use tcpproxy::socks5::{self, LONGEST, Reply};
use tcpproxy::{Progress, Credentials};

fuzz_target!(|bytes: &[u8]| {
    check(bytes, socks5::read_method);
    check(bytes, socks5::read_acceptance);
    check(bytes, socks5::read_reply);
    // What we say is as long as it says it is, whatever is in it.
    if let Ok(host) = std::str::from_utf8(bytes)
        && let Some(request) = socks5::request(host, 25)
    {
        let address = match request[3] {
            1 => 4,
            3 => 1 + usize::from(request[4]),
            4 => 16,
            other => panic!("type {other}"),
        };
        assert_eq!(request.len(), 4 + address + 2);
    }
    if let Ok(credentials) = Credentials::parse(bytes) {
        let has_room = socks5::check(&credentials).is_ok();
        if let Some(message) = socks5::password(&credentials) {
            let of_user = usize::from(message[1]);
            let of_password = usize::from(message[2 + of_user]);
            assert_eq!(message.len(), 3 + of_user + of_password);
            assert_eq!(has_room, of_user > 0 && of_password > 0);
        } else {
            assert!(!has_room);
        }
    }
    if let Progress::Complete { says, .. } = socks5::read_reply(bytes)
        && let Reply::Failed(code) = says
    {
        assert!(code != 0 && !socks5::reason(code).is_empty());
    }
});

fn check<T: Debug + PartialEq>(bytes: &[u8], read: impl Fn(&[u8]) -> Progress<T>) {
    let whole = read(bytes);
    // As they would come one by one: the first answer that is one stays.
    let first = (0..=bytes.len())
        .map(|count| (count, read(&bytes[..count])))
        .find(|(_, answer)| *answer != Progress::Incomplete);
    match (&whole, first) {
        (Progress::Incomplete, None) => assert!(bytes.len() < LONGEST),
        (Progress::Wrong(_), Some((_, Progress::Wrong(_)))) => {}
        (Progress::Complete { length, .. }, Some((count, piecemeal))) => {
            // Complete with its last byte, and not one later.
            assert_eq!((count, &piecemeal), (*length, &whole));
        }
        (whole, first) => panic!("{whole:?}, but {first:?}"),
    }
}
