//! Whether the next message is likely to be there already when the last one has been passed on: then a
//! read finds it, and nobody need sleep for it.
//!
//! Who exchanges messages with a peer on the same processor has the next one as soon as the peer had its
//! turn: sched_yield(2) and a read take less than ppoll(2) and a read. Where the peer runs elsewhere
//! nothing is there so soon, and the look is wasted: so it is only taken where the last ones were not.
//!
//! Bulk data is not looked for: a pipe that another one fills meanwhile is worth more than a look, and
//! with a yield before each of its turns a GiB cost 0.135 s of processor time instead of 0.113 (Intel
//! Xeon, 2 cores, one connection; haproxy 0.109).

/// Turns in a row that have moved bytes before any look is taken. Short sessions are over by then.
const WARM_UP: u32 = 16;

/// Looks in a row before a turn sleeps all the same: who never does hears no signal.
const MOST_IN_A_ROW: u32 = 16;

/// The most turns that go by without a look when looks were wasted.
const LONGEST_PAUSE: u32 = 256;

/// What a turn has moved, or a look. That a machine has ended is something: it must not be slept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Moved {
    Nothing,
    /// As much as messages have.
    Little,
    /// As much as only bulk data has.
    Much,
}

/// What has come of the looks so far.
#[derive(Debug)]
pub struct Hunch {
    /// Turns in a row that have moved messages.
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

    /// Learns what the look has found.
    pub(super) fn has_looked(&mut self, found: Moved) {
        match found {
            Moved::Nothing => {
                self.found = 0;
                self.rests = self.pause;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
            Moved::Little => {
                self.found += 1;
                self.pause = 1;
            }
            Moved::Much => self.moved = 0,
        }
    }

    /// Learns what a turn that has slept has moved.
    pub(super) fn has_slept(&mut self, moved: Moved) {
        self.moved = match moved {
            Moved::Little => self.moved.saturating_add(1),
            Moved::Nothing | Moved::Much => 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many turns look, if this is what each look finds.
    fn looks(hunch: &mut Hunch, turns: u32, found: Moved) -> u32 {
        let looks = (0..turns).filter(|_| {
            let looks = hunch.is_worth_a_look();
            if looks {
                hunch.has_looked(found);
            }
            if !(looks && found != Moved::Nothing) {
                hunch.has_slept(Moved::Little);
            }
            looks
        });
        looks.count() as u32
    }

    #[test]
    fn short_sessions_never_look() {
        assert_eq!(looks(&mut Hunch::default(), WARM_UP, Moved::Little), 0);
    }

    #[test]
    fn looks_that_find_something_go_on_but_for_a_sleep_now_and_then() {
        let mut hunch = Hunch::default();
        looks(&mut hunch, WARM_UP, Moved::Little);
        let turns = 100 * (MOST_IN_A_ROW + 1);
        assert_eq!(looks(&mut hunch, turns, Moved::Little), 100 * MOST_IN_A_ROW);
    }

    #[test]
    fn looks_that_are_wasted_become_rare() {
        let mut hunch = Hunch::default();
        looks(&mut hunch, WARM_UP, Moved::Nothing);
        assert!(looks(&mut hunch, 10_000, Moved::Nothing) < 60);
        // And frequent again as soon as one finds something.
        looks(&mut hunch, LONGEST_PAUSE + 1, Moved::Little);
        assert!(looks(&mut hunch, 17, Moved::Little) >= 15);
    }

    #[test]
    fn what_is_quiet_has_to_warm_up_again() {
        let mut hunch = Hunch::default();
        looks(&mut hunch, WARM_UP, Moved::Little);
        hunch.has_slept(Moved::Nothing);
        assert!(!hunch.is_worth_a_look());
    }

    #[test]
    fn bulk_data_is_slept_for() {
        let mut hunch = Hunch::default();
        looks(&mut hunch, WARM_UP, Moved::Little);
        assert!(hunch.is_worth_a_look());
        hunch.has_looked(Moved::Much);
        assert!(!hunch.is_worth_a_look());
        for _ in 0..10 * WARM_UP {
            hunch.has_slept(Moved::Much);
            assert!(!hunch.is_worth_a_look());
        }
    }
}
