//! Going to the background. Whoever has started the server waits until it is ready, and has the exit
//! status of one that has failed before: nothing that goes wrong with its listeners or its pid file is left
//! for a log that nobody reads.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2, setsid};

use crate::sys;
use crate::sys::streams;
use crate::sys::wait::{self, Woken};
use crate::terms::error::{Error, Status};

/// Whoever has started a server that is to go to the background, as long as they wait for it.
pub(crate) struct Starter(File);

impl Starter {
    /// Lets go of the streams that were theirs. Nothing that fails from now on is seen there.
    pub(super) fn leave_streams(&self) -> Result<(), Error> {
        streams::leave()
    }

    /// Lets them go on.
    pub(super) fn dismiss(mut self) {
        // Who does not wait any more need not be told.
        let _ = self.0.write_all(b"\n");
    }
}

/// Has a child be the server, in a session of its own and without a terminal. Returns when it has
/// dismissed its starter; one that ends before ends this process with its status.
pub(crate) fn in_background(serve: impl FnOnce(Starter) -> Status) -> Result<Status, Error> {
    let failed = |errno| Error::system("going to the background", errno);
    let (ready, tell) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
    let number = ready.as_raw_fd();
    let forked = sys::fork_without(&[number..=number], || {
        // Fails for the leader of a process group alone, which no child is from the start.
        let _ = setsid();
        serve(Starter(File::from(tell))) as i32
    });
    let server = forked.map_err(failed)?;
    let mut ready = File::from(ready);
    let mut set = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
    while wait::wait(&mut set, None).map_err(failed)? == Woken::Terminated {
        // Both are asked to end, whoever was told so.
        for signal in wait::ENDING {
            if sys::take_signal(signal) {
                // It may have ended.
                let _ = kill(server, signal);
            }
        }
    }
    match ready.read(&mut [0]) {
        Ok(0) => end_as(server).map_err(failed)?,
        Ok(_) => Ok(Status::Done),
        Err(error) => Err(Error::io("going to the background", &error)),
    }
}

/// Ends as the server has, which has said why.
fn end_as(server: Pid) -> nix::Result<Result<Status, Error>> {
    Ok(match waitpid(server, None)? {
        WaitStatus::Exited(_, status) => sys::exit_now(status),
        WaitStatus::Signaled(_, signal, _) => Err(ended_by(signal)),
        _ => Err(Error::new(
            Status::System,
            "the server has ended before it was ready",
        )),
    })
}

fn ended_by(signal: Signal) -> Error {
    let line = format!("the server was ended by {signal} before it was ready");
    Error::new(Status::System, line)
}
