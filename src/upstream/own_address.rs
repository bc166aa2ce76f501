//! Our own address towards an upstream.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{Failed, at_port};
use crate::source::Client;
use crate::terms::endpoint::Endpoint;
use crate::terms::escape::brief;
use crate::terms::reason::Reason;
use crate::terms::value::Complaint;

/// What connections to upstreams come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnAddress {
    /// An address of this machine.
    Fixed(IpAddr),
    /// The client's address, and a port that is free.
    Clients,
    /// The client's address, and its port if that is free.
    ClientsWithPort,
}

/// What a socket is bound to before it connects.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bound {
    /// An address of this machine.
    Own(IpAddr),
    /// Somebody else's. With a port it is that port's if it is free; 0 is any.
    Foreign(SocketAddr),
}

impl OwnAddress {
    /// Parses an address, `client` or `client:port`.
    pub(crate) fn parse(text: &str) -> Result<OwnAddress, Complaint> {
        match text {
            "client" => Ok(OwnAddress::Clients),
            "client:port" => Ok(OwnAddress::ClientsWithPort),
            _ => text.parse().map(OwnAddress::Fixed).map_err(|_| {
                let what = brief(text);
                format!("'{what}' is not an IP address: write one, client or client:port")
            }),
        }
    }

    /// Whether it is a client's, for which a process needs `CAP_NET_ADMIN`.
    pub(crate) fn is_clients(self) -> bool {
        match self {
            OwnAddress::Fixed(_) => false,
            OwnAddress::Clients | OwnAddress::ClientsWithPort => true,
        }
    }

    /// What an attempt to reach one of these addresses for a client comes from.
    pub(super) fn towards(
        self,
        addresses: &[SocketAddr],
        client: &Client,
    ) -> Result<Bound, Failed> {
        let with_port = match self {
            OwnAddress::Fixed(address) => return Ok(Bound::Own(address)),
            OwnAddress::Clients => false,
            OwnAddress::ClientsWithPort => {
                let mut addresses = addresses.iter();
                !addresses.any(|address| client.was_redirected_from(*address))
            }
        };
        match client.address {
            Endpoint::Inet(address) if with_port => Ok(Bound::Foreign(address)),
            Endpoint::Inet(address) => Ok(Bound::Foreign(at_port(address, Some(0)))),
            Endpoint::Unix => {
                let detail =
                    "the client came over a unix socket, and has no address to connect from";
                Err(Failed::new(Reason::ConnectFailed, detail))
            }
        }
    }
}

impl fmt::Display for OwnAddress {
    /// As [`OwnAddress::parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            OwnAddress::Fixed(address) => write!(f, "{address}"),
            OwnAddress::Clients => f.write_str("client"),
            OwnAddress::ClientsWithPort => f.write_str("client:port"),
        }
    }
}

impl Bound {
    pub(super) fn is_ipv4(&self) -> bool {
        match self {
            Bound::Own(address) => address.is_ipv4(),
            Bound::Foreign(address) => address.is_ipv4(),
        }
    }
}
