//! tcpproxy.conf(5): text in, what was written out, with places; and back to text.
//!
//! The parser is total: any bytes in, a `Config` or located problems out, all of them in one run.
//! It reads through [`Files`] and touches nothing else. What the directives are is
//! [`crate::config::settings`]' business, but for those that give the file its structure.

mod disk;
mod parse;
mod print;
pub(super) mod reading;
mod record;
mod scopes;
mod words;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::terms::place::Place;

pub(crate) use disk::Disk;
pub use parse::parse;
pub use print::print;
pub(crate) use print::print_handed_over;
pub(crate) use record::{Record, Recorded};

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
    pub(super) fn wrong(place: Place, what: impl Into<String>) -> Problem {
        Problem {
            place,
            what: what.into(),
            telling: Telling::Wrong,
        }
    }

    pub(super) fn misplaced(place: Place, what: impl Into<String>) -> Problem {
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
    /// A file's bytes, but no more than so many; a sentence that says why it cannot be read, or
    /// what is right instead.
    fn read(&self, path: &Path, most: usize) -> Result<Vec<u8>, String>;

    /// The files that a glob pattern matches, sorted; a sentence if it is none.
    fn matching(&self, pattern: &str) -> Result<Vec<PathBuf>, String>;
}

/// What is longer, all files together, is no configuration of ours, and is not read further, in
/// bytes.
pub(crate) const LONGEST: usize = 16 << 20;

/// How many problems are reported; the rest are likely their consequences.
pub(super) const MOST_PROBLEMS: usize = 100;
/// How many services there may be.
pub(super) const MOST_SERVICES: usize = 10_000;

#[cfg(test)]
mod tests;
