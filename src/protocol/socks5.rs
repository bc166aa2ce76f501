//! SOCKS version 5: a proxy is asked for a connection to a host and, once it has said yes, is that
//! connection (RFC 1928; user and password as in RFC 1929).
//!
//! Question and answer take turns: methods, perhaps the credentials, and the request. As with a PROXY
//! header, all that has come belongs to an answer as long as it is incomplete.

use std::net::IpAddr;

use crate::terms::credentials::Credentials;
use crate::terms::progress::Progress;
use crate::terms::value::Complaint;

const VERSION: u8 = 5;
/// The version of RFC 1929.
const PASSWORD_VERSION: u8 = 1;

const NO_AUTHENTICATION: u8 = 0;
const USER_AND_PASSWORD: u8 = 2;
const NONE_ACCEPTABLE: u8 = 0xff;

const CONNECT: u8 = 1;

const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// The longest answer, in bytes: a reply that names a host by the longest name.
pub const LONGEST: usize = 4 + 1 + 255 + 2;

/// How a proxy wants to know who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Not at all.
    None,
    /// By user and password.
    Password,
    /// In a way that it was not offered.
    Unacceptable,
}

/// What a proxy says to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// What follows is the connection that was asked for.
    Connected,
    /// There is none, for the reason of this number.
    Failed(u8),
}

/// What a client begins with: the methods that it can use.
pub fn greeting(has_credentials: bool) -> &'static [u8] {
    if has_credentials {
        &[VERSION, 2, NO_AUTHENTICATION, USER_AND_PASSWORD]
    } else {
        &[VERSION, 1, NO_AUTHENTICATION]
    }
}

/// Reads the method that a proxy has chosen.
pub fn read_method(bytes: &[u8]) -> Progress<Method> {
    match *bytes {
        [] | [VERSION] => Progress::Incomplete,
        [VERSION, NO_AUTHENTICATION, ..] => complete(Method::None, 2),
        [VERSION, USER_AND_PASSWORD, ..] => complete(Method::Password, 2),
        [VERSION, NONE_ACCEPTABLE, ..] => complete(Method::Unacceptable, 2),
        [VERSION, other, ..] => {
            Progress::Wrong(format!("its answer has method {other}, which is not known"))
        }
        [first, ..] => not_socks(first),
    }
}

/// Whether there is room for credentials: 1 to 255 bytes each (RFC 1929, section 2).
pub fn check(credentials: &Credentials) -> Result<(), Complaint> {
    for (what, bytes) in [
        ("user", credentials.user()),
        ("password", credentials.password()),
    ] {
        if !(1..=255).contains(&bytes.len()) {
            return Err(format!(
                "the {what} has {} bytes: SOCKS5 has room for 1 to 255",
                bytes.len()
            ));
        }
    }
    Ok(())
}

/// What a client says who it is; `None` where there is no room for that.
pub fn password(credentials: &Credentials) -> Option<Vec<u8>> {
    let mut message = vec![PASSWORD_VERSION];
    for bytes in [credentials.user(), credentials.password()] {
        message.push(u8::try_from(bytes.len()).ok()?);
        message.extend_from_slice(bytes);
    }
    Some(message)
}

/// Reads whether a proxy takes user and password. The version is not looked at: some answer with that
/// of SOCKS itself, and the status is all that there is.
pub fn read_acceptance(bytes: &[u8]) -> Progress<bool> {
    match *bytes {
        [] | [_] => Progress::Incomplete,
        [_, status, ..] => complete(status == 0, 2),
    }
}

/// The request for a connection to a port of a host: an address of either family, or a name; `None`
/// where the name is longer than 255 bytes, or empty.
pub fn request(host: &str, port: u16) -> Option<Vec<u8>> {
    let mut message = vec![VERSION, CONNECT, 0];
    match host.parse() {
        Ok(IpAddr::V4(address)) => {
            message.push(IPV4);
            message.extend_from_slice(&address.octets());
        }
        Ok(IpAddr::V6(address)) => {
            message.push(IPV6);
            message.extend_from_slice(&address.octets());
        }
        Err(_) => {
            let length = u8::try_from(host.len()).ok().filter(|&length| length > 0)?;
            message.extend_from_slice(&[NAME, length]);
            message.extend_from_slice(host.as_bytes());
        }
    }
    message.extend_from_slice(&port.to_be_bytes());
    Some(message)
}

/// Reads the reply to a request. Of one that says no nothing more is read than its number: not all
/// proxies send the rest.
pub fn read_reply(bytes: &[u8]) -> Progress<Reply> {
    let address = match *bytes {
        [] | [VERSION] | [VERSION, 0] | [VERSION, 0, _] => return Progress::Incomplete,
        [VERSION, 0, _, IPV4, ..] => 4,
        [VERSION, 0, _, IPV6, ..] => 16,
        [VERSION, 0, _, NAME] => return Progress::Incomplete,
        [VERSION, 0, _, NAME, length, ..] => 1 + usize::from(length),
        [VERSION, 0, _, other, ..] => {
            return Progress::Wrong(format!(
                "its answer has an address of type {other}, which is not known"
            ));
        }
        [VERSION, code, ..] => return complete(Reply::Failed(code), 2),
        [first, ..] => return not_socks(first),
    };
    // The address is that which the proxy connects from: nothing that we need.
    let length = 4 + address + 2;
    if bytes.len() < length {
        Progress::Incomplete
    } else {
        complete(Reply::Connected, length)
    }
}

