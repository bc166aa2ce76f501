//! The file that holds the supervisor's process id, for those who want to send it a signal.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::terms::error::{Error, Status};
use crate::terms::escape::escape;

/// A pid file of ours, locked as long as we live, and removed at the end.
pub(super) struct PidFile {
    path: PathBuf,
    owner: u32,
    file: File,
}

/// A lock that belongs to this process alone, whoever inherits the descriptor (fcntl(2)): a
/// session that outlives its supervisor must not keep the next one from starting.
fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

impl PidFile {
    /// Writes the file. One that a server has left behind is taken over; one whose server lives
    /// (it holds the lock) is an error, and so is anything that is not a plain file.
    pub(super) fn create(path: &Path) -> Result<PidFile, Error> {
        loop {
            let created = PidFile::lock(path)?;
            // A server that was ending may have removed what we have opened.
            if created.is_in_place() {
                return created.written();
            }
        }
    }

    /// The descriptor, which is for nobody else.
    pub(super) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn lock(path: &Path) -> Result<PidFile, Error> {
        let what = || named(path);
        let failed = |error: io::Error| Error::io(what(), &error);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            // Someone else's link must not decide what is overwritten.
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(path)
            .map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(Error::new(
                Status::System,
                format!("{}: not a plain file", what()),
            ));
        }
        if let Err(errno) = fcntl(&file, FcntlArg::F_SETLK(&whole_file())) {
            return Err(match errno {
                Errno::EACCES | Errno::EAGAIN => {
                    let pid = fs::read_to_string(path).unwrap_or_default();
                    let line = format!("{}: its server is running: {}", what(), escape(pid.trim()));
                    Error::new(Status::System, line)
                }
                errno => Error::system(what(), errno),
            });
        }
        Ok(PidFile {
            path: path.to_owned(),
            owner: process::id(),
            file,
        })
    }

    fn written(mut self) -> Result<PidFile, Error> {
        let number = format!("{}\n", process::id());
        let written = self.file.set_len(0);
        match written.and_then(|()| self.file.write_all(number.as_bytes())) {
            Ok(()) => Ok(self),
            Err(error) => Err(Error::io(named(&self.path), &error)),
        }
    }

    /// Whether the name still leads to the file that was opened.
    fn is_in_place(&self) -> bool {
        let file =
            |found: io::Result<fs::Metadata>| found.map(|found| (found.dev(), found.ino())).ok();
        let ours = file(self.file.metadata());
        ours.is_some() && ours == file(fs::symlink_metadata(&self.path))
    }
}

fn named(path: &Path) -> String {
    format!("pid file {}", escape(path.as_os_str().as_encoded_bytes()))
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Not in a child, which has a copy of this; and not if somebody has put another file
        // there. If it cannot be removed, the next server takes it over.
        if self.owner == process::id() && self.is_in_place() {
            let _ = fs::remove_file(&self.path);
        }
    }
}
