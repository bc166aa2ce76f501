//! Real super-servers that start tcpproxy, each on a port of its own.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Running, Scratch, TCPPROXY, eventually, free_port, patient, tool, wait_for_line};

/// What starts tcpproxy, and how it passes the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuperServer {
    /// The connection on 0, 1 and 2.
    OpenbsdInetd,
    /// The connection on 0, 1 and 2.
    InetutilsInetd,
    /// The connection on 0, 1 and 2.
    Xinetd,
    /// The connection on 0 and 1.
    Tcpserver,
    /// systemd-socket-activate: the connection on 0 and 1.
    ActivateInetd,
    /// systemd-socket-activate: the connection on 3.
    ActivateConnection,
    /// systemd-socket-activate: the listener on 3.
    ActivateListener,
    /// `wait`: the listener on 0, 1 and 2.
    OpenbsdInetdWait,
    /// `wait`: the listener on 0, 1 and 2.
    InetutilsInetdWait,
    /// `wait`: the listener on 0, 1 and 2.
    XinetdWait,
}

use SuperServer::*;

impl SuperServer {
    pub const ALL: [SuperServer; 10] = [
        OpenbsdInetd,
        InetutilsInetd,
        Xinetd,
        Tcpserver,
        ActivateInetd,
        ActivateConnection,
        ActivateListener,
        OpenbsdInetdWait,
        InetutilsInetdWait,
        XinetdWait,
    ];

    /// Those that hand over the listener: one tcpproxy serves many clients.
    pub const WITH_LISTENER: [SuperServer; 4] = [
        ActivateListener,
        OpenbsdInetdWait,
        InetutilsInetdWait,
        XinetdWait,
    ];

    /// Those that put the connection on descriptor 2 as well.
    pub const WITH_CLIENT_ON_STDERR: [SuperServer; 3] = [OpenbsdInetd, InetutilsInetd, Xinetd];

