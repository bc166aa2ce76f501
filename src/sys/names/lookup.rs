//! Names and addresses from the system's name services, within a time.
//!
//! The resolver blocks for as long as it likes and cannot be interrupted. So it is asked in a
//! child process, which is killed when its time is up, or when nobody wants the answer any more.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::sys;
use crate::sys::errand;
use crate::sys::names::nss::{self, Question};
use crate::sys::vigil::{Cut, Vigil};

/// How long a client's name may be looked for before a program starts without it.
const NAME_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    /// Nobody wants it any more, or it took too long.
    Cut(Cut),
    /// The name has no address, for the reason that the resolver gives.
    Unknown(String),
}

/// Every address of a host, both families, in the order of preference that the system has
/// (RFC 6724). Never empty.
pub(crate) fn addresses(
    host: &str,
    port: u16,
    vigil: &mut Vigil,
) -> Result<Vec<SocketAddr>, NoAnswer> {
    let answer = ask(Question::Addresses(host), vigil)?;
    nss::addresses_in(&answer, port).map_err(NoAnswer::Unknown)
}

/// The name of a client, if it has one that leads back to its address, and if that is known
/// within 2 s.
pub(crate) fn confirmed_name(address: IpAddr) -> Option<String> {
    let vigil = &mut Vigil::until(Some(Instant::now() + NAME_TIMEOUT));
    let answer = ask(Question::NameOf(address), vigil).ok()?;
    let name = nss::name_in(&answer)?;
    // Programs are often shell scripts, and name services pass on what others say.
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if !name.bytes().all(fits) || is_read_as_address(name) {
        return None;
    }
    let answer = ask(Question::Addresses(name), vigil).ok()?;
    let found = nss::addresses_in(&answer, 0).ok()?;
    let confirmed = found
        .iter()
        .any(|found| found.ip().to_canonical() == address);
    confirmed.then(|| name.to_owned())
}

/// Whether a resolver would take a name for an address instead of asking for its addresses, so that
/// it seems to lead wherever its owner likes: numbers between dots (inet_aton(3)), be they decimal,
/// octal or hexadecimal, and however many. No true name ends in one (RFC 3696, section 2).
fn is_read_as_address(name: &str) -> bool {
    let is_number = |part: &str| {
        let hexadecimal = part.strip_prefix("0x").or(part.strip_prefix("0X"));
        match hexadecimal {
            Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
            None => part.bytes().all(|b| b.is_ascii_digit()),
        }
    };
    // Parts without a digit are what there is before, between and behind dots.
    name.split('.').all(is_number)
}

/// Has a question answered by a child process.
fn ask(question: Question, vigil: &mut Vigil) -> Result<String, NoAnswer> {
    let work = |tell| {
        // What getent(1) has of ours, other programs of its user could take from it (ptrace(2)). It
        // cannot fail: who was just forked leads no group.
        let _ = sys::leave_terminal();
        question.ask_as_process(tell)
    };
    let text = errand::answer_of(work, vigil).map_err(NoAnswer::Cut)?;
    String::from_utf8(text).map_err(|_| NoAnswer::Unknown("it is not text".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_resolver_takes_for_an_address_is_no_name() {
        for address in [
            "3405803785",
            "0xcb007109",
            "0XCB007109",
            "203.28937",
            "203.0.28937",
            "203.0.113.9",
            "0313.0.0161.011",
            "0xcb.0.113.9",
            "203.0.113.9.",
            "3405803785.",
            "0x",
            "1.2.3.4.5",
            "",
            ".",
        ] {
            assert!(is_read_as_address(address), "{address}");
        }
        for name in [
            "a.example",
            "9.113.0.203.in-addr.arpa",
            "7up.example",
            "0x7f.example",
            "cafe",
            "0xg",
            "x1",
            "1-2",
            "web.1a",
            "0y1.2",
        ] {
            assert!(!is_read_as_address(name), "{name}");
        }
    }
}
