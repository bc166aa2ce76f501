//! The PROXY protocol, versions 1 and 2: a header by which a proxy says, in front of a connection's
//! data, whose connection it is (haproxy's proxy-protocol.txt).
//!
//! [`read`] is given what has come so far, and never needs a byte that is not the header's: as long as
//! a header is incomplete, all that has come belongs to it; when it is complete, its length is known.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::{self, FromStr};

use crate::terms::progress::Progress;

/// What a header says of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    /// Nothing: it is the proxy's own (`LOCAL`), or the proxy does not know (`UNKNOWN`, `UNSPEC`).
    Nothing,
    /// It is of a client whose connection over TCP has these two ends.
    Tcp {
        /// The client's own end.
        source: SocketAddr,
        /// What the client had connected to.
        destination: SocketAddr,
    },
    /// It is of a client whose connection is over a unix-domain socket.
    Unix,
}

/// The longest header that is read, in bytes: one of version 2 with TLVs. What the protocol's authors
/// have in mind are 536; the format would have room for 65,551.
pub const LONGEST: usize = SHORTEST_V2 + LONGEST_BLOCK;

/// What every header of version 1 begins with.
const START_V1: &[u8] = b"PROXY ";

/// The longest header of version 1, with its CR and LF.
const LONGEST_V1: usize = 107;

/// What every header of version 2 begins with.
const START_V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 2 without addresses: the start, version and command, family and transport, and
/// the length of what follows.
const SHORTEST_V2: usize = 16;

const LONGEST_BLOCK: usize = 4096;

/// Version 2, and whose connection it is.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// Families and transports of version 2.
const UNSPEC: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const UNIX_STREAM: u8 = 0x31;

/// The type of the TLV that holds a checksum of the whole header.
const CRC32C: u8 = 0x03;

/// Reads the header that these bytes begin with, or are the beginning of.
pub fn read(bytes: &[u8]) -> Progress<Announced> {
    let read = match bytes.first() {
        None => return Progress::Incomplete,
        Some(b'P') => read_v1(bytes),
        Some(_) => read_v2(bytes),
    };
    match read {
        Ok(None) => Progress::Incomplete,
        Ok(Some((announced, length))) => Progress::Complete {
            says: announced,
            length,
        },
        Err(why) => Progress::Wrong(why),
    }
}

type Read = Result<Option<(Announced, usize)>, String>;

/// Fails where bytes are not the beginning of what a header starts with, or begin otherwise.
fn check_start(bytes: &[u8], start: &[u8]) -> Result<(), String> {
    let common = bytes.len().min(start.len());
    match bytes[..common] == start[..common] {
        true => Ok(()),
        false => Err("what the connection begins with is no PROXY header".to_owned()),
    }
}

fn read_v1(bytes: &[u8]) -> Read {
    check_start(bytes, START_V1)?;
    let within = &bytes[..bytes.len().min(LONGEST_V1)];
    let Some(end) = within.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return match within.len() < LONGEST_V1 {
            true => Ok(None),
            false => Err(format!("version 1: it has more than {LONGEST_V1} bytes")),
        };
    };
    match within[end..] {
        [b'\r', b'\n', ..] => {
            let announced = line(&within[..end]).map_err(|why| format!("version 1: {why}"))?;
            Ok(Some((announced, end + 2)))
        }
        [b'\r'] if within.len() < LONGEST_V1 => Ok(None),
        [b'\r'] => Err(format!("version 1: it has more than {LONGEST_V1} bytes")),
        _ => Err("version 1: its line does not end with CR and LF".to_owned()),
    }
}

/// A header of version 1, without CR and LF.
fn line(line: &[u8]) -> Result<Announced, String> {
    let line = str::from_utf8(line).map_err(|_| "it is not ASCII")?;
    // One blank each: two of them have an empty word between them.
    let mut words = line.split(' ').skip(1);
    let family = words.next();
    if family == Some("UNKNOWN") {
        return Ok(Announced::Nothing);
    }
    let words: Vec<&str> = words.collect();
    let [source, destination, source_port, destination_port] = words[..] else {
        return Err(
            "it is not PROXY, a family, two addresses and two ports, with one blank each".into(),
        );
    };
    let ends = |source: IpAddr, destination: IpAddr| {
        Ok(Announced::Tcp {
            source: SocketAddr::new(source, port(source_port)?),
            destination: SocketAddr::new(destination, port(destination_port)?),
        })
    };
    match family {
        Some("TCP4") => ends(
            address::<Ipv4Addr>(source, "IPv4")?.into(),
            address::<Ipv4Addr>(destination, "IPv4")?.into(),
        ),
        Some("TCP6") => ends(
            address::<Ipv6Addr>(source, "IPv6")?.into(),
            address::<Ipv6Addr>(destination, "IPv6")?.into(),
        ),
        _ => Err("its family is neither TCP4 nor TCP6 nor UNKNOWN".to_owned()),
    }
}

