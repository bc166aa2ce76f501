//! Ports, users and groups, by number or by name.

use nix::unistd::{Gid, Uid};

use super::nss;
use crate::terms::escape::brief;
use crate::terms::value::{Complaint, Fault};

/// A TCP port to connect to: 1 to 65535, or a name from services(5).
pub(crate) fn port(text: &str) -> Result<u16, Complaint> {
    match port_or_any(text)? {
        0 => Err("port 0 is out of range: write 1 to 65535".to_owned()),
        port => Ok(port),
    }
}

/// A TCP port to listen on: as [`port`], or 0 for one that the kernel chooses.
pub(crate) fn port_or_any(text: &str) -> Result<u16, Complaint> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text
            .parse()
            .map_err(|_| format!("port {} is out of range: write 1 to 65535", brief(text)));
    }
    nss::port(text).ok_or_else(|| {
        format!(
            "'{}' is not a port: write 1 to 65535, or a name from services(5)",
            brief(text)
        )
    })
}

/// The user of this name or number. Unknown users and root are refused.
pub(crate) fn find_user(text: &str) -> Result<Uid, Fault> {
    let uid = match account(text)? {
        Some(number) => number,
        None => nss::user(text).ok_or_else(|| unknown("user", text))?,
    };
    let uid = Uid::from_raw(uid);
    if uid.is_root() {
        return Err(Fault::Refused(
            "tcpproxy never serves as root: write another user than uid 0".to_owned(),
        ));
    }
    Ok(uid)
}

/// The group of this name or number. Unknown groups are refused.
pub(crate) fn find_group(text: &str) -> Result<Gid, Fault> {
    let gid = match account(text)? {
        Some(number) => number,
        None => nss::group(text).ok_or_else(|| unknown("group", text))?,
    };
    Ok(Gid::from_raw(gid))
}

fn unknown(what: &str, name: &str) -> Fault {
    Fault::Refused(format!("there is no {what} '{}'", brief(name)))
}

/// The number of a user or group, 0 to 4294967294; `None` if the text is a name instead.
fn account(text: &str) -> Result<Option<u32>, Complaint> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if text.is_empty() {
        return Err("is empty: write a name or a number".to_owned());
    }
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(u32::MAX) | Err(_) => Err(match text {
            // The original's default of -1 and -2, when ids had 16 bits.
            "-1" => "-1 is not accepted: write 65535".to_owned(),
            "-2" => "-2 is not accepted: write 65534".to_owned(),
            _ => format!(
                "{} is out of range: write at most {}",
                brief(text),
                u32::MAX - 1
            ),
        }),
        Ok(number) => Ok(Some(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_or_names_of_services() {
        assert_eq!(port("25"), Ok(25));
        assert_eq!(port("0025"), Ok(25));
        assert_eq!(port_or_any("0"), Ok(0));
        for text in [
            "",
            "0",
            "65536",
            "-1",
            "+1",
            "no-such-service",
            "99999999999999999999",
        ] {
            assert!(port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn accounts_are_numbers_or_names() {
        assert_eq!(account("65535"), Ok(Some(65_535)));
        assert_eq!(account("nobody"), Ok(None));
        assert!(account("-1").unwrap_err().contains("write 65535"));
        for text in ["", "-7", "4294967295", "99999999999"] {
            assert!(account(text).is_err(), "{text}");
        }
    }
}
