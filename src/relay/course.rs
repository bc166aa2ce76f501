//! Which way the next bytes of a direction go, by what the reads before have been like.
//!
//! Measured with one and with eight sessions, up and down, on two processors that client, relay
//! and server shared (Linux 6.18, loopback; GiB/s and the relay's processor seconds per GiB):
//!
//! | | one session | eight |
//! | --- | --- | --- |
//! | copies of 64 KiB | 1.7, 0.46 | 2.7, 0.46 |
//! | copies of 1 MiB | 3.1, 0.23 | 3.2, 0.33 |
//! | splices of 64 KiB | 1.7, 0.46 | |
//! | splices of 1 MiB | 2.3, 0.25 | 3.3, 0.19 |
//!
//! So one session that has the machine for itself is fastest with large copies, and many that share
//! it cost the least with splices. How much of the time a relay is on a processor tells the one from
//! the other: with one session 0.6 of it (its speed is what the session's speed depends on), with
//! eight 0.1 (something else is short, and what it leaves to others counts). A network slower than
//! the machine is like the second. What network cards do to the numbers could not be measured.

use std::time::{Duration, Instant};

use super::Engine;

/// What messages are copied through. A page that no message reaches costs nothing.
pub(super) const SMALL: usize = 16 << 10;

/// The most that one splice moves. Unprivileged pipes are not larger (`pipe-max-size`, pipe(7)),
/// and larger ones are slower (4 MiB: 1.8 GiB/s).
const PIPE: usize = 1 << 20;

/// How much larger a buffer becomes that was filled.
const GROWTH: usize = 4;

/// Reads in a row that fill the small buffer before it is bulk data.
const BULK_AFTER: i32 = 2;

/// How often in a row little has come since the source was found empty before bulk data is copied,
/// as it is none.
const COPY_AFTER: i32 = 2;

/// How much bulk data is moved before its way is chosen anew.
const STRETCH: u64 = 8 << 20;

/// The share of its time, as one in so many, above which a relay is what a session waits for.
const BUSY: u32 = 3;

/// What a slow sink has to take without a pause, in small buffers, before it is bulk data again:
/// 4 MiB, which is more than its socket holds (tcp_wmem).
const SLOW: i32 = 256;

/// How bytes are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through memory of this size.
    Copy(usize),
    /// Through a pipe of this size.
    Splice(usize),
}

/// What one read into an empty buffer has brought.
#[derive(Debug, Clone, Copy)]
pub(super) struct Read {
    pub(super) count: usize,
    /// Whether the one before had emptied the source: what this one brings has come since.
    pub(super) after_empty: bool,
}

/// The way of a direction so far.
#[derive(Debug)]
pub(super) struct Course {
    #[cfg(test)]
    engine: Engine,
    /// The most that may be held.
    most: usize,
    /// How large a pipe may be, if there may be one.
    pipe: Option<usize>,
    way: Way,
    /// How often in a row a read has spoken for another way; less than 0 while a slow sink has to
    /// show that it is one no more.
    streak: i32,
    /// The stretch of bulk data that is being measured, if one is.
    stretch: Option<Stretch>,
}

/// Two clocks, read at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    pub(super) now: Instant,
    /// The processor time used so far.
    pub(super) used: Duration,
}

/// Some bulk data.
#[derive(Debug)]
struct Stretch {
    began: Clocks,
    moved: u64,
}

impl Course {
    pub(super) fn new(engine: Engine, most: usize) -> Course {
        let pipe = most.min(PIPE);
        let small = Way::Copy(most.min(SMALL));
        let (pipe, way) = match engine {
            Engine::Adaptive => ((most > SMALL).then_some(pipe), small),
            Engine::Copy => (None, small),
            #[cfg(test)]
            Engine::Splice => (Some(pipe), Way::Splice(pipe)),
        };
        Course {
            #[cfg(test)]
            engine,
            most,
            pipe,
            way,
            streak: 0,
            stretch: None,
        }
    }

