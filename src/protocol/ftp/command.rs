//! A client's command lines.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::str;

use super::IAC;

/// What a command line asks for, as far as it makes a difference here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Pasv,
    /// `EPSV`, by any protocol.
    Epsv,
    /// `EPSV 1` or `EPSV 2`.
    EpsvBy(Family),
    /// `EPSV ALL`: from here on there is to be no other way.
    EpsvAll,
    Port(SocketAddr),
    Eprt(SocketAddr),
    /// EPSV or EPRT with a protocol that has no number here.
    OtherProtocol,
    /// One of them with something else behind it than there has to be.
    Malformed,
    Auth,
    Abor,
    /// LPSV and LPRT (RFC 1639), which the two above have replaced.
    Long,
    /// No command at all, to which some servers have no reply.
    Nothing,
    Other,
}

/// The protocols of EPSV and EPRT (RFC 2428 §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// The number that stands for it.
    pub(super) fn number(self) -> u8 {
        match self {
            Family::V4 => 1,
            Family::V6 => 2,
        }
    }
}

/// Reads a line, of which there are no commands to Telnet any more.
pub(super) fn read(text: &[u8]) -> Command {
    let (verb, rest) = split(text);
    let argument = argument(rest);
    match verb.to_ascii_uppercase().as_slice() {
        b"PASV" => Command::Pasv,
        b"EPSV" => epsv(argument),
        b"PORT" => {
            let address = six_numbers(argument).filter(|&(_, length)| length == argument.len());
            address.map_or(Command::Malformed, |(address, _)| {
                Command::Port(address.into())
            })
        }
        b"EPRT" => eprt(argument),
        b"AUTH" => Command::Auth,
        b"ABOR" => Command::Abor,
        b"LPSV" | b"LPRT" => Command::Long,
        b"" => Command::Nothing,
        _ => Command::Other,
    }
}

/// Whether a line has a command that names an address somewhere else than at its start, where it is one
/// for whoever ends lines with a CR alone, with NUL, or reads Telnet's commands otherwise.
pub(super) fn hides_another(line: &[u8]) -> bool {
    // No text in UTF-8 has 0xf0 and above in front of a letter.
    let may_end_a_line = |byte: u8| byte.is_ascii_control() && byte != b'\t' || byte >= 0xf0;
    line.windows(2)
        .enumerate()
        .filter(|(_, pair)| may_end_a_line(pair[0]) && !may_end_a_line(pair[1]))
        .any(|(at, _)| {
            let names_an_address = |text: &[u8]| {
                let (verb, rest) = split(text);
                let verb = verb.to_ascii_uppercase();
                matches!(&verb[..], b"PORT" | b"EPRT" | b"LPRT") && !argument(rest).is_empty()
            };
            names_an_address(&line[at + 1..]) || names_an_address(&line[at + 2..])
        })
}

/// The command's word, whatever stands before it that is neither letter nor digit, and what follows.
fn split(text: &[u8]) -> (&[u8], &[u8]) {
    let start = text.iter().position(u8::is_ascii_alphanumeric);
    let text = &text[start.unwrap_or(text.len())..];
    let end = text.iter().position(|byte| !byte.is_ascii_alphanumeric());
    text.split_at(end.unwrap_or(text.len()))
}

/// What stands behind a command's word, without the blanks around it and the line's end.
fn argument(rest: &[u8]) -> &[u8] {
    let is_around = |byte: &u8| *byte == b' ' || byte.is_ascii_control() || *byte == IAC;
    let start = rest.iter().position(|byte| !is_around(byte));
    let rest = &rest[start.unwrap_or(rest.len())..];
    let end = rest.iter().rposition(|byte| !is_around(byte));
    &rest[..end.map_or(0, |last| last + 1)]
}

fn epsv(argument: &[u8]) -> Command {
    match argument {
        b"" => Command::Epsv,
        b"1" => Command::EpsvBy(Family::V4),
        b"2" => Command::EpsvBy(Family::V6),
        _ if argument.eq_ignore_ascii_case(b"ALL") => Command::EpsvAll,
        _ if argument.iter().all(u8::is_ascii_digit) => Command::OtherProtocol,
        _ => Command::Malformed,
    }
}

/// `|PROTOCOL|ADDRESS|PORT|`, with any character that can be printed for `|`.
fn eprt(argument: &[u8]) -> Command {
    let Some((&delimiter @ 33..=126, fields)) = argument.split_first() else {
        return Command::Malformed;
    };
    let mut fields = fields.split(|&byte| byte == delimiter);
    let fields = [(); 5].map(|()| fields.next().and_then(|field| str::from_utf8(field).ok()));
    let [Some(protocol), Some(address), Some(port), Some(""), None] = fields else {
        return Command::Malformed;
    };
    let address = match protocol {
        "1" => address.parse::<Ipv4Addr>().map(IpAddr::V4),
        "2" => address.parse::<Ipv6Addr>().map(IpAddr::V6),
        _ if !protocol.is_empty() && protocol.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Command::OtherProtocol;
        }
        _ => return Command::Malformed,
    };
    match (address, port.parse::<u16>()) {
        (Ok(address), Ok(port)) => Command::Eprt(SocketAddr::new(address, port)),
        _ => Command::Malformed,
    }
}

