//! Places to listen: what `-b` and the configuration name, and the addresses behind it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;

use crate::sys::names::{accounts, known, nss};
use crate::terms::endpoint::Endpoint;
use crate::terms::error::{Error, Status};
use crate::terms::escape::brief;
use crate::terms::value::Complaint;

/// A place to listen: `[interface:]port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) interface: Interface,
    /// The TCP port; 0 has the kernel choose one.
    pub(crate) port: u16,
}

/// A listener that is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenAt {
    pub(crate) bind: Bind,
    /// Whether it also takes connections that were made to others, which the packet filter gives it (ip(7),
    /// `IP_TRANSPARENT`).
    pub(crate) transparent: bool,
}

/// The local side that a listener is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Interface {
    /// Every address, of both families.
    Any,
    Address(IpAddr),
    /// The addresses of a network interface, or of a host of that name.
    Named(String),
}

impl Bind {
    /// Parses `port`, `address:port`, `[v6]:port`, `host:port` or `eth0:port`.
    pub(crate) fn parse(text: &str) -> Result<Bind, Complaint> {
        let (interface, port) = match text.rsplit_once(':') {
            None => (Interface::Any, text),
            Some(("" | "*", port)) => (Interface::Any, port),
            Some((interface, _)) if interface.contains(':') && !interface.starts_with('[') => {
                return Err(format!(
                    "'{}' has an IPv6 address without brackets: write [v6]:port",
                    brief(text)
                ));
            }
            Some((interface, port)) => (Interface::parse(interface)?, port),
        };
        Ok(Bind {
            interface,
            port: accounts::port_or_any(port)?,
        })
    }
}

impl fmt::Display for Bind {
    /// As [`Bind::parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.interface, self.port)
    }
}

impl fmt::Display for Interface {
    /// As [`Interface::parse`] reads it, with IPv6 addresses in brackets.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Interface::Any => f.write_str("*"),
            Interface::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Interface::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Interface::Named(name) if name.contains(':') => write!(f, "[{name}]"),
            Interface::Named(name) => f.write_str(name),
        }
    }
}

impl Interface {
    /// Parses an address (IPv6 with brackets or without), a host name or a network interface's
    /// name.
    pub(crate) fn parse(text: &str) -> Result<Interface, Complaint> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Interface::Address(address.to_canonical()));
        }
        let bracketed = text.strip_prefix('[').map(|rest| rest.strip_suffix(']'));
        match bracketed {
            Some(Some(inner)) => match inner.parse::<Ipv6Addr>() {
                Ok(address) => Ok(Interface::Address(IpAddr::from(address).to_canonical())),
                // With a zone (fe80::1%eth0): the resolver knows how to read it.
                Err(_) if inner.contains('%') => Ok(Interface::Named(inner.to_owned())),
                Err(_) => Err(format!("'{}' is not an IPv6 address", brief(inner))),
            },
            None if is_name(text) => Ok(Interface::Named(text.to_owned())),
            _ => Err(format!(
                "'{}' is not an interface: write an address (IPv6 in brackets, as in [::1]:25), \
                 a host name or a network interface's name",
                brief(text)
            )),
        }
    }

    /// The addresses it stands for now. Resolves names.
    pub(crate) fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let places = self.places(0)?.into_iter();
        Ok(places.map(|place| place.ip()).collect())
    }

    /// The same with a port, and of link-local addresses the zone.
    pub(super) fn places(&self, port: u16) -> Result<Vec<SocketAddr>, Error> {
        let place = |address| SocketAddr::new(address, port);
        match self {
            Interface::Any => Ok(vec![place(Ipv6Addr::UNSPECIFIED.into())]),
            Interface::Address(address) => Ok(vec![place(*address)]),
            Interface::Named(name) => {
                let found = places_of_name(name)?.into_iter();
                Ok(found.map(|found| with_port(found, port)).collect())
            }
        }
    }
}

fn with_port(mut place: SocketAddr, port: u16) -> SocketAddr {
    place.set_port(port);
    place
}

/// The addresses of a network interface or a host, with port 0: looked up once.
fn places_of_name(name: &str) -> Result<Vec<SocketAddr>, Error> {
    let answer = known::answer("interfaces", name, || {
        let found = if if_nametoindex(name).is_ok() {
            addresses_of_interface(name)
        } else {
            places_of_host(name)
        };
        Some(match found {
            Ok(places) => places.iter().map(|place| format!("{place}\n")).collect(),
            Err(error) => format!("{FAILED}{error}"),
        })
    });
    let answer = answer.unwrap_or_else(|| format!("{FAILED}'{}' is not known", brief(name)));
    match answer.strip_prefix(FAILED) {
        Some(why) => Err(Error::new(Status::System, why)),
        None => Ok(answer
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect()),
    }
}

/// What an answer begins with that only says why there is none.
const FAILED: char = '!';

/// Whether text can be the name of a host or a network interface.
fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_graphic() && !matches!(c, ':' | '[' | ']' | '/' | '*');
    !text.is_empty() && text.chars().all(fits)
}

fn addresses_of_interface(name: &str) -> Result<Vec<SocketAddr>, Error> {
    let all = getifaddrs().map_err(|errno| Error::system("getifaddrs", errno))?;
    let addresses: Vec<SocketAddr> = all
        .filter(|entry| entry.interface_name == name)
        .filter_map(|entry| match Endpoint::from_address(&entry.address?)? {
            Endpoint::Inet(address) => Some(address.ip()),
            Endpoint::Unix => None,
        })
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        })
        .map(|address| SocketAddr::new(address, 0))
        .collect();
    if addresses.is_empty() {
        return Err(Error::new(
            Status::System,
            format!("network interface {name} has no address to listen on"),
        ));
    }
    Ok(addresses)
}

fn places_of_host(name: &str) -> Result<Vec<SocketAddr>, Error> {
    nss::addresses(name, 0).map_err(|failure| {
        Error::new(
            Status::System,
            format!(
                "'{}' is neither a network interface nor a host that can be resolved: {failure}",
                brief(name)
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_listen_are_read_in_every_form() {
        let bind = |interface, port| Ok(Bind { interface, port });
        let address = |text: &str| Interface::Address(text.parse().unwrap());
        assert_eq!(Bind::parse("25"), bind(Interface::Any, 25));
        assert_eq!(Bind::parse("*:25"), bind(Interface::Any, 25));
        assert_eq!(Bind::parse(":25"), bind(Interface::Any, 25));
        assert_eq!(Bind::parse("127.0.0.1:25"), bind(address("127.0.0.1"), 25));
        assert_eq!(Bind::parse("[::1]:25"), bind(address("::1"), 25));
        assert_eq!(
            Bind::parse("eth0:79"),
            bind(Interface::Named("eth0".to_owned()), 79)
        );
        let zoned = Interface::Named("fe80::1%eth0".to_owned());
        assert_eq!(Bind::parse("[fe80::1%eth0]:79"), bind(zoned, 79));
        for text in [
            "", ":", "::1:25", "[::1]", "[::1:25", "[x]:25", "a b:25", "host:", "1:2:3",
        ] {
            assert!(Bind::parse(text).is_err(), "{text}");
        }
    }
}
