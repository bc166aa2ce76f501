//! Listening sockets: bound to the places that are wanted, and accepted from.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashSet};
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{IpTransparent, Ipv6V6Only, ReuseAddr};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen as start_listening,
    setsockopt, socket,
};

use super::{Bind, Client, Interface, ListenAt, Origin};
use crate::log::Log;
use crate::sys;
use crate::terms::endpoint::Endpoint;
use crate::terms::error::{Error, Status, describe};

pub(crate) struct Listener {
    pub(crate) socket: OwnedFd,
    /// The address it listens on.
    pub(crate) local: Endpoint,
    /// What it was bound for, if we have bound it.
    pub(super) planned: Option<Planned>,
}

/// A socket to bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Planned {
    address: SocketAddr,
    /// Whether an IPv6 socket leaves IPv4 alone.
    v6_only: bool,
    /// Whether 0.0.0.0 will do on a machine without IPv6.
    or_v4: bool,
    /// Whether it takes connections that were made to others.
    transparent: bool,
}

/// A place where somebody wants a listener.
struct Wanted {
    interface: Interface,
    address: SocketAddr,
    transparent: bool,
}

/// Which sockets serve these addresses and ports: one wildcard where a port is for any
/// interface, each address once otherwise.
fn plan(wanted: &[Wanted]) -> Vec<Planned> {
    let mut ports_for_any = HashSet::new();
    let mut ports_with_v4 = HashSet::new();
    let mut transparent_ports = HashSet::new();
    let mut transparent_places = HashSet::new();
    let with_port = wanted.iter().filter(|wanted| wanted.address.port() != 0);
    for wanted in with_port {
        let port = wanted.address.port();
        if wanted.interface == Interface::Any {
            ports_for_any.insert(port);
        }
        if wanted.address.is_ipv4() {
            ports_with_v4.insert(port);
        }
        if wanted.transparent {
            transparent_ports.insert(port);
            transparent_places.insert(wanted.address);
        }
    }
    let mut seen = HashSet::new();
    let mut planned = Vec::new();
    for &Wanted {
        ref interface,
        address,
        transparent,
    } in wanted
    {
        let port = address.port();
        let is_any = *interface == Interface::Any;
        let covered = !is_any && ports_for_any.contains(&port);
        if covered || port != 0 && !seen.insert(address) {
            continue;
        }
        planned.push(Planned {
            address,
            v6_only: !is_any && address.is_ipv6() && ports_with_v4.contains(&port),
            or_v4: is_any,
            // One socket may be for several services.
            transparent: transparent
                || is_any && transparent_ports.contains(&port)
                || transparent_places.contains(&address),
        });
    }
    planned
}

/// The sockets that these places stand for. With each goes whether it may be missing: a name has
/// addresses of both families, the machine perhaps only one.
fn planned(places: &[ListenAt]) -> Result<Vec<(Planned, bool)>, Error> {
    let mut wanted = Vec::new();
    let mut optional = HashSet::new();
    for ListenAt { bind, transparent } in places {
        let Bind { interface, port } = bind;
        // Those of a file have been resolved before, and complained about with their place.
        let places = interface.places(*port);
        let places = places.map_err(|error| error.about("option -b/--bind"))?;
        if places.len() > 1 {
            optional.extend(places.iter().map(SocketAddr::ip));
        }
        wanted.extend(places.into_iter().map(|address| Wanted {
            interface: interface.clone(),
            address,
            transparent: *transparent,
        }));
    }
    let places = plan(&wanted).into_iter();
    Ok(places
        .map(|place| (place, optional.contains(&place.address.ip())))
        .collect())
}

/// Fails if there is no place to listen at: the configuration file has defaults only.
pub(crate) fn something_to_listen_for(places: &[ListenAt]) -> Result<(), Error> {
    if places.is_empty() {
        return Err(Error::config(
            "the configuration has no service to listen for: write port, and server or exec",
        ));
    }
    Ok(())
}

