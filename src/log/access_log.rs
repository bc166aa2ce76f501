//! A line per ended session in a file of its own, for programs that read such files; and where rinetd's
//! own log is wanted, one when it opens.

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use super::outlet::Outlet;
use super::record::{self, Format, Record, Wording};
use crate::terms::error::Error;
use crate::terms::escape::escape;
use crate::terms::facts::Facts;

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

    /// Notes that a session opens, in the format that has a line for it.
    pub(super) fn write_opened(
        &self,
        facts: &Facts,
        wording: Option<&dyn Wording>,
    ) -> io::Result<()> {
        match self.format {
            Format::RinetdOpened => {
                let line = record::opened_line(SystemTime::now(), facts, wording);
                self.file.write(&line)
            }
            Format::Tcpproxy | Format::Common | Format::Rinetd | Format::Json => Ok(()),
        }
    }
}
