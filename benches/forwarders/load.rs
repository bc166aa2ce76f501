//! What client and backend say to each other in a bulk transfer.

use std::io::{self, Read, Write};
use std::str::FromStr;

use crate::pattern::{CHUNK, Pattern};

pub(crate) const READY: &[u8; 1] = b"r";
pub(crate) const GO: &[u8; 1] = b"g";
pub(crate) const INTACT: &[u8; 1] = b"i";
pub(crate) const SPOILT: &[u8; 1] = b"s";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client to the backend.
    Up,
    Down,
}

impl Way {
    pub(crate) const BOTH: [Way; 2] = [Way::Up, Way::Down];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Up => "up",
            Way::Down => "down",
        }
    }

    /// The first byte of an order.
    fn byte(self) -> u8 {
        match self {
            Way::Up => b'u',
            Way::Down => b'd',
        }
    }

    fn of(byte: u8) -> Option<Way> {
        Way::BOTH.into_iter().find(|way| way.byte() == byte)
    }
}

impl FromStr for Way {
    type Err = String;

    fn from_str(word: &str) -> Result<Way, String> {
        let found = Way::BOTH.into_iter().find(|way| way.name() == word);
        found.ok_or_else(|| format!("no way: {word}"))
    }
}

/// The client's order: one byte for the way, eight for the length.
pub(crate) struct Transfer {
    pub(crate) way: Way,
    pub(crate) length: u64,
}

impl Transfer {
    pub(crate) fn write(&self, mut to: impl Write) -> io::Result<()> {
        let mut order = [0; 9];
        order[0] = self.way.byte();
        order[1..].copy_from_slice(&self.length.to_le_bytes());
        to.write_all(&order)
    }

    /// Whether a connection that begins like this is one of these, and no small request.
    pub(crate) fn is_ordered_by(beginning: &[u8]) -> bool {
        beginning
            .first()
            .is_some_and(|&byte| Way::of(byte).is_some())
    }

    pub(crate) fn read(mut from: impl Read) -> io::Result<Transfer> {
        let mut order = [0; 9];
        from.read_exact(&mut order)?;
        let [way, length @ ..] = order;
        let way = Way::of(way).ok_or_else(|| spoilt("the order"))?;
        let length = u64::from_le_bytes(length);
        Ok(Transfer { way, length })
    }
}

pub(crate) fn send(mut to: impl Write, pattern: &Pattern, length: u64) -> io::Result<()> {
    let mut place = 0;
    while place < length {
        let left = (length - place).min(CHUNK as u64) as usize;
        place += to.write(pattern.at(place, left))? as u64;
    }
    Ok(())
}

/// Every byte is compared with what belongs in its place.
pub(crate) fn receive(mut from: impl Read, pattern: &Pattern, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut place = 0;
    while place < length {
        let left = (length - place).min(CHUNK as u64) as usize;
        let received = match from.read(&mut buffer[..left])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            received => received,
        };
        if buffer[..received] != *pattern.at(place, received) {
            return Err(spoilt(&format!("the payload at byte {place}")));
        }
        place += received as u64;
    }
    Ok(())
}

fn spoilt(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is spoilt"))
}
