//! tcpproxy, started in each of its ways, and what it says.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Lines, PATIENCE, Scratch, eventually, patient, read_all};

/// The program under test.
pub const TCPPROXY: &str = env!("CARGO_BIN_EXE_tcpproxy");

/// The two ways in which the program moves bytes, and the options that make it use them: as is best
/// for what comes, by splice(2) too; or, as a transcript needs to see the bytes, by copying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Adaptive,
    Copy,
}

impl Engine {
    pub const ALL: [Engine; 2] = [Engine::Adaptive, Engine::Copy];

    /// Runs a case under each engine, at the same time: for cases that mostly wait.
    pub fn each(case: impl Fn(Engine) + Sync) {
        thread::scope(|scope| {
            for engine in Engine::ALL {
                let case = &case;
                scope.spawn(move || case(engine));
            }
        });
    }
}

/// A process that a test has started, and ends.
pub struct Running {
    pub child: Child,
    /// The lines of its standard error.
    pub log: Lines,
}

impl Running {
    /// Starts a command with its standard error collected.
    pub fn start(command: &mut Command) -> Running {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Lines::of(child.stderr.take().unwrap());
        Running { child, log }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end, and returns its exit status.
    pub fn status(&mut self) -> std::process::ExitStatus {
        let child = &mut self.child;
        eventually("the process to end", || child.try_wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SIGTERM first, so that a supervisor can end its sessions.
        if self.child.try_wait().unwrap().is_none() {
            let _ = kill(self.pid(), Signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_secs(5);
            while self.child.try_wait().unwrap().is_none() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A standalone tcpproxy with one listener on 127.0.0.1.
pub struct Standalone {
    pub process: Running,
    pub address: SocketAddr,
    scratch: Scratch,
}

impl Standalone {
    /// Starts `tcpproxy -b 127.0.0.1:0 ARGUMENTS`, and waits until it listens.
    pub fn start(arguments: &[&str]) -> Standalone {
        Standalone::start_with(Engine::Adaptive, arguments)
    }

    /// The same, with bytes moved by this engine.
    pub fn start_with(engine: Engine, arguments: &[&str]) -> Standalone {
        Standalone::launched_with(engine, &[], arguments)
    }

    /// The same, by a command that starts what follows it, such as `env` or `setpriv`.
    pub fn launched_by(launcher: &[&str], arguments: &[&str]) -> Standalone {
        Standalone::launched_with(Engine::Adaptive, launcher, arguments)
    }

    fn launched_with(engine: Engine, launcher: &[&str], arguments: &[&str]) -> Standalone {
        let scratch = Scratch::new();
        let mut command = launched_by(launcher, &["-b", "127.0.0.1:0", "--log", "stderr"]);
        if engine == Engine::Copy {
            command.arg("-w").arg(scratch.join("transcript"));
        }
        command.args(arguments).stdin(Stdio::null());
        let process = Running::start(&mut command);
        let line = process.log.wait_for("listening on ");
        let address = line.rsplit(' ').next().unwrap().parse().unwrap();
        Standalone {
            process,
            address,
            scratch,
        }
    }

    pub fn connect(&self) -> TcpStream {
        patient(TcpStream::connect(self.address).unwrap())
    }

    /// The transcripts that its sessions have begun.
    pub fn transcripts(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.scratch.path()).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// The closed line of the only session so far.
    pub fn closed(&self) -> String {
        self.process.log.wait_for(" closed: ")
    }
}

/// Two connected TCP sockets: what a client holds, and what a super-server would hand over.
pub fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    (patient(client), accepted)
}

/// Starts tcpproxy as inetd does, with the connection on descriptors 0, 1 and 2. Returns the
/// client's end.
pub fn under_inetd(arguments: &[&str]) -> (TcpStream, Child) {
    hand_over(&mut launched_by(&[], arguments))
}

/// Starts a command with a connection on descriptors 0, 1 and 2. Returns the client's end.
pub fn hand_over(command: &mut Command) -> (TcpStream, Child) {
    let (client, accepted) = socket_pair();
    let child = command
        .stdin(share(&accepted))
        .stdout(share(&accepted))
        .stderr(share(&accepted))
        .spawn()
        .unwrap();
    // The command holds on to its duplicates.
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null());
    (client, child)
}

/// tcpproxy, started by a command that starts what follows it, or by nothing.
pub fn launched_by(launcher: &[&str], arguments: &[&str]) -> Command {
    let mut words = launcher.iter().copied().chain([TCPPROXY]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(arguments);
    command
}

/// A duplicate of a socket, for a process that is to be started with it.
pub fn share(socket: &TcpStream) -> Stdio {
    Stdio::from(OwnedFd::from(socket.try_clone().unwrap()))
}

/// What a program that has ended has said.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Runs a command to its end, with nothing to read.
    pub fn by(command: &mut Command) -> Said {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let log = Lines::default();
        // One that serves instead of ending is ended with the test.
        let mut process = Running { child, log };
        let [out, err] = [OwnedFd::from(out), OwnedFd::from(err)].map(|end| {
            let (sender, receiver) = mpsc::channel();
            thread::spawn(move || sender.send(read_all(fs::File::from(end))));
            receiver
        });
        let text = |all: mpsc::Receiver<Vec<u8>>| {
            let bytes = all.recv_timeout(PATIENCE).expect("the program ends");
            String::from_utf8(bytes).unwrap()
        };
        let (out, err) = (text(out), text(err));
        let status = process.child.wait().unwrap();
        Said {
            status: status.code().expect("no signal has ended it"),
            out,
            err,
        }
    }

    /// The standard output of one that has succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!((self.status, self.err.as_str()), (0, ""), "{}", self.out);
        self.out
    }

    /// The standard error, as lines, of one that has ended with this status and said nothing else.
    #[track_caller]
    pub fn refused(&self, status: i32) -> Vec<&str> {
        assert_eq!((self.status, self.out.as_str()), (status, ""), "{self:?}");
        self.err.lines().collect()
    }
}

/// The value of `key=` in a log line.
pub fn field<'a>(line: &'a str, key: &str) -> &'a str {
    let start = format!("{key}=");
    line.split(' ')
        .find_map(|word| word.strip_prefix(start.as_str()))
        .unwrap_or_else(|| panic!("no {key}= in {line}"))
}