    /// Starts it on a port of `ip`, to run `tcpproxy --log file:LOG ARGUMENTS`. No argument may
    /// contain a blank: most of these know no quotes.
    pub fn start(self, ip: &str, arguments: &[&str]) -> Activated {
        let scratch = Scratch::new();
        let address = SocketAddr::new(ip.parse().unwrap(), free_port());
        let log = format!("file:{}", scratch.join("log").display());
        let arguments = [&["--log", &log], arguments].concat();
        assert!(!arguments.iter().any(|word| word.contains(' ')));
        let mut command = match self {
            OpenbsdInetd => openbsd_inetd(&scratch, address, "nowait", &arguments),
            OpenbsdInetdWait => openbsd_inetd(&scratch, address, "wait", &arguments),
            InetutilsInetd => inetutils_inetd(&scratch, address, "nowait", &arguments),
            InetutilsInetdWait => inetutils_inetd(&scratch, address, "wait", &arguments),
            Xinetd => xinetd(&scratch, address, "no", &arguments),
            XinetdWait => xinetd(&scratch, address, "yes", &arguments),
            Tcpserver => {
                let mut command = Command::new(tool("tcpserver"));
                let (ip, port) = (address.ip().to_string(), address.port().to_string());
                command.args(["-H", "-R", "-l0", &ip, &port, TCPPROXY]);
                command.args(arguments);
                command
            }
            ActivateInetd => activate(&["--inetd", "--accept"], &[address], &arguments),
            ActivateConnection => activate(&["--accept"], &[address], &arguments),
            ActivateListener => activate(&[], &[address], &arguments),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Activated {
            process: Running::start(&mut command),
            address,
            scratch,
        }
    }
}

/// systemd-socket-activate on these addresses.
pub fn activate(options: &[&str], addresses: &[SocketAddr], arguments: &[&str]) -> Command {
    let mut command = Command::new(tool("systemd-socket-activate"));
    command.args(options);
    for address in addresses {
        command.args(["-l", &address.to_string()]);
    }
    command.arg(TCPPROXY).args(arguments);
    command
}

fn openbsd_inetd(scratch: &Scratch, at: SocketAddr, wait: &str, arguments: &[&str]) -> Command {
    let file = inetd_conf(scratch, at, wait, arguments);
    let mut command = Command::new(unpacked("openbsd-inetd/usr/sbin/inetd"));
    command.arg("-d").arg(file);
    command
}

fn inetutils_inetd(scratch: &Scratch, at: SocketAddr, wait: &str, arguments: &[&str]) -> Command {
    let file = inetd_conf(scratch, at, wait, arguments);
    let mut command = Command::new(unpacked("inetutils-inetd/usr/sbin/inetutils-inetd"));
    let pid_file = scratch.join("inetd.pid");
    command.arg(format!("--pidfile={}", pid_file.display()));
    command.arg("-d").arg(file);
    command
}

fn inetd_conf(scratch: &Scratch, at: SocketAddr, wait: &str, arguments: &[&str]) -> PathBuf {
    let protocol = match at {
        SocketAddr::V4(_) => "tcp",
        SocketAddr::V6(_) => "tcp6",
    };
    let (ip, port) = (at.ip(), at.port());
    // The user is root, so that it is tcpproxy that gives the ids up.
    let line = format!(
        "{ip}:{port} stream {protocol} {wait} root {TCPPROXY} tcpproxy {}\n",
        arguments.join(" ")
    );
    let file = scratch.join("inetd.conf");
    fs::write(&file, line).unwrap();
    file
}

fn xinetd(scratch: &Scratch, at: SocketAddr, wait: &str, arguments: &[&str]) -> Command {
    let (ip, port) = (at.ip(), at.port());
    let flags = match ip {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    };
    let file = scratch.join("xinetd.conf");
    let text = format!(
        "service tcpproxy\n{{\n\
         type = UNLISTED\nsocket_type = stream\nprotocol = tcp\nflags = {flags}\n\
         bind = {ip}\nport = {port}\nwait = {wait}\nuser = root\n\
         server = {TCPPROXY}\nserver_args = {}\ndisable = no\n}}\n",
        arguments.join(" ")
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new(unpacked("xinetd/usr/sbin/xinetd"));
    command.arg("-dontfork").arg("-f").arg(file);
    command.arg("-pidfile").arg(scratch.join("xinetd.pid"));
    command
}

/// A file of a package that `tests/setup` unpacks.
pub fn unpacked(path: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/peers")
        .join(path);
    assert!(
        program.is_file(),
        "{} is missing: run tests/setup",
        program.display()
    );
    program
}

/// A super-server that has been started.
pub struct Activated {
    pub process: Running,
    pub address: SocketAddr,
    scratch: Scratch,
}

impl Activated {
    /// Connects, once it listens.
    pub fn connect(&self) -> TcpStream {
        connect_to(self.address)
    }

    /// The first line of tcpproxy's log that contains the text, when it is there.
    pub fn log(&self, text: &str) -> String {
        wait_for_line(&self.scratch.join("log"), text)
    }
}

/// Connects, once somebody listens there.
pub fn connect_to(address: SocketAddr) -> TcpStream {
    patient(eventually("a listener", || {
        TcpStream::connect(address).ok()
    }))
}

impl Drop for Activated {
    fn drop(&mut self) {
        // What inetd has started with `wait` goes on without it.
        let pid = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        for child in children.unwrap_or_default().split_whitespace() {
            // It may have ended just now.
            let _ = kill(Pid::from_raw(child.parse().unwrap()), Signal::SIGTERM);
        }
    }
}

/// Starts openbsd-inetd, inetutils-inetd or xinetd with a configuration of the test's own.
pub fn start_with_configuration(server: SuperServer, scratch: &Scratch, text: &str) -> Running {
    let file = scratch.join("super-server.conf");
    fs::write(&file, text).unwrap();
    let pid_file = scratch.join("super-server.pid");
    let mut command = match server {
        OpenbsdInetd => Command::new(unpacked("openbsd-inetd/usr/sbin/inetd")),
        InetutilsInetd => {
            let mut command = Command::new(unpacked("inetutils-inetd/usr/sbin/inetutils-inetd"));
            command.arg(format!("--pidfile={}", pid_file.display()));
            command
        }
        Xinetd => {
            let mut command = Command::new(unpacked("xinetd/usr/sbin/xinetd"));
            command.arg("-dontfork").arg("-pidfile").arg(pid_file);
            command
        }
        other => panic!("{other:?} has no configuration"),
    };
    match server {
        Xinetd => command.arg("-f").arg(file),
        _ => command.arg("-d").arg(file),
    };
    Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()))
}
