//! What the tests share: the program started in each of its ways, peers that follow a script,
//! and waiting with a deadline for what can be seen.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test file uses a part of this"
)]

pub mod access_log;
pub mod configured;
pub mod from_file;
pub mod narrow;
pub mod peers;
pub mod private;
pub mod processes;
pub mod super_server;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::sockopt::ReuseAddr;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket,
};
use nix::unistd::Pid;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

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

/// A directory of the test's own, removed at its end. Other users can create files in it.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        use std::os::unix::fs::PermissionsExt;
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tcpproxy-{}-{count}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        Scratch(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes an executable shell script, and returns its path.
    pub fn script(&self, name: &str, body: &str) -> PathBuf {
        let (text, path) = (self.join(&format!("{name}.text")), self.join(name));
        fs::write(&text, format!("#!/bin/sh\n{body}\n")).unwrap();
        // Copied by a process of its own: a file of ours that is open for writing while another
        // thread forks cannot be executed until that thread's child is done (ETXTBSY).
        let installed = Command::new("install")
            .args(["-m", "755"])
            .args([&text, &path])
            .status()
            .unwrap();
        assert!(installed.success());
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Waits until there is a value, and fails the test if there is none in time.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Lines that arrive from somewhere, and can be waited for.
#[derive(Clone, Default)]
pub struct Lines(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Lines {
    /// Collects the lines of a stream in the background, until its end.
    pub fn of(stream: impl Read + Send + 'static) -> Lines {
        let lines = Lines::default();
        let collected = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { break };
                let (all, changed) = &*collected.0;
                all.lock()
                    .unwrap()
                    .push(String::from_utf8_lossy(&line).into_owned());
                changed.notify_all();
            }
        });
        lines
    }

    /// Everything so far.
    pub fn all(&self) -> Vec<String> {
        self.0.0.lock().unwrap().clone()
    }

    /// The first line that contains the text, when it is there.
    pub fn wait_for(&self, text: &str) -> String {
        self.wait_for_count(text, 1).remove(0)
    }

    /// The lines that contain the text, when there are so many.
    pub fn wait_for_count(&self, text: &str, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let (all, changed) = &*self.0;
        let mut all = all.lock().unwrap();
        loop {
            let found: Vec<String> = all
                .iter()
                .filter(|line| line.contains(text))
                .cloned()
                .collect();
            if found.len() >= count {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited in vain for {count} × '{text}' in {all:#?}"
            );
            all = changed.wait_timeout(all, left).unwrap().0;
        }
    }
}

/// The value of `key=` in a log line.
pub fn field<'a>(line: &'a str, key: &str) -> &'a str {
    let start = format!("{key}=");
    line.split(' ')
        .find_map(|word| word.strip_prefix(start.as_str()))
        .unwrap_or_else(|| panic!("no {key}= in {line}"))
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

/// A stream that fails rather than waits for ever.
pub fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
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

/// An upstream that serves one connection with a script, in a thread of its own.
pub struct Upstream<T> {
    pub address: SocketAddr,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Upstream<T> {
    pub fn new(script: impl FnOnce(TcpStream) -> T + Send + 'static) -> Upstream<T> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let thread = thread::spawn(move || script(patient(listener.accept().unwrap().0)));
        Upstream { address, thread }
    }

    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// What the script returned.
    pub fn result(self) -> T {
        self.thread.join().unwrap()
    }
}

/// Everything until the end of input.
pub fn read_all(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// A TCP port on which nothing listens now, of neither family. It is below those that the kernel
/// gives to whoever asks for any, so that only another test could take it meanwhile; and they
/// each start to look elsewhere.
pub fn free_port() -> u16 {
    const FIRST: usize = 10_240;
    const COUNT: usize = 22_000;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let start = std::process::id() as usize * 64;
    for _ in 0..COUNT {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        // Of both families, where there are two.
        let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port as u16));
        let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port as u16));
        let free = match can_bind(AddressFamily::Inet6, v6) {
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => can_bind(AddressFamily::Inet, v4),
            free => free,
        };
        if free.is_ok() {
            return port as u16;
        }
    }
    panic!("every port is taken");
}

/// Whether an address can be bound. It is not listened on: a process that another thread forks just
/// now has a copy of the socket until it has become its program, and a listener would be in the way
/// of whom the port is for.
fn can_bind(family: AddressFamily, address: SocketAddr) -> nix::Result<()> {
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
}

/// Fails the test where it does not run as root: `tests/run` says how.
pub fn needs_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test changes ids and needs root: sudo tests/run"
    );
}

/// A duplicate of a socket, for a process that is to be started with it.
pub fn share(socket: &TcpStream) -> Stdio {
    Stdio::from(OwnedFd::from(socket.try_clone().unwrap()))
}

/// Waits for a child's end, and returns its exit status.
pub fn end_of(child: &mut Child) -> ExitStatus {
    eventually("the process to end", || child.try_wait().unwrap())
}

/// The first line of a log file that contains the text, when it is there.
pub fn wait_for_line(file: &Path, text: &str) -> String {
    eventually(&format!("'{text}' in {}", file.display()), || {
        let all = fs::read_to_string(file).ok()?;
        let mut complete = all.split_inclusive('\n').filter(|l| l.ends_with('\n'));
        let line = complete.find(|line| line.contains(text))?;
        Some(line.trim_end().to_owned())
    })
}

/// An upstream that nobody may come to.
pub struct Forbidden(TcpListener);

impl Forbidden {
    pub fn new() -> Forbidden {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        Forbidden(listener)
    }

    pub fn name(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }

    /// Fails the test if somebody has come.
    pub fn assert_untouched(&self) {
        let error = self.0.accept().expect_err("the upstream was connected to");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}

/// A program that `tests/setup` installs.
pub fn tool(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':')
        .map(|directory| Path::new(directory).join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: run tests/setup"))
}