/// An address of this family. As inet_pton(3), std takes no leading zeros in IPv4.
fn address<A: FromStr>(text: &str, family: &str) -> Result<A, String> {
    text.parse()
        .map_err(|_| format!("an address is none of {family}"))
}

fn port(text: &str) -> Result<u16, String> {
    let is_plain = text == "0" || !text.starts_with('0');
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = (is_plain && is_number).then(|| text.parse().ok());
    port.flatten()
        .ok_or_else(|| "a port is no number of 0 to 65535 without leading zeros".to_owned())
}

fn read_v2(bytes: &[u8]) -> Read {
    check_start(bytes, START_V2)?;
    let wrong = |why: String| Err(format!("version 2: {why}"));
    let command = match bytes.get(12) {
        None => return Ok(None),
        Some(command @ (&LOCAL | &PROXY)) => *command,
        Some(other) => return wrong(format!("{other:#04x} is no version 2 with a command")),
    };
    let family = match bytes.get(13) {
        None => return Ok(None),
        Some(&family) => family,
    };
    let addresses = match (command, family) {
        // What follows says nothing, whatever its family.
        (LOCAL, _) | (_, UNSPEC) => 0,
        (_, TCP_OVER_IPV4) => 2 * 4 + 2 * 2,
        (_, TCP_OVER_IPV6) => 2 * 16 + 2 * 2,
        (_, UNIX_STREAM) => 2 * 108,
        (_, other) => {
            let known = "TCP over IPv4 or IPv6, nor a unix stream";
            return wrong(format!(
                "family and transport {other:#04x} are neither {known}"
            ));
        }
    };
    let Some(&[high, low]) = bytes.get(14..16) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST_BLOCK {
        return wrong(format!(
            "{length} bytes are to follow, more than {LONGEST_BLOCK}"
        ));
    }
    if length < addresses {
        return wrong(format!(
            "{length} bytes are to follow, too few for its addresses"
        ));
    }
    let length = SHORTEST_V2 + length;
    let Some(header) = bytes.get(..length) else {
        return Ok(None);
    };
    let (block, tlvs) = header[SHORTEST_V2..].split_at(addresses);
    let announced = match (command, family) {
        (LOCAL, _) | (_, UNSPEC) => return Ok(Some((Announced::Nothing, length))),
        (_, TCP_OVER_IPV4) => tcp::<4>(block, |octets| Ipv4Addr::from(octets).into()),
        (_, TCP_OVER_IPV6) => tcp::<16>(block, |octets| Ipv6Addr::from(octets).into()),
        // Of the paths nothing is made: clients of such sockets have none as a rule.
        _ => Some(Announced::Unix),
    };
    let Some(announced) = announced else {
        return wrong("its addresses are too short".to_owned());
    };
    match check_tlvs(header, length - tlvs.len()) {
        Ok(()) => Ok(Some((announced, length))),
        Err(why) => wrong(why.to_owned()),
    }
}

/// Two addresses of so many bytes, and two ports.
fn tcp<const N: usize>(block: &[u8], ip: impl Fn([u8; N]) -> IpAddr) -> Option<Announced> {
    let (source, rest) = block.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let (destination_port, _) = rest.split_first_chunk::<2>()?;
    Some(Announced::Tcp {
        source: SocketAddr::new(ip(*source), u16::from_be_bytes(*source_port)),
        destination: SocketAddr::new(ip(*destination), u16::from_be_bytes(*destination_port)),
    })
}