/// Binds everything and listens.
pub(super) fn listen(places: &[ListenAt], log: &Log) -> Result<Vec<Listener>, Error> {
    something_to_listen_for(places)?;
    let mut listeners = Vec::new();
    for (place, may_be_missing) in planned(places)? {
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
    let address = place.address;
    let error = Error::system(format_args!("cannot listen on {address}"), errno);
    if place.transparent && errno == Errno::EPERM {
        // Who may not bind to a port has EACCES.
        return Error::new(
            error.status(),
            format!("{error}: transparent needs CAP_NET_ADMIN"),
        );
    }
    error
}

impl Listener {
    /// Accepts the next client, whose session has this number.
    pub(crate) fn accept(&self, serial: u64) -> nix::Result<Client> {
        let (socket, address) = sys::accept(self.socket.as_fd())?;
        // One whose address is not understood must not pass for one that has none.
        let address = address.as_ref().and_then(Endpoint::from_address);
        let address = address.ok_or(Errno::ECONNABORTED)?;
        let local = if self.is_for_one_address() {
            None
        } else {
            Endpoint::local(socket.as_fd())
        };
        Ok(Client {
            socket,
            address,
            local: local.unwrap_or(self.local),
            relayed: None,
            original: OnceCell::new(),
            listener: Some(self.local),
            origin: Origin::Accepted { serial },
        })
    }

    /// Whether every client has connected to the address that this listens on. One that was handed
    /// over may be transparent (ip(7), `IP_TRANSPARENT`), and then clients had connected elsewhere.
    fn is_for_one_address(&self) -> bool {
        self.planned
            .is_some_and(|place| !place.address.ip().is_unspecified() && !place.transparent)
    }

    /// Brings listeners in line with the places that are wanted now. Those that stay are not
    /// touched, so that no client in their backlogs is lost, and stand first: returns how many they
    /// are. Of each of the others `closes` is told before. What cannot be bound is reported.
    pub(crate) fn rebind(
        listeners: &mut Vec<Listener>,
        places: &[ListenAt],
        log: &Log,
        closes: impl Fn(&Listener),
    ) -> usize {
        let planned = match planned(places) {
            Ok(planned) => planned,
            Err(error) => {
                log.error(format_args!("the listeners stay as they are: {error}"));
                return listeners.len();
            }
        };
        let wanted: HashSet<Planned> = planned.iter().map(|(place, _)| *place).collect();
        let mut there = HashSet::new();
        let mut kept = Vec::new();
        // By port, since one that is in the way is on the same.
        let mut unwanted: BTreeMap<Option<u16>, Vec<Listener>> = BTreeMap::new();
        for listener in mem::take(listeners) {
            match listener.planned {
                Some(place) if wanted.contains(&place) => {
                    there.insert(place);
                    kept.push(listener);
                }
                _ => {
                    let on_port = unwanted.entry(listener.local.port()).or_default();
                    on_port.push(listener);
                }
            }
        }
        let stay = kept.len();
        let close = |listeners: Vec<Listener>| {
            for listener in listeners {
                closes(&listener);
                log.notice(format_args!("no longer listening on {}", listener.local));
            }
        };
        for (place, _) in planned {
            if there.contains(&place) {
                continue;
            }
            let bound = match listen_on(place) {
                // Perhaps one of ours is in the way, that listens on a part of the same.
                Err(Errno::EADDRINUSE) => {
                    let on_port = unwanted.remove(&Some(place.address.port()));
                    on_port.into_iter().for_each(close);
                    listen_on(place)
                }
                bound => bound,
            };
            match bound {
                Ok(listener) => {
                    log.notice(format_args!("listening on {}", listener.local));
                    kept.push(listener);
                }
                Err(errno) => log.error(cannot_listen(place, errno)),
            }
        }
        unwanted.into_values().for_each(close);
        *listeners = kept;
        stay
    }
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
    if place.transparent {
        // For IPv6 as well, and before bind(2), as the address may be somebody else's.
        setsockopt(&socket, IpTransparent, &true)?;
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
                places.into_iter().map(move |address| Wanted {
                    interface: interface.clone(),
                    address,
                    transparent: false,
                })
            })
            .collect();
        plan(&wanted)
            .into_iter()
            .map(|place| (place.address.to_string(), place.v6_only))
            .collect()
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

    #[test]
    fn a_socket_is_transparent_where_one_of_its_services_is() {
        let wanted = |text: &str, transparent| {
            let Bind { interface, port } = Bind::parse(text).unwrap();
            let address = interface.places(port).unwrap()[0];
            Wanted {
                interface,
                address,
                transparent,
            }
        };
        let planned = plan(&[
            wanted("25", false),
            wanted("127.0.0.1:25", true),
            wanted("26", false),
            wanted("127.0.0.1:27", true),
            wanted("127.0.0.2:27", false),
            wanted("0", false),
            wanted("0", true),
        ]);
        let transparent: Vec<bool> = planned.iter().map(|place| place.transparent).collect();
        assert_eq!(transparent, [true, false, true, false, false, true]);
    }

    #[test]
    fn thousands_of_places_are_planned_in_the_time_that_each_takes() {
        let wanted: Vec<_> = (0..40_000_u32)
            .map(|number| {
                let address = Ipv4Addr::from_bits(0x7f00_0000 + number % 200).into();
                let port = (number / 200) as u16 + 1;
                Wanted {
                    interface: Interface::Address(address),
                    address: SocketAddr::new(address, port),
                    transparent: false,
                }
            })
            .collect();
        let started = std::time::Instant::now();
        assert_eq!(plan(&wanted).len(), wanted.len());
        // Compared with each other they take minutes.
        assert!(started.elapsed() < std::time::Duration::from_secs(2));
    }
}
