//! Whom a request names in its Host field (RFC 9112, section 3.2), and where it goes.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::Refusal;

/// A Host field's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Who is named.
    pub name: Name,
    /// The port, where one is given.
    pub port: Option<u16>,
}

/// A host, as a name or by its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A name, which no resolver takes for an address.
    Named(String),
    /// An address.
    Address(IpAddr),
}

/// The longest name (RFC 1035, section 2.3.4), with a dot at its end.
const LONGEST_NAME: usize = 254;

const MALFORMED: Refusal = Refusal::Bad("the Host field is malformed");

impl Host {
    /// Parses the value of a field: `None` where that is empty.
    pub(super) fn parse(value: &[u8]) -> Result<Option<Host>, Refusal> {
        let value = str::from_utf8(value).map_err(|_| MALFORMED)?;
        if value.is_empty() {
            return Ok(None);
        }
        let (name, port) = match value.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']').ok_or(MALFORMED)?;
                let address: Ipv6Addr = address.parse().map_err(|_| MALFORMED)?;
                (Name::Address(IpAddr::V6(address)), port)
            }
            None => {
                let end = value.find(':').unwrap_or(value.len());
                let (name, port) = value.split_at(end);
                (Name::parse(name)?, port)
            }
        };
        let port = match port.strip_prefix(':') {
            // An empty port is none (RFC 3986, section 3.2.3).
            Some("") => None,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                let port: u16 = digits.parse().map_err(|_| MALFORMED)?;
                Some(port)
                    .filter(|&port| port != 0)
                    .ok_or(MALFORMED)?
                    .into()
            }
            None if port.is_empty() => None,
            Some(_) | None => return Err(MALFORMED),
        };
        Ok(Some(Host { name, port }))
    }
}

impl Name {
    fn parse(text: &str) -> Result<Name, Refusal> {
        if let Ok(address) = text.parse() {
            return Ok(Name::Address(IpAddr::V4(address)));
        }
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        let is_name = text.len() <= LONGEST_NAME
            && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && text.bytes().all(fits)
            && !ends_in_number(text);
        if is_name {
            Ok(Name::Named(text.to_owned()))
        } else {
            Err(MALFORMED)
        }
    }
}

/// Whether the last part is a number, decimal or hexadecimal: resolvers and URL parsers take such for
/// addresses, each in its own way (inet_aton(3)), and no true name ends so (RFC 3696, section 2).
fn ends_in_number(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let last = text.rsplit('.').next().unwrap_or(text);
    let hexadecimal = last.strip_prefix("0x").or(last.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => last.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// Where a request goes, as a target names it: the port is left out where it is HTTP's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    name: Name,
    port: u16,
}

/// HTTP's own port.
const HTTP: u16 = 80;

impl Authority {
    /// Where a request goes whose client had connected to `original` before it was redirected, if it was.
    /// The Host field is believed as to the name where nobody knows better, or where `is_there` says that
    /// it has that very address: else who is redirected could have the proxy connect to anybody
    /// (VU#435052). `None` where nothing says where to.
    pub fn of(
        host: Option<&Host>,
        original: Option<SocketAddr>,
        is_there: impl FnOnce(&Name, IpAddr) -> bool,
    ) -> Option<Authority> {
        let named = host.map(|host| &host.name);
        let name = match original {
            None => named?.clone(),
            Some(original) => match named {
                Some(name) if is_there(name, original.ip()) => name.clone(),
                Some(_) | None => Name::Address(original.ip()),
            },
        };
        let default = original.map_or(HTTP, |original| original.port());
        let port = host.and_then(|host| host.port).unwrap_or(default);
        Some(Authority { name, port })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Name::Named(name) => f.write_str(name),
            Name::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Name::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.port {
            HTTP => write!(f, "{}", self.name),
            port => write!(f, "{}:{port}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Option<Host> {
        Host::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn names_addresses_and_ports_are_told_apart() {
        let named = |name: &str, port| {
            let name = Name::Named(name.to_owned());
            Some(Host { name, port })
        };
        let address = |text: &str, port| {
            let name = Name::Address(text.parse().unwrap());
            Some(Host { name, port })
        };
        assert_eq!(host("a.example"), named("a.example", None));
        assert_eq!(host("A.example.:8080"), named("A.example.", Some(8080)));
        assert_eq!(host("_x-1.example:"), named("_x-1.example", None));
        assert_eq!(host("192.0.2.1:080"), address("192.0.2.1", Some(80)));
        assert_eq!(host("[2001:db8::1]"), address("2001:db8::1", None));
        assert_eq!(host("[::1]:81"), address("::1", Some(81)));
        assert_eq!(host(""), None);
    }

    #[test]
    fn what_could_be_another_host_to_somebody_else_is_refused() {
        let long = "a".repeat(255);
        for text in [
            "a b",
            "a/b",
            "user@a",
            "a#b",
            "a?b",
            "a\\b",
            "%61",
            "-a",
            ".a",
            "a:b",
            "a:1:2",
            "a:0",
            "a:65536",
            "a:+1",
            "[::1",
            "[::1]a",
            "[::1%25lo]",
            "::1",
            "127.1",
            "1.2.3.4.",
            "0x7f.1",
            "0x7F000001",
            "2130706433",
            "a.0x",
            "a.1",
            "a,b",
            "ä.example",
            ":80",
            &long,
        ] {
            assert_eq!(Host::parse(text.as_bytes()), Err(MALFORMED), "{text}");
        }
        assert_eq!(Host::parse(b"a\xff"), Err(MALFORMED));
    }

    #[test]
    fn a_host_is_believed_where_it_is_where_the_client_meant_to_go() {
        let goes = |text: &str, original: Option<&str>, is_there: bool| {
            let original = original.map(|text| text.parse().unwrap());
            let authority = Authority::of(host(text).as_ref(), original, |_, _| is_there);
            authority.map_or_else(String::new, |authority| authority.to_string())
        };
        let (http, other) = (Some("192.0.2.1:80"), Some("[2001:db8::1]:8080"));
        assert_eq!(goes("a.example", http, true), "a.example");
        assert_eq!(goes("a.example", other, true), "a.example:8080");
        assert_eq!(goes("a.example:81", other, true), "a.example:81");
        assert_eq!(goes("a.example:80", other, true), "a.example");
        assert_eq!(goes("a.example", http, false), "192.0.2.1");
        assert_eq!(goes("a.example", other, false), "[2001:db8::1]:8080");
        assert_eq!(goes("", http, true), "192.0.2.1");
        assert_eq!(goes("", other, false), "[2001:db8::1]:8080");
        assert_eq!(goes("a.example", None, false), "a.example");
        assert_eq!(goes("a.example:81", None, false), "a.example:81");
        assert_eq!(goes("[::1]", None, false), "[::1]");
        assert_eq!(goes("", None, false), "");
    }
}
