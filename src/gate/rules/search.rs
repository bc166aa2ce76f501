//! The first rule that matches, without a look at all of them: networks are sorted, so that each
//! length of prefix takes one search; patterns are walked.

use std::net::IpAddr;
use std::ops::Range;

use super::pattern::{Asked, Pattern};
use super::{Effect, Rule};

/// Where the rules of a list stand, by what they are about.
#[derive(Debug)]
pub(super) struct Search {
    allow: Ways,
    deny: Ways,
}

/// The rules of one effect. Each is known by its index in the list.
#[derive(Debug, Default)]
struct Ways {
    /// The first that is about everybody.
    any: Option<usize>,
    v4: Networks<u32>,
    v6: Networks<u128>,
    texts: Vec<usize>,
}

/// Networks of one family, by length of prefix and the bits of the prefix alone; of equal ones the
/// first. Small, since each process that is forked for a connection has its tables of pages copied.
#[derive(Debug)]
struct Networks<N> {
    /// Length, bits, and the rule's index.
    sorted: Vec<(u8, N, u32)>,
    /// Where those of each length are.
    lengths: Vec<(u8, Range<usize>)>,
}

impl<N> Default for Networks<N> {
    fn default() -> Networks<N> {
        Networks {
            sorted: Vec::new(),
            lengths: Vec::new(),
        }
    }
}

/// The bits of an address within a prefix; nothing is left of them where that has none.
fn prefix_v4(address: u32, prefix: u8) -> u32 {
    address.checked_shr(32 - u32::from(prefix)).unwrap_or(0)
}

fn prefix_v6(address: u128, prefix: u8) -> u128 {
    address.checked_shr(128 - u32::from(prefix)).unwrap_or(0)
}

impl Search {
    /// The search in these rules, of which there are fewer than 2^32.
    pub(super) fn of(rules: &[Rule]) -> Search {
        Search {
            allow: Ways::of(rules, Effect::Allow),
            deny: Ways::of(rules, Effect::Deny),
        }
    }

    /// The index of the first of these rules, from which it was made, that has this effect and
    /// matches.
    pub(super) fn first(&self, rules: &[Rule], effect: Effect, asked: &Asked) -> Option<usize> {
        let ways = match effect {
            Effect::Allow => &self.allow,
            Effect::Deny => &self.deny,
        };
        let network = match asked.address {
            Some(IpAddr::V4(v4)) => ways.v4.first(|prefix| prefix_v4(v4.to_bits(), prefix)),
            Some(IpAddr::V6(v6)) => ways.v6.first(|prefix| prefix_v6(v6.to_bits(), prefix)),
            None => None,
        };
        let best = ways.any.into_iter().chain(network).min();
        let before_best = ways
            .texts
            .iter()
            .take_while(|text| best.is_none_or(|best| **text < best));
        let text = before_best
            .copied()
            .find(|&text| rules[text].about.pattern().matches(asked));
        text.or(best)
    }
}

impl Ways {
    fn of(rules: &[Rule], effect: Effect) -> Ways {
        let mut ways = Ways::default();
        let of_effect = rules.iter().enumerate();
        for (index, rule) in of_effect.filter(|(_, rule)| rule.effect == effect) {
            match *rule.about.pattern() {
                Pattern::Any => ways.any = ways.any.or(Some(index)),
                Pattern::Network { address, prefix } => match address {
                    IpAddr::V4(v4) => ways.v4.push(prefix, prefix_v4(v4.to_bits(), prefix), index),
                    IpAddr::V6(v6) => ways.v6.push(prefix, prefix_v6(v6.to_bits(), prefix), index),
                },
                Pattern::Text(_) => ways.texts.push(index),
            }
        }
        ways.v4.sort();
        ways.v6.sort();
        ways
    }
}

impl<N: Copy + Ord> Networks<N> {
    fn push(&mut self, prefix: u8, bits: N, index: usize) {
        self.sorted.push((prefix, bits, index as u32));
    }

    fn sort(&mut self) {
        self.sorted.sort_unstable();
        self.sorted
            .dedup_by_key(|&mut (prefix, bits, _)| (prefix, bits));
        self.sorted.shrink_to_fit();
        let mut start = 0;
        for length in self.sorted.chunk_by(|one, next| one.0 == next.0) {
            let end = start + length.len();
            self.lengths.push((length[0].0, start..end));
            start = end;
        }
    }

    /// The first rule about a client whose address has these bits within a prefix.
    fn first(&self, bits: impl Fn(u8) -> N) -> Option<usize> {
        let lengths = self.lengths.iter();
        lengths
            .filter_map(|(prefix, range)| {
                let wanted = bits(*prefix);
                let networks = &self.sorted[range.clone()];
                let found = networks.binary_search_by_key(&wanted, |&(_, bits, _)| bits);
                found.ok().map(|at| networks[at].2 as usize)
            })
            .min()
    }
}