/// Skips the TLVs, which begin there. A checksum among them must be right.
fn check_tlvs(header: &[u8], mut at: usize) -> Result<(), &'static str> {
    while at < header.len() {
        let Some(&[kind, high, low]) = header.get(at..at + 3) else {
            return Err("its last TLV is cut short");
        };
        let (start, length) = (at + 3, usize::from(u16::from_be_bytes([high, low])));
        let Some(value) = header.get(start..start + length) else {
            return Err("a TLV is longer than the header");
        };
        if kind == CRC32C {
            let stated = value.try_into().map(u32::from_be_bytes);
            let computed = crc32c(header, start..start + length);
            if stated.ok() != Some(computed) {
                return Err("its checksum (CRC32c) is wrong");
            }
        }
        at = start + length;
    }
    Ok(())
}

/// The checksum of RFC 3720, appendix B.4, over bytes of which some count as zero. Bit by bit: headers are
/// short, and hardly one has it.
fn crc32c(bytes: &[u8], zero: std::ops::Range<usize>) -> u32 {
    const REFLECTED_POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = u32::MAX;
    for (at, &byte) in bytes.iter().enumerate() {
        crc ^= if zero.contains(&at) {
            0
        } else {
            u32::from(byte)
        };
        for _ in 0..8 {
            let carry = crc & 1;
            crc = (crc >> 1) ^ (REFLECTED_POLYNOMIAL * carry);
        }
    }
    !crc
}

/// Both ends in one family: as IPv6 where they are not of the same.
fn in_one_family(source: SocketAddr, destination: SocketAddr) -> [(IpAddr, u16); 2] {
    let mixed = source.is_ipv4() != destination.is_ipv4();
    [source, destination].map(|end| match end.ip() {
        IpAddr::V4(v4) if mixed => (v4.to_ipv6_mapped().into(), end.port()),
        ip => (ip, end.port()),
    })
}

/// The header of version 1. It has no words for a unix-domain socket: then nothing is announced.
pub fn version_1(announced: &Announced) -> Vec<u8> {
    let Announced::Tcp {
        source,
        destination,
    } = announced
    else {
        return b"PROXY UNKNOWN\r\n".to_vec();
    };
    let [source, destination] = in_one_family(*source, *destination);
    let mut text = String::with_capacity(LONGEST_V1);
    text += if source.0.is_ipv4() {
        "PROXY TCP4"
    } else {
        "PROXY TCP6"
    };
    for (ip, _) in [source, destination] {
        // Writing to a String cannot fail.
        let _ = match ip {
            // Without the dots that std writes: not all who read four digits in each group know them.
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
                let [.., high, low] = v6.segments();
                write!(text, " ::ffff:{high:x}:{low:x}")
            }
            ip => write!(text, " {ip}"),
        };
    }
    let _ = write!(text, " {} {}\r\n", source.1, destination.1);
    text.into_bytes()
}

