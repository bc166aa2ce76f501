//! What is heard of an access program beside its exit status.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use crate::log::Journal;
use crate::protocol::answer;
use crate::sys;
use crate::terms::escape::escape;

/// How many lines of a program's standard error are logged, and how many bytes of each.
const LOGGED_LINES: usize = 64;
const LOGGED_BYTES: usize = 1024;

/// How many pieces of 4 KiB are read before anything else is looked at: a pipe's fill.
const PIECES: usize = 16;

/// Reads what there is, without waiting for it. Returns how much; nothing more is read behind the end.
fn read_some(source: &mut Option<File>, buffer: &mut [u8]) -> usize {
    match source.as_mut().map(|source| source.read(buffer)) {
        Some(Ok(0)) => {
            *source = None;
            0
        }
        Some(Ok(count)) => count,
        Some(Err(_)) | None => 0,
    }
}

/// What a program writes as its answer. Of what is too much, the rest is read and dropped, so that the
/// program comes to its end.
pub(super) struct Answer {
    source: Option<File>,
    bytes: Vec<u8>,
}

impl Answer {
    pub(super) fn new(source: File) -> nix::Result<Answer> {
        sys::set_blocking(source.as_fd(), false)?;
        Ok(Answer {
            source: Some(source),
            bytes: Vec::new(),
        })
    }

    /// What to poll, until it has ended.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().map(File::as_fd)
    }

    /// Reads what there is, up to a pipe's fill.
    pub(super) fn read_some(&mut self) {
        let mut buffer = [0; 4096];
        for _ in 0..PIECES {
            let count = read_some(&mut self.source, &mut buffer);
            if count == 0 {
                return;
            }
            // One byte more than may be says that it is too much.
            let room = answer::LONGEST + 1 - self.bytes.len();
            self.bytes.extend_from_slice(&buffer[..count.min(room)]);
        }
    }

    /// All that was written until now.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.read_some();
        self.bytes
    }
}

/// What a program writes to its standard error, line by line into the log: cut to length,
/// escaped, and no more than so many.
pub(super) struct Lines<'a> {
    source: Option<File>,
    line: Vec<u8>,
    logged: usize,
    who: &'a str,
    journal: &'a Journal<'a>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(
        source: File,
        who: &'a str,
        journal: &'a Journal<'a>,
    ) -> nix::Result<Lines<'a>> {
        sys::set_blocking(source.as_fd(), false)?;
        Ok(Lines {
            source: Some(source),
            line: Vec::new(),
            logged: 0,
            who,
            journal,
        })
    }

    /// What to poll, until it has ended.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().map(File::as_fd)
    }

    /// Reads what there is, up to a pipe's fill.
    pub(super) fn read_some(&mut self) {
        let mut buffer = [0; 4096];
        for _ in 0..PIECES {
            match read_some(&mut self.source, &mut buffer) {
                0 => return,
                count => self.take(&buffer[..count]),
            }
        }
    }

    fn take(&mut self, text: &[u8]) {
        for piece in text.split_inclusive(|&byte| byte == b'\n') {
            let (piece, ended) = match piece.strip_suffix(b"\n") {
                Some(piece) => (piece, true),
                None => (piece, false),
            };
            let room = LOGGED_BYTES - self.line.len();
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            if ended {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        self.logged += 1;
        if self.logged <= LOGGED_LINES {
            self.journal
                .notice(format_args!("{}: {}", self.who, escape(&self.line)));
        } else if self.logged == LOGGED_LINES + 1 {
            self.journal
                .notice(format_args!("{}: further lines are dropped", self.who));
        }
        self.line.clear();
    }

    /// Logs what was read last, even without a line's end.
    pub(super) fn finish(&mut self) {
        self.read_some();
        if !self.line.is_empty() {
            self.flush();
        }
    }
}
