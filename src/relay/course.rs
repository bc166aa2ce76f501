//! Which way the next bytes of a direction go, by what the reads before have been like.
//!
//! Measured with one session and with eight, on two processors that client, relay and server shared
//! (Linux 6.18, loopback; GiB/s and the relay's processor seconds per GiB):
//!
//! | | AMD EPYC: one | eight | Intel Xeon: one | eight |
//! | --- | --- | --- | --- | --- |
//! | copies of 64 KiB | 1.7, 0.46 | 2.7, 0.46 | | |
//! | copies of 1 MiB | 3.1, 0.23 | 3.2, 0.33 | 2.5, 0.36 | 1.3, 0.39 |
//! | splices of 64 KiB | 1.7, 0.46 | | | |
//! | splices of 1 MiB | 2.3, 0.25 | 3.3, 0.19 | 4.0, 0.16 | 3.3, 0.13 |
//!
//! (The Xeon's last column is from an hour in which others used it, too.)
//!
//! So no fixed rule is right on both, and bulk data is measured as it is moved: some of it one way,
//! some the other, and then much the better way. Better is what takes less processor time for a byte;
//! where a session waits for its relay, less of both times, as their product: on the EPYC one
//! session's copies are faster by a third and hardly cheaper. What network cards do to the numbers
//! could not be measured.

use std::time::{Duration, Instant};

use super::Engine;

/// What messages are copied through. A page that no message reaches costs nothing.
pub(super) const SMALL: usize = 16 << 10;

/// The most that one splice moves. Unprivileged pipes are not larger (`pipe-max-size`, pipe(7)),
/// and larger ones are slower (4 MiB: 1.8 GiB/s on the EPYC).
const PIPE: usize = 1 << 20;

/// How much larger a buffer becomes that was filled.
const GROWTH: usize = 4;

/// Reads in a row that fill a buffer before it is bulk data.
const BULK_AFTER: i32 = 2;

/// How often in a row little has come since the source was found empty before data is no longer
/// spliced, as it is not bulk.
const COPY_AFTER: i32 = 2;

/// Less is little. Splices of so much cost as much as copies on the EPYC, and 0.7 of them on the
/// Xeon.
const LITTLE: usize = 64 << 10;

/// How much bulk data is moved before anything is measured: what is shorter would not earn it back,
/// and sockets are still growing (tcp_rmem).
const FIRST: u32 = 64 << 20;

/// How much is moved the better way before both are measured again; and how much at most, when
/// that has turned out the same again and again.
const REST: (u32, u32) = (256 << 20, 1 << 30);

/// How much is moved each way to measure it.
const STRETCH: u32 = 4 << 20;

/// How much is moved before that: memory is touched for the first time, and what the other way has
/// left is gone.
const RUN_UP: u32 = 1 << 20;

/// What the other way has to cost at most to be chosen: the rest may be chance.
const MARGIN: f32 = 0.875;

/// The share of its time, as one in so many, above which a relay is what a session waits for.
const BUSY: f32 = 1.0 / 3.0;

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

/// What one read into an empty buffer has brought, of which the sink has taken everything at once.
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
    /// Whether there may be a pipe.
    has_pipe: bool,
    way: Way,
    /// How often in a row a read has spoken for another way; less than 0 while a slow sink has to
    /// show that it is one no more.
    streak: i32,
    measure: Measure,
    /// How much is to be moved before both ways are measured.
    rest: u32,
    /// How much of it has been moved, or of what is being measured.
    moved: u32,
}

/// What is being measured.
#[derive(Debug, Clone, Copy)]
enum Measure {
    /// Nothing: the better way is known, or there is not yet enough to be moved.
    Nothing,
    /// This way and then the other, or the other after this one, which has cost so much.
    /// Without clocks it is on its run-up.
    Stretch {
        began: Option<Clocks>,
        before: Option<Cost>,
    },
}

/// Two clocks, read at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    pub(super) now: Instant,
    /// The processor time used so far.
    pub(super) used: Duration,
}

/// What a byte has cost, in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Cost {
    time: f32,
    used: f32,
}

impl Cost {
    fn of(moved: u32, began: Clocks, ended: Clocks) -> Cost {
        let each = |time: Duration| time.as_nanos() as f32 / moved as f32;
        Cost {
            time: each(ended.now.saturating_duration_since(began.now)),
            used: each(ended.used.saturating_sub(began.used)),
        }
    }

