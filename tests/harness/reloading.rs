//! A server with a configuration file that the test changes while it runs.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{Running, Scratch, TCPPROXY, eventually};

/// A server whose file is `tcpproxy.conf` in its own directory.
pub struct Reloadable {
    pub process: Running,
    pub scratch: Scratch,
    reloads: usize,
}

/// What is logged when SIGHUP has been dealt with, in each case.
const DEALT_WITH: [&str; 2] = ["]: reloaded", "log files reopened"];

impl Reloadable {
    /// Starts `tcpproxy -f FILE --log stderr ARGUMENTS`, and waits until it listens.
    pub fn start(text: &str, arguments: &[&str]) -> Reloadable {
        let scratch = Scratch::new();
        fs::write(scratch.join("tcpproxy.conf"), text).unwrap();
        let mut command = Command::new(TCPPROXY);
        command.args(["--log", "stderr", "-f"]);
        command.arg(scratch.join("tcpproxy.conf")).args(arguments);
        let process = Running::start(command.stdin(Stdio::null()));
        process.log.wait_for("listening on ");
        Reloadable {
            process,
            scratch,
            reloads: 0,
        }
    }

    pub fn file(&self) -> PathBuf {
        self.scratch.join("tcpproxy.conf")
    }

    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Sends SIGHUP, and waits until it has been dealt with. Returns the lines that it has left.
    pub fn hang_up(&mut self) -> Vec<String> {
        let before = self.process.log.all().len();
        self.process.signal(Signal::SIGHUP);
        self.reloads += 1;
        eventually("SIGHUP to be dealt with", || {
            let all = self.process.log.all();
            let dealt_with = |line: &&String| DEALT_WITH.iter().any(|text| line.ends_with(text));
            (all.iter().filter(dealt_with).count() == self.reloads).then(|| all[before..].to_vec())
        })
    }

    /// Changes the file, and has it read.
    pub fn change(&mut self, text: &str) -> Vec<String> {
        fs::write(self.file(), text).unwrap();
        self.hang_up()
    }
}
