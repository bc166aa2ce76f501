//! Whom connections are forwarded to: from a name to a connected socket (RFC 8305).
//!
//! Names are looked up anew for every session. An upstream's addresses are tried a little apart,
//! the first to connect wins; when none does, the next upstream's turn comes.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, bind,
    connect, getpeername, getsockname, recv, setsockopt, socket,
};

use crate::log::{escape, escape_word};
use crate::lookup::{self, NoAnswer};
use crate::reason::Reason;
use crate::relay;
use crate::sys;
use crate::value::{self, Complaint};
use crate::wait::{self, Woken};

/// Between one attempt and the next: the "Connection Attempt Delay" of RFC 8305 §8.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Before a unix-domain listener whose backlog is full is tried again; connect(2) does not wait
/// for it on a socket that does not block.
const UNIX_RETRY_DELAY: Duration = Duration::from_millis(10);

/// Whom a connection can be forwarded to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// A host; without a port, the one the client connected to.
    Host {
        /// A name or an address.
        host: String,
        /// The TCP port, 1 to 65535.
        port: Option<u16>,
    },
    /// A unix-domain stream socket.
    Unix(PathBuf),
}

impl Upstream {
    /// Parses `host`, `host:port`, `[v6]:port`, a bare IPv6 address or `unix:/path`.
    pub fn parse(text: &str) -> Result<Upstream, Complaint> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match UnixAddr::new(path) {
                Ok(_) if path.starts_with('/') => Ok(Upstream::Unix(PathBuf::from(path))),
                Ok(_) => Err(format!(
                    "'{}' needs an absolute path, as in unix:/run/name.sock",
                    escape(text)
                )),
                Err(_) => Err(format!(
                    "'{}' has a path too long for a socket",
                    escape(text)
                )),
            };
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => match rest.split_once(']') {
                Some((host, "")) if is_ipv6(host) => (host, None),
                Some((host, port)) if is_ipv6(host) && port.starts_with(':') => {
                    (host, Some(&port[1..]))
                }
                _ => {
                    return Err(format!(
                        "'{}' is not an IPv6 address: write [v6]:port",
                        escape(text)
                    ));
                }
            },
            None if is_ipv6(text) => (text, None),
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        if host.is_empty()
            || host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/')
        {
            return Err(format!(
                "'{}' is not a server: write host[:port], [v6]:port, unix:/path, \
                 or a program's path that begins with / or .",
                escape(text)
            ));
        }
        Ok(Upstream::Host {
            host: host.to_owned(),
            port: port.map(value::port).transpose()?,
        })
    }

    /// Its name in the log and for programs, with the port that a missing one stands for.
    pub fn name(&self, default_port: Option<u16>) -> String {
        match self {
            Upstream::Host { host, port } => match (port.or(default_port), host.contains(':')) {
                (Some(port), true) => format!("[{host}]:{port}"),
                (Some(port), false) => format!("{host}:{port}"),
                (None, _) => host.clone(),
            },
            Upstream::Unix(path) => format!("unix:{}", path.display()),
        }
    }
}

/// Whether text is an IPv6 address, with a zone (`%eth0`) or without.
fn is_ipv6(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, "0"));
    !zone.is_empty() && address.parse::<Ipv6Addr>().is_ok()
}

/// The way to an upstream.
#[derive(Debug)]
pub struct Route {
    /// Whom to try, in order; at least one.
    pub upstreams: Vec<Upstream>,
    /// How long each may take, name lookup included.
    pub connect_timeout: Duration,
    /// Our own address towards them.
    pub source: Option<IpAddr>,
}

/// A connection to an upstream. The socket does not block.
pub struct Connected {
    /// The socket.
    pub socket: OwnedFd,
    /// Whom it leads to.
    pub name: String,
}

/// No upstream could be reached.
#[derive(Debug)]
pub struct Unreachable {
    /// Why not the last one that was tried.
    pub reason: Reason,
    /// Its name.
    pub name: String,
}

/// One attempt's failure: the reason, and the sentence for the log.
struct Failed(Reason, String);

