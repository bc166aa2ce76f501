//! What a session is to be held back by, as it is written and shown.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::process;
use std::time::{Duration, Instant, SystemTime};

use super::Side;
use super::pace::Pace;
use crate::terms::escape::brief;
use crate::terms::value::{self, Complaint};

/// What each direction of a session is held back by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pacing {
    pub(crate) bandwidth: Bandwidth,
    pub(crate) delay: Delay,
}

/// Bytes a second, by the side that they come from; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Bandwidth([Option<NonZeroU32>; 2]);

/// How long a block is held back on average, by the side that it comes from; 0 is not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Delay([Duration; 2]);

/// The most bytes a second that can be asked for: just under 4 GiB.
const FASTEST: usize = u32::MAX as usize;

/// The longest delay: who writes more has meant milliseconds.
const SLOWEST: Duration = Duration::from_secs(3600);

impl Pacing {
    /// Whether nothing is held back.
    pub(crate) fn is_none(&self) -> bool {
        *self == Pacing::default()
    }

    /// The pace of what comes from a side, if it has one.
    pub(super) fn of(&self, from: Side, now: Instant) -> Option<Pace> {
        let bandwidth = self.bandwidth.0[from as usize];
        let delay = self.delay.0[from as usize];
        Pace::new(bandwidth, delay, seed(), now)
    }
}

/// Another number each time. std's keys are random, but those of a process that was forked are its
/// parent's.
fn seed() -> u64 {
    RandomState::new().hash_one((process::id(), SystemTime::now()))
}

impl Bandwidth {
    /// Parses `N` or `N:M`: bytes a second from the client to the upstream, and the other way (N if it
    /// is not said); 0 is no limit.
    pub(crate) fn parse(text: &str) -> Result<Bandwidth, Complaint> {
        let rate = |text: &str| value::size(text, 0, FASTEST);
        each_way(text, rate).map(|rates| {
            Bandwidth(rates.map(|rate| u32::try_from(rate).ok().and_then(NonZeroU32::new)))
        })
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        show_each_way(f, self.0.map(|rate| rate.map_or(0, NonZeroU32::get)))
    }
}

impl Delay {
    /// Parses `S` or `S:T`: how long what the client sends is held back on average, and what the
    /// upstream sends (S if it is not said).
    pub(crate) fn parse(text: &str) -> Result<Delay, Complaint> {
        let time = |text: &str| match value::seconds(text)? {
            time if time > SLOWEST => Err(format!(
                "'{}' is out of range: write at most an hour",
                brief(text)
            )),
            time => Ok(time),
        };
        each_way(text, time).map(Delay)
    }
}

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        show_each_way(
            f,
            self.0.map(|time| match time.subsec_nanos() {
                0 => time.as_secs().to_string(),
                _ => format!("{}ms", time.as_millis()),
            }),
        )
    }
}

/// One value for each way, or one for both.
fn each_way<T: Copy>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, Complaint>,
) -> Result<[T; 2], Complaint> {
    match text.split_once(':') {
        Some((one, other)) => Ok([parse(one)?, parse(other)?]),
        None => parse(text).map(|both| [both; 2]),
    }
}

fn show_each_way<T: fmt::Display + PartialEq>(
    f: &mut fmt::Formatter,
    [one, other]: [T; 2],
) -> fmt::Result {
    if one == other {
        write!(f, "{one}")
    } else {
        write!(f, "{one}:{other}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bandwidth_is_for_both_ways_or_for_each() {
        for (text, shown) in [
            ("100", "100"),
            ("1k:2m", "1024:2097152"),
            ("0:5", "0:5"),
            ("4294967295", "4294967295"),
        ] {
            let bandwidth = Bandwidth::parse(text).unwrap();
            assert_eq!(bandwidth.to_string(), shown);
            assert_eq!(Bandwidth::parse(shown).unwrap(), bandwidth);
        }
        assert_eq!(Bandwidth::parse("0").unwrap(), Bandwidth::default());
        for text in [
            "", ":", "1:", ":1", "1:2:3", "-1", "1.5", "x", "4g", "4096m",
        ] {
            assert!(Bandwidth::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_delay_is_for_both_ways_or_for_each() {
        for (text, shown) in [
            ("1", "1"),
            ("20ms:0", "20ms:0"),
            ("1h:1500ms", "3600:1500ms"),
        ] {
            let delay = Delay::parse(text).unwrap();
            assert_eq!(delay.to_string(), shown);
            assert_eq!(Delay::parse(shown).unwrap(), delay);
        }
        assert_eq!(Delay::parse("0").unwrap(), Delay::default());
        for text in ["", ":", "1:", ":1", "1:2:3", "-1", "x", "3601"] {
            assert!(Delay::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_two_sessions_have_the_same_delays() {
        assert_ne!(seed(), seed());
    }
}
