//! The files of this system: regular ones, so that reading them ends.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::Files;
use crate::terms::error::describe;

/// The files of this system.
pub(crate) struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path, most: usize) -> Result<Vec<u8>, String> {
        // Looked at before it is opened: that alone sets some devices going.
        let found = fs::metadata(path).map_err(unreadable)?;
        regular(&found)?;
        // And again, as another file may have taken the name; opening that must not wait.
        let mut options = OpenOptions::new();
        let options = options
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let file = options.open(path).map_err(unreadable)?;
        let found = file.metadata().map_err(unreadable)?;
        regular(&found)?;
        if found.len() == 0 && is_of_the_kernel(&file) {
            return Err(instead_of("one that the kernel makes up (proc(5))"));
        }
        let mut bytes = Vec::new();
        file.take(most as u64)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        Ok(bytes)
    }

    fn matching(&self, pattern: &str) -> Result<Vec<PathBuf>, String> {
        let complaint = |error: glob::PatternError| error.msg.to_owned();
        let paths = glob::glob(pattern).map_err(complaint)?;
        let mut paths: Vec<PathBuf> = paths
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        // As in a shell, so that an editor's .name.swp is not read. Asked to see to that itself,
        // glob 0.3 panics at a file whose name is not UTF-8, and finds nothing for `.*`.
        let options = glob::MatchOptions {
            require_literal_separator: true,
            require_literal_leading_dot: true,
            ..glob::MatchOptions::new()
        };
        let strict = plain(Path::new(pattern));
        let strict = glob::Pattern::new(&strict.to_string_lossy()).map_err(complaint)?;
        paths.retain(|path| strict.matches_path_with(&plain(path), options));
        paths.sort();
        Ok(paths)
    }
}

/// Refuses what may never end, or has to be waited for.
fn regular(found: &Metadata) -> Result<(), String> {
    let kind = found.file_type();
    let what = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(instead_of(what))
}

fn instead_of(what: &str) -> String {
    format!("it is {what}: a configuration is a regular file, which can be read again")
}

/// Whether it is in /proc, where files are called regular that are not: reading one may take what is
/// there from others, or wait for it.
fn is_of_the_kernel(file: &File) -> bool {
    fstatfs(file).is_ok_and(|found| found.filesystem_type() == PROC_SUPER_MAGIC)
}

/// A system's error without std's "(os error 2)".
fn unreadable(error: io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => describe(Errno::from_raw(number)),
        None => error.to_string(),
    }
}

/// A path without the steps that lead nowhere: `.`, and a second slash.
fn plain(path: &Path) -> PathBuf {
    let steps = path.components();
    steps.filter(|step| *step != Component::CurDir).collect()
}
