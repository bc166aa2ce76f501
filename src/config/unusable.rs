//! Why there is no setup.

use super::file::Problem;
use crate::terms::error::Error;

/// Why there is no setup.
pub(crate) enum Unusable {
    /// The command line is wrong, or something else than a file's content.
    Error(Error),
    /// The configuration file is wrong; there is at least one problem.
    Problems(Vec<Problem>),
}

impl From<Error> for Unusable {
    fn from(error: Error) -> Unusable {
        Unusable::Error(error)
    }
}

impl From<Unusable> for Error {
    /// One line: the problem that says most, the first of several, and how to see the others.
    fn from(unusable: Unusable) -> Error {
        match unusable {
            Unusable::Error(error) => error,
            Unusable::Problems(problems) => {
                let first = problems.iter().min_by_key(|problem| problem.telling);
                let first = first.map_or_else(String::new, ToString::to_string);
                Error::config(match problems.len() {
                    0 | 1 => first,
                    count => format!("{first} (and {} more: --check shows them)", count - 1),
                })
            }
        }
    }
}
