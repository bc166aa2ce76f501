//! How a direction is held back on purpose: to so many bytes a second, by random times, or both.
//!
//! Nothing here waits or asks what time it is. The machine asks how much it may read, says what it has
//! read and written, and learns when to look again.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// How long a direction that may read nothing more is left alone. Less costs more wake-ups; more would
/// be seen as bursts.
const REST: Duration = Duration::from_millis(20);

/// How late it may look again without losing anything of its rate. With a rest that is a tenth of a
/// second, the most that passes at once: three seconds that begin with it have 3.3 % too much.
const LATENESS: Duration = Duration::from_millis(80);

/// What may be buffered even where a tenth of a second has less: it passes in a burst when a sink that
/// took nothing does so again.
const BUFFERED: usize = 64 << 10;

/// How many blocks may be held back at once. What comes beyond that waits in the kernel, and makes fewer
/// and larger ones.
const MOST_BLOCKS: usize = 256;

/// What holds a direction back.
#[derive(Debug)]
pub(super) struct Pace {
    bucket: Option<Bucket>,
    held: Option<Held>,
}

impl Pace {
    /// A pace of so many bytes a second, with each block held back by a random time of 0 to twice
    /// `delay`. `None` where nothing holds it back.
    pub(super) fn new(
        bandwidth: Option<NonZeroU32>,
        delay: Duration,
        seed: u64,
        now: Instant,
    ) -> Option<Pace> {
        let bucket = bandwidth.map(|rate| Bucket::new(rate, now));
        let held = (!delay.is_zero()).then(|| Held::new(delay, seed));
        (bucket.is_some() || held.is_some()).then_some(Pace { bucket, held })
    }

    /// How much of `most` bytes may be on its way.
    pub(super) fn buffer_size(&self, most: usize) -> usize {
        let limit = |bucket: &Bucket| most.min(bucket.worth_of(bucket.burst).max(BUFFERED));
        self.bucket.as_ref().map_or(most, limit)
    }

    /// Whether bytes may have to wait that were read before others.
    pub(super) fn delays(&self) -> bool {
        self.held.is_some()
    }

    /// Whether anything may be read, as far as is known.
    pub(super) fn may_read(&self) -> bool {
        let rests = |bucket: &Bucket| bucket.rests_until.is_some();
        let is_full = |held: &Held| held.blocks.len() >= MOST_BLOCKS;
        !self.bucket.as_ref().is_some_and(rests) && !self.held.as_ref().is_some_and(is_full)
    }

    /// How many bytes may be read now.
    pub(super) fn may_read_now(&self, now: Instant) -> usize {
        match &self.bucket {
            _ if !self.may_read() => 0,
            Some(bucket) => bucket.worth_of(bucket.credit(now)),
            None => usize::MAX,
        }
    }

    pub(super) fn has_read(&mut self, count: usize, now: Instant) {
        if let Some(bucket) = &mut self.bucket {
            bucket.take(count, now);
        }
        if let Some(held) = &mut self.held {
            held.add(count, now);
        }
    }

    /// How many of the bytes that were read may be written now.
    pub(super) fn may_write(&mut self, now: Instant) -> usize {
        self.held.as_mut().map_or(usize::MAX, |held| {
            held.let_go(now);
            held.released
        })
    }

    pub(super) fn has_written(&mut self, count: usize) {
        if let Some(held) = &mut self.held {
            held.released -= count;
        }
    }

    /// Forgets what was read and is not to be written any more.
    pub(super) fn clear(&mut self) {
        if let Some(held) = &mut self.held {
            held.blocks.clear();
            held.released = 0;
        }
    }

    /// Lets go what was held back until now. Returns whether there was anything.
    pub(super) fn let_go(&mut self, now: Instant) -> bool {
        let rested = self.bucket.as_mut().and_then(|bucket| {
            let is_over = |until: &mut Instant| *until <= now;
            bucket.rests_until.take_if(is_over)
        });
        let released = self.held.as_mut().is_some_and(|held| held.let_go(now));
        rested.is_some() || released
    }

    /// When something is to be let go.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let rested = self.bucket.as_ref().and_then(|bucket| bucket.rests_until);
        let due = self.held.as_ref().and_then(|held| held.blocks.front());
        rested.into_iter().chain(due.map(|block| block.due)).min()
    }

    /// Until when the direction is held back: it is not idle before.
    pub(super) fn holds_until(&self) -> Option<Instant> {
        let rested = self.bucket.as_ref().and_then(|bucket| bucket.rests_until);
        rested.max(self.delays_until())
    }

    /// Until when something that was read is held back.
    pub(super) fn delays_until(&self) -> Option<Instant> {
        let last = self.held.as_ref().and_then(|held| held.blocks.back());
        last.map(|block| block.due)
    }
}

