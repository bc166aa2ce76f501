//! A handler: the program that serves a client instead of an upstream.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::config::service::Service;
use crate::gate::Admitted;
use crate::log::{Ended, Journal};
use crate::source::{Client, Origin};
use crate::sys;
use crate::sys::program::{self, Program};
use crate::sys::vigil::Vigil;
use crate::terms::error::Error;
use crate::terms::reason::Reason;

/// Between SIGTERM and SIGKILL for a handler whose time is over.
const GRACE: Duration = Duration::from_secs(3);

/// Starts the handler: in this process where that serves nobody else, in a child otherwise.
pub(super) fn run(
    admitted: Admitted,
    program: &Program,
    service: &Service,
    ends_at: Option<Instant>,
    journal: &Journal,
) -> Ended {
    let server = program.path.to_string_lossy().into_owned();
    let reason = match start(admitted.into_client(), program, service, ends_at, journal) {
        Ok(Handled::Exited(status)) => match status.signal() {
            None => Reason::HandlerExited,
            Some(signal) => {
                journal.notice(format_args!(
                    "handler {} was ended by signal {signal}",
                    program.shown()
                ));
                Reason::HandlerFailed
            }
        },
        Ok(Handled::Ended(reason)) => reason,
        Err(error) => {
            journal.error(&error);
            Reason::HandlerFailed
        }
    };
    Ended::without_bytes(server, reason)
}

enum Handled {
    /// By itself, or by a signal of somebody else's.
    Exited(ExitStatus),
    /// By us, for this reason.
    Ended(Reason),
}

fn start(
    client: Client,
    program: &Program,
    service: &Service,
    ends_at: Option<Instant>,
    journal: &Journal,
) -> Result<Handled, Error> {
    let what = || format!("handler {}", program.shown());
    let system = |errno: Errno| Error::system(what(), errno);
    let io = |error: io::Error| Error::io(what(), &error);
    let Client { socket, origin, .. } = client;
    sys::set_blocking(socket.as_fd(), true).map_err(system)?;
    let mut command = program.command(&service.environment, journal.facts(), program.line());
    let share = || socket.try_clone().map(Stdio::from).map_err(io);
    command.stdin(share()?);
    match origin {
        Origin::Inherited { on_stderr } => {
            if on_stderr {
                command.stderr(share()?);
            }
            command.stdout(socket);
            if let Some(ends_at) = ends_at {
                // The one thing that outlives execve(2) and ends the handler when its time is
                // over: a handler that catches SIGALRM has asked for something else.
                sys::set_alarm(Some(ends_at.saturating_duration_since(Instant::now())));
            }
            let error = command.exec();
            // It has not become the handler, but signals are as that would have had them.
            sys::ignore_what_writing_raises().map_err(system)?;
            sys::set_alarm(None);
            Err(io(error))
        }
        Origin::Accepted { .. } => {
            command.stdout(socket);
            sys::restore_default(Signal::SIGCHLD).map_err(system)?;
            sys::end_with_us(&mut command);
            let mut child = command.spawn().map_err(io)?;
            // With it go our copies of the client's socket: when the handler closes its own, that
            // is the end for the client too.
            drop(command);
            await_exit(&mut child, ends_at).map_err(io)
        }
    }
}

fn await_exit(child: &mut Child, ends_at: Option<Instant>) -> io::Result<Handled> {
    let pid = Pid::from_raw(child.id() as i32);
    let exit = sys::watch_child(pid)?;
    let set = [PollFd::new(exit.as_fd(), PollFlags::POLLIN)];
    match Vigil::until(ends_at).wait(&set, None) {
        Ok(_) => child.wait().map(Handled::Exited),
        Err(cut) => {
            program::end(child, GRACE);
            Ok(Handled::Ended(cut.reason()))
        }
    }
}
