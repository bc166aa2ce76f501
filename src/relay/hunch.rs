//! Whether the next message is likely to be there already when the last one has been passed on: then a
//! read finds it, and nobody need sleep for it.
//!
//! Who exchanges messages with a peer on the same processor has the next one as soon as the peer had its
//! turn: sched_yield(2) and a read take less than ppoll(2) and a read. Where the peer runs elsewhere
//! nothing is there so soon, and the look is wasted: so it is only taken where the last ones were not.

/// Turns in a row that have moved bytes before any look is taken. Short sessions are over by then.
const WARM_UP: u32 = 16;

/// Looks in a row before a turn sleeps all the same: who never does hears no signal.
const MOST_IN_A_ROW: u32 = 16;

/// The most turns that go by without a look when looks were wasted.
const LONGEST_PAUSE: u32 = 256;

/// What has come of the looks so far.
#[derive(Debug)]
pub struct Hunch {
    /// Turns in a row that have moved bytes.
    moved: u32,
    /// Looks in a row that have found something.
    found: u32,
    /// Turns that go by without a look.
    rests: u32,
    /// How many that will be when the next look is wasted.
    pause: u32,
}

impl Default for Hunch {
    fn default() -> Hunch {
        Hunch {
            moved: 0,
            found: 0,
            rests: 0,
            pause: 1,
        }
    }
}

impl Hunch {
    /// One that looks before every turn.
    #[cfg(test)]
    pub(super) fn eager() -> Hunch {
        Hunch {
            moved: u32::MAX,
            ..Hunch::default()
        }
    }

    /// Whether to look before this turn sleeps.
    pub(super) fn is_worth_a_look(&mut self) -> bool {
        if self.moved < WARM_UP || self.found >= MOST_IN_A_ROW {
            self.found = 0;
            return false;
        }
        if self.rests > 0 {
            self.rests -= 1;
            return false;
        }
        true
    }

    /// Learns whether the look has found something.
    pub(super) fn has_looked(&mut self, found: bool) {
        if found {
            self.found += 1;
            self.pause = 1;
        } else {
            self.found = 0;
            self.rests = self.pause;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Learns whether a turn that has slept has moved bytes.
    pub(super) fn has_slept(&mut self, moved: bool) {
        self.moved = if moved {
            self.moved.saturating_add(1)
        } else {
            0
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many turns look, if each look finds something or none does.
    fn looks(hunch: &mut Hunch, turns: u32, found: bool) -> u32 {
        let looks = (0..turns).filter(|_| {
            let looks = hunch.is_worth_a_look();
            if looks {
                hunch.has_looked(found);
            }
            if !(looks && found) {
                hunch.has_slept(true);
            }
            looks
        });
        looks.count() as u32
    }

    #[test]
    fn short_sessions_never_look() {
        assert_eq!(looks(&mut Hunch::default(), WARM_UP, true), 0);
    }

    #[test]
    fn looks_that_find_something_go_on_but_for_a_sleep_now_and_then() {
        let mut hunch = Hunch::default();
        looks(&mut hunch, WARM_UP, true);
        let turns = 100 * (MOST_IN_A_ROW + 1);
        assert_eq!(looks(&mut hunch, turns, true), 100 * MOST_IN_A_ROW);
    }

    #[test]
    fn looks_that_are_wasted_become_rare() {
        let mut hunch = Hunch::default();
        looks(&mut hunch, WARM_UP, false);
        assert!(looks(&mut hunch, 10_000, false) < 60);
        // And frequent again as soon as one finds something.
        looks(&mut hunch, LONGEST_PAUSE + 1, true);
        assert!(looks(&mut hunch, 17, true) >= 15);
    }

    #[test]
    fn what_is_quiet_has_to_warm_up_again() {
        let mut hunch = Hunch::default();
        looks(&mut hunch, WARM_UP, true);
        hunch.has_slept(false);
        assert!(!hunch.is_worth_a_look());
    }
}