impl Failed {
    fn at(what: &str, errno: Errno) -> Failed {
        let reason = match errno {
            Errno::ECONNREFUSED => Reason::ConnectRefused,
            Errno::ECONNRESET => Reason::ServerReset,
            Errno::ETIMEDOUT => Reason::ConnectTimeout,
            _ => Reason::ConnectFailed,
        };
        Failed(reason, format!("{what}: {}", errno.desc()))
    }

    /// Whether trying another upstream is of no use.
    fn is_final(&self) -> bool {
        matches!(
            self.0,
            Reason::ClientReset | Reason::ServerReset | Reason::Terminated
        )
    }
}

impl Route {
    /// Connects to the first upstream that can be reached. Each failure is told to `report`.
    /// `default_port` is the port that the client connected to. While this waits, `client` is
    /// watched: when it breaks off, there is nobody left to connect for.
    pub fn connect(
        &self,
        client: BorrowedFd,
        default_port: Option<u16>,
        mut report: impl FnMut(&str),
    ) -> Result<Connected, Unreachable> {
        let mut last = Unreachable {
            reason: Reason::ConnectFailed,
            name: "-".to_owned(),
        };
        for upstream in &self.upstreams {
            let name = upstream.name(default_port);
            match self.reach(upstream, default_port, client) {
                Ok(socket) => return Ok(Connected { socket, name }),
                Err(failed) => {
                    let is_final = failed.is_final();
                    let Failed(reason, detail) = failed;
                    report(&format!("{}: {detail}", escape_word(&name)));
                    last = Unreachable { reason, name };
                    if is_final {
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    fn reach(
        &self,
        upstream: &Upstream,
        default_port: Option<u16>,
        client: BorrowedFd,
    ) -> Result<OwnedFd, Failed> {
        let deadline = Instant::now() + self.connect_timeout;
        match upstream {
            Upstream::Unix(path) => connect_unix(path, deadline, client),
            Upstream::Host { host, port } => {
                let port = port.or(default_port).ok_or_else(|| {
                    let detail = "no port is given, and the client's connection has none";
                    Failed(Reason::ConnectFailed, detail.to_owned())
                })?;
                let mut addresses = match host.parse::<IpAddr>() {
                    Ok(address) => vec![SocketAddr::new(address, port)],
                    Err(_) => lookup::addresses(host, port, deadline, client).map_err(unknown)?,
                };
                if let Some(source) = self.source {
                    addresses.retain(|address| address.is_ipv4() == source.is_ipv4());
                }
                let addresses = interleaved(addresses);
                if addresses.is_empty() {
                    let detail = "it has no address of the source address's family";
                    return Err(Failed(Reason::ConnectFailed, detail.to_owned()));
                }
                Race::new(addresses, self.source).run(deadline, client)
            }
        }
    }
}

fn unknown(no_answer: NoAnswer) -> Failed {
    match no_answer {
        NoAnswer::Late => late(),
        NoAnswer::ClientReset => client_reset(),
        NoAnswer::Terminated => terminated(),
        NoAnswer::Unknown(error) => Failed(Reason::NameNotFound, error),
        NoAnswer::System(errno) => Failed(Reason::ConnectFailed, errno.desc().to_owned()),
    }
}

fn late() -> Failed {
    Failed(Reason::ConnectTimeout, "no answer in time".to_owned())
}

fn client_reset() -> Failed {
    Failed(
        Reason::ClientReset,
        "the client has gone meanwhile".to_owned(),
    )
}

fn terminated() -> Failed {
    Failed(Reason::Terminated, "asked to end meanwhile".to_owned())
}

/// Addresses with the families taking turns, beginning with the first one's (RFC 8305 §4).
fn interleaved(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let Some(first) = addresses.first() else {
        return VecDeque::new();
    };
    let first_is_v4 = first.is_ipv4();
    let (preferred, other): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv4() == first_is_v4);
    let mut other = other.into_iter();
    let mut ordered = VecDeque::new();
    for address in preferred {
        ordered.push_back(address);
        ordered.extend(other.next());
    }
    ordered.extend(other);
    ordered
}

/// Attempts at several addresses of one upstream, of which the first to connect wins.
struct Race {
    untried: VecDeque<SocketAddr>,
    running: Vec<(SocketAddr, OwnedFd)>,
    source: Option<IpAddr>,
    last: Failed,
}

impl Race {
    fn new(addresses: VecDeque<SocketAddr>, source: Option<IpAddr>) -> Race {
        Race {
            untried: addresses,
            running: Vec::new(),
            source,
            last: late(),
        }
    }

    fn run(mut self, deadline: Instant, client: BorrowedFd) -> Result<OwnedFd, Failed> {
        let mut watched_client = Some(client);
        let mut next_attempt = Instant::now();
        loop {
            if Instant::now() >= next_attempt || self.running.is_empty() {
                if let Some(socket) = self.start_next() {
                    return Ok(socket);
                }
                next_attempt = Instant::now() + ATTEMPT_DELAY;
            }
            if self.running.is_empty() {
                if self.untried.is_empty() {
                    return Err(self.last);
                }
                continue;
            }
            let until = match self.untried.is_empty() {
                true => deadline,
                false => deadline.min(next_attempt),
            };
            let mut set: Vec<PollFd> = self
                .running
                .iter()
                .map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLOUT))
                .collect();
            set.extend(watched_client.map(wait::failures_of));
            let woken = wait::wait(&mut set, Some(until));
            match woken.map_err(|errno| Failed::at("poll", errno))? {
                Woken::Terminated => return Err(terminated()),
                Woken::Deadline if Instant::now() >= deadline => return Err(late()),
                Woken::Deadline => continue,
                Woken::Ready => {}
            }
            let client_state = set
                .get(self.running.len())
                .map(|client| (wait::is_broken(client), client.any().unwrap_or(true)));
            let decided = set[..self.running.len()]
                .iter()
                .position(|polled| polled.any().unwrap_or(true));
            if let Some(index) = decided {
                let (address, socket) = self.running.swap_remove(index);
                match outcome(&socket) {
                    Ok(()) => return Ok(socket),
                    Err(errno) => {
                        self.note(address, errno);
                        if self.last.is_final() {
                            return Err(self.last);
                        }
                        // RFC 8305 §5: after a failure the next attempt need not wait.
                        next_attempt = Instant::now();
                    }
                }
            }
            match client_state {
                Some((true, _)) => {
                    self.abort();
                    return Err(client_reset());
                }
                // Closed, not reset: what it sent is still to be delivered. poll(2) would report
                // it for ever.
                Some((false, true)) => watched_client = None,
                Some((false, false)) | None => {}
            }
        }
    }

    /// Begins the next attempt, and returns its socket in the case that it has succeeded at once.
    fn start_next(&mut self) -> Option<OwnedFd> {
        let address = self.untried.pop_front()?;
        match start_connecting(address, self.source) {
            Ok((socket, true)) => return Some(socket),
            Ok((socket, false)) => self.running.push((address, socket)),
            Err(errno) => self.note(address, errno),
        }
        None
    }

    /// Gives the attempts up so that an upstream that has already accepted one sees a reset: an
    /// end of input would look as if the client had had nothing to say.
    fn abort(&self) {
        for (_, socket) in &self.running {
            // Fails only where there is no connection, and so nobody to tell.
            let _ = sys::abort_connection(socket.as_fd());
        }
    }

    fn note(&mut self, address: SocketAddr, errno: Errno) {
        self.last = Failed::at(&format!("connect to {address}"), errno);
    }
}

/// A socket that is connecting, and whether it is connected already.
fn start_connecting(address: SocketAddr, source: Option<IpAddr>) -> nix::Result<(OwnedFd, bool)> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    relay::keep_urgent_data(socket.as_fd());
    if let Some(source) = source {
        // The port is chosen at connect, when the kernel knows the whole four-tuple (ip(7)).
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        bind(
            socket.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(source, 0)),
        )?;
    }
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) => outcome(&socket).map(|()| (socket, true)),
        Err(Errno::EINPROGRESS) => Ok((socket, false)),
        Err(errno) => Err(errno),
    }
}

