//! What `--write` records: every byte of a session, with its time and direction.
//!
//! A file is a sequence of records. Each is a line `DIRECTION TIME LENGTH`, exactly LENGTH bytes
//! as they arrived, and a newline. DIRECTION is `>` from the client and `<` from the upstream.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::time::SystemTime;

use crate::log;
use crate::relay::{Side, Tap};
use crate::terms::error::Error;

/// How many names are tried before a session goes unrecorded: nobody who can write to the directory is
/// to hold sessions up for long.
const MOST: u32 = 99_999;

pub(crate) struct Transcript {
    path: PathBuf,
    file: Option<File>,
    /// A record's first line. It is kept, so that no record costs an allocation.
    header: String,
    failure: Option<Error>,
}

impl Transcript {
    /// Creates `BASE.PID.log`, or `BASE.PID.N.log` with the least N from 1 of which there is nothing
    /// yet (in a container, process ids come again soon). It is readable by its owner alone. Nothing
    /// is ever followed or overwritten.
    pub(crate) fn create(base: &Path) -> Result<Transcript, Error> {
        let mut path = named(base, None);
        let mut created = create_new(&path);
        for number in 1..=MOST {
            match &created {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Ok(_) | Err(_) => break,
            }
            path = named(base, Some(number));
            created = create_new(&path);
        }
        match created {
            Ok(file) => Ok(Transcript {
                path,
                file: Some(file),
                header: String::new(),
                failure: None,
            }),
            Err(error) => Err(not_written(&path, &error)),
        }
    }

    /// Why it is incomplete from here on, once.
    pub(crate) fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }
}

impl Tap for Transcript {
    /// After a failure nothing more is recorded.
    fn record(&mut self, from: Side, bytes: &[u8]) {
        let Some(file) = &mut self.file else {
            return;
        };
        let direction = match from {
            Side::Client => '>',
            Side::Upstream => '<',
        };
        let time = log::timestamp(SystemTime::now(), 6);
        self.header.clear();
        // Writing to a String cannot fail.
        let _ = writeln!(self.header, "{direction} {time} {}", bytes.len());
        if let Err(error) = write_all(file, [self.header.as_bytes(), bytes, b"\n"]) {
            self.file = None;
            self.failure = Some(not_written(&self.path, &error));
        }
    }
}

fn named(base: &Path, number: Option<u32>) -> PathBuf {
    let mut path = base.as_os_str().to_owned();
    path.push(format!(".{}", process::id()));
    if let Some(number) = number {
        path.push(format!(".{number}"));
    }
    path.push(".log");
    PathBuf::from(path)
}

/// A new file. Where a link is, even one that leads nowhere, something is there already.
fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn not_written(path: &Path, error: &io::Error) -> Error {
    let path = crate::terms::escape::escape(path.as_os_str().as_encoded_bytes());
    Error::io(format_args!("transcript {path}"), error)
}

/// Writes all parts, with one system call unless the disk is slow to take them.
fn write_all(file: &mut File, parts: [&[u8]; 3]) -> io::Result<()> {
    let mut slices = parts.map(IoSlice::new);
    let mut left = &mut slices[..];
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut left, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
