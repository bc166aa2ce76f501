//! Data for the relay: long, and such that every byte lost, repeated or misplaced is noticed.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use super::peers::Ending;

/// Bytes that look random, and are the same for the same seed. No two stretches of a stream are
/// alike, so that whatever is lost, repeated or misplaced is noticed.
pub struct Noise {
    block: Vec<u8>,
    repetition: u64,
    position: usize,
}

impl Noise {
    pub fn new(seed: u64) -> Noise {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        // A prime number of bytes, so that no buffer's size divides it.
        let mut block = Vec::with_capacity(1_000_003 + 8);
        while block.len() < 1_000_003 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        block.truncate(1_000_003);
        let mut noise = Noise {
            block,
            repetition: 0,
            position: 0,
        };
        noise.stamp();
        noise
    }

    fn stamp(&mut self) {
        self.block[..8].copy_from_slice(&self.repetition.to_le_bytes());
    }

    /// The bytes that come next, at least one.
    pub fn next_piece(&self) -> &[u8] {
        &self.block[self.position..]
    }

    /// Leaves so many bytes of the next piece behind.
    pub fn advance(&mut self, count: usize) {
        self.position += count;
        if self.position == self.block.len() {
            self.position = 0;
            self.repetition += 1;
            self.stamp();
        }
    }

    /// The next so many bytes.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count);
        while bytes.len() < count {
            let piece = self.next_piece();
            let length = piece.len().min(count - bytes.len());
            bytes.extend_from_slice(&piece[..length]);
            self.advance(length);
        }
        bytes
    }

    /// Sends the next so many bytes.
    pub fn send(&mut self, mut stream: impl Write, count: u64) {
        let mut left = count;
        while left > 0 {
            let piece = self.next_piece();
            let length = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            stream.write_all(&piece[..length]).unwrap();
            self.advance(length);
            left -= length as u64;
        }
    }

    /// Reads the next so many bytes, and fails at the first that differs.
    pub fn expect(&mut self, mut stream: impl Read, count: u64) {
        let mut buffer = vec![0; 1 << 18];
        let mut done = 0;
        while done < count {
            let most = (buffer.len() as u64).min(count - done) as usize;
            let got = stream.read(&mut buffer[..most]).unwrap();
            assert!(got > 0, "the input ended after {done} of {count} bytes");
            self.check(&buffer[..got], done);
            done += got as u64;
        }
    }

    /// Reads until the input ends, and fails at the first byte that differs. Returns how many
    /// there were, and how it ended.
    pub fn expect_until_end(&mut self, mut stream: &TcpStream) -> (u64, Ending) {
        let mut buffer = vec![0; 1 << 18];
        let mut done = 0;
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return (done, Ending::Clean),
                Ok(got) => {
                    self.check(&buffer[..got], done);
                    done += got as u64;
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return (done, Ending::Reset);
                }
                Err(error) => panic!("{error} after {done} bytes"),
            }
        }
    }

    fn check(&mut self, mut bytes: &[u8], offset: u64) {
        let all = bytes.len();
        while !bytes.is_empty() {
            let piece = self.next_piece();
            let length = piece.len().min(bytes.len());
            assert!(
                piece[..length] == bytes[..length],
                "wrong bytes near offset {}",
                offset + (all - bytes.len()) as u64
            );
            bytes = &bytes[length..];
            self.advance(length);
        }
    }
}
