//! Any bytes are an access program's answer, or none; what it names is what stands there, in order.
//!
//! Run with `cargo fuzz run -s none answer` (cargo-fuzz).
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpproxy::answer::{LONGEST, servers};

fuzz_target!(|bytes: &[u8]| {
    match servers(bytes) {
        Ok(named) => {
            assert!(bytes.len() <= LONGEST);
            assert_eq!(named.is_empty(), bytes.is_empty());
            let all = str::from_utf8(bytes).expect("what is not UTF-8 names nobody");
            let words: Vec<&str> = all
                .split('\n')
                .flat_map(|line| {
                    let words = line.split([' ', '\t']).filter(|word| !word.is_empty());
                    words.skip(1)
                })
                .collect();
            assert_eq!(named, words);
            // Written by the book, it says the same.
            let plain: String = named
                .iter()
                .map(|name| format!("server {name}\n"))
                .collect();
            if plain.len() <= LONGEST {
                assert_eq!(servers(plain.as_bytes()), Ok(named));
            }
        }
        Err(complaint) => {
            assert!(!complaint.is_empty() && !complaint.contains(char::is_control));
            // It is cut to length, whatever the answer was.
            assert!(complaint.len() < 1000, "{complaint}");
        }
    }
});
