//! The payload of bulk transfers: a sequence that tells where in the stream a byte belongs.

/// How much is sent, or read and compared, at a time. With the table it stays within a core's
/// second-level cache, so that comparing costs little beside receiving.
pub(crate) const CHUNK: usize = 256 * 1024;

/// The sequence repeats after so many bytes: a prime, so that no piece of a power of two can be lost,
/// doubled or swapped with another without being noticed.
const PERIOD: usize = 131_101;

pub(crate) struct Pattern {
    /// One period and a chunk, so that a chunk from anywhere is one slice.
    table: Vec<u8>,
}

impl Pattern {
    pub(crate) fn new() -> Pattern {
        // xorshift64 (Marsaglia 2003): any start but zero.
        let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut period = Vec::with_capacity(PERIOD);
        for _ in 0..PERIOD {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            period.push(state as u8);
        }
        let table = period.iter().copied().cycle().take(PERIOD + CHUNK);
        Pattern {
            table: table.collect(),
        }
    }

    /// What stands at this place of the stream, at most a chunk.
    pub(crate) fn at(&self, place: u64, length: usize) -> &[u8] {
        let start = (place % PERIOD as u64) as usize;
        &self.table[start..start + length.min(CHUNK)]
    }
}
