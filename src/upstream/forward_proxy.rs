//! A proxy on the way to upstreams, as it is written and shown. Its password is never shown.

use std::fmt;

use super::Upstream;
use crate::protocol::socks5;
use crate::terms::credentials::{Credentials, HIDDEN};
use crate::terms::value::Complaint;

/// A proxy that is asked for connections to upstreams, whose names it looks up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForwardProxy {
    pub(super) protocol: Protocol,
    /// A name or an address.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) credentials: Option<Credentials>,
}

/// What is wrong with a unix-domain socket behind a proxy.
pub(super) const NOT_THROUGH_PROXY: &str = "a unix-domain socket cannot be reached through a proxy";

/// How a proxy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP's CONNECT.
    Connect,
    Socks5,
}

/// The protocols by the names that URLs have for them, the one that is shown first. A SOCKS proxy is
/// given names in any case, which curl(1) calls socks5h.
const SCHEMES: [(&str, Protocol); 3] = [
    ("http", Protocol::Connect),
    ("socks5", Protocol::Socks5),
    ("socks5h", Protocol::Socks5),
];

impl Protocol {
    fn default_port(self) -> u16 {
        match self {
            // squid's.
            Protocol::Connect => 3128,
            // RFC 1928, section 3.
            Protocol::Socks5 => 1080,
        }
    }

    /// Whether it has a place for these.
    fn check(self, credentials: &Credentials) -> Result<(), Complaint> {
        match self {
            // RFC 7617, section 2.
            Protocol::Connect if credentials.user().contains(&b':') => {
                Err("the user has a colon, which HTTP has no place for".to_owned())
            }
            Protocol::Connect => Ok(()),
            Protocol::Socks5 => socks5::check(credentials),
        }
    }
}

impl ForwardProxy {
    /// Parses `http://[user:password@]host[:port]`, or the same with `socks5` or `socks5h`. User and
    /// password are percent-decoded. No complaint has anything of the text: any part may be the password.
    pub(crate) fn parse(text: &str) -> Result<ForwardProxy, Complaint> {
        let form = "write http://[user:password@]host[:port], or socks5:// with the same";
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| format!("it is no URL: {form}"))?;
        let known = SCHEMES
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(scheme));
        let (_, protocol) = known
            .copied()
            .ok_or_else(|| format!("its scheme is none of http, socks5 and socks5h: {form}"))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user_info, place) = match rest.rsplit_once('@') {
            Some((user_info, place)) => (Some(user_info), place),
            None => (None, rest),
        };
        let (host, port) = match Upstream::parse(place) {
            // Without brackets it would not be clear where an IPv6 address ends.
            Ok(Upstream::Host { host, port }) if !host.contains(':') || place.starts_with('[') => {
                (host, port)
            }
            _ => return Err(format!("its host or port is none: {form}")),
        };
        let proxy = ForwardProxy {
            protocol,
            host,
            port: port.unwrap_or(protocol.default_port()),
            credentials: None,
        };
        let Some(user_info) = user_info else {
            return Ok(proxy);
        };
        let (user, password) = user_info
            .split_once(':')
            .ok_or_else(|| format!("it has a user without a password: {form}"))?;
        if password == HIDDEN {
            return Err(format!(
                "the password {HIDDEN} stands for one that is not shown: write the true one, or via-auth"
            ));
        }
        let credentials = Credentials::new(decoded(user)?, decoded(password)?)?;
        proxy.with(credentials)
    }

    /// The same proxy, which is to be told these; a complaint if they have no place in its protocol.
    pub(crate) fn with(self, credentials: Credentials) -> Result<ForwardProxy, Complaint> {
        self.protocol.check(&credentials)?;
        Ok(ForwardProxy {
            credentials: Some(credentials),
            ..self
        })
    }

    pub(crate) fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// What is wrong with reaching an upstream through a proxy, if something is.
    pub(crate) fn objection(upstream: &Upstream) -> Option<&'static str> {
        match upstream {
            Upstream::Host { .. } | Upstream::OriginalDestination { .. } => None,
            Upstream::Unix(_) => Some(NOT_THROUGH_PROXY),
        }
    }
}

