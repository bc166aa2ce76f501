//! Whose word is taken for who a client is. Decided by the peer's address alone, before a byte is read:
//! where it was guessed from the bytes, any client could be anybody.

use super::{AllowLevels, Rules, Verdict};
use crate::terms::endpoint::Endpoint;

/// Who has to announce its clients, and what happens to the others.
#[derive(Debug, Default)]
pub(crate) struct Proxies {
    /// Those of `accept-proxy`; without any, nobody announces clients.
    rules: Option<Rules>,
    others: Others,
}

/// What happens to those who are no proxies, where there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Others {
    /// They are refused.
    #[default]
    Refuse,
    /// They are clients themselves.
    Serve,
}

impl Others {
    /// The ways by name.
    pub(crate) const WORDS: &[(&str, Others)] =
        &[("refuse", Others::Refuse), ("serve", Others::Serve)];
}

/// What somebody who has connected is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// A client.
    Client,
    /// A proxy, which says who the client is.
    Proxy,
    /// Neither: a proxy was expected.
    Stranger,
}

impl Proxies {
    /// Those whom one of these rules, all of them allow rules, matches.
    pub(crate) fn new(rules: Rules, others: Others) -> Proxies {
        let are_there = rules.own().next().is_some();
        Proxies {
            rules: are_there.then_some(rules),
            others,
        }
    }

    pub(crate) fn judge(&self, peer: &Endpoint) -> Standing {
        let Some(rules) = &self.rules else {
            return Standing::Client;
        };
        match (rules.judge(peer, AllowLevels::Any), self.others) {
            (Verdict::Pass(_), _) => Standing::Proxy,
            (Verdict::Refuse(_), Others::Serve) => Standing::Client,
            (Verdict::Refuse(_), Others::Refuse) => Standing::Stranger,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::Rule;
    use crate::terms::place::Place;

    #[test]
    fn only_those_named_are_proxies_and_others_are_what_was_asked_for() {
        let peer = |text: &str| Endpoint::inet(text.parse().unwrap());
        let rules = |texts: &[&str]| {
            let mut rules = Rules::default();
            for text in texts {
                rules.push(Rule::allow(text, Place::CommandLine).unwrap());
            }
            rules
        };
        for others in [Others::Refuse, Others::Serve] {
            let none = Proxies::new(rules(&[]), others);
            assert_eq!(none.judge(&peer("192.0.2.1:1")), Standing::Client);
            let some = Proxies::new(rules(&["192.0.2.1", "2001:db8::/32"]), others);
            for proxy in ["192.0.2.1:1", "[::ffff:192.0.2.1]:1", "[2001:db8::1]:1"] {
                assert_eq!(some.judge(&peer(proxy)), Standing::Proxy, "{proxy}");
            }
            let other = match others {
                Others::Refuse => Standing::Stranger,
                Others::Serve => Standing::Client,
            };
            assert_eq!(some.judge(&peer("192.0.2.2:1")), other);
            assert_eq!(some.judge(&Endpoint::Unix), other);
        }
    }
}
