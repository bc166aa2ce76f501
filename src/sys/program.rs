//! How a program is started for a client: what it is called with, and what it finds in its
//! environment. Used for handlers and for access control programs.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{self, Path};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::sys;
use crate::sys::wait;
use crate::terms::endpoint::Endpoint;
use crate::terms::escape::escape;
use crate::terms::facts::Facts;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    /// The file to execute; searched in PATH if it has no slash.
    pub(crate) path: OsString,
    /// Its arguments, without its own name.
    pub(crate) arguments: Vec<OsString>,
}

impl From<Vec<String>> for Program {
    fn from(words: Vec<String>) -> Program {
        let mut words = words.into_iter().map(OsString::from);
        Program {
            path: words.next().unwrap_or_default(),
            arguments: words.collect(),
        }
    }
}

impl Program {
    /// The same program, with a relative path made independent of the working directory.
    pub(crate) fn anchored(mut self) -> io::Result<Program> {
        if self.path.as_bytes().contains(&b'/') {
            self.path = path::absolute(Path::new(&self.path))?.into_os_string();
        }
        Ok(self)
    }

    /// The command as one line, words separated by blanks.
    pub(crate) fn line(&self) -> OsString {
        let mut line = self.path.clone();
        for argument in &self.arguments {
            line.push(" ");
            line.push(argument);
        }
        line
    }

    /// The path and the arguments, as far as they are text.
    pub(crate) fn words(&self) -> Vec<String> {
        let words = [&self.path].into_iter().chain(&self.arguments);
        words
            .map(|word| word.to_string_lossy().into_owned())
            .collect()
    }

    /// The program's path, in a form that can be logged.
    pub(crate) fn shown(&self) -> String {
        escape(self.path.as_bytes())
    }

    /// The command, ready to be started for a client: signals, mask, descriptors and environment
    /// as a program may expect them. Standard streams are the caller's to set.
    pub(crate) fn command(
        &self,
        environment: &Environment,
        facts: &Facts,
        server: OsString,
    ) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments);
        if environment.clear {
            command.env_clear().env("PATH", SANE_PATH);
        }
        for name in NOT_FOR_PROGRAMS {
            command.env_remove(name);
        }
        for name in OF_PROXY.into_iter().chain([OF_ANSWER]) {
            // Somebody else's, where this client has come by none, or no answer is wanted.
            command.env_remove(format!("{}{name}", environment.prefix));
        }
        for (name, value) in variables(facts) {
            command.env(format!("{}{name}", environment.prefix), value);
        }
        command.env(format!("{}SERVER", environment.prefix), server);
        sys::start_clean(&mut command);
        command
    }
}

/// What a program searches after `--clear-env`.
const SANE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a service manager said to us alone (sd_listen_fds(3), sd_notify(3)).
const NOT_FOR_PROGRAMS: [&str; 5] = [
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
];

/// What is set only where a proxy has announced the client.
const OF_PROXY: [&str; 2] = ["PEER", "PEERPORT"];

/// What is set only where a program may answer.
const OF_ANSWER: &str = "ANSWER_FD";

/// How programs see the environment.
#[derive(Debug, Clone)]
pub(crate) struct Environment {
    /// What the names of our variables begin with.
    pub(crate) prefix: String,
    /// Whether they, and PATH, are all there is.
    pub(crate) clear: bool,
}

impl Environment {
    /// Tells a program to which descriptor it may answer.
    pub(crate) fn tell_of_answer(&self, command: &mut Command) {
        let name = format!("{}{OF_ANSWER}", self.prefix);
        command.env(name, sys::ANSWERED.to_string());
    }
}

/// What programs are told of a session, by the names of the variables without their prefix.
fn variables(facts: &Facts) -> impl Iterator<Item = (&'static str, String)> {
    let port = |endpoint: Endpoint| endpoint.port().unwrap_or(0).to_string();
    let address = facts.client.host();
    let name = facts.name.as_ref().unwrap_or(&address).clone();
    let reached = facts.original.map_or(facts.local, Endpoint::Inet);
    let always = [
        ("PORT", port(reached)),
        ("INTERFACE", reached.host()),
        ("CLIENT", address),
        ("CLIENTNAME", name),
        ("CLIENTPORT", port(facts.client)),
        ("SESSION", facts.session.to_string()),
    ];
    let of_proxy = move |via: Endpoint| OF_PROXY.into_iter().zip([via.host(), port(via)]);
    always
        .into_iter()
        .chain(facts.via.into_iter().flat_map(of_proxy))
}

/// Ends a program and the process group that it leads: with SIGTERM, and with SIGKILL what is left
/// after `grace`.
pub(crate) fn end(child: &mut Child, grace: Duration) {
    let group = Pid::from_raw(child.id() as i32);
    // There may be nobody left to signal. Until it is waited for, its number is not another's.
    let _ = killpg(group, Signal::SIGTERM);
    if let Ok(exit) = sys::watch_child(group) {
        let mut set = [PollFd::new(exit.as_fd(), PollFlags::POLLIN)];
        let _ = wait::until_ready(&mut set, Instant::now() + grace);
    }
    let _ = killpg(group, Signal::SIGKILL);
    let _ = child.wait();
}
