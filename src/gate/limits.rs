//! How many sessions one client may have, and how often it may begin one. Pure: counts and clocks come
//! in from whoever keeps them.

use std::fmt;
use std::time::Duration;

use crate::terms::escape::brief;
use crate::terms::value::{self, Complaint};

/// What one client address may do.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// Sessions at once.
    pub(crate) max_per_source: Option<usize>,
    /// New sessions in a time.
    pub(crate) rate: Option<Rate>,
}

impl Limits {
    /// Whether there is no limit.
    pub(crate) fn are_none(&self) -> bool {
        self.max_per_source.is_none() && self.rate.is_none()
    }
}

/// How often: a token bucket that holds `burst` tokens and gains `count` in `period`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    count: u32,
    period: Duration,
    burst: u32,
}

impl Rate {
    /// Parses `N/S` or `N/S:B`: N sessions in S seconds on average, B of them at once (N if it is
    /// not said).
    pub(crate) fn parse(text: &str) -> Result<Rate, Complaint> {
        let bad = || {
            format!(
                "'{}' is not a rate: write sessions/seconds, as in 10/60, or sessions/seconds:burst",
                brief(text)
            )
        };
        let positive = |text: &str| value::whole_number::<u32>(text).filter(|&count| count > 0);
        let (count, rest) = text.split_once('/').ok_or_else(bad)?;
        let (period, burst) = match rest.split_once(':') {
            Some((period, burst)) => (period, Some(burst)),
            None => (rest, None),
        };
        let count = positive(count).ok_or_else(bad)?;
        Ok(Rate {
            count,
            period: value::some_seconds(period).map_err(|_| bad())?,
            burst: match burst {
                Some(burst) => positive(burst).ok_or_else(bad)?,
                None => count,
            },
        })
    }

    /// The time in which one token is gained.
    fn interval(&self) -> Duration {
        self.period / self.count
    }

    /// The time in which an empty bucket fills.
    pub(crate) fn longest(&self) -> Duration {
        self.interval().saturating_mul(self.burst)
    }

    /// A bucket's level as it can be: none is emptier than its size, although the clock may have
    /// been put back since it was noted, or the rate may have been another.
    pub(crate) fn at_most_empty(&self, full_at: Duration, now: Duration) -> Duration {
        full_at.min(now.saturating_add(self.longest()))
    }

    /// Takes a token from a bucket, in which the level is told by when it will be full again
    /// (`full_at`, counted from any moment that `now` is counted from). Returns the new time, or
    /// nothing if there is no token.
    pub(crate) fn take(&self, full_at: Duration, now: Duration) -> Option<Duration> {
        let full_at = full_at.max(now).saturating_add(self.interval());
        // A burst is as many tokens as the bucket holds: so many intervals until it is full.
        (full_at - now <= self.longest()).then_some(full_at)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Rate {
            count,
            period,
            burst,
        } = self;
        write!(f, "{count}/{}ms:{burst}", period.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_with_and_without_a_burst() {
        for (text, shown) in [
            ("10/60", "10/60000ms:10"),
            ("1/500ms:3", "1/500ms:3"),
            ("2/1m:1", "2/60000ms:1"),
        ] {
            let rate = Rate::parse(text).unwrap();
            assert_eq!(rate.to_string(), shown);
            assert_eq!(Rate::parse(shown).unwrap(), rate);
        }
        for text in [
            "", "10", "0/60", "10/0", "10/60:0", "-1/1", "a/b", "1/1:", "1/1:1:1", "/",
        ] {
            assert!(Rate::parse(text).is_err(), "{text}");
        }
    }
}
