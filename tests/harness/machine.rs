//! What a test needs of the machine: rights, and programs.

use std::path::{Path, PathBuf};

/// Fails the test where it does not run as root: `tests/run` says how.
pub fn needs_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test changes ids and needs root: sudo tests/run"
    );
}

/// A program that `tests/setup` installs.
pub fn tool(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':')
        .map(|directory| Path::new(directory).join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: run tests/setup"))
}