    /// The way of the next read, if the buffer is empty.
    pub(super) fn way(&self) -> Way {
        self.way
    }

    /// Learns from a read of which the sink has taken everything at once.
    pub(super) fn learn(&mut self, read: Read, clocks: impl FnOnce() -> Clocks) {
        #[cfg(test)]
        if let (Engine::Splice, Some(pipe)) = (self.engine, self.pipe) {
            return self.take(Way::Splice(pipe));
        }
        let Read { count, after_empty } = read;
        let way = self.way;
        match way {
            Way::Copy(size) if size <= SMALL => {
                if size < self.most && self.again(count >= size, BULK_AFTER) {
                    self.take(self.pipe.map_or(self.larger(size), Way::Splice));
                }
            }
            Way::Copy(size) if size < self.most => {
                if count >= size {
                    self.take(self.larger(size));
                }
            }
            // A pipe may run out of slots before bytes: much is a quarter already.
            Way::Splice(size) if after_empty && self.again(count < size / 4, COPY_AFTER) => {
                self.take(self.larger(SMALL));
            }
            Way::Copy(_) | Way::Splice(_) => {
                if let Some(pipe) = self.pipe {
                    self.measure(count, clocks, pipe);
                }
            }
        }
    }

    /// Goes on with the stretch, and chooses the way of the next when it is over. Its first read,
    /// for which memory or a pipe had to be made, does not count.
    fn measure(&mut self, count: usize, clocks: impl FnOnce() -> Clocks, pipe: usize) {
        let Some(stretch) = &mut self.stretch else {
            let (began, moved) = (clocks(), 0);
            self.stretch = Some(Stretch { began, moved });
            return;
        };
        stretch.moved += count as u64;
        if stretch.moved >= STRETCH {
            let (began, ended) = (stretch.began, clocks());
            let busy = ended.used.saturating_sub(began.used) * BUSY > ended.now - began.now;
            self.take(match busy {
                true => Way::Copy(self.most),
                false => Way::Splice(pipe),
            });
        }
    }

    /// Copies through a larger buffer than this.
    fn larger(&self, size: usize) -> Way {
        Way::Copy((size * GROWTH).min(self.most))
    }

    /// Whether a read speaks for another way, and enough did in a row.
    fn again(&mut self, speaks: bool, enough: i32) -> bool {
        self.streak = match speaks {
            true => self.streak + 1,
            false => self.streak.min(0),
        };
        self.streak >= enough
    }

    fn take(&mut self, way: Way) {
        self.way = way;
        self.streak = 0;
        self.stretch = None;
    }

    /// There is no pipe to be had.
    pub(super) fn without_pipe(&mut self) {
        self.pipe = None;
        self.take(self.larger(SMALL));
    }

    /// There was something that a pipe did not take.
    pub(super) fn beside_pipe(&mut self) {
        self.take(self.larger(SMALL));
    }

    /// The bulk is over, or was none.
    pub(super) fn start_small(&mut self) {
        self.way = Way::Copy(self.most.min(SMALL));
        self.streak = self.streak.min(0);
        self.stretch = None;
    }