    /// Whether this is less than the other by more than chance.
    fn is_better_than(self, other: Cost) -> bool {
        let is_waited_for = |cost: Cost| cost.used > cost.time * BUSY;
        if is_waited_for(self) && is_waited_for(other) {
            self.used * self.time < other.used * other.time * MARGIN
        } else {
            // How long it takes is others' doing.
            self.used < other.used * MARGIN
        }
    }
}

impl Course {
    pub(super) fn new(engine: Engine, most: usize) -> Course {
        let small = Way::Copy(most.min(SMALL));
        let (has_pipe, way) = match engine {
            Engine::Adaptive => (most > SMALL, small),
            Engine::Copy | Engine::Edited => (false, small),
            #[cfg(test)]
            Engine::Splice => (true, Way::Splice(most.min(PIPE))),
        };
        Course {
            #[cfg(test)]
            engine,
            most,
            has_pipe,
            way,
            streak: 0,
            measure: Measure::Nothing,
            rest: FIRST,
            moved: 0,
        }
    }

    /// The way of the next read, if the buffer is empty.
    pub(super) fn way(&self) -> Way {
        self.way
    }

    /// Learns from what has been moved since it was last told: so much, and by one read, if that is
    /// known to say something of the source. Returns whether a way was chosen for much to come, so
    /// that what the other takes is of no use.
    pub(super) fn learn(
        &mut self,
        moved: u64,
        read: Option<Read>,
        clocks: impl FnOnce() -> Clocks,
    ) -> bool {
        #[cfg(test)]
        if let (Engine::Splice, Some(pipe)) = (self.engine, self.pipe()) {
            self.take(Way::Splice(pipe));
            return false;
        }
        match (self.way, read) {
            (Way::Copy(size), Some(Read { count, .. })) if size < self.most => {
                let enough = match self.pipe() {
                    None if size > SMALL => 1,
                    _ => BULK_AFTER,
                };
                if self.again(count >= size, enough) {
                    self.take(self.pipe().map_or(self.larger(size), Way::Splice));
                }
            }
            (Way::Copy(size), None) if size < self.most => {}
            (Way::Splice(size), Some(Read { count, after_empty: true }))
                // A pipe may run out of slots before bytes: much is a quarter already.
                if self.again(count < LITTLE.min(size / 4), COPY_AFTER) =>
            {
                self.take(self.larger(SMALL));
            }
            (Way::Copy(_) | Way::Splice(_), _) => {
                if let Some(pipe) = self.pipe() {
                    return self.measure(moved, clocks, pipe);
                }
            }
        }
        false
    }

    /// Goes on with what is being measured, and chooses a way when both are known. Returns whether
    /// it has.
    fn measure(&mut self, moved: u64, clocks: impl FnOnce() -> Clocks, pipe: usize) -> bool {
        let moved = u32::try_from(moved).unwrap_or(u32::MAX);
        self.moved = self.moved.saturating_add(moved);
        let other = match self.way {
            Way::Copy(_) => Way::Splice(pipe),
            Way::Splice(_) => Way::Copy(self.most),
        };
        match self.measure {
            Measure::Nothing if self.moved >= self.rest => self.begin(None),
            Measure::Stretch {
                began: None,
                before,
            } if self.moved >= RUN_UP => {
                let began = Some(clocks());
                self.measure = Measure::Stretch { began, before };
                self.moved = 0;
            }
            Measure::Stretch {
                began: Some(began),
                before,
            } if self.moved >= STRETCH => {
                let cost = Cost::of(self.moved, began, clocks());
                match before {
                    None => {
                        self.way = other;
                        self.begin(Some(cost));
                    }
                    Some(before) => {
                        self.measure = Measure::Nothing;
                        self.moved = 0;
                        if cost.is_better_than(before) {
                            self.rest = REST.0;
                        } else {
                            self.way = other;
                            self.rest = (self.rest * 2).clamp(REST.0, REST.1);
                        }
                        return true;
                    }
                }
            }
            Measure::Nothing | Measure::Stretch { .. } => {}
        }
        false
    }

    /// Begins to measure a way.
    fn begin(&mut self, before: Option<Cost>) {
        self.measure = Measure::Stretch {
            began: None,
            before,
        };
        self.moved = 0;
    }

