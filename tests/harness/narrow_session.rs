//! A session whose client takes little at once, so that the relay is soon under pressure.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBuf, SndBuf};
use nix::unistd::Pid;

use super::{Engine, Running, Scratch, TCPPROXY, patient};

/// A session as inetd would start it, with a client towards which the kernel holds next to
/// nothing: it blocks after a few kilobytes. The test holds both ends.
pub struct NarrowSession {
    pub session: Running,
    pub client: TcpStream,
    pub upstream: TcpStream,
    pub _scratch: Scratch,
}

impl NarrowSession {
    pub fn start(engine: Engine, arguments: &[&str]) -> NarrowSession {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let upstreams = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // Before the connection is made, or the first window is larger.
        setsockopt(&listener, SndBuf, &4096).unwrap();
        let client = connect_with_small_window(&listener);
        let (accepted, _) = listener.accept().unwrap();
        let scratch = Scratch::new();
        let mut command = Command::new(TCPPROXY);
        command.args(["--log", "stderr"]).args(arguments);
        if engine == Engine::Copy {
            command.arg("-w").arg(scratch.join("transcript"));
        }
        command
            .arg(upstreams.local_addr().unwrap().to_string())
            .stdin(Stdio::from(OwnedFd::from(accepted)))
            .stdout(Stdio::null());
        let session = Running::start(&mut command);
        drop(command);
        let upstream = patient(upstreams.accept().unwrap().0);
        upstream.set_nodelay(true).unwrap();
        NarrowSession {
            session,
            client,
            upstream,
            _scratch: scratch,
        }
    }

    pub fn pid(&self) -> Pid {
        self.session.pid()
    }
}

fn connect_with_small_window(listener: &TcpListener) -> TcpStream {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    setsockopt(&socket, RcvBuf, &4096).unwrap();
    let address = SockaddrStorage::from(listener.local_addr().unwrap());
    connect(socket.as_raw_fd(), &address).unwrap();
    patient(TcpStream::from(socket))
}
