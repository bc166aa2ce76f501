//! Any bytes are a file of rinetd's, or have problems; and what it comes to can be written in our own.
//!
//! Run with `cargo fuzz run -s none rinetd` (cargo-fuzz).
#![no_main]

use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use tcpproxy::file::{self, Files};
use tcpproxy::parse_rinetd;

/// One file, which is what every include finds too.
struct OneFile<'a>(&'a [u8]);

impl Files for OneFile<'_> {
    fn read(&self, _: &Path, most: usize) -> Result<Vec<u8>, String> {
        Ok(self.0[..self.0.len().min(most)].to_vec())
    }

    fn matching(&self, pattern: &str) -> Result<Vec<PathBuf>, String> {
        Ok(vec![PathBuf::from(pattern)])
    }
}

fuzz_target!(|bytes: &[u8]| {
    match parse_rinetd(Path::new("/fuzzed"), &OneFile(bytes)) {
        Err(problems) => assert!(!problems.is_empty()),
        Ok(parsed) => {
            let printed = file::print(&parsed);
            let ours = file::parse(Path::new("/printed"), &OneFile(printed.as_bytes()));
            let ours = ours.unwrap_or_else(|problems| panic!("{problems:?}\n{printed}"));
            assert_eq!(file::print(&ours), printed);
        }
    }
});
