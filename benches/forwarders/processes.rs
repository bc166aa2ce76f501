//! The processes that the driver starts. Each ends when its owner goes, on a panic too.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{io, thread};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::accounting::{Account, family};
use crate::client::probe;
use crate::{Outcome, role};

/// How many descriptors a process may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Descriptors {
    /// As many as there are.
    All,
    /// The soft limit of a login or a service of systemd. Some programs close every descriptor up to
    /// the limit for each connection: a higher one would be unfair to them.
    Usual,
}

/// Which processors a process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Processors {
    All,
    /// The first of those alone that we may use.
    One,
}

/// The launcher's part: sets up what only the process itself can, and becomes the program.
pub(crate) fn launch(words: &[String]) -> Outcome<()> {
    let [processors, descriptors, entrance, program, arguments @ ..] = words else {
        return Err("the launcher was started by hand".into());
    };
    if processors == "one" {
        let allowed = sched_getaffinity(Pid::this())?;
        let mut numbers = 0..CpuSet::count();
        let first = numbers.find(|&number| allowed.is_set(number).unwrap_or(false));
        let mut one = CpuSet::new();
        one.set(first.unwrap_or(0))?;
        sched_setaffinity(Pid::this(), &one)?;
    }
    if descriptors == "usual" {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(1024), hard)?;
    }
    if !entrance.is_empty() {
        fs::write(entrance, "0").map_err(|error| format!("{entrance}: {error}"))?;
    }
    Err(Command::new(program).args(arguments).exec().into())
}

/// This binary, even if it has been built anew meanwhile: its own file is then no longer there.
const OURSELVES: &str = "/proc/self/exe";

fn launcher(
    processors: Processors,
    descriptors: Descriptors,
    account: Option<&Account>,
) -> Command {
    let mut command = Command::new(OURSELVES);
    let processors = match processors {
        Processors::All => "all",
        Processors::One => "one",
    };
    let descriptors = match descriptors {
        Descriptors::All => "all",
        Descriptors::Usual => "usual",
    };
    let entrance = account.map(Account::entrance).unwrap_or_default();
    command
        .args([role::LAUNCHER, processors, descriptors])
        .arg(entrance);
    command
}

/// A child process with everything below it. All of it is killed when this goes.
pub(crate) struct Family {
    head: Child,
}

impl Family {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.head.id() as i32)
    }

    /// An error says how it has ended.
    fn still_runs(&mut self) -> Outcome<()> {
        match self.head.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("it has ended: {status}").into()),
        }
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        // Once it has been waited for, its number may be another's.
        if let Ok(None) = self.head.try_wait() {
            end(&family(self.pid()));
            let _ = self.head.wait();
        }
    }
}

fn end(processes: &[Pid]) {
    for &process in processes {
        // One that has ended meanwhile is what is wanted.
        let _ = kill(process, Signal::SIGKILL);
    }
}

/// A forwarder that is ready: an echo has come back through it.
pub(crate) struct Forwarder {
    pub(crate) at: SocketAddr,
    family: Family,
    account: Option<Account>,
    /// How many processes it is when nobody is connected.
    at_rest: usize,
}

/// How long a forwarder may take to be ready, and a turn to end.
const PATIENCE: Duration = Duration::from_secs(10);
pub(crate) const TURN: Duration = Duration::from_secs(60);

impl Drop for Forwarder {
    fn drop(&mut self) {
        end(&self.processes());
    }
}

impl Forwarder {
    /// `words` has it listen at `at`. What it says goes to the file.
    pub(crate) fn start(
        words: &[String],
        at: SocketAddr,
        (processors, descriptors): (Processors, Descriptors),
        account: Option<Account>,
        said: &Path,
    ) -> Outcome<Forwarder> {
        let mut command = launcher(processors, descriptors, account.as_ref());
        command.args(words).stdin(Stdio::null());
        let output = File::create(said)?;
        command.stdout(output.try_clone()?).stderr(output);
        let family = Family {
            head: command.spawn()?,
        };
        let mut forwarder = Forwarder {
            at,
            family,
            account,
            at_rest: 0,
        };
        match forwarder.wait_until_ready() {
            Ok(()) => Ok(forwarder),
            Err(problem) => {
                let said = fs::read_to_string(said).unwrap_or_default();
                let last = said.lines().last().unwrap_or_default();
                Err(format!("not ready: {problem} {last}").trim_end().into())
            }
        }
    }

