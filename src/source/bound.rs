//! Our own listeners: what `-b` names, the addresses behind it, and the sockets bound to them.

use std::fmt;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::{Ipv6V6Only, ReuseAddr};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen as start_listening,
    setsockopt, socket,
};

use super::Listener;
use crate::log::Log;
use crate::sys::names::accounts;
use crate::sys::names::nss;
use crate::terms::endpoint::Endpoint;
use crate::terms::error::{Error, Status, describe};
use crate::terms::escape::brief;
use crate::terms::value::Complaint;

/// A place to listen: `[interface:]port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Where.
    pub interface: Interface,
    /// The TCP port; 0 has the kernel choose one.
    pub port: u16,
}

/// The local side that a listener is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Interface {
    /// Every address, of both families.
    Any,
    /// One address.
    Address(IpAddr),
    /// The addresses of a network interface, or of a host of that name.
    Named(String),
}

impl Bind {
    /// Parses `port`, `address:port`, `[v6]:port`, `host:port` or `eth0:port`.
    pub fn parse(text: &str) -> Result<Bind, Complaint> {
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
    pub fn parse(text: &str) -> Result<Interface, Complaint> {
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
    pub fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let places = self.places(0)?.into_iter();
        Ok(places.map(|place| place.ip()).collect())
    }

    /// The same with a port, and of link-local addresses the zone.
    fn places(&self, port: u16) -> Result<Vec<SocketAddr>, Error> {
        let place = |address| SocketAddr::new(address, port);
        match self {
            Interface::Any => Ok(vec![place(Ipv6Addr::UNSPECIFIED.into())]),
            Interface::Address(address) => Ok(vec![place(*address)]),
            Interface::Named(name) if if_nametoindex(name.as_str()).is_ok() => {
                let addresses = addresses_of_interface(name)?.into_iter();
                Ok(addresses.map(place).collect())
            }
            Interface::Named(name) => places_of_host(name, port),
        }
    }
}

/// Whether text can be the name of a host or a network interface.
fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_graphic() && !matches!(c, ':' | '[' | ']' | '/' | '*');
    !text.is_empty() && text.chars().all(fits)
}

fn addresses_of_interface(name: &str) -> Result<Vec<IpAddr>, Error> {
    let all = getifaddrs().map_err(|errno| Error::system("getifaddrs", errno))?;
    let addresses: Vec<IpAddr> = all
        .filter(|entry| entry.interface_name == name)
        .filter_map(|entry| match Endpoint::from_address(&entry.address?)? {
            Endpoint::Inet(address) => Some(address.ip()),
            Endpoint::Unix => None,
        })
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        })
        .collect();
    if addresses.is_empty() {
        return Err(Error::new(
            Status::System,
            format!("network interface {name} has no address to listen on"),
        ));
    }
    Ok(addresses)
}

fn places_of_host(name: &str, port: u16) -> Result<Vec<SocketAddr>, Error> {
    nss::addresses(name, port).map_err(|failure| {
        Error::new(
            Status::System,
            format!(
                "'{}' is neither a network interface nor a host that can be resolved: {failure}",
                brief(name)
            ),
        )
    })
}

/// A socket to bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Planned {
    address: SocketAddr,
    /// Whether an IPv6 socket leaves IPv4 alone.
    v6_only: bool,
    /// Whether 0.0.0.0 will do on a machine without IPv6.
    or_v4: bool,
}

/// Which sockets serve these addresses and ports: one wildcard where a port is for any
/// interface, each address once otherwise.
fn plan(wanted: &[(Interface, SocketAddr)]) -> Vec<Planned> {
    let mut planned: Vec<Planned> = Vec::new();
    for &(ref interface, address) in wanted {
        let port = address.port();
        let same_port = || {
            let others = wanted.iter();
            others.filter(move |(_, other)| other.port() == port && port != 0)
        };
        let is_any = *interface == Interface::Any;
        let covered = !is_any && same_port().any(|(other, _)| *other == Interface::Any);
        let repeated = port != 0 && planned.iter().any(|other| other.address == address);
        if covered || repeated {
            continue;
        }
        planned.push(Planned {
            address,
            v6_only: !is_any && address.is_ipv6() && same_port().any(|(_, other)| other.is_ipv4()),
            or_v4: is_any,
        });
    }
    planned
}

/// The sockets that these places stand for. With each goes whether it may be missing: a name has
/// addresses of both families, the machine perhaps only one.
fn planned(binds: &[Bind]) -> Result<Vec<(Planned, bool)>, Error> {
    let mut wanted = Vec::new();
    let mut optional = Vec::new();
    for Bind { interface, port } in binds {
        // Those of a file have been resolved before, and complained about with their place.
        let places = interface.places(*port);
        let places = places.map_err(|error| error.about("option -b/--bind"))?;
        if places.len() > 1 {
            optional.extend(places.iter().map(SocketAddr::ip));
        }
        wanted.extend(places.into_iter().map(|place| (interface.clone(), place)));
    }
    let places = plan(&wanted).into_iter();
    Ok(places
        .map(|place| (place, optional.contains(&place.address.ip())))
        .collect())
}

/// Fails if there is no place to listen at: the configuration file has defaults only.
pub fn something_to_listen_for(binds: &[Bind]) -> Result<(), Error> {
    match binds.is_empty() {
        true => Err(Error::config(
            "the configuration has no service to listen for: write port, and server or exec",
        )),
        false => Ok(()),
    }
}