    /// How large a pipe is, if there may be one.
    fn pipe(&self) -> Option<usize> {
        self.has_pipe.then_some(self.most.min(PIPE))
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

    /// Takes a way of which nothing is known yet.
    fn take(&mut self, way: Way) {
        self.way = way;
        self.streak = 0;
        self.measure = Measure::Nothing;
        (self.rest, self.moved) = (FIRST, 0);
    }

    /// There is no pipe to be had.
    pub(super) fn without_pipe(&mut self) {
        self.has_pipe = false;
        self.take(self.larger(SMALL));
    }

    /// There was something that a pipe did not take.
    pub(super) fn beside_pipe(&mut self) {
        self.take(self.larger(SMALL));
    }

    /// The bulk is over, or was none.
    pub(super) fn start_small(&mut self) {
        let streak = self.streak.min(0);
        self.take(Way::Copy(self.most.min(SMALL)));
        self.streak = streak;
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

    /// Reads of which each finds so much. Returns the way after each.
    fn ways(course: &mut Course, counts: &[usize]) -> Vec<Way> {
        let learn = |&count: &usize| {
            let after_empty = count < MOST;
            let read = Some(Read { count, after_empty });
            course.learn(count as u64, read, || panic!("nothing is measured yet"));
            course.way()
        };
        counts.iter().map(learn).collect()
    }

    fn last(course: &mut Course, counts: &[usize]) -> Way {
        *ways(course, counts).last().unwrap()
    }

    #[test]
    fn messages_stay_with_the_small_buffer() {
        let mut course = Course::new(Engine::Adaptive, MOST);
        let messages = [1, 16_383, SMALL, 1, SMALL, 5];
        assert_eq!(ways(&mut course, &messages), [Way::Copy(SMALL); 6]);
    }

    #[test]
    fn what_keeps_filling_it_is_spliced_or_copied_through_ever_more() {
        let bulk = [SMALL, SMALL, 1 << 16, 1 << 18, 1 << 20, 1 << 20];
        let mut course = Course::new(Engine::Adaptive, MOST);
        assert_eq!(last(&mut course, &bulk[..2]), Way::Splice(MOST));
        let sizes = [1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 20, 1 << 20].map(Way::Copy);
        let mut course = Course::new(Engine::Copy, MOST);
        assert_eq!(ways(&mut course, &bulk), sizes);
        let mut course = Course::new(Engine::Adaptive, MOST);
        course.without_pipe();
        assert_eq!(ways(&mut course, &bulk[2..]), sizes[2..]);
    }

    #[test]
    fn what_comes_in_pieces_is_spliced_no_more_until_it_is_bulk_again() {
        let mut course = Course::new(Engine::Adaptive, MOST);
        ways(&mut course, &[SMALL; 2]);
        let counts = [LITTLE - 1, LITTLE, LITTLE - 1, 100, LITTLE, LITTLE];
        let (spliced, copied) = (Way::Splice(MOST), Way::Copy(SMALL * GROWTH));
        let expected = [spliced, spliced, spliced, copied, copied, spliced];
        assert_eq!(ways(&mut course, &counts), expected);
    }

    #[test]
    fn a_slow_sink_gets_little_at_once_until_it_has_taken_much() {
        let mut course = Course::new(Engine::Adaptive, MOST);
        ways(&mut course, &[SMALL; 2]);
        course.slow_down();
        assert_eq!(ways(&mut course, &[SMALL; 257]), [Way::Copy(SMALL); 257]);
        assert_eq!(last(&mut course, &[SMALL]), Way::Splice(MOST));
    }

    #[test]
    fn no_buffer_is_larger_than_asked_for() {
        for most in [256, SMALL, SMALL + 1, 100_000] {
            for engine in [Engine::Adaptive, Engine::Copy] {
                let mut course = Course::new(engine, most);
                for way in ways(&mut course, &[most; 20]) {
                    let (Way::Copy(size) | Way::Splice(size)) = way;
                    assert!(size <= most, "{engine:?} {most}: {way:?}");
                    let splices = matches!(way, Way::Splice(_));
                    assert!(!splices || most > SMALL, "{engine:?} {most}: {way:?}");
                }
            }
        }
    }

    /// One of several sessions, and what became of it.
    struct Session {
        course: Course,
        clocks: Clocks,
        /// How often clocks were read.
        asked: usize,
        copied: usize,
        spliced: usize,
        /// How often a way was chosen.
        chosen: usize,
    }

    impl Session {
        /// One that moves bulk data from now on.
        fn new() -> Session {
            let mut course = Course::new(Engine::Adaptive, MOST);
            ways(&mut course, &[SMALL; 2]);
            Session {
                course,
                clocks: Clocks {
                    now: Instant::now(),
                    used: Duration::ZERO,
                },
                asked: 0,
                copied: 0,
                spliced: 0,
                chosen: 0,
            }
        }

        /// Moves so many MiB, where a way has one GiB take so many seconds and so many seconds of a
        /// processor. Returns the way at the end.
        fn moves(&mut self, mib: usize, cost: &mut dyn FnMut(Way) -> (f64, f64)) -> Way {
            for _ in 0..mib {
                let way = self.course.way();
                match way {
                    Way::Copy(_) => self.copied += 1,
                    Way::Splice(_) => self.spliced += 1,
                }
                let (time, used) = cost(way);
                self.clocks.now += Duration::from_secs_f64(time / 1024.0);
                self.clocks.used += Duration::from_secs_f64(used / 1024.0);
                let read = Read {
                    count: MOST,
                    after_empty: false,
                };
                let clocks = self.clocks;
                let asked = &mut self.asked;
                let chosen = self.course.learn(MOST as u64, Some(read), || {
                    *asked += 1;
                    clocks
                });
                self.chosen += usize::from(chosen);
            }
            self.course.way()
        }
    }

    /// GiB/s and the processor's s/GiB of copies, and of splices, by so many sessions at once.
    fn measured(
        sessions: f64,
        copies: (f64, f64),
        splices: (f64, f64),
    ) -> impl FnMut(Way) -> (f64, f64) {
        move |way| {
            let (speed, used) = match way {
                Way::Copy(_) => copies,
                Way::Splice(_) => splices,
            };
            (sessions / speed, used)
        }
    }

    const COPIES: Way = Way::Copy(MOST);
    const SPLICES: Way = Way::Splice(MOST);

    #[test]
    fn the_better_way_is_found_whichever_processor_it_is() {
        for (sessions, copies, splices, better) in [
            // The table above.
            (1.0, (3.1, 0.23), (2.35, 0.25), COPIES),
            (8.0, (3.2, 0.33), (3.3, 0.19), SPLICES),
            (1.0, (2.5, 0.36), (4.0, 0.16), SPLICES),
            (8.0, (1.3, 0.39), (3.3, 0.13), SPLICES),
        ] {
            let mut session = Session::new();
            let mut cost = measured(sessions, copies, splices);
            assert_eq!(session.moves(80, &mut cost), better, "{copies:?}");
            let before = (session.copied, session.spliced);
            assert_eq!(session.moves(4096, &mut cost), better, "{copies:?}");
            let (copied, spliced) = (session.copied - before.0, session.spliced - before.1);
            let worse = copied.min(spliced);
            assert!(worse <= 4096 / 64, "{copies:?}: {copied}, {spliced}");
            assert_eq!(session.asked, 4 * session.chosen, "{copies:?}");
            assert!(session.chosen <= 7, "{copies:?}: {}", session.chosen);
        }
    }

    #[test]
    fn another_way_is_taken_when_it_has_become_the_better_one() {
        let mut session = Session::new();
        let mut alone = measured(1.0, (3.1, 0.23), (2.35, 0.25));
        let mut among_eight = measured(8.0, (3.2, 0.33), (3.3, 0.19));
        assert_eq!(session.moves(80, &mut alone), COPIES);
        assert_eq!(session.moves(300, &mut among_eight), SPLICES);
        assert_eq!(session.moves(300, &mut alone), COPIES);
    }

    #[test]
    fn what_a_slow_network_does_to_the_time_says_nothing() {
        let mut session = Session::new();
        let mut chance = 1_u32;
        // 20 to 200 MB/s, as it happens; a byte costs the same either way, within a twentieth.
        let mut cost = |_| {
            chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (some, more) = (f64::from(chance >> 16 & 0xff), f64::from(chance >> 24));
            (5.0 + 45.0 * some / 255.0, 0.4 + 0.02 * more / 255.0)
        };
        session.moves(10_000, &mut cost);
        // It has not been led astray once.
        assert!(session.chosen > 5, "{}", session.chosen);
        assert!(session.copied <= 6 * session.chosen, "{}", session.copied);
    }

    #[test]
    fn what_is_short_is_not_measured() {
        let mut session = Session::new();
        let mut cost = measured(1.0, (3.1, 0.23), (2.35, 0.25));
        assert_eq!(session.moves(63, &mut cost), SPLICES);
        assert_eq!((session.asked, session.copied), (0, 0));
    }
}
