//! Both ends of a session in a test's hands, and what such ends do to each other.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::sockopt::Linger;
use nix::sys::socket::{MsgFlags, send, setsockopt};

use super::noise::Noise;
use super::{Engine, Standalone, field, patient};

/// One end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Upstream,
}

impl Side {
    pub const ALL: [Side; 2] = [Side::Client, Side::Upstream];
}

/// One session through a standalone tcpproxy, both ends of which the test holds.
pub struct Through {
    pub proxy: Standalone,
    pub client: TcpStream,
    pub upstream: TcpStream,
}

impl Through {
    pub fn start(engine: Engine, arguments: &[&str]) -> Through {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let name = listener.local_addr().unwrap().to_string();
        let arguments = [&[name.as_str()], arguments].concat();
        let proxy = Standalone::start_with(engine, &arguments);
        let client = proxy.connect();
        let upstream = patient(listener.accept().unwrap().0);
        Through {
            proxy,
            client,
            upstream,
        }
    }

    /// The session's process.
    pub fn session(&self) -> nix::unistd::Pid {
        super::processes::only_child(self.proxy.process.pid())
    }

    /// The proxy, this side's end and the other's.
    pub fn seen_from(self, side: Side) -> (Standalone, TcpStream, TcpStream) {
        match side {
            Side::Client => (self.proxy, self.client, self.upstream),
            Side::Upstream => (self.proxy, self.upstream, self.client),
        }
    }
}

/// Closes a connection with a reset, whatever is still on its way.
pub fn reset(stream: TcpStream) {
    let abort = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, Linger, &abort).unwrap();
}

/// Sends bytes of which the last is urgent.
pub fn send_urgent(stream: &TcpStream, bytes: &[u8]) {
    let count = send(stream.as_raw_fd(), bytes, MsgFlags::MSG_OOB).unwrap();
    assert_eq!(count, bytes.len());
}

/// How a stream of bytes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By an end of input.
    Clean,
    /// By a reset.
    Reset,
}

/// Everything until the end, and which kind of end that was.
pub fn read_to_ending(mut stream: &TcpStream) -> (Vec<u8>, Ending) {
    let mut bytes = Vec::new();
    let ending = match stream.read_to_end(&mut bytes) {
        Ok(_) => Ending::Clean,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ending::Reset,
        Err(error) => panic!("{error} after {} bytes", bytes.len()),
    };
    (bytes, ending)
}

/// Sends as much as is taken until nothing was for half a second. Returns how much.
pub fn send_until_blocked(mut stream: &TcpStream, noise: &mut Noise) -> u64 {
    stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(500) {
        match stream.write(noise.next_piece()) {
            Ok(count) => {
                noise.advance(count);
                sent += count as u64;
                last = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("{error} after {sent} bytes"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    sent
}

pub fn assert_echoes(mut stream: &TcpStream) {
    stream.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

/// Resets a connection that others have copies of, too (connect(2) to `AF_UNSPEC`).
pub fn reset_shared(stream: &TcpStream) {
    let nobody = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let size = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: the address lives until the call returns, and the length is its size.
    let done = unsafe { libc::connect(stream.as_raw_fd(), &raw const nobody, size) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Bytes that were written and are not acknowledged yet (tcp(7), SIOCOUTQ).
pub fn bytes_in_flight(stream: &TcpStream) -> i32 {
    let mut count = 0;
    // SAFETY: the call stores one int, for which `count` is the place.
    let done = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    count
}

/// Asserts that SIGTERM ends a server with its only session at once, and that its client has read
/// nothing more.
pub fn assert_sigterm_ends(mut proxy: Standalone, client: &TcpStream) {
    let start = Instant::now();
    proxy.process.signal(Signal::SIGTERM);
    assert_eq!(proxy.process.status().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(field(&proxy.closed(), "reason"), "terminated");
    assert_eq!(read_to_ending(client).0, b"");
}
