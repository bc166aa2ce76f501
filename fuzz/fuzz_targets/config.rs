//! Any bytes are a configuration, or have problems; and what is printed is read as it was.
//!
//! Run with `cargo fuzz run -s none config` (cargo-fuzz).
#![no_main]

use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use tcpproxy::file::{self, Files};

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
    match file::parse(Path::new("/fuzzed"), &OneFile(bytes)) {
        Err(problems) => assert!(!problems.is_empty()),
        Ok(parsed) => {
            let printed = file::print(&parsed);
            // A password is not printed, and what is printed instead is none.
            if printed.contains(":***@") {
                return;
            }
            let again = file::parse(Path::new("/printed"), &OneFile(printed.as_bytes()));
            let again = again.unwrap_or_else(|problems| panic!("{problems:?}\n{printed}"));
            assert_eq!(file::print(&again), printed);
        }
    }
});
