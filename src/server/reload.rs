//! SIGHUP: the configuration is taken up again, and nobody waits for it, nor suffers.
//!
//! A name server may be silent, a disk slow, and a file need more memory than there is. So a child
//! process reads the files, looks up the names, and makes everything of them that the server would
//! have. If it fails, dies or takes too long, nothing has changed. If it succeeds, it leaves the bytes
//! that it has read and the answers that it was given, and the server makes the same of those, which
//! takes no more memory, and no time but its own.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, dup2_stderr, getppid, setpgid};

use super::{Supervisor, WATCHED, sessions};
use crate::config::file::{Disk, Files, Record, Recorded};
use crate::config::setup::Setup;
use crate::log::Log;
use crate::source::{self, Listener};
use crate::sys;
use crate::sys::names::known::{self, Answers};
use crate::terms::error::{Error, Status};
use crate::terms::fields;

/// How long the check may take: as long as the C library asks three silent name servers by default
/// (resolv.conf(5): two attempts of 5 s with each).
const TIME: Duration = Duration::from_secs(30);

/// What the check may leave at most: all files, and as much again for names and paths.
const MOST_LEFT: usize = 2 * crate::config::file::LONGEST;

/// Under a limit on its memory the check has so much less, in bytes: what it could do, the server can,
/// which goes on serving meanwhile.
const SET_ASIDE: u64 = 4 << 20;

/// What SIGHUP asks for.
pub(crate) struct Again<'a> {
    /// Makes the configuration anew of these files.
    pub setup: &'a dyn Fn(&dyn Files) -> Result<Setup, Error>,
    /// Opens the log that a setup wants.
    pub log: &'a dyn Fn(&Setup) -> Result<Log, Error>,
}

/// A configuration that is being checked.
pub(super) struct Reload {
    child: Pid,
    ended: Option<ExitStatus>,
    ends_at: Instant,
    /// What the child leaves.
    left: File,
    /// SIGHUP has come once more: the files may have been read before what it is about.
    once_more: bool,
}

impl Supervisor<'_> {
    /// Takes up the configuration again, if there is one, and the log.
    pub(super) fn reload(&mut self) {
        if let Some(reload) = &mut self.reload {
            reload.once_more = true;
            return;
        }
        self.notifier.reloading();
        if !self.server().from_file {
            return self.end_reload(Ok(None));
        }
        match self.check() {
            Ok(reload) => {
                self.reload = Some(reload);
                self.keep_descriptors();
            }
            Err(error) => self.end_reload(Err(error)),
        }
    }

    /// Starts a child that checks what the files say now.
    fn check(&self) -> Result<Reload, Error> {
        let system = |errno| Error::system("cannot check the configuration", errno);
        let left = memfd_create(c"configuration", MFdFlags::MFD_CLOEXEC).map_err(system)?;
        let left = File::from(left);
        let parent = Pid::this();
        let child = sys::fork_without(&self.watch.descriptors(), || {
            match prepare_child(parent).and_then(|()| self.leave_checked(&left)) {
                Ok(()) => 0,
                // Nobody is told why but by the status.
                Err(_) => 1,
            }
        });
        Ok(Reload {
            child: child.map_err(system)?,
            ended: None,
            ends_at: Instant::now() + TIME,
            left,
            once_more: false,
        })
    }

    /// In the child: checks everything, and leaves what the server needs to do the same, or why it
    /// cannot.
    fn leave_checked(&self, mut left: &File) -> io::Result<()> {
        known::forget();
        let files = Recorded::new(&Disk);
        let checked = self.make(&files);
        let mut report = Vec::new();
        match checked {
            Ok(_) => {
                fields::push(&mut report, b"");
                files.into_record().write(&mut report);
                known::forget().write(&mut report);
            }
            Err(error) => fields::push(&mut report, error.to_string().as_bytes()),
        }
        if report.len() > MOST_LEFT {
            report.clear();
            let what = format!("its files and names take more than {MOST_LEFT} bytes");
            fields::push(&mut report, what.as_bytes());
        }
        left.write_all(&report)
    }

    /// Makes everything that is decided before a client connects.
    fn make(&self, files: &dyn Files) -> Result<Setup, Error> {
        let setup = (self.again.setup)(files)?;
        if self.own_listeners {
            source::something_to_listen_for(&setup.server.places)?;
        }
        setup.prepare()?;
        Ok(setup)
    }

    /// Ends a check that takes too long, and applies what one has left that has ended. Returns when
    /// this is to be looked at again at the latest.
    pub(super) fn go_on_reloading(&mut self) -> Option<Instant> {
        let ends_at = self.reload.as_ref()?.ends_at;
        let has_ended = self.reload.as_ref()?.ended.is_some();
        if !has_ended && ends_at > Instant::now() {
            return Some(ends_at);
        }
        let mut reload = self.reload.take()?;
        self.keep_descriptors();
        let left = reload.take_left();
        let once_more = reload.once_more;
        // Ends a child that is late, and closes what it was to leave.
        drop(reload);
        let setup = left.and_then(|left| self.made_of(&left));
        self.end_reload(setup.map(Some));
        if once_more {
            self.reload();
        }
        self.reload.as_ref().map(|reload| reload.ends_at)
    }

    /// Makes of what a check has left what the check has made: nothing is read or asked for anew.
    fn made_of(&self, mut left: &[u8]) -> Result<Setup, Error> {
        let left = &mut left;
        let garbled = || Error::new(Status::System, "the check has left something else");
        match fields::take_text(left).ok_or_else(garbled)?.as_str() {
            "" => {}
            why => return Err(Error::config(why)),
        }
        let record = Record::read_from(left).ok_or_else(garbled)?;
        known::take_over(Answers::read(left).ok_or_else(garbled)?);
        self.make(&record)
    }

    /// Applies what has come of a reload, and opens the log anew. A configuration that is wrong
    /// changes nothing; a listener that cannot be bound is the only part of a right one that may not
    /// come to hold.
    fn end_reload(&mut self, setup: Result<Option<Setup>, Error>) {
        let done = match setup {
            Ok(Some(setup)) => {
                self.apply(setup);
                "reloaded"
            }
            Ok(None) => "log files reopened",
            Err(error) => {
                self.log.error(format_args!("not reloaded: {error}"));
                "the configuration stays as it was; log files reopened"
            }
        };
        self.reopen_log(done);
        self.notifier.ready();
        self.status_changed = true;
    }

    /// Opens the log anew, and says there what has been done.
    pub(super) fn reopen_log(&mut self, done: &str) {
        match (self.again.log)(&self.setup) {
            Ok(log) => {
                *self.log = log;
                self.log.notice(done);
            }
            // The old file may have been moved away: not to be said there alone.
            Err(error) => self.log.fatal(&error.about("the log stays where it was")),
        }
    }

    fn apply(&mut self, setup: Setup) {
        if setup.server.pidfile != self.server().pidfile {
            self.log
                .warning("the pid file's name changes only with a restart");
        }
        if setup.server.daemon != self.server().daemon {
            let line = "whether it is in the background changes only with a restart";
            self.log.warning(line);
        }
        let forwarded = self.setup.services.all_forward();
        self.setup = setup;
        self.sessions.count_all_told();
        let mut unprepared = self.listeners.len();
        if self.own_listeners {
            let places = &self.setup.server.places;
            unprepared = Listener::rebind(&mut self.listeners, places, self.log, |listener| {
                self.watch.remove(listener);
            });
            if let Err(error) = self.watch_listeners(unprepared) {
                self.log.error(error);
            }
        }
        if self.setup.services.all_forward() != forwarded {
            unprepared = 0;
        }
        if let Err(error) = self.prepare_listeners(unprepared) {
            self.log.error(error);
        }
    }
}

