//! The counts that a server keeps in its memory.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Limits;
use super::ledger::{Ledger, Refusal, Seat};
use crate::terms::client_key::ClientKey;

/// The counts of one server: by service, since each has limits of its own.
pub(crate) struct Counts {
    known: RefCell<KnownClients>,
    epoch: Instant,
}

struct KnownClients {
    by_seat: HashMap<Seat, Known>,
    /// How many are kept before those that have nothing to remember are dropped.
    tidy_at: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    live: usize,
    full_at: Duration,
}

/// Below so many known clients there is nothing to tidy.
const TIDY_AT_LEAST: usize = 1024;

impl Default for Counts {
    fn default() -> Counts {
        Counts {
            known: RefCell::new(KnownClients {
                by_seat: HashMap::new(),
                tidy_at: TIDY_AT_LEAST,
            }),
            epoch: Instant::now(),
        }
    }
}

impl Counts {
    /// As [`Ledger::begin`], so long after the counts were begun.
    fn begin_at(&self, now: Duration, seat: Seat, limits: &Limits) -> Result<Seat, Refusal> {
        let mut known = self.known.borrow_mut();
        known.tidy(now);
        // Counted even without limits: a reload may bring some.
        let client = known.by_seat.entry(seat.clone()).or_default();
        if limits
            .max_per_source
            .is_some_and(|most| client.live >= most)
        {
            return Err(Refusal::TooMany);
        }
        if let Some(rate) = limits.rate {
            client.full_at = rate.at_most_empty(client.full_at, now);
            client.full_at = rate.take(client.full_at, now).ok_or(Refusal::TooFast)?;
        }
        client.live += 1;
        Ok(seat)
    }
}

impl Ledger for Counts {
    fn begin(&self, service: &str, client: ClientKey, limits: &Limits) -> Result<Seat, Refusal> {
        let seat = Seat {
            service: service.to_owned(),
            client,
        };
        self.begin_at(self.epoch.elapsed(), seat, limits)
    }

    fn end(&self, seat: &Seat) {
        if let Some(client) = self.known.borrow_mut().by_seat.get_mut(seat) {
            client.live = client.live.saturating_sub(1);
        }
    }
}

impl KnownClients {
    /// Forgets clients without a session whose bucket is full: they are as good as unknown. Done
    /// when there are twice as many as were left the last time, so that it costs each new client
    /// next to nothing.
    fn tidy(&mut self, now: Duration) {
        if self.by_seat.len() < self.tidy_at {
            return;
        }
        self.by_seat
            .retain(|_, client| client.live > 0 || client.full_at > now);
        self.tidy_at = (self.by_seat.len() * 2).max(TIDY_AT_LEAST);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::Rate;
    use super::*;
    use crate::terms::endpoint::Endpoint;

    fn seat(service: &str, address: &str) -> Seat {
        let address: IpAddr = address.parse().unwrap();
        let client = Endpoint::Inet((address, 50_000).into());
        Seat {
            service: service.to_owned(),
            client: ClientKey::of(&client).unwrap(),
        }
    }

    fn after(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_burst_passes_then_the_average_and_refusals_cost_nothing() {
        let limits = Limits {
            max_per_source: None,
            rate: Some(Rate::parse("2/1s:3").unwrap()),
        };
        let counts = Counts::default();
        let begins = |at| {
            let seat = seat("25", "192.0.2.1");
            counts.begin_at(after(at), seat, &limits).is_ok()
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
        let counts = Counts::default();
        let begin = |service, address| counts.begin_at(after(0), seat(service, address), &limits);
        let counted = begin("25", "2001:db8:0:1::1").unwrap();
        assert!(matches!(
            begin("25", "2001:db8:0:1:ffff::2"),
            Err(Refusal::TooMany)
        ));
        assert!(begin("25", "2001:db8:0:2::1").is_ok());
        assert!(begin("26", "2001:db8:0:1::1").is_ok());
        assert!(begin("25", "192.0.2.1").is_ok());
        counts.end(&counted);
        assert!(begin("25", "2001:db8:0:1::3").is_ok());
    }

    #[test]
    fn what_is_known_of_sources_does_not_grow_for_ever() {
        let limits = Limits {
            max_per_source: Some(1),
            rate: Some(Rate::parse("1/1s").unwrap()),
        };
        let counts = Counts::default();
        for number in 0..100_000_u32 {
            let seat = Seat {
                service: "25".to_owned(),
                client: ClientKey::V4(number),
            };
            let now = after(u64::from(number));
            let counted = counts.begin_at(now, seat, &limits).unwrap();
            counts.end(&counted);
        }
        // A thousand began within the last second, and may be remembered twice over.
        let known = counts.known.borrow().by_seat.len();
        assert!(known <= 2 * 1024 + 1, "{known}");
    }
}
