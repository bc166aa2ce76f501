//! Headers as the protocol's document has them, byte by byte.

use std::net::SocketAddr;

/// What version 2 begins with.
pub(crate) const SIGNATURE: [u8; 12] = *b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A";

pub(crate) const LOCAL: u8 = 0x20;
pub(crate) const PROXY: u8 = 0x21;

/// A header of version 2.
pub(crate) fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[command, family], &length, block].concat()
}

/// The header of version 2 for a client over TCP, with these TLVs.
pub(crate) fn v2_tcp(source: &str, destination: &str, tlvs: &[u8]) -> Vec<u8> {
    let ends = [source, destination].map(|end| end.parse::<SocketAddr>().unwrap());
    let addresses = ends.map(|end| match end {
        SocketAddr::V4(end) => end.ip().octets().to_vec(),
        SocketAddr::V6(end) => end.ip().octets().to_vec(),
    });
    let ports = ends.map(|end| end.port().to_be_bytes());
    let family = if ends[0].is_ipv4() { 0x11 } else { 0x21 };
    v2(
        PROXY,
        family,
        &[&addresses.concat(), &ports.concat()[..], tlvs].concat(),
    )
}

/// The header of version 1 for a client over TCP.
pub(crate) fn v1_tcp(source: &str, destination: &str) -> Vec<u8> {
    let [source, destination] = [source, destination].map(|end| end.parse::<SocketAddr>().unwrap());
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), destination.ip());
    let ports = (source.port(), destination.port());
    format!("PROXY {family} {from} {to} {} {}\r\n", ports.0, ports.1).into_bytes()
}
