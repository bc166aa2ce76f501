//! How many sessions one client address may have, and how often it may begin one. Pure: counts and
//! clocks come in from whoever keeps them.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::terms::endpoint::Endpoint;
use crate::terms::escape::brief;
use crate::terms::reason::Reason;
use crate::terms::value::{self, Complaint};

/// What one client address may do.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// Sessions at once.
    pub(crate) max_per_source: Option<usize>,
    /// New sessions in a time.
    pub(crate) rate: Option<Rate>,
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

/// Whom limits count as one client: an IPv4 address, or the /64 of an IPv6 address, which is what
/// one customer is given at least (RFC 6177).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// An IPv4 address.
    V4(u32),
    /// The first 64 bits of an IPv6 address.
    V6(u64),
}

impl Source {
    /// The source that a client counts as; `None` for unix-domain clients, which have no address.
    pub(crate) fn of(client: &Endpoint) -> Option<Source> {
        match client {
            Endpoint::Inet(address) => Some(match address.ip() {
                IpAddr::V4(v4) => Source::V4(v4.to_bits()),
                IpAddr::V6(v6) => Source::V6((v6.to_bits() >> 64) as u64),
            }),
            Endpoint::Unix => None,
        }
    }
}

/// The sources that one server knows of: by service, since each has limits of its own.
pub(crate) struct Sources {
    known: HashMap<(String, Source), Known>,
    epoch: Instant,
    /// How many are kept before those that have nothing to remember are dropped.
    tidy_at: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    live: usize,
    full_at: Duration,
}

/// A session that counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Counted {
    service: String,
    source: Source,
}

/// Below so many known sources there is nothing to tidy.
const TIDY_AT_LEAST: usize = 1024;

impl Default for Sources {
    fn default() -> Sources {
        Sources {
            known: HashMap::new(),
            epoch: Instant::now(),
            tidy_at: TIDY_AT_LEAST,
        }
    }
}

impl Sources {
    /// Counts a new session of this client at this service, or says why it may not begin. A
    /// session that may not costs no token, so that a client recovers while it is refused.
    pub(crate) fn begin(
        &mut self,
        service: &str,
        client: &Endpoint,
        limits: &Limits,
        now: Instant,
    ) -> Result<Option<Counted>, Reason> {
        let Some(source) = Source::of(client) else {
            return Ok(None);
        };
        // Counted even without limits: a reload may bring some.
        self.tidy(now);
        let now = now.duration_since(self.epoch);
        let counted = Counted {
            service: service.to_owned(),
            source,
        };
        let known = self.known.entry((service.to_owned(), source)).or_default();
        if limits.max_per_source.is_some_and(|most| known.live >= most) {
            return Err(Reason::TooManyFromClient);
        }
        if let Some(rate) = limits.rate {
            known.full_at = rate.at_most_empty(known.full_at, now);
            known.full_at = rate
                .take(known.full_at, now)
                .ok_or(Reason::TooFastFromClient)?;
        }
        known.live += 1;
        Ok(Some(counted))
    }

    /// Counts a session no more.
    pub(crate) fn end(&mut self, counted: &Counted) {
        let key = (counted.service.clone(), counted.source);
        if let Some(known) = self.known.get_mut(&key) {
            known.live = known.live.saturating_sub(1);
        }
    }

    /// Forgets sources without a session whose bucket is full: they are as good as unknown. Done
    /// when there are twice as many as were left the last time, so that it costs each new source
    /// next to nothing.
    fn tidy(&mut self, now: Instant) {
        if self.known.len() < self.tidy_at {
            return;
        }
        let now = now.duration_since(self.epoch);
        self.known
            .retain(|_, known| known.live > 0 || known.full_at > now);
        self.tidy_at = (self.known.len() * 2).max(TIDY_AT_LEAST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> Endpoint {
        Endpoint::Inet((address.parse::<IpAddr>().unwrap(), 50_000).into())
    }

    fn after(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

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

    #[test]
    fn a_burst_passes_then_the_average_and_refusals_cost_nothing() {
        let limits = Limits {
            max_per_source: None,
            rate: Some(Rate::parse("2/1s:3").unwrap()),
        };
        let mut sources = Sources::default();
        let start = sources.epoch;
        let mut begins = |at| {
            sources
                .begin("25", &client("192.0.2.1"), &limits, after(start, at))
                .is_ok()
        };
        assert!(begins(0) && begins(1) && begins(2));
        for refused in 3..400 {
            assert!(!begins(refused));
        }
        // One token in half a second, however often it was tried in between.
        assert!(begins(501) && !begins(502) && begins(1002));
        // And never more than the burst, however long it was quiet.
        assert!(begins(60_000) && begins(60_000) && begins(60_000) && !begins(60_000));
    }

    #[test]
    fn sessions_of_one_address_are_counted_by_service_and_by_64_bits() {
        let limits = Limits {
            max_per_source: Some(1),
            rate: None,
        };
        let mut sources = Sources::default();
        let now = sources.epoch;
        let mut begin = |service, address| sources.begin(service, &client(address), &limits, now);
        let counted = begin("25", "2001:db8:0:1::1").unwrap().unwrap();
        assert_eq!(
            begin("25", "2001:db8:0:1:ffff::2"),
            Err(Reason::TooManyFromClient)
        );
        assert!(begin("25", "2001:db8:0:2::1").is_ok());
        assert!(begin("26", "2001:db8:0:1::1").is_ok());
        assert!(begin("25", "192.0.2.1").is_ok());
        sources.end(&counted);
        let mut begin = |service, address| sources.begin(service, &client(address), &limits, now);
        assert!(begin("25", "2001:db8:0:1::3").is_ok());
    }

    #[test]
    fn what_is_known_of_sources_does_not_grow_for_ever() {
        let limits = Limits {
            max_per_source: Some(1),
            rate: Some(Rate::parse("1/1s").unwrap()),
        };
        let mut sources = Sources::default();
        let start = sources.epoch;
        for number in 0..100_000_u32 {
            let address = IpAddr::from(number.to_be_bytes());
            let client = Endpoint::Inet((address, 1).into());
            let now = after(start, u64::from(number));
            let counted = sources.begin("25", &client, &limits, now).unwrap().unwrap();
            sources.end(&counted);
        }
        // A thousand began within the last second, and may be remembered twice over.
        assert!(
            sources.known.len() <= 2 * 1024 + 1,
            "{}",
            sources.known.len()
        );
    }
}
