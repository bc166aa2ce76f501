//! tcpproxy.conf(5): text in, what was written out, with places; and back to text.
//!
//! The parser is total: any bytes in, a `Config` or located problems out, all of them in one run.
//! It reads through [`Files`] and touches nothing else. What the directives are is
//! [`crate::config::settings`]' business, but for those that give the file its structure.

mod parse;
mod print;
mod scopes;
mod words;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use crate::terms::place::Place;

pub use parse::parse;
pub use print::print;
pub(crate) use print::print_handed_over;

/// Something wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub(crate) place: Place,
    /// What, and what would be right.
    pub(crate) what: String,
    /// How much it says.
    pub(crate) telling: Telling,
}

/// How much a problem says about what there is to mend; what says most comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Telling {
    /// It is wrong wherever it stands.
    Wrong,
    /// It does not go with something else, or not there: perhaps the other one is wrong.
    Misplaced,
    /// It is missing: perhaps it is what could not be read.
    Missing,
}

impl Problem {
    fn wrong(place: Place, what: impl Into<String>) -> Problem {
        Problem {
            place,
            what: what.into(),
            telling: Telling::Wrong,
        }
    }

    fn misplaced(place: Place, what: impl Into<String>) -> Problem {
        Problem {
            telling: Telling::Misplaced,
            ..Problem::wrong(place, what)
        }
    }

    fn missing(place: Place, what: impl Into<String>) -> Problem {
        Problem {
            telling: Telling::Missing,
            ..Problem::wrong(place, what)
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// How the parser gets at files.
pub trait Files {
    /// A file's bytes.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The files that a glob pattern matches, sorted; a sentence if it is none.
    fn matching(&self, pattern: &str) -> Result<Vec<PathBuf>, String>;
}

/// The files of this system.
pub(crate) struct Disk;

/// A file that is longer is no configuration of ours, and is not read further, in bytes.
pub(crate) const LONGEST_FILE: u64 = 16 << 20;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // One byte more, so that the parser can tell.
        File::open(path)?
            .take(LONGEST_FILE + 1)
            .read_to_end(&mut bytes)?;
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

/// A path without the steps that lead nowhere: `.`, and a second slash.
fn plain(path: &Path) -> PathBuf {
    let steps = path.components();
    steps.filter(|step| *step != Component::CurDir).collect()
}

#[cfg(test)]
mod tests;
