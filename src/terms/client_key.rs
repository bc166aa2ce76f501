//! Whom limits count as one client.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::endpoint::Endpoint;

/// Whom limits count as one client: an IPv4 address, or the /64 of an IPv6 address, which is what
/// one customer is given at least (RFC 6177).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ClientKey {
    V4(u32),
    /// The first 64 bits of an address.
    V6(u64),
}

impl ClientKey {
    /// `None` for unix-domain clients, which have no address to be counted by.
    pub(crate) fn of(client: &Endpoint) -> Option<ClientKey> {
        match client {
            Endpoint::Inet(address) => Some(match address.ip() {
                IpAddr::V4(v4) => ClientKey::V4(v4.to_bits()),
                IpAddr::V6(v6) => ClientKey::V6((v6.to_bits() >> 64) as u64),
            }),
            Endpoint::Unix => None,
        }
    }
}

impl fmt::Display for ClientKey {
    /// Fit for the name of a file.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            ClientKey::V4(v4) => write!(f, "{}", Ipv4Addr::from_bits(*v4)),
            ClientKey::V6(network) => {
                write!(f, "{}_64", Ipv6Addr::from_bits(u128::from(*network) << 64))
            }
        }
    }
}
