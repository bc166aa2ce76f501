//! Our own listeners: what `-b` names, the addresses behind it, and the sockets bound to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::{Ipv6V6Only, ReuseAddr};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen as start_listening,
    setsockopt, socket,
};

use super::{Endpoint, Listener};
use crate::error::{Error, Status};
use crate::log::{Log, escape};
use crate::value::{self, Complaint};

/// A place to listen: `[interface:]port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Where.
    pub interface: Interface,
    /// The TCP port; 0 has the kernel choose one.
    pub port: u16,
}

/// The local side that a listener is for.
#[derive(Debug, Clone, PartialEq, Eq)]
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
            Some((interface, port)) => (Interface::parse(interface)?, port),
        };
        Ok(Bind {
            interface,
            port: value::port_or_any(port)?,
        })
    }
}

impl Interface {
    fn parse(text: &str) -> Result<Interface, Complaint> {
        let bracketed = text.strip_prefix('[').map(|rest| rest.strip_suffix(']'));
        match bracketed {
            Some(Some(inner)) => match inner.parse::<Ipv6Addr>() {
                Ok(address) => Ok(Interface::Address(address.into())),
                // With a zone (fe80::1%eth0): the resolver knows how to read it.
                Err(_) if inner.contains('%') => Ok(Interface::Named(inner.to_owned())),
                Err(_) => Err(format!("'{}' is not an IPv6 address", escape(inner))),
            },
            None if !text.contains([':', '[', ']', '/', ' ']) => {
                Ok(match text.parse::<Ipv4Addr>() {
                    Ok(address) => Interface::Address(address.into()),
                    Err(_) => Interface::Named(text.to_owned()),
                })
            }
            _ => Err(format!(
                "'{}' is not an interface: write an address (IPv6 in brackets, as in [::1]:25), \
                 a host name or a network interface's name",
                escape(text)
            )),
        }
    }

    /// The addresses it stands for now.
    fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        match self {
            Interface::Any => Ok(vec![Ipv6Addr::UNSPECIFIED.into()]),
            Interface::Address(address) => Ok(vec![*address]),
            Interface::Named(name) if if_nametoindex(name.as_str()).is_ok() => {
                addresses_of_interface(name)
            }
            Interface::Named(name) => addresses_of_host(name),
        }
    }
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

fn addresses_of_host(name: &str) -> Result<Vec<IpAddr>, Error> {
    let found = (name, 0).to_socket_addrs().map_err(|error| {
        Error::new(
            Status::System,
            format!(
                "'{}' is neither a network interface nor a host that can be resolved: {error}",
                escape(name)
            ),
        )
    })?;
    Ok(found.map(|address| address.ip()).collect())
}

/// A socket to bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Planned {
    address: SocketAddr,
    /// Whether an IPv6 socket leaves IPv4 alone.
    v6_only: bool,
    /// Whether 0.0.0.0 will do on a machine without IPv6.
    or_v4: bool,
}

/// Which sockets serve these addresses and ports: one wildcard where a port is for any
/// interface, each address once otherwise.
fn plan(wanted: &[(Interface, IpAddr, u16)]) -> Vec<Planned> {
    let mut planned: Vec<Planned> = Vec::new();
    for (interface, address, port) in wanted {
        let same_port = || {
            wanted
                .iter()
                .filter(move |(_, _, other)| other == port && *port != 0)
        };
        let is_any = *interface == Interface::Any;
        let covered = !is_any && same_port().any(|(other, ..)| *other == Interface::Any);
        let address = SocketAddr::new(*address, *port);
        let repeated = *port != 0 && planned.iter().any(|other| other.address == address);
        if covered || repeated {
            continue;
        }
        planned.push(Planned {
            address,
            v6_only: !is_any
                && address.is_ipv6()
                && same_port().any(|(_, other, _)| other.is_ipv4()),
            or_v4: is_any,
        });
    }
    planned
}

/// Binds everything and listens.
pub(super) fn listen(binds: &[Bind], log: &Log) -> Result<Vec<Listener>, Error> {
    let mut wanted = Vec::new();
    let mut optional = Vec::new();
    for Bind { interface, port } in binds {
        let addresses = interface.addresses()?;
        if addresses.len() > 1 {
            optional.extend(addresses.iter().copied());
        }
        wanted.extend(
            addresses
                .into_iter()
                .map(|address| (interface.clone(), address, *port)),
        );
    }
    let mut listeners = Vec::new();
    for place in plan(&wanted) {
        match listen_on(place) {
            Ok(listener) => {
                log.notice(format_args!("listening on {}", listener.local));
                listeners.push(listener);
            }
            // A name with addresses of both families, on a machine that has only one.
            Err(errno @ (Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT))
                if optional.contains(&place.address.ip()) =>
            {
                log.warning(format_args!(
                    "not listening on {}: {}",
                    place.address,
                    errno.desc()
                ));
            }
            Err(errno) => {
                return Err(Error::system(
                    format_args!("cannot listen on {}", place.address),
                    errno,
                ));
            }
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
    Ok(Listener { socket, local })
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
                let addresses = interface.addresses().unwrap();
                addresses
                    .into_iter()
                    .map(move |address| (interface.clone(), address, port))
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
