//! The question that `--explain` asks.

use std::net::{IpAddr, SocketAddr};

use crate::sys::names::accounts;
use crate::terms::endpoint::Endpoint;
use crate::terms::escape::brief;
use crate::terms::value::Complaint;

/// The connection that `--explain` asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Explained {
    /// The client's address; `None` for one that comes over a unix-domain socket.
    pub(crate) client: Option<IpAddr>,
    /// The local address that it reaches, if that was said.
    pub(crate) local: Option<IpAddr>,
    /// The local port that it reaches, if that was said.
    pub(crate) port: Option<u16>,
}

impl Explained {
    /// Parses `C` or `C,L`: a client's address (or `unix`), and the local address, port, or both
    /// that it reaches.
    pub(crate) fn parse(text: &str) -> Result<Explained, Complaint> {
        let (client, local) = match text.split_once(',') {
            Some((client, local)) => (client, Some(local)),
            None => (text, None),
        };
        let client = match client {
            "unix" => None,
            _ => Some(address(client).ok_or_else(|| {
                format!(
                    "'{}' is not an IP address (or the word unix)",
                    brief(client)
                )
            })?),
        };
        let (local, port) = match local {
            None => (None, None),
            Some(local) => parse_local(local)?,
        };
        Ok(Explained {
            client,
            local,
            port,
        })
    }

    pub(in crate::config) fn client(&self) -> Endpoint {
        match self.client {
            Some(address) => Endpoint::Inet(SocketAddr::new(address.to_canonical(), 0)),
            None => Endpoint::Unix,
        }
    }
}

fn address(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    bare.unwrap_or(text).parse().ok()
}

fn parse_local(text: &str) -> Result<(Option<IpAddr>, Option<u16>), Complaint> {
    if let Some(address) = address(text) {
        return Ok((Some(address), None));
    }
    match text.rsplit_once(':') {
        Some(("" | "*", port)) => Ok((None, Some(accounts::port(port)?))),
        Some((local, port)) => match address(local) {
            Some(address) => Ok((Some(address), Some(accounts::port(port)?))),
            None => Err(format!("'{}' is not an IP address", brief(local))),
        },
        None => Ok((None, Some(accounts::port(text)?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_and_what_they_reach_are_read_in_every_form() {
        let parsed = |text: &str| Explained::parse(text).unwrap();
        let of = |client: &str, local: Option<&str>, port| Explained {
            client: Some(client.parse().unwrap()),
            local: local.map(|local| local.parse().unwrap()),
            port,
        };
        assert_eq!(parsed("192.0.2.7"), of("192.0.2.7", None, None));
        assert_eq!(parsed("::1,25"), of("::1", None, Some(25)));
        assert_eq!(parsed("::1,[::2]:25"), of("::1", Some("::2"), Some(25)));
        assert_eq!(parsed("[::1],::2"), of("::1", Some("::2"), None));
        assert_eq!(
            parsed("1.2.3.4,5.6.7.8:25"),
            of("1.2.3.4", Some("5.6.7.8"), Some(25))
        );
        assert_eq!(parsed("unix").client, None);
        for text in [
            "",
            "host",
            "1.2.3",
            "1.2.3.4,",
            "1.2.3.4,host:25",
            "1.2.3.4,70000",
        ] {
            assert!(Explained::parse(text).is_err(), "{text}");
        }
    }
}