/// In the child: it is no server, hears signals as any process does, ends with the server and within
/// what there is for it, and if memory is short it is the one to go.
fn prepare_child(parent: Pid) -> io::Result<()> {
    // So that what it starts ends with it.
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    set_pdeathsig(Signal::SIGKILL)?;
    sys::forget_signals(&WATCHED)?;
    if getppid() != parent {
        // It has ended before the kernel knew that we are to end with it.
        return Err(Errno::ESRCH.into());
    }
    // What Rust's library says when there is no memory is no line of ours; the server says it.
    let silence = File::options().write(true).open("/dev/null")?;
    dup2_stderr(&silence)?;
    // Where it cannot be written to, the kernel chooses as it likes.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_AS)?;
    if soft != RLIM_INFINITY {
        setrlimit(Resource::RLIMIT_AS, soft.saturating_sub(SET_ASIDE), hard)?;
    }
    Ok(())
}

impl Reload {
    /// What no session may hold.
    pub(super) fn descriptor(&self) -> RawFd {
        self.left.as_raw_fd()
    }

    pub(super) fn is_checked_by(&self, child: Pid) -> bool {
        self.ended.is_none() && self.child == child
    }

    pub(super) fn note_end(&mut self, status: ExitStatus) {
        self.ended = Some(status);
    }

    /// What the child has left at its end.
    fn take_left(&mut self) -> Result<Vec<u8>, Error> {
        let failed = |why: String| {
            Error::new(
                Status::System,
                format!("the check of the configuration {why}"),
            )
        };
        let Some(status) = self.ended else {
            return Err(failed(format!("took longer than {} s", TIME.as_secs())));
        };
        if !status.success() {
            return Err(failed(match status.signal() {
                Some(signal) => {
                    let signal = sessions::name_of(signal);
                    format!("was ended by {signal}, as where memory is short")
                }
                None => "could not be made".to_owned(),
            }));
        }
        let mut left = Vec::new();
        let read = self.left.rewind().and_then(|()| {
            let mut left_at_most = (&self.left).take(MOST_LEFT as u64);
            left_at_most.read_to_end(&mut left)
        });
        match read {
            Ok(_) => Ok(left),
            Err(error) => Err(failed(format!("cannot be read: {error}"))),
        }
    }
}

impl Drop for Reload {
    /// Ends the child, and what it has started. It is not waited for: a process that waits for a disk
    /// may not end at once.
    fn drop(&mut self) {
        if self.ended.is_none() {
            // It may have no group of its own yet.
            let _ = killpg(self.child, Signal::SIGKILL);
            let _ = kill(self.child, Signal::SIGKILL);
        }
    }
}
