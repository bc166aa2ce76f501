//! How many lines there are about clients that were refused: anybody can cause those, as many as
//! they like. A server and its sessions count them together.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::time::{ClockId, clock_gettime};

use crate::sys;

/// How many of a service's are logged in a second.
const MOST: u64 = 100;

/// How many milliseconds the second has that they are counted in.
const WINDOW: u64 = 1_000;

/// How many bits of a number hold the count, below those with the second's begin.
const COUNT_BITS: u32 = 8;

/// How many numbers are shared at once: a page of them.
const AT_ONCE: usize = 512;

/// The lines about refused clients of one service, as all of its processes count them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quota {
    /// When the second began that is counted, in milliseconds, and how many there were in it.
    second: &'static AtomicU64,
    left_out: &'static AtomicU64,
    /// How many were left out of all services.
    of_all: &'static AtomicU64,
}

impl Quota {
    /// Counts one line, and says whether it may be logged.
    pub(crate) fn take(self) -> bool {
        let now = now();
        let counted = |second: u64| count(second, now);
        let taken = self
            .second
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
        if taken.is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            self.of_all.fetch_add(1, Ordering::Relaxed);
        }
        taken.is_ok()
    }
}

/// One more in the second that is counted, or the first of another, which begins now; nothing if
/// there were as many as may be.
fn count(second: u64, now: u64) -> Option<u64> {
    let (began, count) = (second >> COUNT_BITS, second & ((1 << COUNT_BITS) - 1));
    if began == 0 || now.saturating_sub(began) >= WINDOW {
        Some(now << COUNT_BITS | 1)
    } else {
        (count < MOST).then_some(second + 1)
    }
}

/// Milliseconds of a clock that all processes have, and that is never put back.
fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.map_or(1, |now| {
        (now.tv_sec() * 1_000 + now.tv_nsec() / 1_000_000) as u64
    })
}

/// The quotas of a server's services, by the names of these. They outlive a reload.
pub(crate) struct Quotas {
    known: HashMap<String, Quota>,
    free: &'static [AtomicU64],
    of_all: &'static AtomicU64,
}

impl Quotas {
    pub(crate) fn new() -> nix::Result<Quotas> {
        let numbers = sys::shared_numbers(AT_ONCE)?;
        let (first, free) = numbers.split_first().ok_or(nix::Error::ENOMEM)?;
        Ok(Quotas {
            known: HashMap::new(),
            free,
            of_all: first,
        })
    }

    /// A service's. `None` if there is no memory for it: then all is logged.
    pub(crate) fn of(&mut self, service: &str) -> Option<Quota> {
        if let Some(quota) = self.known.get(service) {
            return Some(*quota);
        }
        if self.free.len() < 2 {
            self.free = sys::shared_numbers(AT_ONCE).ok()?;
        }
        let (own, free) = self.free.split_at_checked(2)?;
        self.free = free;
        let quota = Quota {
            second: &own[0],
            left_out: &own[1],
            of_all: self.of_all,
        };
        self.known.insert(service.to_owned(), quota);
        Some(quota)
    }

    /// Whether there is a line that was left out, and not told of.
    pub(crate) fn left_some_out(&self) -> bool {
        self.of_all.load(Ordering::Relaxed) > 0
    }

    /// How many lines were left out since this was last asked for, by service.
    pub(crate) fn take_left_out(&self) -> Vec<(&str, u64)> {
        self.of_all.store(0, Ordering::Relaxed);
        let taken = self.known.iter().map(|(service, quota)| {
            let count = quota.left_out.swap(0, Ordering::Relaxed);
            (service.as_str(), count)
        });
        taken.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_begins_with_its_first_line() {
        let start = 12_345;
        let mut second = 0;
        for _ in 0..MOST {
            second = count(second, start + 5).unwrap();
        }
        assert_eq!(count(second, start + 5), None);
        assert_eq!(count(second, start + 5 + WINDOW - 1), None);
        let next = count(second, start + 5 + WINDOW).unwrap();
        assert_eq!(next, (start + 5 + WINDOW) << COUNT_BITS | 1);
    }

    #[test]
    fn each_service_has_its_own_and_the_same_again() {
        let mut quotas = Quotas::new().unwrap();
        for number in 0..2 * AT_ONCE {
            let service = format!("*:{number}");
            for _ in 0..=MOST {
                quotas.of(&service).unwrap().take();
            }
        }
        let left_out = quotas.take_left_out();
        assert_eq!(left_out.len(), 2 * AT_ONCE);
        assert!(left_out.iter().all(|(_, count)| *count >= 1));
        assert!(!quotas.left_some_out());
    }
}
