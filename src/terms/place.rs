//! Where something was written, so that messages can say so.

use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;

/// Where something was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the command line.
    CommandLine,
    /// In a file.
    File {
        /// The file: one pointer, as thousands of rules have a place.
        path: Rc<PathBuf>,
        /// Its line, from 1.
        line: u32,
        /// The character in the line, from 1.
        column: u32,
    },
}

/// A value, and where it was written.
#[derive(Debug, Clone)]
pub(crate) struct Located<T> {
    pub(crate) value: T,
    pub(crate) place: Place,
}

impl<T: PartialEq> PartialEq for Located<T> {
    /// Wherever they stand, equal values mean the same.
    fn eq(&self, other: &Located<T>) -> bool {
        self.value == other.value
    }
}

impl Place {
    /// A character of a file that is read: no line there is as long as would be cut here.
    pub(crate) fn in_file(path: &Rc<PathBuf>, line: u32, column: usize) -> Place {
        Place::File {
            path: Rc::clone(path),
            line,
            column: column as u32,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Place::CommandLine => f.write_str("the command line"),
            Place::File { path, line, column } => {
                let path = crate::terms::escape::escape(path.as_os_str().as_encoded_bytes());
                write!(f, "{path}:{line}:{column}")
            }
        }
    }
}