/// The reason of a reply that says no (RFC 1928, section 6).
pub fn reason(code: u8) -> &'static str {
    match code {
        1 => "general failure",
        2 => "not allowed by its rules",
        3 => "network unreachable",
        4 => "host unreachable",
        UPSTREAM_REFUSED => "connection refused",
        6 => "time to live expired",
        7 => "command not supported",
        8 => "address type not supported",
        _ => "a reason that is not known",
    }
}

/// The number by which a proxy says that the upstream has refused the connection.
pub(crate) const UPSTREAM_REFUSED: u8 = 5;

fn complete<T>(says: T, length: usize) -> Progress<T> {
    Progress::Complete { says, length }
}

fn not_socks<T>(first: u8) -> Progress<T> {
    Progress::Wrong(format!(
        "its answer is no SOCKS5: it begins with {first:#04x}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong<T: std::fmt::Debug>(answer: Progress<T>) -> String {
        match answer {
            Progress::Wrong(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn credentials_are_offered_only_by_who_has_some() {
        assert_eq!(greeting(false), [5, 1, 0]);
        assert_eq!(greeting(true), [5, 2, 0, 2]);
        let credentials = Credentials::new("user", "pass").unwrap();
        assert_eq!(
            password(&credentials).unwrap(),
            b"\x01\x04user\x04pass".to_vec()
        );
        let long = Credentials::new(vec![b'x'; 255], vec![b'y'; 256]).unwrap();
        assert_eq!(password(&long), None);
        assert!(
            check(&long)
                .unwrap_err()
                .contains("the password has 256 bytes")
        );
        assert!(check(&Credentials::new("", "y").unwrap()).is_err());
        assert!(check(&credentials).is_ok());
    }

    #[test]
    fn hosts_are_asked_for_as_they_are() {
        let name = [&[5, 1, 0, 3, 12][..], b"mail.example", &[0, 25]].concat();
        assert_eq!(request("mail.example", 25), Some(name));
        assert_eq!(
            request("192.0.2.7", 0x1234),
            Some(vec![5, 1, 0, 1, 192, 0, 2, 7, 0x12, 0x34])
        );
        let v6 = [&[5, 1, 0, 4][..], &[0; 15], &[1, 0, 25]].concat();
        assert_eq!(request("::1", 25), Some(v6));
        assert!(request(&"x".repeat(255), 25).is_some());
        assert_eq!(request(&"x".repeat(256), 25), None);
        assert_eq!(request("", 25), None);
    }

    #[test]
    fn a_method_is_read_and_not_a_byte_behind_it() {
        assert_eq!(read_method(b""), Progress::Incomplete);
        assert_eq!(read_method(b"\x05"), Progress::Incomplete);
        for (byte, method) in [
            (0, Method::None),
            (2, Method::Password),
            (0xff, Method::Unacceptable),
        ] {
            assert_eq!(read_method(&[5, byte]), complete(method, 2));
            assert_eq!(read_method(&[5, byte, 9, 9]), complete(method, 2));
        }
        assert!(wrong(read_method(&[5, 1])).contains("method 1"));
        assert!(wrong(read_method(b"HTTP")).contains("0x48"));
        assert!(wrong(read_method(&[4])).contains("0x04"));
    }

    #[test]
    fn an_acceptance_is_its_status() {
        assert_eq!(read_acceptance(&[1]), Progress::Incomplete);
        assert_eq!(read_acceptance(&[1, 0]), complete(true, 2));
        assert_eq!(read_acceptance(&[5, 0, 7]), complete(true, 2));
        assert_eq!(read_acceptance(&[1, 1]), complete(false, 2));
    }

    #[test]
    fn a_reply_is_read_with_its_address_and_not_a_byte_behind_it() {
        for address in [
            &[&[IPV4][..], &[9; 4]].concat(),
            &[&[IPV6][..], &[9; 16]].concat(),
            &[&[NAME, 0][..]].concat(),
            &[&[NAME, 255][..], &[9; 255]].concat(),
        ] {
            let reply = [&[5, 0, 0][..], address, &[9, 9]].concat();
            assert!(reply.len() <= LONGEST);
            for end in 0..reply.len() {
                assert_eq!(read_reply(&reply[..end]), Progress::Incomplete);
            }
            let length = reply.len();
            assert_eq!(read_reply(&reply), complete(Reply::Connected, length));
            let behind = [&reply[..], &[5, 1]].concat();
            assert_eq!(read_reply(&behind), complete(Reply::Connected, length));
        }
        assert!(wrong(read_reply(&[5, 0, 0, 2])).contains("type 2"));
        assert!(wrong(read_reply(b"x")).contains("0x78"));
    }

    #[test]
    fn every_no_has_words() {
        for code in 1..=u8::MAX {
            assert_eq!(read_reply(&[5, code]), complete(Reply::Failed(code), 2));
        }
        let mut words: Vec<&str> = (1..=9).map(reason).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), 9);
    }
}