/// The address in `h1,h2,h3,h4,p1,p2` at the start of a text, and how long that is. Some servers write
/// blanks behind the commas.
pub(super) fn six_numbers(text: &[u8]) -> Option<(SocketAddrV4, usize)> {
    let mut numbers = [0; 6];
    let mut rest = text;
    for (place, number) in numbers.iter_mut().enumerate() {
        if place > 0 {
            rest = rest
                .trim_ascii_start()
                .strip_prefix(b",")?
                .trim_ascii_start();
        }
        let end = rest.iter().position(|byte| !byte.is_ascii_digit());
        let (digits, behind) = rest.split_at(end.unwrap_or(rest.len()));
        *number = str::from_utf8(digits).ok()?.parse::<u8>().ok()?;
        rest = behind;
    }
    let [a, b, c, d, high, low] = numbers;
    let address = SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low]));
    Some((address, text.len() - rest.len()))
}

/// An address as PORT and 227 have it.
pub(super) fn as_six_numbers(address: SocketAddrV4) -> String {
    let [a, b, c, d] = address.ip().octets();
    let [high, low] = address.port().to_be_bytes();
    format!("{a},{b},{c},{d},{high},{low}")
}

/// The command that names this address: PORT where it was asked for by that, and can be.
pub(super) fn active(address: SocketAddr, asked_by_port: bool) -> String {
    match address {
        SocketAddr::V4(address) if asked_by_port => format!("PORT {}\r\n", as_six_numbers(address)),
        _ => {
            let number = Family::of(address.ip()).number();
            format!("EPRT |{number}|{}|{}|\r\n", address.ip(), address.port())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    #[test]
    fn commands_are_read_in_any_case_and_with_any_end() {
        for (line, expected) in [
            (&b"PASV\r\n"[..], Command::Pasv),
            (b"pAsV\n", Command::Pasv),
            (b"  PASV  \r\n", Command::Pasv),
            (b"PASV", Command::Pasv),
            (b"PASVX\r\n", Command::Other),
            (b"EPSV\r\n", Command::Epsv),
            (b"epsv all\r\n", Command::EpsvAll),
            (b"EPSV 1\r\n", Command::EpsvBy(Family::V4)),
            (b"EPSV\t2 \r\n", Command::EpsvBy(Family::V6)),
            (b"EPSV 3\r\n", Command::OtherProtocol),
            (b"EPSV ALLES\r\n", Command::Malformed),
            (
                b"PORT 127,0,0,1,4,0\r\n",
                Command::Port(at("127.0.0.1:1024")),
            ),
            (
                b"port 127, 0,0,1 ,4,1\n",
                Command::Port(at("127.0.0.1:1025")),
            ),
            (
                b"PORT\x0b127,0,0,1,4,0\r\n",
                Command::Port(at("127.0.0.1:1024")),
            ),
            (b"PORT 127,0,0,1,4\r\n", Command::Malformed),
            (b"PORT 127,0,0,1,4,0,5\r\n", Command::Malformed),
            (b"PORT 127,0,0,1,4,256\r\n", Command::Malformed),
            (b"PORT 127,0,0,-1,4,0\r\n", Command::Malformed),
            (b"PORT\r\n", Command::Malformed),
            (
                b"EPRT |1|127.0.0.1|1024|\r\n",
                Command::Eprt(at("127.0.0.1:1024")),
            ),
            (b"EPRT !2!::1!65535!\r\n", Command::Eprt(at("[::1]:65535"))),
            (b"EPRT |1|::1|1024|\r\n", Command::Malformed),
            (b"EPRT |2|fe80::1%lo|1024|\r\n", Command::Malformed),
            (b"EPRT |3|whatever|1024|\r\n", Command::OtherProtocol),
            (b"EPRT |1|127.0.0.1|1024\r\n", Command::Malformed),
            (b"EPRT |1|127.0.0.1|65536|\r\n", Command::Malformed),
            (b"EPRT |1|127.0.0.1|1024||\r\n", Command::Malformed),
            (b"EPRT\r\n", Command::Malformed),
            (b"AUTH TLS\r\n", Command::Auth),
            (b"abor\r\n", Command::Abor),
            (b"LPRT 4,4,1,2,3,4,2,5,6\r\n", Command::Long),
            (b"\r\n", Command::Nothing),
            (b" \r\n", Command::Nothing),
            (b"RETR PORT 1\r\n", Command::Other),
            (b"\x80\x81\r\n", Command::Nothing),
        ] {
            assert_eq!(read(line), expected, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_command_behind_what_might_end_a_line_is_found() {
        for line in [
            &b"NOOP\rPORT 1,2,3,4,5,6\r\n"[..],
            b"NOOP\r\0 eprt |1|1.2.3.4|5|\r\n",
            b"NOOP\0PORT 1\r\n",
            b"NOOP \xff\xfa\x01x\xff\xf0PORT 1\r\n",
            b"NOOP \xff\xfbxPORT 1\r\n",
        ] {
            assert!(hides_another(line), "{}", line.escape_ascii());
        }
        for line in [
            &b"STOR my PORT 1\r\n"[..],
            "STOR éPORT 1\r\n".as_bytes(),
            b"NOOP\rPORT\r\n",
            b"PORT 1,2,3,4,5,6\r\n",
            b"RETR a\tPORT 1\r\n",
            b"",
        ] {
            assert!(!hides_another(line), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn an_address_is_named_as_it_was_asked_for_where_that_can_be() {
        assert_eq!(active(at("127.0.0.1:1025"), true), "PORT 127,0,0,1,4,1\r\n");
        assert_eq!(
            active(at("127.0.0.1:1025"), false),
            "EPRT |1|127.0.0.1|1025|\r\n"
        );
        assert_eq!(active(at("[::1]:1025"), true), "EPRT |2|::1|1025|\r\n");
    }
}
