//! An upstream as it is written and shown.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use nix::sys::socket::UnixAddr;

use crate::source::Client;
use crate::sys::names::accounts;
use crate::terms::escape::brief;
use crate::terms::value::Complaint;

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
    /// Where the client meant to go, if it was redirected.
    OriginalDestination {
        /// Another port at that address, 1 to 65535.
        port: Option<u16>,
    },
}

/// What the client's original destination is called.
const ORIGINAL_DESTINATION: &str = "original-dst";

impl Upstream {
    /// Parses `host`, `host:port`, `[v6]:port`, a bare IPv6 address, `unix:/path`, or `original-dst` with a
    /// port or without.
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
        let port = port.map(accounts::port).transpose()?;
        if host == ORIGINAL_DESTINATION {
            return Ok(Upstream::OriginalDestination { port });
        }
        Ok(Upstream::Host {
            host: host.to_owned(),
            port,
        })
    }

    pub(crate) fn is_unix(&self) -> bool {
        matches!(self, Upstream::Unix(_))
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
            Upstream::OriginalDestination { port: Some(port) } => {
                format!("{ORIGINAL_DESTINATION}:{port}")
            }
            Upstream::OriginalDestination { port: None } => ORIGINAL_DESTINATION.to_owned(),
        }
    }

    /// The same for a client, with the address that it meant to reach.
    pub(crate) fn name_for(&self, client: &Client) -> String {
        match self {
            Upstream::OriginalDestination { port } => match client.original_destination() {
                Ok(original) => at_port(original, *port).to_string(),
                Err(_) => self.name(None),
            },
            Upstream::Host { .. } | Upstream::Unix(_) => self.name(client.local.port()),
        }
    }
}

/// An address with another port, if there is to be one.
pub(super) fn at_port(mut address: SocketAddr, port: Option<u16>) -> SocketAddr {
    if let Some(port) = port {
        address.set_port(port);
    }
    address
}

/// Whether text is an IPv6 address, with a zone (`%eth0`) or without.
fn is_ipv6(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, "0"));
    !zone.is_empty() && address.parse::<Ipv6Addr>().is_ok()
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
        let original = |port| Ok(Upstream::OriginalDestination { port });
        assert_eq!(Upstream::parse("original-dst"), original(None));
        assert_eq!(Upstream::parse("original-dst:80"), original(Some(80)));
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
            "original-dst:",
            "original-dst:0",
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
        assert_eq!(name("original-dst", Some(25)), "original-dst");
        assert_eq!(name("original-dst:26", Some(25)), "original-dst:26");
    }
}