/// Binds everything and listens.
pub(super) fn listen(binds: &[Bind], log: &Log) -> Result<Vec<Listener>, Error> {
    something_to_listen_for(binds)?;
    let mut listeners = Vec::new();
    for (place, may_be_missing) in planned(binds)? {
        match listen_on(place) {
            Ok(listener) => {
                log.notice(format_args!("listening on {}", listener.local));
                listeners.push(listener);
            }
            Err(errno @ (Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT)) if may_be_missing => {
                let address = place.address;
                log.warning(format_args!(
                    "not listening on {address}: {}",
                    describe(errno)
                ));
            }
            Err(errno) => return Err(cannot_listen(place, errno)),
        }
    }
    if listeners.is_empty() {
        return Err(Error::new(
            Status::System,
            "no address to listen on is available",
        ));
    }
    Ok(listeners)
}

fn cannot_listen(place: Planned, errno: Errno) -> Error {
    Error::system(format_args!("cannot listen on {}", place.address), errno)
}

impl Listener {
    /// Whether every client has connected to the address that this listens on. One that was handed
    /// over may be transparent (ip(7), `IP_TRANSPARENT`), and then clients had connected elsewhere.
    pub(super) fn is_for_one_address(&self) -> bool {
        self.planned
            .is_some_and(|place| !place.address.ip().is_unspecified())
    }

    /// Brings listeners in line with the places that are wanted now. Those that stay are not
    /// touched, so that no client in their backlogs is lost. What cannot be bound is reported.
    pub fn rebind(listeners: &mut Vec<Listener>, binds: &[Bind], log: &Log) {
        let planned = match planned(binds) {
            Ok(planned) => planned,
            Err(error) => {
                return log.error(format_args!("the listeners stay as they are: {error}"));
            }
        };
        let is_wanted = |listener: &Listener| {
            planned
                .iter()
                .any(|(place, _)| listener.planned == Some(*place))
        };
        let (mut kept, mut unwanted): (Vec<Listener>, Vec<Listener>) =
            mem::take(listeners).into_iter().partition(is_wanted);
        for (place, _) in &planned {
            if kept.iter().any(|listener| listener.planned == Some(*place)) {
                continue;
            }
            let bound = match listen_on(*place) {
                // Perhaps one of ours is in the way, that listens on a part of the same.
                Err(Errno::EADDRINUSE) => {
                    close(&mut unwanted, log, |listener| {
                        listener.local.port() == Some(place.address.port())
                    });
                    listen_on(*place)
                }
                bound => bound,
            };
            match bound {
                Ok(listener) => {
                    log.notice(format_args!("listening on {}", listener.local));
                    kept.push(listener);
                }
                Err(errno) => log.error(cannot_listen(*place, errno)),
            }
        }
        close(&mut unwanted, log, |_| true);
        *listeners = kept;
    }
}

/// Closes some of these listeners.
fn close(listeners: &mut Vec<Listener>, log: &Log, chosen: impl Fn(&Listener) -> bool) {
    listeners.retain(|listener| {
        let closes = chosen(listener);
        if closes {
            log.notice(format_args!("no longer listening on {}", listener.local));
        }
        !closes
    });
}

fn listen_on(place: Planned) -> nix::Result<Listener> {
    let socket = match bind_to(place) {
        Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) if place.or_v4 => {
            let port = place.address.port();
            let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
            bind_to(Planned { address, ..place })
        }
        bound => bound,
    }?;
    // As many as the kernel lets wait: it clamps this to net.core.somaxconn.
    start_listening(&socket, Backlog::MAXCONN)?;
    let local = Endpoint::local(socket.as_fd()).ok_or(Errno::EAFNOSUPPORT)?;
    Ok(Listener {
        socket,
        local,
        planned: Some(place),
    })
}

fn bind_to(place: Planned) -> nix::Result<OwnedFd> {
    let family = match place.address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // A restart must not wait for connections of the past in TIME-WAIT.
    setsockopt(&socket, ReuseAddr, &true)?;
    if place.address.is_ipv6() {
        setsockopt(&socket, Ipv6V6Only, &place.v6_only)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(place.address))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(binds: &[&str]) -> Vec<(String, bool)> {
        let wanted: Vec<_> = binds
            .iter()
            .map(|text| Bind::parse(text).unwrap())
            .flat_map(|Bind { interface, port }| {
                let places = interface.places(port).unwrap();
                places
                    .into_iter()
                    .map(move |place| (interface.clone(), place))
            })
            .collect();
        plan(&wanted)
            .into_iter()
            .map(|place| (place.address.to_string(), place.v6_only))
            .collect()
    }

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

    #[test]
    fn a_port_for_any_interface_needs_one_socket() {
        assert_eq!(
            planned(&["127.0.0.1:25", "25", "[::1]:25"]),
            [("[::]:25".to_owned(), false)]
        );
    }

    #[test]
    fn an_ipv6_listener_leaves_ipv4_alone_where_that_has_its_own() {
        assert_eq!(
            planned(&["[::]:25", "0.0.0.0:25", "[::]:26", "[::]:26"]),
            [
                ("[::]:25".to_owned(), true),
                ("0.0.0.0:25".to_owned(), false),
                ("[::]:26".to_owned(), false),
            ]
        );
    }
}
