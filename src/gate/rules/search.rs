//! The first rule that matches, without a look at all of them: networks are sorted, so that each
//! length of prefix takes one search; patterns are walked.

use std::net::IpAddr;
use std::ops::Range;

use super::pattern::{Asked, Pattern};
use super::{Effect, Rule};

/// Where the rules of a list stand, by what they are about.
#[derive(Debug)]
pub(super) struct Search {
    allow: Side,
    deny: Side,
}

/// The rules of one effect. Each is known by its index in the list.
#[derive(Debug, Default)]
struct Side {
    /// The first that is about everybody.
    any: Option<usize>,
    /// Networks, by family, length of prefix and number; of equal ones the first.
    networks: Vec<(Network, usize)>,
    /// Where those of each family and length are.
    lengths: Vec<(Family, u32, Range<usize>)>,
    texts: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Network {
    family: Family,
    prefix: u32,
    /// The bits of the prefix, and none behind it.
    number: u128,
}

impl Network {
    fn of(address: IpAddr, prefix: u32) -> Network {
        let (family, width, bits) = match address {
            IpAddr::V4(v4) => (Family::V4, 32, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (Family::V6, 128, v6.to_bits()),
        };
        Network {
            family,
            prefix,
            // Nothing is left of them where the prefix is 0.
            number: bits.checked_shr(width - prefix).unwrap_or(0),
        }
    }
}

impl Search {
    pub(super) fn of(rules: &[Rule]) -> Search {
        Search {
            allow: Side::of(rules, Effect::Allow),
            deny: Side::of(rules, Effect::Deny),
        }
    }

    /// The index of the first of these rules, from which it was made, that has this effect and
    /// matches.
    pub(super) fn first(&self, rules: &[Rule], effect: Effect, asked: &Asked) -> Option<usize> {
        let side = match effect {
            Effect::Allow => &self.allow,
            Effect::Deny => &self.deny,
        };
        let network = asked.address.and_then(|client| side.first_network(client));
        let best = side.any.into_iter().chain(network).min();
        let before_best = side
            .texts
            .iter()
            .take_while(|text| best.is_none_or(|best| **text < best));
        let text = before_best
            .copied()
            .find(|&text| rules[text].pattern.matches(asked));
        text.or(best)
    }
}

impl Side {
    fn of(rules: &[Rule], effect: Effect) -> Side {
        let mut side = Side::default();
        let of_effect = rules.iter().enumerate();
        for (index, rule) in of_effect.filter(|(_, rule)| rule.effect == effect) {
            match rule.pattern {
                Pattern::Any => side.any = side.any.or(Some(index)),
                Pattern::Network { address, prefix } => {
                    let network = Network::of(address, u32::from(prefix));
                    side.networks.push((network, index));
                }
                Pattern::Text(_) => side.texts.push(index),
            }
        }
        side.networks.sort_unstable();
        side.networks.dedup_by_key(|(network, _)| *network);
        side.networks.shrink_to_fit();
        let mut start = 0;
        for length in side
            .networks
            .chunk_by(|(one, _), (next, _)| (one.family, one.prefix) == (next.family, next.prefix))
        {
            let (network, _) = length[0];
            let end = start + length.len();
            side.lengths
                .push((network.family, network.prefix, start..end));
            start = end;
        }
        side
    }

    fn first_network(&self, client: IpAddr) -> Option<usize> {
        let family = Network::of(client, 0).family;
        let lengths = self.lengths.iter();
        lengths
            .filter(|(of, ..)| *of == family)
            .filter_map(|(_, prefix, range)| {
                let wanted = Network::of(client, *prefix);
                let networks = &self.networks[range.clone()];
                let found = networks.binary_search_by_key(&wanted, |(network, _)| *network);
                found.ok().map(|at| networks[at].1)
            })
            .min()
    }
}