    fn wait_until_ready(&mut self) -> Outcome<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Err(problem) = probe(self.at) {
            self.family.still_runs()?;
            if Instant::now() > deadline {
                return Err(problem.into());
            }
            thread::sleep(Duration::from_millis(2));
        }
        // The session of that one connection is to be over.
        let mut steady = 0;
        while steady < 20 && Instant::now() < deadline {
            let now = self.processes().len();
            steady = if now == self.at_rest { steady + 1 } else { 0 };
            self.at_rest = now;
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    pub(crate) fn processes(&self) -> Vec<Pid> {
        let members = self.account.as_ref().and_then(Account::members);
        members.unwrap_or_else(|| family(self.family.pid()))
    }

    /// The processor time it has used, when the processes of past sessions have gone.
    pub(crate) fn used(&self) -> Option<Duration> {
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.processes().len() > self.at_rest && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        self.account.as_ref()?.used()
    }
}

/// What the forwarders lead to.
pub(crate) struct Backend {
    _family: Family,
    pub(crate) at: SocketAddr,
}

impl Backend {
    pub(crate) fn start(processors: Processors) -> Outcome<Backend> {
        let mut command = launcher(processors, Descriptors::All, None);
        command.args([OURSELVES, role::BACKEND]);
        let (family, _, mut output) = start_piped(&mut command)?;
        let port: u16 = output.line(PATIENCE)?.parse()?;
        Ok(Backend {
            _family: family,
            at: (Ipv4Addr::LOCALHOST, port).into(),
        })
    }
}

/// A client that has been started. It waits, if it waits, for `leave`.
pub(crate) struct Client {
    family: Family,
    input: ChildStdin,
    output: Output,
}

impl Client {
    pub(crate) fn start(processors: Processors, words: &[String]) -> Outcome<Client> {
        let mut command = launcher(processors, Descriptors::All, None);
        command.args([OURSELVES, role::CLIENT]);
        let (family, input, output) = start_piped(command.args(words))?;
        Ok(Client {
            family,
            input,
            output,
        })
    }

    /// What it measured: times in nanoseconds, or counts.
    pub(crate) fn times(&mut self) -> Outcome<Vec<f64>> {
        let line = self.output.line(TURN)?;
        let times = line.split_whitespace().map(str::parse);
        Ok(times.collect::<Result<_, _>>()?)
    }

    pub(crate) fn leave(mut self) -> Outcome<()> {
        drop(self.input);
        match self.family.head.wait()? {
            status if status.success() => Ok(()),
            status => Err(format!("the client failed: {status}").into()),
        }
    }
}

/// One turn of a client, from start to end: what it measured.
pub(crate) fn turn(processors: Processors, words: &[String]) -> Outcome<Vec<f64>> {
    let mut client = Client::start(processors, words)?;
    let times = client.times()?;
    client.leave()?;
    Ok(times)
}

fn start_piped(command: &mut Command) -> Outcome<(Family, ChildStdin, Output)> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut family = Family {
        head: command.stderr(Stdio::piped()).spawn()?,
    };
    let head = &mut family.head;
    let (Some(input), Some(output), Some(errors)) =
        (head.stdin.take(), head.stdout.take(), head.stderr.take())
    else {
        return Err("no pipe to the process that was started".into());
    };
    let output = Output {
        lines: BufReader::new(output),
        errors,
    };
    Ok((family, input, output))
}

/// What a process of ours says.
struct Output {
    lines: BufReader<ChildStdout>,
    errors: std::process::ChildStderr,
}

impl Output {
    /// The next line. If there is none, the error is what the process gave as its reason.
    fn line(&mut self, patience: Duration) -> Outcome<String> {
        let milliseconds = PollTimeout::try_from(patience.as_millis())?;
        let mut wanted = [PollFd::new(self.lines.get_ref().as_fd(), PollFlags::POLLIN)];
        if poll(&mut wanted, milliseconds)? == 0 {
            return Err(format!("nothing within {patience:?}").into());
        }
        let mut line = String::new();
        if self.lines.read_line(&mut line)? > 0 {
            return Ok(line.trim_end().to_owned());
        }
        let mut reason = String::new();
        self.errors.read_to_string(&mut reason)?;
        let reason = reason.trim().trim_start_matches("cargo bench: ");
        Err(reason.to_owned().into())
    }
}

const SCRATCH: &str = "tcpproxy-bench-";

/// A directory of the run's own, removed at its end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(run: &str) -> io::Result<Scratch> {
        let folder = std::env::temp_dir().join(format!("{SCRATCH}{run}"));
        fs::create_dir(&folder)?;
        Ok(Scratch(folder))
    }

    /// Removes what interrupted runs have left. To be called where their processes could be seen.
    pub(crate) fn sweep() {
        let entries = fs::read_dir(std::env::temp_dir());
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let run = name.to_str().and_then(|name| name.strip_prefix(SCRATCH));
            if run.is_some_and(|run| !Path::new("/proc").join(run).exists()) {
                // Somebody else's stays.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
