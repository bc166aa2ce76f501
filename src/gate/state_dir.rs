//! Limits for processes that serve one client each and know nothing of one another: a small file
//! per service and source, in a directory that only we may write to.
//!
//! A file holds when the source's token bucket will be full again, and the processes that serve
//! it, each with its start time, so that a process that has died (however it died) or whose number
//! was given to another is not counted. It is changed under a lock that the kernel takes back with
//! the process, and with one write, so that a crash at any moment leaves it usable.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::signal::kill;
use nix::unistd::{Pid, geteuid};

use super::{Ledger, Limits, Refusal, Seat};
use crate::sys;
use crate::terms::client_key::ClientKey;
use crate::terms::error::{Error, Status};
use crate::terms::escape::escape;

#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
}

/// How long a source's file may be locked by others before this one counts as too fast.
const PATIENCE: Duration = Duration::from_secs(1);

/// One process in so many looks for files that have nothing to remember.
const TIDY_ONE_IN: u32 = 64;

/// Longer files are none of ours, in bytes.
const LONGEST_FILE: u64 = 1 << 20;

impl StateDir {
    /// Takes a directory into use, and creates it if it is not there. It must belong to root or
    /// to us, and nobody else may write to it.
    pub(crate) fn open(path: &Path) -> Result<StateDir, Error> {
        // Without a slash at the end, which would have a link followed.
        let path: &Path = &path.components().collect::<PathBuf>();
        let what = || {
            format!(
                "state directory {}",
                escape(path.as_os_str().as_encoded_bytes())
            )
        };
        let failed = |error: io::Error| Error::io(what(), &error);
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            _ => {}
        }
        let found = fs::symlink_metadata(path).map_err(failed)?;
        let wrong = match found {
            _ if !found.is_dir() => "it is not a directory",
            _ if found.uid() != 0 && found.uid() != geteuid().as_raw() => {
                "it belongs to somebody else"
            }
            _ if found.mode() & 0o022 != 0 => "others may write to it",
            _ => {
                return Ok(StateDir {
                    path: path.to_owned(),
                });
            }
        };
        Err(Error::new(Status::System, format!("{}: {wrong}", what())))
    }

    fn count(&self, path: &Path, limits: &Limits) -> io::Result<Option<Refusal>> {
        let deadline = Instant::now() + PATIENCE;
        let Some(file) = lock(path, deadline)? else {
            return Ok(Some(Refusal::TooFast));
        };
        let mut state = State::read(&file)?;
        if limits
            .max_per_source
            .is_some_and(|most| state.live.len() >= most)
        {
            return Ok(Some(Refusal::TooMany));
        }
        if let Some(rate) = limits.rate {
            let now = now();
            let level = rate.at_most_empty(state.full_at, now);
            match rate.take(level, now) {
                Some(full_at) => state.full_at = full_at,
                None => {
                    // Or it would be full no sooner than the time that is wrong.
                    if level != state.full_at {
                        state.full_at = level;
                        state.write(&file)?;
                    }
                    return Ok(Some(Refusal::TooFast));
                }
            }
        }
        let this = Process::of(process::id()).ok_or(io::ErrorKind::NotFound)?;
        state.live.push(this);
        state.write(&file)?;
        Ok(None)
    }

    /// Removes files without a live process and with a full bucket: of so many that it takes no
    /// time, where the last process that did this has stopped. What cannot be removed now is
    /// somebody's, or is left for the next time.
    fn tidy(&self) {
        let stopped = self.path.join(STOPPED);
        let from = fs::read_to_string(&stopped).ok();
        let from = from.and_then(|from| from.trim().parse().ok());
        match self.tidy_some(from.unwrap_or(0)) {
            Ok(Some(next)) => {
                let file = options().truncate(true).open(&stopped);
                let _ = file.and_then(|mut file| writeln!(file, "{next}"));
            }
            // The end, or a directory that has become another: from its start the next time.
            Ok(None) | Err(_) if from.is_some() => {
                let _ = fs::remove_file(&stopped);
            }
            Ok(None) | Err(_) => {}
        }
    }

    /// Tidies some files from a place in the directory on. Returns where it goes on.
    fn tidy_some(&self, from: i64) -> io::Result<Option<i64>> {
        let mut directory = File::open(&self.path)?;
        directory.seek(SeekFrom::Start(from.cast_unsigned()))?;
        let mut room = vec![0; TIDIED_AT_ONCE];
        let mut next = None;
        for entry in sys::entries(directory.as_fd(), &mut room)? {
            next = Some(entry.next);
            if entry.name.as_bytes().starts_with(PREFIX) {
                tidy_file(&self.path.join(entry.name));
            }
        }
        let ends = sys::entries(directory.as_fd(), &mut room)?.next().is_none();
        Ok(next.filter(|_| !ends))
    }
}

impl Ledger for StateDir {
    /// Counts this process as a session of the client.
    fn begin(&self, service: &str, client: ClientKey, limits: &Limits) -> Result<Seat, Refusal> {
        let seat = Seat {
            service: service.to_owned(),
            client,
        };
        if limits.are_none() {
            return Ok(seat);
        }
        if process::id().is_multiple_of(TIDY_ONE_IN) {
            self.tidy();
        }
        let path = self.path.join(format!("source,{service},{client}"));
        match self.count(&path, limits) {
            Ok(None) => Ok(seat),
            Ok(Some(refusal)) => Err(refusal),
            Err(error) => {
                let path = escape(path.as_os_str().as_encoded_bytes());
                Err(Refusal::Unknown(Error::io(
                    format_args!("state {path}"),
                    &error,
                )))
            }
        }
    }

