//! What a test needs of the machine: rights, descriptors, and programs.

use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Fails the test where it does not run as root: `tests/run` says how.
pub fn needs_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test changes ids and needs root: sudo tests/run"
    );
}

/// As many descriptors as the machine allows, for tests that hold a thousand. Others of the same
/// program, and what they start, may have as many from then on: no test minds.
pub fn many_descriptors() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

/// A program that `tests/setup` installs.
pub fn tool(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':')
        .map(|directory| Path::new(directory).join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: run tests/setup"))
}
