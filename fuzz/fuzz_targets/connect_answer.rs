//! Any bytes are an HTTP proxy's answer, the beginning of one, or none; and it makes no difference in which
//! pieces they come.
//!
//! Run with `cargo fuzz run -s none connect_answer` (cargo-fuzz).
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpproxy::Progress;
use tcpproxy::connect::{self, LONGEST};

fuzz_target!(|bytes: &[u8]| {
    let whole = connect::read(bytes);
    // As they would come one by one: the first answer that is one stays.
    let first = (0..=bytes.len())
        .map(|count| (count, connect::read(&bytes[..count])))
        .find(|(_, answer)| *answer != Progress::Incomplete);
    match (&whole, first) {
        (Progress::Incomplete, None) => assert!(bytes.len() < LONGEST),
        (Progress::Wrong(why), Some((_, Progress::Wrong(_)))) => assert_fit(why),
        (Progress::Complete { says, length }, Some((count, piecemeal))) => {
            // Complete with its last byte, and not one later.
            assert_eq!((count, &piecemeal), (*length, &whole));
            assert!((100..1000).contains(&says.code));
            assert_fit(&says.line);
            if says.is_success() {
                let head = &bytes[..*length];
                assert!(head.ends_with(b"\n\r\n") || head.ends_with(b"\n\n"));
            }
        }
        (whole, first) => panic!("{whole:?}, but {first:?}"),
    }
});

/// Fails where a text could forge a line of a log, or fill it.
fn assert_fit(text: &str) {
    assert!(
        !text.contains(char::is_control) && text.len() < 2000,
        "{text:?}"
    );
}
