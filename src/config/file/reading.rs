//! Files that include each other, and how much of them is read at most: how deep, how many, how long
//! altogether. What their lines mean is their parser's business.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::{Files, LONGEST, MOST_PROBLEMS, Problem};
use crate::terms::escape::{brief, escape};
use crate::terms::place::Place;

/// Longer lines are mistakes, in bytes.
const LONGEST_LINE: usize = 64 << 10;
/// How many files may include each other in a row.
const DEEPEST_INCLUDE: usize = 16;
/// How many files may be read in all.
const MOST_FILES: usize = 1000;

/// What has been read of a configuration, and what is being read.
pub(in crate::config) struct Reading<'a> {
    files: &'a dyn Files,
    /// The files that are being read, the innermost last.
    including: Vec<PathBuf>,
    files_read: usize,
    bytes_read: usize,
}

impl<'a> Reading<'a> {
    pub(in crate::config) fn of(files: &'a dyn Files) -> Reading<'a> {
        Reading {
            files,
            including: Vec::new(),
            files_read: 0,
            bytes_read: 0,
        }
    }

    /// The bytes of the file that is no other's.
    pub(in crate::config) fn first(&self, path: &Path) -> Result<Vec<u8>, Problem> {
        self.files.read(path, LONGEST + 1).map_err(|why| {
            let place = Place::in_file(&Rc::new(path.to_owned()), 1, 1);
            Problem::wrong(place, format!("cannot be read: {why}"))
        })
    }

    /// Begins a file, whose name is then shared by all places in it.
    pub(in crate::config) fn begin(
        &mut self,
        path: &Path,
        bytes: &[u8],
    ) -> Result<Rc<PathBuf>, Problem> {
        let name = Rc::new(path.to_owned());
        self.including.push(path.to_owned());
        self.files_read += 1;
        self.bytes_read += bytes.len();
        if self.bytes_read <= LONGEST {
            return Ok(name);
        }
        self.end();
        let what = format!("there are more than {LONGEST} bytes, all files together");
        Err(Problem::wrong(Place::in_file(&name, 1, 1), what))
    }

    /// Ends the file that was begun last.
    pub(in crate::config) fn end(&mut self) {
        self.including.pop();
    }

    /// The files that a word names, relative to the file that is being read.
    pub(in crate::config) fn named(
        &self,
        word: &str,
        is_pattern: bool,
    ) -> Result<Vec<PathBuf>, String> {
        let directory = self.including.last().and_then(|path| path.parent());
        let pattern = directory.map_or_else(|| PathBuf::from(word), |dir| dir.join(word));
        if !is_pattern {
            return Ok(vec![pattern]);
        }
        let paths = self.files.matching(&pattern.to_string_lossy());
        paths.map_err(|error| format!("'{}' is not a pattern: {error}", brief(word)))
    }

    /// The bytes of a file that is included.
    pub(in crate::config) fn included(&self, path: &Path) -> Result<Vec<u8>, String> {
        let shown = || escape(path.as_os_str().as_encoded_bytes());
        if self.including.iter().any(|including| including == path) {
            return Err(format!("{} includes itself", shown()));
        }
        if self.including.len() >= DEEPEST_INCLUDE {
            let shown = shown();
            return Err(format!("{shown} is included {DEEPEST_INCLUDE} files deep"));
        }
        if self.files_read >= MOST_FILES {
            let shown = shown();
            return Err(format!(
                "{shown} would be one of more than {MOST_FILES} files"
            ));
        }
        // One byte more than there may be, so that it can be told.
        let most = LONGEST.saturating_sub(self.bytes_read) + 1;
        let read = self.files.read(path, most);
        read.map_err(|why| format!("{} cannot be read: {why}", shown()))
    }
}

/// The lines of a file with their numbers, or what is wrong with one.
pub(in crate::config) fn lines(bytes: &[u8]) -> impl Iterator<Item = (u32, Result<&[u8], String>)> {
    // Some editors put it there; it means nothing in UTF-8.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let lines = (1..).zip(bytes.split(|&byte| byte == b'\n'));
    lines.map(|(number, line)| {
        let too_long = || format!("the line is longer than {LONGEST_LINE} bytes");
        let is_short = line.len() <= LONGEST_LINE;
        (number, is_short.then_some(line).ok_or_else(too_long))
    })
}

/// What is wrong, no more of it than somebody would read.
#[derive(Default)]
pub(in crate::config) struct Problems(Vec<Problem>);

impl Problems {
    /// Notes a problem, unless there are enough.
    pub(in crate::config) fn note(&mut self, mut problem: Problem) {
        if self.are_enough() {
            return;
        }
        if self.0.len() + 1 == MOST_PROBLEMS {
            problem.what += " (further problems are not shown)";
        }
        self.0.push(problem);
    }

    /// Whether there is nothing to be gained by reading on.
    pub(in crate::config) fn are_enough(&self) -> bool {
        self.0.len() >= MOST_PROBLEMS
    }

    /// This, if there are none.
    pub(in crate::config) fn unless_any<T>(self, right: T) -> Result<T, Vec<Problem>> {
        if self.0.is_empty() {
            Ok(right)
        } else {
            Err(self.0)
        }
    }
}