/// A token bucket, whose tokens are time.
#[derive(Debug)]
struct Bucket {
    /// In bytes a second.
    rate: NonZeroU32,
    /// How long a rest is: time for one byte at least.
    rest: Duration,
    /// What may be saved up.
    burst: Duration,
    /// Time is used up until here.
    used_until: Instant,
    /// Nothing is read before this.
    rests_until: Option<Instant>,
}

const NANOSECONDS: u128 = 1_000_000_000;

impl Bucket {
    fn new(rate: NonZeroU32, now: Instant) -> Bucket {
        let rest = REST.max(time_of(1, rate));
        let burst = rest + LATENESS;
        Bucket {
            rate,
            rest,
            burst,
            used_until: now.checked_sub(rest).unwrap_or(now),
            rests_until: None,
        }
    }

    /// The time that may be used now.
    fn credit(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.used_until)
            .min(self.burst)
    }

    /// How many bytes take so long, at most as long as a burst.
    fn worth_of(&self, time: Duration) -> usize {
        let bytes = time.as_nanos() * u128::from(self.rate.get()) / NANOSECONDS;
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    fn take(&mut self, count: usize, now: Instant) {
        // A number of seconds, at most: what may be read is a burst.
        let unused_since = now - self.credit(now);
        self.used_until = unused_since + time_of(count, self.rate);
        if self.worth_of(self.credit(now)) == 0 {
            self.rests_until = Some(self.used_until + self.rest);
        }
    }
}