/// Whether a socket that has become writable is connected. ECONNRESET says that it was, and that
/// the upstream has broken off since without a word.
///
/// Asking with SO_ERROR would take away the error of a connection that was reset behind data, and
/// the relay would then find an end of input there.
fn outcome(socket: &OwnedFd) -> nix::Result<()> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(socket.as_raw_fd(), &mut [0], flags) {
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) if is_connected_to_itself(socket) => {
            Err(Errno::ECONNREFUSED)
        }
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Connecting to a local port in the ephemeral range, where nobody listens, can meet itself
/// (RFC 9293 §3.5, simultaneous open): then our own bytes would be the reply.
fn is_connected_to_itself(socket: &OwnedFd) -> bool {
    let local = getsockname::<SockaddrStorage>(socket.as_raw_fd());
    let peer = getpeername::<SockaddrStorage>(socket.as_raw_fd());
    matches!((local, peer), (Ok(local), Ok(peer)) if local == peer)
}

fn connect_unix(path: &PathBuf, deadline: Instant, client: BorrowedFd) -> Result<OwnedFd, Failed> {
    let failed = |errno| Failed::at("connect", errno);
    let address = UnixAddr::new(path).map_err(failed)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
    loop {
        match connect(socket.as_raw_fd(), &address as &dyn SockaddrLike) {
            Ok(()) => return Ok(socket),
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let until = deadline.min(Instant::now() + UNIX_RETRY_DELAY);
        let mut set = [wait::failures_of(client)];
        let woken = wait::wait(&mut set, Some(until));
        match woken.map_err(failed)? {
            Woken::Terminated => return Err(terminated()),
            Woken::Ready if wait::is_broken(&set[0]) => return Err(client_reset()),
            Woken::Ready | Woken::Deadline if Instant::now() >= deadline => return Err(late()),
            Woken::Ready => std::thread::sleep(UNIX_RETRY_DELAY),
            Woken::Deadline => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(host: &str, port: Option<u16>) -> Result<Upstream, Complaint> {
        Ok(Upstream::Host {
            host: host.to_owned(),
            port,
        })
    }

    #[test]
    fn upstreams_are_read_in_every_form() {
        assert_eq!(Upstream::parse("mail.example"), host("mail.example", None));
        assert_eq!(
            Upstream::parse("mail.example:25"),
            host("mail.example", Some(25))
        );
        assert_eq!(Upstream::parse("192.0.2.1:25"), host("192.0.2.1", Some(25)));
        assert_eq!(Upstream::parse("[::1]:25"), host("::1", Some(25)));
        assert_eq!(Upstream::parse("[::1]"), host("::1", None));
        assert_eq!(Upstream::parse("2001:db8::1"), host("2001:db8::1", None));
        assert_eq!(Upstream::parse("fe80::1%eth0"), host("fe80::1%eth0", None));
        assert_eq!(
            Upstream::parse("unix:/a b"),
            Ok(Upstream::Unix("/a b".into()))
        );
        let long = format!("unix:/{}", "x".repeat(200));
        for text in [
            "",
            ":25",
            "host:",
            "host:0",
            "host:65536",
            "host:-1",
            "[::1",
            "[host]:25",
            "[::1]25",
            "unix:",
            "unix:relative",
            "a b:25",
            "host:25:26",
            "ho/st",
            &long,
        ] {
            assert!(Upstream::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_have_the_port_that_a_missing_one_stands_for() {
        let name = |text, port| Upstream::parse(text).unwrap().name(port);
        assert_eq!(name("host", Some(25)), "host:25");
        assert_eq!(name("host:26", Some(25)), "host:26");
        assert_eq!(name("::1", Some(25)), "[::1]:25");
        assert_eq!(name("unix:/s", Some(25)), "unix:/s");
    }

    #[test]
    fn families_take_turns_beginning_with_the_preferred_one() {
        let addresses = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"];
        let parsed = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let ordered: Vec<String> = interleaved(parsed)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(ordered, ["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]);
    }
}
