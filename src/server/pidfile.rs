//! The file that holds the supervisor's process id, for those who want to send it a signal.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::sys;
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
    /// Writes the file. One that a server has left behind is taken over, or replaced where somebody
    /// holds it who only reads it; one whose server lives (it holds the lock) is an error, and so is
    /// anything that is not a plain file.
    pub(super) fn create(path: &Path) -> Result<PidFile, Error> {
        loop {
            // A server that was ending may have removed what we have opened.
            if let Some(created) = PidFile::lock(path)?
                && created.is_in_place()
            {
                return created.written();
            }
        }
    }

    /// The descriptor, which is for nobody else.
    pub(super) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The file, locked. `None` if another is in its place by now.
    fn lock(path: &Path) -> Result<Option<PidFile>, Error> {
        let what = || named(path);
        let failed = |error: io::Error| Error::io(what(), &error);
        let file = options().create(true).open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(Error::new(
                Status::System,
                format!("{}: not a plain file", what()),
            ));
        }
        match fcntl(&file, FcntlArg::F_SETLK(&whole_file())) {
            Ok(_) => Ok(Some(PidFile::of(path, file))),
            Err(Errno::EACCES | Errno::EAGAIN) if is_a_servers(&file) => Err(running(path)),
            // Everybody who may read it can hold it so.
            Err(Errno::EACCES | Errno::EAGAIN) => PidFile::in_place_of(&file, path),
            Err(errno) => Err(Error::system(what(), errno)),
        }
    }

    /// Puts a new file, locked, in the place of one that no server has. `None` if another server is
    /// about to have the place: it is to be looked at again.
    fn in_place_of(abandoned: &File, path: &Path) -> Result<Option<PidFile>, Error> {
        let failed = |error: io::Error| Error::io(named(path), &error);
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", process::id()));
        let beside = Beside(PathBuf::from(name));
        // One that a server of our number has left there.
        let _ = fs::remove_file(&beside.0);
        let file = options().create_new(true).open(&beside.0).map_err(failed)?;
        // Whoever was quicker than us has read it, and sees nothing to be done; it is tried again.
        if fcntl(&file, FcntlArg::F_SETLK(&whole_file())).is_err() {
            return Ok(None);
        }
        let exchange = || sys::exchange(&beside.0, path);
        exchange().map_err(|errno| Error::system(named(path), errno))?;
        // What we have taken away may be another one than we have looked at, or have been locked
        // since. Then it is its server's, and goes back.
        let taken = fs::symlink_metadata(&beside.0).map_err(failed)?;
        let found = abandoned.metadata().map_err(failed)?;
        if (taken.dev(), taken.ino()) != (found.dev(), found.ino()) || is_a_servers(abandoned) {
            exchange().map_err(|errno| Error::system(named(path), errno))?;
            return Ok(None);
        }
        Ok(Some(PidFile::of(path, file)))
    }

    fn of(path: &Path, file: File) -> PidFile {
        PidFile {
            path: path.to_owned(),
            owner: process::id(),
            file,
        }
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

/// A name that is to be nobody's in the end.
struct Beside(PathBuf);

impl Drop for Beside {
    fn drop(&mut self) {
        // It may not have come to be.
        let _ = fs::remove_file(&self.0);
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .truncate(false)
        .mode(0o644)
        // Someone else's link must not decide what is overwritten.
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    options
}

/// Whether a server has a file that we cannot lock: only who may write to it can have it for itself.
fn is_a_servers(file: &File) -> bool {
    let mut found = whole_file();
    match fcntl(file, FcntlArg::F_GETLK(&mut found)) {
        Ok(_) => found.l_type == libc::F_WRLCK as libc::c_short,
        Err(_) => true,
    }
}

fn running(path: &Path) -> Error {
    let pid = fs::read_to_string(path).unwrap_or_default();
    let line = format!(
        "{}: its server is running: {}",
        named(path),
        escape(pid.trim())
    );
    Error::new(Status::System, line)
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
