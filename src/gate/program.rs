//! The access control program: asked about a client, and taken at its exit status alone.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, pipe2};

use super::heard::{Answer, Lines};
use crate::gate::Denied;
use crate::log::Journal;
use crate::source::Client;
use crate::sys;
use crate::sys::program::{self, Program};
use crate::sys::vigil::{Cut, Event, Vigil};
use crate::terms::error::{Error, describe};
use crate::terms::value::Complaint;

#[derive(Debug)]
pub(crate) struct AccessProgram {
    /// What is run.
    pub(crate) program: Program,
    /// How long it may take.
    pub(crate) timeout: Duration,
    /// Whether it may say more than yes or no: it then finds a pipe for its answer.
    pub(crate) answers: bool,
}

/// Between SIGTERM and SIGKILL for a program that takes too long.
const GRACE: Duration = Duration::from_secs(1);

impl AccessProgram {
    /// Asks the program whether the client may pass. Whatever goes wrong means that it may not, and so
    /// does an answer that is not understood. It is empty where the program may not give one.
    pub(super) fn ask<T>(
        &self,
        client: &Client,
        command: Command,
        understand: impl FnOnce(&[u8]) -> Result<T, Complaint>,
        ends_at: Option<Instant>,
        journal: &Journal,
    ) -> Result<T, Denied> {
        let session = Vigil::until(ends_at);
        let vigil = session.within(Instant::now() + self.timeout);
        let who = format!("access program {}", self.program.shown());
        let cause = match self.run(client, command, vigil, &who, journal) {
            Ok(Verdict::Exited(status, answer)) if status.success() => match understand(&answer) {
                Ok(understood) => {
                    journal.debug(format_args!("{who}: granted"));
                    return Ok(understood);
                }
                Err(complaint) => format!("its answer: {complaint}"),
            },
            Ok(Verdict::Cut(Cut::Terminated)) => return Err(Denied::Terminated),
            Ok(Verdict::Cut(Cut::TimeOver)) if session.is_over() => return Err(Denied::TimeOver),
            Ok(verdict) => verdict.cause(),
            Err(errno) => describe(errno),
        };
        journal.refusal(format_args!("{who}: denied: {cause}"));
        Err(Denied::Refused)
    }

    fn run(
        &self,
        client: &Client,
        mut command: Command,
        vigil: Vigil,
        who: &str,
        journal: &Journal,
    ) -> nix::Result<Verdict> {
        // A super-server may have left it ignored, and then no exit status is kept for us.
        sys::restore_default(Signal::SIGCHLD)?;
        // The program writes to the client's socket as if it were alone.
        sys::set_blocking(client.socket.as_fd(), true)?;
        let (errors, tell) = pipe2(OFlag::O_CLOEXEC)?;
        let to_client = client.socket.try_clone().map_err(errno_of)?;
        let errors = Lines::new(File::from(errors), who, journal)?;
        let answer = match self.answers {
            true => {
                let (answer, tell) = pipe2(OFlag::O_CLOEXEC)?;
                sys::pass_for_answer(&mut command, tell)?;
                Some(Answer::new(File::from(answer))?)
            }
            false => None,
        };
        // Started by a super-server without root, we have the same user: it must not trace us. A
        // handler that we become is as any program is.
        prctl::set_dumpable(false)?;
        // It may have the client's connection.
        sys::end_with_us(&mut command);
        let spawned = command
            .stdin(Stdio::null())
            .stdout(Stdio::from(to_client))
            .stderr(Stdio::from(tell))
            .current_dir("/")
            .spawn();
        // The command holds our copies of what the program writes to.
        drop(command);
        let mut running = Running {
            child: match spawned {
                Ok(child) => child,
                Err(error) => return Ok(Verdict::NotStarted(error)),
            },
            errors,
            answer,
        };
        let ended = running.until(vigil)?;
        running.errors.finish();
        Ok(match ended {
            Ok(status) => {
                let answer = running.answer.map(Answer::finish);
                Verdict::Exited(status, answer.unwrap_or_default())
            }
            Err(cut) => Verdict::Cut(cut),
        })
    }
}

/// What became of the program.
enum Verdict {
    /// With this status and this answer.
    Exited(ExitStatus, Vec<u8>),
    NotStarted(std::io::Error),
    /// It was not waited for any longer.
    Cut(Cut),
}

impl Verdict {
    fn cause(&self) -> String {
        match self {
            Verdict::Exited(status, _) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (None, signal) => format!("ended by signal {}", signal.unwrap_or(0)),
            },
            Verdict::NotStarted(error) => Error::io("it cannot be started", error).to_string(),
            Verdict::Cut(cut) => match cut {
                Cut::TimeOver => "it took too long".to_owned(),
                Cut::Terminated => "the session was asked to end".to_owned(),
                Cut::ClientGone => "the client has gone".to_owned(),
                Cut::System(errno) => describe(*errno),
            },
        }
    }
}

struct Running<'a> {
    child: Child,
    errors: Lines<'a>,
    answer: Option<Answer>,
}

impl Running<'_> {
    /// Waits for the program's exit, and sees to it that there is one.
    fn until(&mut self, vigil: Vigil) -> nix::Result<Result<ExitStatus, Cut>> {
        match self.watch(vigil) {
            Ok(()) => self.child.wait().map(Ok).map_err(errno_of),
            Err(cut) => {
                program::end(&mut self.child, GRACE);
                Ok(Err(cut))
            }
        }
    }

    /// Waits until the program has exited, logging what it says meanwhile, and noting what it answers.
    /// Its descendants may hold its standard error open, or what it answers to: that is not waited
    /// for.
    fn watch(&mut self, mut vigil: Vigil) -> Result<(), Cut> {
        let exit = sys::watch_child(Pid::from_raw(self.child.id() as i32)).map_err(Cut::System)?;
        loop {
            let mut set = vec![PollFd::new(exit.as_fd(), PollFlags::POLLIN)];
            let answer = self.answer.as_ref().and_then(Answer::source);
            for heard in self.errors.source().into_iter().chain(answer) {
                set.push(PollFd::new(heard, PollFlags::POLLIN));
            }
            let first = vigil.wait(&set, None)?;
            self.errors.read_some();
            if let Some(answer) = &mut self.answer {
                answer.read_some();
            }
            if first == Event::Ready(0) {
                return Ok(());
            }
            // It may write without a pause.
            if vigil.is_over() {
                return Err(Cut::TimeOver);
            }
        }
    }
}

fn errno_of(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32))
}
