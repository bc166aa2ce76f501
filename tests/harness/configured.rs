//! A server with a configuration file that the test changes while it runs.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{Running, Scratch, TCPPROXY, eventually, patient};

pub struct Configured {
    pub process: Running,
    pub scratch: Scratch,
    reloads: usize,
}

/// What is logged when SIGHUP has been dealt with, in each case.
const DEALT_WITH: [&str; 2] = ["]: reloaded", "log files reopened"];

impl Configured {
    /// Starts `tcpproxy -f FILE --log stderr ARGUMENTS`, and waits until it listens.
    pub fn start(text: &str, arguments: &[&str]) -> Configured {
        let scratch = Scratch::new();
        fs::write(scratch.join("tcpproxy.conf"), text).unwrap();
        let mut command = Command::new(TCPPROXY);
        command.args(["--log", "stderr", "-f"]);
        command.arg(scratch.join("tcpproxy.conf")).args(arguments);
        let process = Running::start(command.stdin(Stdio::null()));
        process.log.wait_for("listening on ");
        Configured {
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

/// Connects to a port of 127.0.0.1.
pub fn connect(port: u16) -> TcpStream {
    patient(TcpStream::connect(("127.0.0.1", port)).unwrap())
}

/// Connects from another address of this machine.
pub fn connect_from(source: &str, to: SocketAddr) -> TcpStream {
    use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};
    use std::os::fd::AsRawFd;
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let from = SocketAddr::new(source.parse().unwrap(), 0);
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
    patient(TcpStream::from(fd))
}

/// Whether nobody listens there.
pub fn is_refused(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port))
        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}