    /// The sink takes its time: what it can be given at once is small.
    pub(super) fn slow_down(&mut self) {
        self.start_small();
        self.streak = -SLOW;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 1 << 20;

    /// Reads of which each finds so much, where the relay is on a processor for `busy` of `all` ms
    /// with every MiB. Returns the way after each.
    fn ways(course: &mut Course, counts: &[usize], (busy, all): (u32, u32)) -> Vec<Way> {
        let start = Instant::now();
        let mut moved = 0;
        let learn = |&count: &usize| {
            moved += count;
            let time = |share: u32| Duration::from_millis(1) * share * (moved / MOST) as u32;
            let clocks = Clocks {
                now: start + time(all),
                used: time(busy),
            };
            let after_empty = count < MOST;
            course.learn(Read { count, after_empty }, || clocks);
            course.way()
        };
        counts.iter().map(learn).collect()
    }

    fn last(course: &mut Course, counts: &[usize], share: (u32, u32)) -> Way {
        *ways(course, counts, share).last().unwrap()
    }

    #[test]
    fn messages_stay_with_the_small_buffer() {
        let mut course = Course::new(Engine::Adaptive, MOST);
        let messages = [1, 16_383, SMALL, 1, SMALL, 5];
        let expected = [Way::Copy(SMALL); 6];
        assert_eq!(ways(&mut course, &messages, (1, 1)), expected);
    }

    #[test]
    fn what_keeps_filling_it_is_spliced_or_copied_through_ever_more() {
        let bulk = [SMALL, SMALL, 1 << 16, 1 << 18, 1 << 20, 1 << 20];
        let mut course = Course::new(Engine::Adaptive, MOST);
        assert_eq!(last(&mut course, &bulk[..2], (1, 1)), Way::Splice(MOST));
        let sizes = [1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 20, 1 << 20].map(Way::Copy);
        let mut course = Course::new(Engine::Copy, MOST);
        assert_eq!(ways(&mut course, &bulk, (1, 1)), sizes);
        let mut course = Course::new(Engine::Adaptive, MOST);
        course.without_pipe();
        assert_eq!(ways(&mut course, &bulk[2..], (1, 10)), sizes[2..]);
    }

    #[test]
    fn a_busy_relay_copies_and_one_with_time_to_spare_splices() {
        let mut course = Course::new(Engine::Adaptive, MOST);
        ways(&mut course, &[SMALL; 2], (1, 1));
        let bulk = [MOST; 9];
        assert_eq!(last(&mut course, &bulk, (4, 10)), Way::Copy(MOST));
        assert_eq!(last(&mut course, &bulk, (4, 10)), Way::Copy(MOST));
        assert_eq!(last(&mut course, &bulk, (2, 10)), Way::Splice(MOST));
        assert_eq!(last(&mut course, &bulk, (2, 10)), Way::Splice(MOST));
        assert_eq!(last(&mut course, &bulk[1..], (4, 10)), Way::Splice(MOST));
    }

    #[test]
    fn what_comes_in_pieces_is_spliced_no_more() {
        let mut course = Course::new(Engine::Adaptive, MOST);
        ways(&mut course, &[SMALL; 2], (1, 1));
        let pieces = [MOST / 4 - 1, MOST / 4, MOST / 4 - 1, 100];
        let expected = [
            Way::Splice(MOST),
            Way::Splice(MOST),
            Way::Splice(MOST),
            Way::Copy(1 << 16),
        ];
        assert_eq!(ways(&mut course, &pieces, (1, 1)), expected);
    }

    #[test]
    fn a_slow_sink_gets_little_at_once_until_it_has_taken_much() {
        let mut course = Course::new(Engine::Adaptive, MOST);
        ways(&mut course, &[SMALL; 2], (1, 1));
        course.slow_down();
        assert_eq!(
            ways(&mut course, &[SMALL; 257], (1, 1)),
            [Way::Copy(SMALL); 257]
        );
        assert_eq!(last(&mut course, &[SMALL], (1, 1)), Way::Splice(MOST));
    }

    #[test]
    fn no_buffer_is_larger_than_asked_for() {
        for most in [256, SMALL, SMALL + 1, 100_000] {
            for engine in [Engine::Adaptive, Engine::Copy] {
                let mut course = Course::new(engine, most);
                for way in ways(&mut course, &[most; 20], (1, 1)) {
                    let (Way::Copy(size) | Way::Splice(size)) = way;
                    assert!(size <= most, "{engine:?} {most}: {way:?}");
                    let splices = matches!(way, Way::Splice(_));
                    assert!(!splices || most > SMALL, "{engine:?} {most}: {way:?}");
                }
            }
        }
    }
}
