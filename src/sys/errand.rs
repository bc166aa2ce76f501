//! What a child process is sent to find out: it can be killed at any moment, has its own rights, and
//! leaves nothing behind but its answer.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2};

use crate::sys;
use crate::sys::vigil::{Cut, Vigil};

/// All that a child writes, until it has nothing open any more to write to.
pub(crate) fn answer_of(work: impl FnOnce(File) -> i32, vigil: &mut Vigil) -> Result<Vec<u8>, Cut> {
    let (answer, tell) = pipe2(OFlag::O_CLOEXEC).map_err(Cut::System)?;
    let mut answer = File::from(answer);
    let forked = sys::fork(|| {
        end_with_parent();
        work(File::from(tell))
    });
    let child = Child(forked.map_err(Cut::System)?);
    let mut all = Vec::new();
    loop {
        let set = [PollFd::new(answer.as_fd(), PollFlags::POLLIN)];
        vigil.wait(&set, None)?;
        if read_some(&mut answer, &mut all).map_err(Cut::System)? == 0 {
            break;
        }
    }
    drop(child);
    Ok(all)
}

/// Has a child killed when its parent ends: nobody is left then who wants to know. To be said anew
/// after a change of ids, which the kernel forgets it with (PR_SET_PDEATHSIG(2const)).
pub(crate) fn end_with_parent() {
    // Whoever cannot be told goes on to its own end.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
}

fn read_some(from: &mut File, all: &mut Vec<u8>) -> nix::Result<usize> {
    let mut buffer = [0; 4096];
    let count = from.read(&mut buffer).map_err(|error: io::Error| {
        Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32))
    })?;
    all.extend_from_slice(&buffer[..count]);
    Ok(count)
}

/// A child that does not outlive the question.
struct Child(Pid);

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already; then there is only its status to collect.
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}