/// How long so many bytes take at a rate, rounded up.
fn time_of(count: usize, rate: NonZeroU32) -> Duration {
    let nanoseconds = (count as u128 * NANOSECONDS).div_ceil(u128::from(rate.get()));
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

/// What was read and waits for its time.
#[derive(Debug)]
struct Held {
    /// The longest that a block is held back.
    longest: Duration,
    chance: Chance,
    /// In the order in which they came, and are let go.
    blocks: VecDeque<Block>,
    /// Bytes that wait no longer.
    released: usize,
}

/// What one read has brought.
#[derive(Debug)]
struct Block {
    count: usize,
    due: Instant,
}

impl Held {
    fn new(delay: Duration, seed: u64) -> Held {
        Held {
            longest: delay * 2,
            chance: Chance::new(seed),
            blocks: VecDeque::new(),
            released: 0,
        }
    }

    fn add(&mut self, count: usize, now: Instant) {
        let due = now + self.longest.mul_f64(self.chance.next());
        // None overtakes another.
        let last = self.blocks.back().map_or(now, |block| block.due);
        let due = due.max(last);
        self.blocks.push_back(Block { count, due });
    }

    fn let_go(&mut self, now: Instant) -> bool {
        let due = self.blocks.iter().take_while(|block| block.due <= now);
        let due = due.count();
        self.released += self
            .blocks
            .drain(..due)
            .map(|block| block.count)
            .sum::<usize>();
        due > 0
    }
}

/// Numbers from 0 to below 1 that look random (xorshift64*): nobody gains by guessing them.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Chance {
        // 0 would stay 0.
        Chance(seed | 1)
    }

    fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        // As many bits as a float has exactly.
        (number >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate(rate: u32) -> Option<NonZeroU32> {
        NonZeroU32::new(rate)
    }

    /// Reads whatever may be read until `end`, with each wake-up so much later than was asked for.
    /// Returns how much was read, by when.
    fn reads(
        pace: &mut Pace,
        begin: Instant,
        end: Instant,
        late: Duration,
    ) -> Vec<(Duration, usize)> {
        let mut now = begin;
        let mut reads = Vec::new();
        while now < end {
            pace.let_go(now);
            let count = pace.may_read_now(now);
            assert!(count > 0, "woken for nothing");
            pace.has_read(count, now);
            reads.push((now - begin, count));
            now = pace.wakes_at().expect("what is used up is waited for") + late;
        }
        reads
    }

    fn sum(reads: &[(Duration, usize)]) -> usize {
        reads.iter().map(|(_, count)| count).sum()
    }

    #[test]
    fn a_rate_is_kept_whatever_it_is_and_however_late_it_is_woken() {
        for bytes in [20, 100, 1_000, 65_536, 1_000_000, 1 << 30, u32::MAX] {
            for late in [0, 1, 30, 79].map(Duration::from_millis) {
                let begin = Instant::now();
                let mut pace = Pace::new(rate(bytes), Duration::ZERO, 1, begin).unwrap();
                let read = sum(&reads(&mut pace, begin, begin + 3 * SECOND, late));
                let share = read as f64 / (3.0 * f64::from(bytes));
                assert!((0.95..=1.05).contains(&share), "{bytes}, {late:?}: {share}");
            }
        }
    }

    #[test]
    fn no_burst_is_longer_than_a_tenth_of_a_second_even_after_a_long_rest() {
        for bytes in [100, 10_000, 50_000_000] {
            let begin = Instant::now();
            let mut pace = Pace::new(rate(bytes), Duration::ZERO, 1, begin).unwrap();
            reads(&mut pace, begin, begin + SECOND, Duration::ZERO);
            let begin = begin + 100 * SECOND;
            for (_, count) in reads(&mut pace, begin, begin + SECOND, Duration::ZERO) {
                assert!(count <= bytes as usize / 10, "{bytes}: {count}");
            }
        }
    }

    #[test]
    fn a_byte_a_second_is_a_byte_a_second() {
        let begin = Instant::now();
        let mut pace = Pace::new(rate(1), Duration::ZERO, 1, begin).unwrap();
        let reads = reads(&mut pace, begin, begin + 4 * SECOND, Duration::ZERO);
        let expected = [0, 1, 2, 3].map(|second| (second * SECOND, 1));
        assert_eq!(reads, expected);
    }

    #[test]
    fn bandwidth_holds_back_only_what_is_beyond_it() {
        let now = Instant::now();
        let mut pace = Pace::new(rate(1000), Duration::ZERO, 1, now).unwrap();
        assert_eq!(pace.may_read_now(now), 20);
        let now = now + SECOND;
        assert_eq!(pace.may_read_now(now), 100);
        pace.has_read(99, now);
        assert_eq!((pace.may_read_now(now), pace.holds_until()), (1, None));
        pace.has_read(1, now);
        assert!(!pace.may_read());
        assert_eq!(pace.may_read_now(now), 0);
        let due = now + REST;
        assert_eq!(
            (pace.wakes_at(), pace.holds_until()),
            (Some(due), Some(due))
        );
        assert!(!pace.let_go(due - Duration::from_nanos(1)));
        assert!(pace.let_go(due));
        assert_eq!(pace.may_read_now(due), 20);
        assert_eq!(pace.may_write(now), usize::MAX);
    }

    #[test]
    fn what_is_buffered_is_no_longer_a_burst_than_may_be() {
        let size = |bytes, most| {
            let pace = Pace::new(rate(bytes), Duration::ZERO, 1, Instant::now());
            pace.unwrap().buffer_size(most)
        };
        assert_eq!(size(1, 1 << 20), 64 << 10);
        assert_eq!(size(1, 256), 256);
        assert_eq!(size(5_000_000, 1 << 20), 500_000);
        assert_eq!(size(50_000_000, 1 << 20), 1 << 20);
    }

    #[test]
    fn blocks_are_held_back_by_0_to_twice_the_delay_and_stay_in_order() {
        let delay = Duration::from_millis(100);
        let mut waits = Vec::new();
        for seed in 0..500 {
            let now = Instant::now();
            let mut pace = Pace::new(None, delay, seed, now).unwrap();
            pace.has_read(7, now);
            assert_eq!(pace.may_write(now), 0);
            let due = pace.wakes_at().unwrap();
            assert_eq!(pace.holds_until(), Some(due));
            waits.push((due - now).as_secs_f64());
            // What comes later is not written sooner.
            let later = now + Duration::from_millis(1);
            pace.has_read(5, later);
            let last = pace.holds_until().unwrap();
            assert!(last >= due && last <= (later + 2 * delay).max(due));
            assert!(pace.let_go(due));
            let first = pace.may_write(due);
            assert!(first == 7 || last == due, "{first}");
            pace.let_go(last);
            assert_eq!(pace.may_write(last), 12);
            pace.has_written(12);
            assert_eq!((pace.may_write(last), pace.wakes_at()), (0, None));
        }
        assert!(waits.iter().all(|wait| (0.0..0.2).contains(wait)));
        let mean = waits.iter().sum::<f64>() / 500.0;
        assert!((0.09..0.11).contains(&mean), "{mean}");
        assert!(waits.iter().any(|wait| *wait < 0.01) && waits.iter().any(|wait| *wait > 0.19));
    }

    #[test]
    fn what_is_released_and_not_yet_written_is_not_woken_for() {
        let now = Instant::now();
        let mut pace = Pace::new(None, SECOND, 1, now).unwrap();
        pace.has_read(7, now);
        let due = pace.wakes_at().unwrap();
        assert!(pace.let_go(due));
        assert_eq!((pace.wakes_at(), pace.may_write(due)), (None, 7));
        pace.has_written(3);
        assert_eq!(pace.may_write(due), 4);
        pace.clear();
        assert_eq!(pace.may_write(due), 0);
    }

    #[test]
    fn so_many_blocks_are_held_back_and_no_more() {
        let now = Instant::now();
        let mut pace = Pace::new(None, SECOND, 1, now).unwrap();
        for _ in 0..MOST_BLOCKS {
            assert_eq!(pace.may_read_now(now), usize::MAX);
            pace.has_read(1, now);
        }
        assert!(!pace.may_read());
        let last = pace.holds_until().unwrap();
        pace.let_go(last);
        assert!(pace.may_read());
    }

    #[test]
    fn without_a_limit_and_a_delay_there_is_no_pace() {
        assert!(Pace::new(None, Duration::ZERO, 1, Instant::now()).is_none());
    }
}
