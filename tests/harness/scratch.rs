//! Files of a test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A directory of the test's own, removed at its end. Other users can create files in it.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        use std::os::unix::fs::PermissionsExt;
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tcpproxy-{}-{count}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes an executable shell script, and returns its path.
    pub fn script(&self, name: &str, body: &str) -> PathBuf {
        let (text, path) = (self.join(&format!("{name}.text")), self.join(name));
        fs::write(&text, format!("#!/bin/sh\n{body}\n")).unwrap();
        // Copied by a process of its own: a file of ours that is open for writing while another
        // thread forks cannot be executed until that thread's child is done (ETXTBSY).
        let installed = Command::new("install")
            .args(["-m", "755"])
            .args([&text, &path])
            .status()
            .unwrap();
        assert!(installed.success());
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
