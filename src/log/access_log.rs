//! A line per ended session in a file of its own, for programs that read such files.

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use super::outlet::Outlet;
use super::record::{Format, Record};
use crate::terms::error::Error;
use crate::terms::escape::escape;

/// What the access log is to be.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) path: PathBuf,
    /// What its lines look like.
    pub(crate) format: Format,
}

#[derive(Debug)]
pub(super) struct AccessLog {
    file: Outlet,
    format: Format,
}

impl AccessLog {
    /// Opens the file, or creates it.
    pub(super) fn open(plan: &Plan) -> Result<AccessLog, Error> {
        let Plan { path, format } = plan;
        let file = Outlet::open(path).map_err(|error| {
            let path = escape(path.as_os_str().as_encoded_bytes());
            Error::io(format_args!("access log {path}"), &error)
        })?;
        Ok(AccessLog {
            file,
            format: *format,
        })
    }

    pub(super) fn write(&self, record: &Record, tag: &str) -> io::Result<()> {
        let line = record.in_format(self.format, SystemTime::now(), tag);
        self.file.write(&line)
    }
}