/// As a URL, without the password.
impl fmt::Display for ForwardProxy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let named = SCHEMES.iter().find(|(_, known)| *known == self.protocol);
        let scheme = named.map_or("", |(scheme, _)| *scheme);
        write!(f, "{scheme}://")?;
        if let Some(credentials) = &self.credentials {
            for &byte in credentials.user() {
                match byte {
                    // RFC 3986, section 2.3.
                    b'-' | b'.' | b'_' | b'~' => write!(f, "{}", char::from(byte))?,
                    _ if byte.is_ascii_alphanumeric() => write!(f, "{}", char::from(byte))?,
                    _ => write!(f, "%{byte:02X}")?,
                }
            }
            write!(f, ":{HIDDEN}@")?;
        }
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Percent-decoded (RFC 3986, section 2.1).
fn decoded(text: &str) -> Result<Vec<u8>, Complaint> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part
            .get(..2)
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(
            byte.ok_or("user or password has a % without two hexadecimal digits: write %25 for %")?,
        );
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    Ok(bytes)
}

/// A word of a command line with what could be a proxy's password replaced, if there is one in it: all
/// users of a machine can read command lines (ps(1)).
pub(crate) fn without_password(word: &[u8]) -> Option<Vec<u8>> {
    let rest = word.windows(3).position(|three| three == b"://")? + 3;
    let end = rest + word[rest..].iter().rposition(|&byte| byte == b'@')?;
    let password = rest + word[rest..end].iter().position(|&byte| byte == b':')? + 1;
    let hidden = &HIDDEN.as_bytes()[..HIDDEN.len().min(end - password)];
    Some([&word[..password], hidden, &word[end..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> ForwardProxy {
        ForwardProxy::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn proxies_are_read_in_every_form() {
        for (text, shown) in [
            ("http://proxy", "http://proxy:3128"),
            ("HTTP://proxy:8080/", "http://proxy:8080"),
            ("http://[2001:db8::1]", "http://[2001:db8::1]:3128"),
            ("socks5://127.0.0.1", "socks5://127.0.0.1:1080"),
            ("socks5h://proxy:9050", "socks5://proxy:9050"),
            ("http://u:secret@proxy:1", "http://u:***@proxy:1"),
            (
                "socks5://a%20b:s%40%3a@[::1]:2",
                "socks5://a%20b:***@[::1]:2",
            ),
            ("http://u:se@cret@proxy", "http://u:***@proxy:3128"),
            ("http://u:@proxy", "http://u:***@proxy:3128"),
        ] {
            assert_eq!(parsed(text).to_string(), shown);
        }
    }

    #[test]
    fn user_and_password_are_decoded() {
        for (text, user, password) in [
            ("http://u:p@h", &b"u"[..], &b"p"[..]),
            ("http://u%25:%3a%2F%40@h", b"u%", b":/@"),
            ("http://:a:b%C3%a9@h", b"", "a:b\u{e9}".as_bytes()),
            ("socks5://u%3Av:%ff@h", b"u:v", b"\xff"),
        ] {
            let credentials = parsed(text).credentials.unwrap();
            assert_eq!(
                (credentials.user(), credentials.password()),
                (user, password)
            );
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_a_word_of_it() {
        let long = format!("socks5://secret:{}@h", "x".repeat(256));
        for text in [
            "",
            "secret",
            "secret:1",
            "secret://h",
            "https://secret:secret@h",
            "http://",
            "http:///",
            "http://secret:secret@",
            "http://secret:secret@:1",
            "http://secret:secret",
            "http://secret@h",
            "http://secret:secret@h:0",
            "http://secret:secret@h:1/path",
            "http://secret:secret@::1",
            "http://secret:secret@[::1",
            "http://secret:secret@h h",
            "http://secret:sec%ret@h",
            "http://secret:secret%4@h",
            "http://secret:secret%\u{e9}\u{e9}@h",
            "http://secret:secret%0a@h",
            "http://sec%3Aret:secret@h",
            "http://secret:***@h",
            "socks5://:secret@h",
            "socks5://secret:@h",
            "http://unix:/secret",
            &long,
        ] {
            let why = ForwardProxy::parse(text).unwrap_err();
            assert!(
                !why.contains("secret") && !why.contains("xxx"),
                "{text}: {why}"
            );
        }
    }

    #[test]
    fn passwords_in_command_lines_are_found() {
        for (word, shown) in [
            ("http://u:secret@h:1", Some("http://u:***@h:1")),
            ("--via=socks5://u:s:e@c@h", Some("--via=socks5://u:***@h")),
            ("http://u:ab@h", Some("http://u:**@h")),
            ("http://u:@h", Some("http://u:@h")),
            ("http://u@h:1", None),
            ("http://h:1", None),
            ("://", None),
            ("a:b@c", None),
        ] {
            let found = without_password(word.as_bytes());
            assert_eq!(found.as_deref(), shown.map(str::as_bytes), "{word}");
        }
    }
}
