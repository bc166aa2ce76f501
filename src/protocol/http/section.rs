//! Lines up to an empty one, in whatever pieces they come: a head, or a trailer section.

use std::mem;

use super::{LONGEST_HEAD, Refusal};

/// What counts as the end of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// CRLF alone. A CR or an LF by itself is taken for an end by some and not by others (RFC 9112,
    /// section 2.2): it is refused.
    Crlf,
    /// An LF, behind a CR or not.
    Any,
}

/// What has come of a section that is not complete.
#[derive(Debug)]
pub(super) struct Section {
    bytes: Vec<u8>,
    ends: Ends,
    /// The length of the line that the last byte belongs to, with a CR at its end.
    line: usize,
    /// How many bytes of empty lines came before the first.
    skipped: usize,
    skips: bool,
    /// It is worth looking at once it is so long.
    next_look: usize,
}

impl Section {
    fn new(ends: Ends, skips: bool) -> Section {
        Section {
            bytes: Vec::new(),
            ends,
            line: 0,
            skipped: 0,
            skips,
            next_look: 1,
        }
    }

    /// A head. Empty lines before it are skipped (RFC 9112, section 2.2).
    pub(super) fn head(ends: Ends) -> Section {
        Section::new(ends, true)
    }

    /// Trailer fields, of which there may be none.
    pub(super) fn trailers() -> Section {
        Section::new(Ends::Crlf, false)
    }

    /// Whether nothing of it has come yet but empty lines that are skipped.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes bytes up to its end at most. Returns how many, and whether it is complete.
    pub(super) fn take(&mut self, rest: &[u8]) -> Result<(usize, bool), Refusal> {
        for (index, &byte) in rest.iter().enumerate() {
            let after_cr = self.bytes.last() == Some(&b'\r');
            if self.ends == Ends::Crlf && after_cr != (byte == b'\n') {
                return Err(Refusal::Bad("a line does not end in CRLF"));
            }
            if self.bytes.len() + self.skipped >= LONGEST_HEAD {
                return Err(Refusal::TooLarge("the head is longer than 64 KiB"));
            }
            self.bytes.push(byte);
            self.line += 1;
            if byte != b'\n' {
                continue;
            }
            let is_empty = self.line == 1 + usize::from(after_cr);
            self.line = 0;
            if !is_empty {
                continue;
            }
            if self.skips && self.bytes.iter().all(|&b| matches!(b, b'\r' | b'\n')) {
                self.skipped += self.bytes.len();
                self.bytes.clear();
                continue;
            }
            return Ok((index + 1, true));
        }
        Ok((rest.len(), false))
    }

    /// Its beginning, where that has at least doubled since it was last looked at: what is wrong there is
    /// found early, and nobody has it read over and over by sending single bytes.
    pub(super) fn worth_a_look(&mut self) -> Option<&[u8]> {
        if self.bytes.len() < self.next_look {
            return None;
        }
        self.next_look = 2 * self.bytes.len();
        Some(&self.bytes)
    }

    /// What has come of it.
    pub(super) fn so_far(&self) -> &[u8] {
        &self.bytes
    }

    /// What it has come to.
    pub(super) fn take_all(&mut self) -> Vec<u8> {
        mem::take(&mut self.bytes)
    }
}
