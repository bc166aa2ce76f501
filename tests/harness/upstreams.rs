//! Upstreams: one that follows a script, one that gives everybody back what they say, one that nobody
//! may come to, and one that neither accepts nor refuses.

use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread::{self, JoinHandle};

use nix::sys::socket::{Backlog, listen};

use super::{PATIENCE, eventually, patient};

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

/// How many connections wait in a listener's queue, and how many it takes before it is full
/// (tcp(7), `TCP_INFO`: of a listener these are in the fields for other numbers).
fn queued(listener: &TcpListener) -> (u32, u32) {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the place is writable and as large as the size says. An integer's value may be any,
    // so that it is initialised whatever the kernel leaves out.
    let (done, info) = unsafe {
        let place = info.as_mut_ptr().cast();
        let (fd, level, name) = (listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO);
        let done = libc::getsockopt(fd, level, name, place, &raw mut size);
        (done, info.assume_init())
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    (info.tcpi_unacked, info.tcpi_sacked)
}

/// Whether the kernel lets SYNs vanish: there is one more than the backlog says.
fn is_full(listener: &TcpListener) -> bool {
    let (waiting, backlog) = queued(listener);
    waiting > backlog
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
        // Not by an attempt that comes to nothing in time: on a busy machine the next might.
        while !is_full(&listener) {
            let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
            filling.push(stream);
            assert!(filling.len() < 10, "the backlog does not fill");
            eventually("the connection in the queue", || {
                (queued(&listener).0 as usize >= filling.len()).then_some(())
            });
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