/// The header of version 2: `LOCAL` where nothing is announced.
pub fn version_2(announced: &Announced) -> Vec<u8> {
    let mut header = Vec::with_capacity(SHORTEST_V2 + 36);
    header.extend_from_slice(START_V2);
    match announced {
        Announced::Nothing => header.extend_from_slice(&[LOCAL, UNSPEC, 0, 0]),
        Announced::Unix => {
            header.extend_from_slice(&[PROXY, UNIX_STREAM, 0, 216]);
            header.extend_from_slice(&[0; 216]);
        }
        Announced::Tcp {
            source,
            destination,
        } => {
            let [source, destination] = in_one_family(*source, *destination);
            let (family, length) = match source.0 {
                IpAddr::V4(_) => (TCP_OVER_IPV4, 12),
                IpAddr::V6(_) => (TCP_OVER_IPV6, 36),
            };
            header.extend_from_slice(&[PROXY, family, 0, length]);
            for (ip, _) in [source, destination] {
                match ip {
                    IpAddr::V4(v4) => header.extend_from_slice(&v4.octets()),
                    IpAddr::V6(v6) => header.extend_from_slice(&v6.octets()),
                }
            }
            for (_, port) in [source, destination] {
                header.extend_from_slice(&port.to_be_bytes());
            }
        }
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(source: &str, destination: &str) -> Announced {
        Announced::Tcp {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    fn complete(bytes: &[u8]) -> Announced {
        match read(bytes) {
            Progress::Complete {
                says: announced,
                length,
            } if length == bytes.len() => announced,
            other => panic!("{other:?} of {bytes:?}"),
        }
    }

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [&START_V2[..], &[command, family], &length, block].concat()
    }

    /// A block of TCP over IPv4 with these TLVs.
    fn with_tlvs(tlvs: &[u8]) -> Vec<u8> {
        let ends = [192, 0, 2, 7, 198, 51, 100, 1, 0xc3, 0xcb, 0, 25];
        v2(PROXY, TCP_OVER_IPV4, &[&ends, tlvs].concat())
    }

    #[test]
    fn version_1_is_read_in_every_form() {
        let longest = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
                       ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert_eq!(longest.len(), LONGEST_V1);
        for (text, announced) in [
            (
                "PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n",
                tcp("255.255.255.255:65535", "0.0.0.0:0"),
            ),
            (
                "PROXY TCP6 2001:DB8::1 0:0:0:0:0:0:0:0001 1 65535\r\n",
                tcp("[2001:db8::1]:1", "[::1]:65535"),
            ),
            ("PROXY UNKNOWN\r\n", Announced::Nothing),
            ("PROXY UNKNOWN \r\n", Announced::Nothing),
            ("PROXY UNKNOWN TCP4 and whatever\r\n", Announced::Nothing),
            (longest, Announced::Nothing),
        ] {
            assert_eq!(complete(text.as_bytes()), announced, "{text}");
        }
    }

    #[test]
    fn what_is_no_header_of_version_1_is_refused() {
        let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_V1 - 15));
        assert_eq!(too_long.len(), LONGEST_V1 + 1);
        for text in [
            "GET / HTTP/1.0\r\n",
            "P\r\n",
            "proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY\r\n",
            "PROXY \r\n",
            "PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY\tTCP4 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY TCP4  1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1  2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\r\n",
            "PROXY TCP4 1.1.1.1\n2.2.2.2 1 2\r\n",
            "PROXY UNKNOWN a\rb\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY unknown\r\n",
            "PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY TCP4 01.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n",
            "PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n",
            "PROXY TCP4 ::1 ::2 1 2\r\n",
            "PROXY TCP4 host 2.2.2.2 1 2\r\n",
            "PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY TCP6 [::1] ::2 1 2\r\n",
            "PROXY TCP6 fe80::1%lo ::2 1 2\r\n",
            "PROXY TCP6 00001::1 ::2 1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 00 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 -1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 0x1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 99999999999999999999\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\0\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 \u{fc}\r\n",
            &too_long,
            &"PROXY UNKNOWN ".repeat(8),
        ] {
            assert!(
                matches!(read(text.as_bytes()), Progress::Wrong(_)),
                "{text}"
            );
        }
    }

    #[test]
    fn version_2_is_read_in_every_form() {
        let unix = v2(PROXY, UNIX_STREAM, &[0; 216]);
        let v6 = [&[0xfe; 16][..], &[0xfd; 16], &[0, 1, 0xff, 0xff]].concat();
        let known = tcp("192.0.2.7:50123", "198.51.100.1:25");
        for (bytes, announced) in [
            (v2(LOCAL, UNSPEC, b""), Announced::Nothing),
            (v2(LOCAL, TCP_OVER_IPV4, b"too short"), Announced::Nothing),
            (v2(LOCAL, 0xff, &[0; 4096]), Announced::Nothing),
            (v2(PROXY, UNSPEC, b"anything"), Announced::Nothing),
            (with_tlvs(b""), known),
            (with_tlvs(b"\x04\0\0"), known),
            (with_tlvs(b"\xe0\0\x02ab\x02\0\x01a"), known),
            (
                v2(PROXY, TCP_OVER_IPV6, &v6),
                tcp(
                    "[fefe:fefe:fefe:fefe:fefe:fefe:fefe:fefe]:1",
                    "[fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd]:65535",
                ),
            ),
            (unix, Announced::Unix),
        ] {
            assert_eq!(complete(&bytes), announced, "{bytes:?}");
        }
    }

    #[test]
    fn what_is_no_header_of_version_2_is_refused() {
        let mut other_start = with_tlvs(b"");
        other_start[11] = b'\r';
        for bytes in [
            other_start,
            v2(0x22, TCP_OVER_IPV4, &[0; 12]),
            v2(0x11, TCP_OVER_IPV4, &[0; 12]),
            v2(0x31, TCP_OVER_IPV4, &[0; 12]),
            v2(PROXY, 0x12, &[0; 12]),
            v2(PROXY, 0x22, &[0; 36]),
            v2(PROXY, 0x32, &[0; 216]),
            v2(PROXY, 0x01, b""),
            v2(PROXY, 0x10, &[0; 12]),
            v2(PROXY, 0x41, &[0; 12]),
            v2(PROXY, TCP_OVER_IPV4, &[0; 11]),
            v2(PROXY, TCP_OVER_IPV6, &[0; 35]),
            v2(PROXY, UNIX_STREAM, &[0; 215]),
            v2(PROXY, TCP_OVER_IPV4, &[0; 4097]),
            v2(LOCAL, UNSPEC, &[0; 4097]),
            with_tlvs(b"\x04"),
            with_tlvs(b"\x04\0"),
            with_tlvs(b"\x04\0\x01"),
            with_tlvs(b"\x03\0\0"),
            with_tlvs(b"\x03\0\x03abc"),
            with_tlvs(b"\x03\0\x04abcd"),
        ] {
            assert!(matches!(read(&bytes), Progress::Wrong(_)), "{bytes:?}");
        }
    }

    #[test]
    fn the_checksum_is_rfc_3720s_over_the_header_without_it() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32], 0..0), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32], 0..0), 0x62a8_ab43);
        assert_eq!(crc32c(&[0xff; 32], 0..32), 0x8a91_36aa);
        let mut header = with_tlvs(b"\x03\0\x04\0\0\0\0\x05\0\x02id");
        let at = header.len() - 9;
        let crc = crc32c(&header, at..at + 4).to_be_bytes();
        header[at..at + 4].copy_from_slice(&crc);
        assert_eq!(complete(&header), tcp("192.0.2.7:50123", "198.51.100.1:25"));
        for wrong in 0..header.len() {
            let mut header = header.clone();
            header[wrong] ^= 1;
            // LOCAL has nothing that is looked at; type and length of a TLV may hide the checksum.
            let hides = wrong == 12 || (at - 3..at).contains(&wrong);
            let refused = matches!(read(&header), Progress::Wrong(_) | Progress::Incomplete);
            assert!(refused || hides, "{wrong}");
        }
    }

    #[test]
    fn every_part_of_a_header_is_incomplete_and_nothing_behind_it_is_touched() {
        for header in [
            b"PROXY TCP4 192.0.2.7 198.51.100.1 50123 25\r\n".to_vec(),
            b"PROXY UNKNOWN\r\n".to_vec(),
            with_tlvs(b"\x04\0\x03\r\n\r"),
            v2(LOCAL, UNSPEC, b""),
        ] {
            for cut in 0..header.len() {
                assert_eq!(read(&header[..cut]), Progress::Incomplete, "{cut}");
            }
            for behind in [&b"\r\n"[..], b"PROXY ", &[0; 8192]] {
                let all = [&header[..], behind].concat();
                let complete = |progress| matches!(progress, Progress::Complete { length, .. } if length == header.len());
                assert!(complete(read(&all)));
            }
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let both = |announced: &Announced| {
            [version_1(announced), version_2(announced)].map(|header| complete(&header))
        };
        for (source, destination) in [
            ("192.0.2.7:50123", "198.51.100.1:25"),
            ("[2001:db8::1]:0", "[::1]:65535"),
        ] {
            let announced = tcp(source, destination);
            assert_eq!(both(&announced), [announced; 2]);
        }
        let mixed = tcp("192.0.2.7:1", "[2001:db8::1]:2");
        let as_v6 = tcp("[::ffff:192.0.2.7]:1", "[2001:db8::1]:2");
        assert_eq!(both(&mixed), [as_v6; 2]);
        let text = version_1(&tcp("[2001:db8::1]:2", "192.0.2.7:1"));
        assert_eq!(text, b"PROXY TCP6 2001:db8::1 ::ffff:c000:207 2 1\r\n");
        assert_eq!(both(&Announced::Nothing), [Announced::Nothing; 2]);
        assert_eq!(
            both(&Announced::Unix),
            [Announced::Nothing, Announced::Unix]
        );
    }
}
