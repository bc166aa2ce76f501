//! Which addresses a rule is about.

use std::cell::OnceCell;
use std::fmt;
use std::net::IpAddr;

use crate::terms::endpoint::Endpoint;
use crate::terms::escape::brief;
use crate::terms::value::Complaint;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pattern {
    Any,
    Network {
        address: IpAddr,
        prefix: u8,
    },
    /// `*` for any run of characters and `?` for one, over the address as text (rinetd's form).
    Text(Box<str>),
}

/// A client whose address is compared with many patterns.
pub(super) struct Asked {
    /// Its address; `None` for one that has none.
    pub(super) address: Option<IpAddr>,
    /// That as text, once it was needed.
    text: OnceCell<String>,
}

impl Asked {
    pub(super) fn about(client: &Endpoint) -> Asked {
        Asked {
            address: match client {
                Endpoint::Inet(client) => Some(client.ip()),
                Endpoint::Unix => None,
            },
            text: OnceCell::new(),
        }
    }
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Pattern, Complaint> {
        let bad = || {
            format!(
                "'{}' is not a rule: write ANY, an address, address/prefix, address/mask, \
                 or an address with * and ?",
                brief(text)
            )
        };
        if text == "ANY" {
            return Ok(Pattern::Any);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Pattern::network(address, width(&address)));
        }
        if let Some((address, mask)) = text.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| bad())?;
            let prefix = prefix_length(&address, mask).ok_or_else(|| {
                format!(
                    "'{}' has a bad mask: write a prefix of 0 to {} bits, or (for IPv4) a mask \
                     like 255.255.255.0",
                    brief(text),
                    width(&address)
                )
            })?;
            return Ok(Pattern::network(address, prefix));
        }
        let is_textual = |b: u8| b.is_ascii_hexdigit() || matches!(b, b'.' | b':' | b'*' | b'?');
        if text.contains(['*', '?']) && text.bytes().all(is_textual) {
            return Ok(Pattern::Text(text.to_ascii_lowercase().into()));
        }
        Err(bad())
    }

    /// The network of an address. One within ::ffff:0:0/96 is IPv4's, as clients' addresses are.
    fn network(address: IpAddr, prefix: u8) -> Pattern {
        match (address.to_canonical(), address) {
            (canonical @ IpAddr::V4(_), IpAddr::V6(_)) if prefix >= 96 => Pattern::Network {
                address: canonical,
                prefix: prefix - 96,
            },
            _ => Pattern::Network { address, prefix },
        }
    }

    pub(super) fn matches(&self, client: &Asked) -> bool {
        match (self, client.address) {
            (Pattern::Any, _) => true,
            (_, None) => false,
            (Pattern::Network { address, prefix }, Some(client)) => {
                in_network(client, *address, *prefix)
            }
            (Pattern::Text(pattern), Some(address)) => {
                let text = client.text.get_or_init(|| address.to_string());
                matches_text(pattern.as_bytes(), text.as_bytes())
            }
        }
    }
}

impl fmt::Display for Pattern {
    /// As most people would write it.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Pattern::Any => f.write_str("ANY"),
            Pattern::Network { address, prefix } if *prefix == width(address) => {
                write!(f, "{address}")
            }
            Pattern::Network { address, prefix } => write!(f, "{address}/{prefix}"),
            Pattern::Text(pattern) => f.write_str(pattern),
        }
    }
}

fn width(address: &IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// A number of bits, or a dotted IPv4 mask without holes. A mask with holes is more likely a
/// mistake (another vendor's inverted mask) than a wish, and would let in whom nobody meant.
fn prefix_length(address: &IpAddr, mask: &str) -> Option<u8> {
    if !mask.is_empty() && mask.bytes().all(|b| b.is_ascii_digit()) {
        return mask.parse().ok().filter(|&bits| bits <= width(address));
    }
    let mask = mask.parse::<std::net::Ipv4Addr>().ok()?.to_bits();
    let contiguous = mask.leading_ones() + mask.trailing_zeros() >= 32;
    (address.is_ipv4() && contiguous).then_some(mask.leading_ones() as u8)
}

fn in_network(client: IpAddr, network: IpAddr, prefix: u8) -> bool {
    match (client, network) {
        (IpAddr::V4(client), IpAddr::V4(network)) => {
            let differing = client.to_bits() ^ network.to_bits();
            differing.leading_zeros() >= u32::from(prefix)
        }
        (IpAddr::V6(client), IpAddr::V6(network)) => {
            let differing = client.to_bits() ^ network.to_bits();
            differing.leading_zeros() >= u32::from(prefix)
        }
        _ => false,
    }
}

/// Whether the whole text matches. Takes time in proportion to both lengths at the worst: when a
/// character does not fit, only the last `*` is tried with one character more.
fn matches_text(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(&c) if c == b'?' || c == text[from] => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((star_at, taken)) = star else {
                    return false;
                };
                star = Some((star_at, taken + 1));
                at = star_at + 1;
                from = taken + 1;
            }
        }
    }
    pattern[at..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> Endpoint {
        let address: IpAddr = address.parse().unwrap();
        Endpoint::Inet((address.to_canonical(), 50_000).into())
    }

    fn matches(pattern: &str, address: &str) -> bool {
        Pattern::parse(pattern)
            .unwrap()
            .matches(&Asked::about(&client(address)))
    }

    #[test]
    fn addresses_networks_and_patterns_match() {
        for (pattern, address) in [
            ("ANY", "192.0.2.1"),
            ("ANY", "::1"),
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1", "::ffff:192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.0/120", "192.0.2.77"),
            ("192.0.2.99/24", "192.0.2.1"),
            ("192.0.2.0/255.255.255.0", "192.0.2.255"),
            ("0.0.0.0/0", "203.0.113.9"),
            ("192.0.2.1/32", "192.0.2.1"),
            ("2001:db8::/32", "2001:db8:ffff::1"),
            ("::/0", "2001:db8::1"),
            ("192.0.2.*", "192.0.2.1"),
            ("192.0.2.?", "192.0.2.1"),
            ("*", "2001:db8::1"),
            ("2001:DB8:*", "2001:db8::1"),
            ("1*.*.*1", "192.0.2.101"),
        ] {
            assert!(matches(pattern, address), "{pattern} {address}");
        }
    }

    #[test]
    fn other_addresses_do_not_match() {
        for (pattern, address) in [
            ("192.0.2.1", "192.0.2.10"),
            ("192.0.2.0/24", "192.0.3.1"),
            ("192.0.2.1/32", "192.0.2.0"),
            ("0.0.0.0/0", "::1"),
            ("::/0", "192.0.2.1"),
            ("192.0.2.?", "192.0.2.10"),
            ("192.0.2.*", "192.0.20.1"),
            ("*1", "192.0.2.12"),
            ("2001:db8::/33", "2001:db8:8000::1"),
        ] {
            assert!(!matches(pattern, address), "{pattern} {address}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in [
            "",
            "any",
            "host.example",
            "192.0.2",
            "192.0.2.0/33",
            "192.0.2.0/",
            "192.0.2.0/-1",
            "192.0.2.0/255.0.255.0",
            "192.0.2.0/0.0.0.255",
            "::1/129",
            "::1/255.255.255.0",
            "192.0.2.*/24",
            "a b*",
            "/24",
        ] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }
}
