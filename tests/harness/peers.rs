//! Both ends of a session in a test's hands, and what such ends do to each other.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::sockopt::Linger;
use nix::sys::socket::{Backlog, MsgFlags, listen, send, setsockopt};

use super::{Engine, Standalone, eventually, field, patient};

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

/// Bytes that look random, and are the same for the same seed. No two stretches of a stream are
/// alike, so that whatever is lost, repeated or misplaced is noticed.
pub struct Noise {
    block: Vec<u8>,
    repetition: u64,
    position: usize,
}

impl Noise {
    pub fn new(seed: u64) -> Noise {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        // A prime number of bytes, so that no buffer's size divides it.
        let mut block = Vec::with_capacity(1_000_003 + 8);
        while block.len() < 1_000_003 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        block.truncate(1_000_003);
        let mut noise = Noise {
            block,
            repetition: 0,
            position: 0,
        };
        noise.stamp();
        noise
    }

    fn stamp(&mut self) {
        self.block[..8].copy_from_slice(&self.repetition.to_le_bytes());
    }

    /// The bytes that come next, at least one.
    pub fn next_piece(&self) -> &[u8] {
        &self.block[self.position..]
    }

    /// Leaves so many bytes of the next piece behind.
    pub fn advance(&mut self, count: usize) {
        self.position += count;
        if self.position == self.block.len() {
            self.position = 0;
            self.repetition += 1;
            self.stamp();
        }
    }

    /// The next so many bytes.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count);
        while bytes.len() < count {
            let piece = self.next_piece();
            let length = piece.len().min(count - bytes.len());
            bytes.extend_from_slice(&piece[..length]);
            self.advance(length);
        }
        bytes
    }

    /// Sends the next so many bytes.
    pub fn send(&mut self, mut stream: impl Write, count: u64) {
        let mut left = count;
        while left > 0 {
            let piece = self.next_piece();
            let length = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            stream.write_all(&piece[..length]).unwrap();
            self.advance(length);
            left -= length as u64;
        }
    }

    /// Reads the next so many bytes, and fails at the first that differs.
    pub fn expect(&mut self, mut stream: impl Read, count: u64) {
        let mut buffer = vec![0; 1 << 18];
        let mut done = 0;
        while done < count {
            let most = (buffer.len() as u64).min(count - done) as usize;
            let got = stream.read(&mut buffer[..most]).unwrap();
            assert!(got > 0, "the input ended after {done} of {count} bytes");
            self.check(&buffer[..got], done);
            done += got as u64;
        }
    }

    /// Reads until the input ends, and fails at the first byte that differs. Returns how many
    /// there were, and how it ended.
    pub fn expect_until_end(&mut self, mut stream: &TcpStream) -> (u64, Ending) {
        let mut buffer = vec![0; 1 << 18];
        let mut done = 0;
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return (done, Ending::Clean),
                Ok(got) => {
                    self.check(&buffer[..got], done);
                    done += got as u64;
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return (done, Ending::Reset);
                }
                Err(error) => panic!("{error} after {done} bytes"),
            }
        }
    }

    fn check(&mut self, mut bytes: &[u8], offset: u64) {
        let all = bytes.len();
        while !bytes.is_empty() {
            let piece = self.next_piece();
            let length = piece.len().min(bytes.len());
            assert!(
                piece[..length] == bytes[..length],
                "wrong bytes near offset {}",
                offset + (all - bytes.len()) as u64
            );
            bytes = &bytes[length..];
            self.advance(length);
        }
    }
}

/// An address at which connections are neither accepted nor refused: a listener whose backlog
/// is full, to which SYNs vanish.
pub struct BlackHole {
    listener: TcpListener,
    filling: Vec<TcpStream>,
}

impl BlackHole {
    pub fn at(address: impl std::net::ToSocketAddrs) -> BlackHole {
        let listener = TcpListener::bind(address).unwrap();
        // listen(2) again changes the backlog; 0 leaves room for one.
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut filling = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            filling.push(stream);
            assert!(filling.len() < 10, "the backlog does not fill");
        }
        BlackHole { listener, filling }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Makes room, so that connections are made again. Returns the first that somebody else
    /// makes.
    pub fn open(&mut self) -> TcpStream {
        self.listener.set_nonblocking(true).unwrap();
        let known: Vec<SocketAddr> = self
            .filling
            .drain(..)
            .map(|stream| stream.local_addr().unwrap())
            .collect();
        eventually("somebody else to connect", || {
            let (stream, from) = self.listener.accept().ok()?;
            stream.set_nonblocking(false).unwrap();
            (!known.contains(&from)).then(|| patient(stream))
        })
    }
}

/// An upstream that gives everybody back what they say, until the test ends.
pub fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || {
                // A client that resets is none of the echo's business.
                let _ = std::io::copy(&mut &stream, &mut &stream);
            });
        }
    });
    address
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
