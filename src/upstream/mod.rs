//! Whom connections are forwarded to: from a name to a connected socket (RFC 8305).
//!
//! Names are looked up anew for every session. An upstream's addresses are tried a little apart,
//! the first to connect wins; when none does, the next upstream's turn comes.

mod introduction;
mod race;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::UnixAddr;

use crate::source::Client;
use crate::sys::names::accounts;
use crate::sys::names::lookup::{self, NoAnswer};
use crate::sys::vigil::{Cut, Vigil};
use crate::terms::error::describe;
use crate::terms::escape::{brief, escape_word};
use crate::terms::reason::Reason;
use crate::terms::value::Complaint;
pub(crate) use introduction::SendProxy;
use race::{Begin, Race, connect_unix, interleaved};

/// Before upstreams that refuse are tried again, where that was asked for.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Whom a connection can be forwarded to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Upstream {
    /// A host; without a port, the one the client connected to.
    Host {
        /// A name or an address.
        host: String,
        /// The TCP port, 1 to 65535.
        port: Option<u16>,
    },
    Unix(PathBuf),
}

impl Upstream {
    /// Parses `host`, `host:port`, `[v6]:port`, a bare IPv6 address or `unix:/path`.
    pub(crate) fn parse(text: &str) -> Result<Upstream, Complaint> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match UnixAddr::new(path) {
                Ok(_) if path.starts_with('/') => Ok(Upstream::Unix(PathBuf::from(path))),
                Ok(_) => Err(format!(
                    "'{}' needs an absolute path, as in unix:/run/name.sock",
                    brief(text)
                )),
                Err(_) => Err(format!(
                    "'{}' has a path too long for a socket",
                    brief(text)
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
                        brief(text)
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
            || host.starts_with('-')
            || host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/')
        {
            return Err(format!(
                "'{}' is not a server: write host[:port], [v6]:port, unix:/path, \
                 or a program's path that begins with / or .",
                brief(text)
            ));
        }
        Ok(Upstream::Host {
            host: host.to_owned(),
            port: port.map(accounts::port).transpose()?,
        })
    }

    /// Its name in the log and for programs, with the port that a missing one stands for.
    pub(crate) fn name(&self, default_port: Option<u16>) -> String {
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
pub(crate) struct Route {
    /// Whom to try, in order; at least one.
    pub(crate) upstreams: Vec<Upstream>,
    /// How long each may take, name lookup included.
    pub(crate) connect_timeout: Duration,
    /// How long to go on trying when one refuses: its server may be about to start.
    pub(crate) connect_retry: Duration,
    /// Our own address towards them.
    pub(crate) source: Option<IpAddr>,
    /// What is sent to them first.
    pub(crate) send_proxy: SendProxy,
}

/// A connection to an upstream. The socket does not block.
pub(crate) struct Connected {
    pub(crate) socket: OwnedFd,
    /// Whom it leads to.
    pub(crate) name: String,
}

/// What happens on the way to an upstream.
#[derive(Debug)]
pub(crate) enum News<'a> {
    /// Something has been asked for, and the answer is about to be waited for.
    Waiting,
    /// An upstream could not be reached, for a reason that is a sentence.
    Failed(&'a str),
}

/// No upstream could be reached.
#[derive(Debug)]
pub(crate) struct Unreachable {
    /// Why not the last one that was tried.
    pub(crate) reason: Reason,
    /// Its name.
    pub(crate) name: String,
}

/// How a round of attempts at every upstream has failed.
enum Round {
    /// For good.
    Over(Unreachable),
    /// In a way that another round may not.
    MaybeStarting(Unreachable),
}

/// One attempt's failure: the reason, and the sentence for the log.
struct Failed {
    reason: Reason,
    detail: String,
    errno: Option<Errno>,
}

impl Failed {
    fn new(reason: Reason, detail: impl Into<String>) -> Failed {
        Failed {
            reason,
            detail: detail.into(),
            errno: None,
        }
    }

    fn at(what: &str, errno: Errno) -> Failed {
        let reason = match errno {
            Errno::ECONNREFUSED => Reason::ConnectRefused,
            Errno::ECONNRESET => Reason::ServerReset,
            Errno::ETIMEDOUT => Reason::ConnectTimeout,
            _ => Reason::ConnectFailed,
        };
        Failed {
            reason,
            detail: format!("{what}: {}", describe(errno)),
            errno: Some(errno),
        }
    }

    /// Whether trying another upstream is of no use.
    fn is_final(&self) -> bool {
        matches!(
            self.reason,
            Reason::ClientReset | Reason::ServerReset | Reason::Terminated
        )
    }

    /// Whether this is how an upstream looks whose server is about to start: it refuses, or its
    /// unix-domain socket is not there yet.
    fn may_be_starting(&self, upstream: &Upstream) -> bool {
        match upstream {
            Upstream::Host { .. } => self.errno == Some(Errno::ECONNREFUSED),
            Upstream::Unix(_) => {
                matches!(self.errno, Some(Errno::ECONNREFUSED | Errno::ENOENT))
            }
        }
    }
}

impl Route {
    /// Connects to the first upstream that can be reached, for a client. What happens meanwhile is
    /// told to `news`. It all has to be done before the vigil's end: when the client breaks off, there
    /// is nobody left to connect for.
    pub(crate) fn connect(
        &self,
        client: &Client,
        mut vigil: Vigil,
        mut news: impl FnMut(News),
    ) -> Result<Connected, Unreachable> {
        let retry_until = Instant::now() + self.connect_retry;
        let mut round = self.try_each(client, &vigil, &mut news);
        loop {
            let last = match round {
                Ok(connected) => return Ok(connected),
                Err(Round::Over(last)) => return Err(last),
                Err(Round::MaybeStarting(last)) if Instant::now() >= retry_until => {
                    return Err(last);
                }
                Err(Round::MaybeStarting(last)) => last,
            };
            let next_round = retry_until.min(Instant::now() + RETRY_DELAY);
            if let Err(cut) = vigil.pause(next_round) {
                return Err(Unreachable {
                    reason: cut.reason(),
                    ..last
                });
            }
            // That the same goes on happening is told by the end.
            round = self.try_each(client, &vigil, &mut |_: News| {});
        }
    }

    /// Tries every upstream once, until one connects.
    fn try_each(
        &self,
        client: &Client,
        vigil: &Vigil,
        news: &mut dyn FnMut(News),
    ) -> Result<Connected, Round> {
        let default_port = client.local.port();
        let mut maybe_starting = false;
        let mut last = Unreachable {
            reason: Reason::ConnectFailed,
            name: "-".to_owned(),
        };
        for upstream in &self.upstreams {
            let attempt = vigil.within(Instant::now() + self.connect_timeout);
            let waiting = &mut || news(News::Waiting);
            let reached = self
                .reach(upstream, client, attempt.clone(), waiting)
                .and_then(|socket| self.send_proxy.introduce(client, socket, attempt));
            let name = upstream.name(default_port);
            let failed = match reached {
                Ok(socket) => return Ok(Connected { socket, name }),
                Err(failed) => failed,
            };
            let failure = format!("{}: {}", escape_word(&name), failed.detail);
            news(News::Failed(&failure));
            maybe_starting |= failed.may_be_starting(upstream);
            let is_over = failed.is_final();
            last = Unreachable {
                reason: failed.reason,
                name,
            };
            if is_over {
                return Err(Round::Over(last));
            }
            if vigil.is_over() {
                last.reason = Cut::TimeOver.reason();
                return Err(Round::Over(last));
            }
        }
        Err(if maybe_starting {
            Round::MaybeStarting(last)
        } else {
            Round::Over(last)
        })
    }

    fn reach(
        &self,
        upstream: &Upstream,
        client: &Client,
        mut vigil: Vigil,
        waiting: &mut dyn FnMut(),
    ) -> Result<OwnedFd, Failed> {
        let (host, port) = match upstream {
            Upstream::Unix(path) if client.came_through_unix(path) => return Err(oneself()),
            Upstream::Unix(path) => return connect_unix(path, vigil, waiting),
            Upstream::Host { host, port } => (host, port),
        };
        let port = port.or(client.local.port()).ok_or_else(|| {
            let detail = "no port is given, and the client's connection has none";
            Failed::new(Reason::ConnectFailed, detail)
        })?;
        let mut addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => {
                waiting();
                lookup::addresses(host, port, &mut vigil)?
            }
        };
        if let Some(source) = self.source {
            addresses.retain(|address| address.is_ipv4() == source.is_ipv4());
            if addresses.is_empty() {
                let detail = "it has no address of the source address's family";
                return Err(Failed::new(Reason::ConnectFailed, detail));
            }
        }
        addresses.retain(|address| !client.came_through(*address));
        if addresses.is_empty() {
            return Err(oneself());
        }
        let hop_limit = match client.hops_left() {
            Some(0 | 1) => {
                let detail = "the connection has been passed on too often on this machine: \
                              it goes round in a loop, or had a low hop limit from the start";
                return Err(Failed::new(Reason::ConnectFailed, detail));
            }
            hops => hops.map(|hops| hops - 1),
        };
        let begin = Begin {
            source: self.source,
            hop_limit,
        };
        Race::new(interleaved(addresses), begin).run(vigil, waiting)
    }
}

/// An upstream that is where the client came from.
fn oneself() -> Failed {
    let detail = "it is the very listener that the client came through: \
                  connecting to it would go on for ever";
    Failed::new(Reason::ConnectFailed, detail)
}

impl From<NoAnswer> for Failed {
    fn from(no_answer: NoAnswer) -> Failed {
        match no_answer {
            NoAnswer::Cut(cut) => Failed::from(cut),
            NoAnswer::Unknown(error) => Failed::new(Reason::NameNotFound, error),
        }
    }
}

impl From<Cut> for Failed {
    fn from(cut: Cut) -> Failed {
        match cut {
            Cut::TimeOver => Failed::new(Reason::ConnectTimeout, "no answer in time"),
            Cut::ClientGone => Failed::new(Reason::ClientReset, "the client has gone meanwhile"),
            Cut::Terminated => Failed::new(Reason::Terminated, "asked to end meanwhile"),
            Cut::System(errno) => Failed::new(Reason::ConnectFailed, describe(errno)),
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
}
