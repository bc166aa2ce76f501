//! Any bytes are a PROXY header, the beginning of one, or none; it makes no difference in which pieces
//! they come; and what a header says is read again from what is written of it.
//!
//! Run with `cargo fuzz run -s none proxy` (cargo-fuzz).
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpproxy::Progress;
use tcpproxy::proxy::{self, Announced, LONGEST};

fuzz_target!(|bytes: &[u8]| {
    let whole = proxy::read(bytes);
    // As they would come one by one: the first answer that is one stays.
    let first = (0..=bytes.len())
        .map(|count| (count, proxy::read(&bytes[..count])))
        .find(|(_, progress)| *progress != Progress::Incomplete);
    match (&whole, first) {
        (Progress::Incomplete, first) => {
            assert!(first.is_none() && bytes.len() < LONGEST);
        }
        (Progress::Wrong(_), Some((_, Progress::Wrong(_)))) => {}
        (Progress::Complete { says: announced, length }, Some((count, piecemeal))) => {
            // Complete with its last byte, and not one later.
            assert_eq!((count, &piecemeal), (*length, &whole));
            for (header, expected) in [
                (proxy::version_2(announced), *announced),
                (proxy::version_1(announced), in_version_1(*announced)),
            ] {
                match proxy::read(&header) {
                    Progress::Complete { says: announced, length } => {
                        assert_eq!((announced, length), (expected, header.len()));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        (whole, first) => panic!("{whole:?}, but {first:?}"),
    }
});

/// What version 1 has words for.
fn in_version_1(announced: Announced) -> Announced {
    match announced {
        Announced::Unix => Announced::Nothing,
        announced => announced,
    }
}