    /// A session counts for as long as its process (or the program that it becomes) lives: there is
    /// nothing left to be done, even after kill -9.
    fn end(&self, _: &Seat) {}
}

/// Removes a file if it has nothing to remember.
fn tidy_file(path: &Path) {
    let Ok(Some(file)) = lock(path, Instant::now()) else {
        return;
    };
    if State::read(&file).is_ok_and(|state| state.live.is_empty() && state.full_at <= now()) {
        let _ = fs::remove_file(path);
    }
}

/// The file that holds where in the directory the last process has stopped, if that was not its end.
const STOPPED: &str = "tidied-to";

/// How many bytes of the directory a process looks at: for about 300 names. One in 64 does, and each
/// leaves one file at most: so there are more looked at than can come.
const TIDIED_AT_ONCE: usize = 16 << 10;

/// What the names of our files begin with.
const PREFIX: &[u8] = b"source,";

/// How a file of the directory is opened, or created.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits());
    options
}

/// Opens and locks a file, or gives up at the deadline.
fn lock(path: &Path, deadline: Instant) -> io::Result<Option<Flock<File>>> {
    loop {
        let file = options().read(true).truncate(false).open(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // Tidied away between our opening and our locking it: nobody else will see it.
            Ok(file) if file.metadata()?.nlink() == 0 => {}
            Ok(file) => return Ok(Some(file)),
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => {
                if Instant::now() >= deadline {
                    return Ok(None);
                }
                thread::sleep(Duration::from_millis(2));
            }
            Err((_, errno)) => return Err(errno.into()),
        }
    }
}

/// Since the epoch: the only clock that processes share across a restart of the system.
fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// What a file holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct State {
    /// When the bucket will be full again, since the epoch.
    full_at: Duration,
    live: Vec<Process>,
}

/// A process, told apart from later ones of the same number by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    id: u32,
    /// In clock ticks since the system's start (proc_pid_stat(5)).
    started: u64,
}

/// What can be learnt of a number.
enum Found {
    Process(Process),
    /// A process that has ended, and serves nobody.
    Zombie,
    /// There is none, or it may not be looked at (proc(5), `hidepid=`), or something is short.
    Unknown,
}

impl Process {
    fn look_at(id: u32) -> Found {
        let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else {
            return Found::Unknown;
        };
        let read = || {
            // The name before the last parenthesis may hold anything.
            let (_, fields) = stat.rsplit_once(')')?;
            let mut fields = fields.split_ascii_whitespace();
            let state = fields.next()?;
            let started = fields.nth(18)?.parse().ok()?;
            Some(if matches!(state, "Z" | "X") {
                Found::Zombie
            } else {
                Found::Process(Process { id, started })
            })
        };
        read().unwrap_or(Found::Unknown)
    }

    fn of(id: u32) -> Option<Process> {
        match Process::look_at(id) {
            Found::Process(process) => Some(process),
            Found::Zombie | Found::Unknown => None,
        }
    }

    fn is_alive(self) -> bool {
        match Process::look_at(self.id) {
            Found::Process(process) => process == self,
            Found::Zombie => false,
            // The kernel alone knows whether there is one of this number.
            Found::Unknown => is_there(self.id),
        }
    }
}

fn is_there(id: u32) -> bool {
    let process = i32::try_from(id).map(Pid::from_raw);
    process.is_ok_and(|process| kill(process, None) != Err(Errno::ESRCH))
}

impl State {
    /// Reads what a file holds, dead processes left out. What cannot be understood, such as an
    /// empty file, is nothing known.
    fn read(file: &File) -> io::Result<State> {
        let mut text = String::new();
        let read = file.take(LONGEST_FILE).read_to_string(&mut text);
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => text.clear(),
            Err(error) => return Err(error),
        }
        let mut state = State::parse(&text);
        state.live.retain(|process| process.is_alive());
        Ok(state)
    }

    fn parse(text: &str) -> State {
        let mut state = State::default();
        for line in text.lines().take_while(|line| *line != "end") {
            let mut words = line.split(' ');
            match (
                words.next(),
                words.next().map(str::parse),
                words.next().map(str::parse),
            ) {
                (Some("full_at"), Some(Ok(microseconds)), None) => {
                    state.full_at = Duration::from_micros(microseconds);
                }
                (Some("process"), Some(Ok(id)), Some(Ok(started))) => {
                    let id = u32::try_from(id).unwrap_or(0);
                    state.live.push(Process { id, started });
                }
                _ => {}
            }
        }
        state
    }

    fn print(&self) -> String {
        let mut text = format!("full_at {}\n", self.full_at.as_micros());
        for Process { id, started } in &self.live {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "process {id} {started}");
        }
        text + "end\n"
    }

    /// Writes over what was there, then cuts what is left of it behind `end`.
    fn write(&self, file: &File) -> io::Result<()> {
        let text = self.print();
        file.write_all_at(text.as_bytes(), 0)?;
        file.set_len(text.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_of_the_same_number() {
        let this = Process::of(process::id()).unwrap();
        assert!(this.is_alive());
        let earlier = Process {
            started: this.started - 1,
            ..this
        };
        assert!(!earlier.is_alive());
    }

    #[test]
    fn what_is_written_is_read_and_a_torn_file_is_understood() {
        let state = State {
            full_at: Duration::from_micros(1_234_567),
            live: vec![
                Process { id: 7, started: 8 },
                Process { id: 9, started: 10 },
            ],
        };
        let text = state.print();
        assert_eq!(State::parse(&text), state);
        assert_eq!(State::parse(&format!("{text}process 11 12\nend\n")), state);
        assert_eq!(State::parse(""), State::default());
        assert_eq!(
            State::parse("full_at x\nprocess 1\n\u{0}"),
            State::default()
        );
    }
}
