//! Access rules: which client addresses may pass. Pure; no name is ever looked up for them.
//!
//! Thousands of services may have the same thousands of rules: those of a scope are a [`List`], which
//! all that is within shares.

mod pattern;
mod search;

use std::cell::OnceCell;
use std::fmt;
use std::rc::Rc;

use crate::terms::endpoint::Endpoint;
use crate::terms::place::Place;
use crate::terms::value::Complaint;
use pattern::{Asked, Pattern};
use search::Search;

#[derive(Debug, Clone)]
pub(crate) struct Rule {
    effect: Effect,
    about: About,
    place: Place,
}

/// The clients that a rule is about. Without a text of its own, as most are: a fork copies the tables of
/// all the pages that thousands of rules take, for each connection.
#[derive(Debug, Clone)]
enum About {
    /// These, and written as the pattern is shown.
    Plain(Pattern),
    /// Written otherwise.
    Respelt(Box<(Pattern, String)>),
}

impl PartialEq for Rule {
    /// Wherever they stand, and however they are spelt, rules are equal if they decide equally.
    fn eq(&self, other: &Rule) -> bool {
        (self.effect, self.about.pattern()) == (other.effect, other.about.pattern())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Allow,
    Deny,
}

/// The rules that hold somewhere: those of the defaults, and behind them those of the service. Of each
/// level there are as many lists as there are scopes with rules, the outermost first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    defaults: Vec<Rc<List>>,
    own: Vec<Rc<List>>,
}

/// The rules of one scope, in order.
#[derive(Debug, Default)]
struct List {
    rules: Vec<Rule>,
    has_allow: bool,
    /// The quick way to the first rule that matches, where there is one.
    search: OnceCell<Search>,
}

/// Lists that are no longer are walked: that takes no longer than a search.
const WALKED: usize = 32;

/// Where allow rules have to match: `--allow-levels`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum AllowLevels {
    /// In the defaults or in the service.
    #[default]
    Any,
    /// In each of them that has some.
    Each,
}

impl AllowLevels {
    /// The ways by name.
    pub(crate) const WORDS: &[(&str, AllowLevels)] =
        &[("any", AllowLevels::Any), ("each", AllowLevels::Each)];
}

/// What rules say of a client, and which of them says it.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict<'a> {
    /// It may pass: by an allow rule, or by one of each level; or as there is none and no deny rule
    /// matches.
    Pass([Option<&'a Rule>; 2]),
    /// It may not.
    Refuse(Denial<'a>),
}

/// Why a client may not pass.
#[derive(Debug, PartialEq)]
pub(crate) enum Denial<'a> {
    /// This deny rule matches.
    By(&'a Rule),
    NotAllowed,
    /// No allow rule of the defaults matches.
    NotAllowedByDefaults,
    /// No allow rule of the service matches.
    NotAllowedByService,
}

impl fmt::Display for Denial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Denial::By(rule) => write!(f, "{rule} ({})", rule.place()),
            Denial::NotAllowed => f.write_str("no allow rule matches"),
            Denial::NotAllowedByDefaults => f.write_str("no allow rule of the defaults matches"),
            Denial::NotAllowedByService => f.write_str("no allow rule of the service matches"),
        }
    }
}

/// What the allow rules of some lists say.
enum Opinion<'a> {
    /// There are none.
    Silent,
    Yes(&'a Rule),
    No,
}

impl PartialEq for Rules {
    /// Rules are equal if they decide equally, however they are divided into scopes.
    fn eq(&self, other: &Rules) -> bool {
        in_order(&self.defaults).eq(in_order(&other.defaults)) && self.own().eq(other.own())
    }
}

fn in_order(lists: &[Rc<List>]) -> impl Iterator<Item = &Rule> {
    lists.iter().flat_map(|list| &list.rules)
}

impl Rules {
    /// Adds a rule behind those of its scope.
    pub(crate) fn push(&mut self, rule: Rule) {
        // One that is shared is another scope's.
        match self.own.last_mut().and_then(Rc::get_mut) {
            Some(list) => list.push(rule),
            None => {
                let mut list = List::default();
                list.push(rule);
                self.own.push(Rc::new(list));
            }
        }
    }

    /// Those of a scope within another one of the same level.
    pub(crate) fn within(self, outer: &Rules) -> Rules {
        Rules {
            defaults: outer.defaults.clone(),
            own: outer.own.iter().cloned().chain(self.own).collect(),
        }
    }

    /// Those of a service for which these defaults hold.
    pub(crate) fn of_service(self, defaults: &Rules) -> Rules {
        Rules {
            defaults: defaults.own.clone(),
            own: self.own,
        }
    }

    /// Those of its own level.
    pub(crate) fn own(&self) -> impl Iterator<Item = &Rule> {
        in_order(&self.own)
    }

    /// Makes a search of each long list, for whoever is to judge many clients: for one it would take
    /// longer than it saves.
    pub(crate) fn prepare(&self) {
        for list in self.defaults.iter().chain(&self.own) {
            if list.rules.len() > WALKED {
                list.search.get_or_init(|| Search::of(&list.rules));
            }
        }
    }

    /// Judges a client: a deny that matches refuses; where there are allows, one must match. With
    /// levels of their own it is told, as in rinetd, that none does before a deny is told.
    pub(crate) fn judge(&self, client: &Endpoint, levels: AllowLevels) -> Verdict<'_> {
        let asked = Asked::about(client);
        match levels {
            AllowLevels::Any => {
                let all = || self.defaults.iter().chain(&self.own);
                if let Some(deny) = denying(all(), &asked) {
                    return Verdict::Refuse(Denial::By(deny));
                }
                match opinion(all(), &asked) {
                    Opinion::Silent => Verdict::Pass([None, None]),
                    Opinion::Yes(allow) => Verdict::Pass([Some(allow), None]),
                    Opinion::No => Verdict::Refuse(Denial::NotAllowed),
                }
            }
            AllowLevels::Each => {
                let mut allows = [None; 2];
                let levels = [
                    (&self.defaults, Denial::NotAllowedByDefaults),
                    (&self.own, Denial::NotAllowedByService),
                ];
                for (allow, (lists, not_allowed)) in allows.iter_mut().zip(levels) {
                    *allow = match opinion(lists.iter(), &asked) {
                        Opinion::Silent => None,
                        Opinion::Yes(allow) => Some(allow),
                        Opinion::No => return Verdict::Refuse(not_allowed),
                    };
                    if let Some(deny) = denying(lists.iter(), &asked) {
                        return Verdict::Refuse(Denial::By(deny));
                    }
                }
                Verdict::Pass(allows)
            }
        }
    }
}

fn denying<'a>(mut lists: impl Iterator<Item = &'a Rc<List>>, asked: &Asked) -> Option<&'a Rule> {
    lists.find_map(|list| list.first(Effect::Deny, asked))
}

fn opinion<'a>(lists: impl Iterator<Item = &'a Rc<List>>, asked: &Asked) -> Opinion<'a> {
    let mut opinion = Opinion::Silent;
    for list in lists.filter(|list| list.has_allow) {
        match list.first(Effect::Allow, asked) {
            Some(allow) => return Opinion::Yes(allow),
            None => opinion = Opinion::No,
        }
    }
    opinion
}

impl List {
    fn push(&mut self, rule: Rule) {
        self.has_allow |= rule.is_allow();
        self.rules.push(rule);
        self.search = OnceCell::new();
    }

    /// The first rule of an effect that matches.
    fn first(&self, effect: Effect, asked: &Asked) -> Option<&Rule> {
        match self.search.get() {
            Some(search) => search
                .first(&self.rules, effect, asked)
                .map(|index| &self.rules[index]),
            None => self.walk(effect, asked),
        }
    }

    fn walk(&self, effect: Effect, asked: &Asked) -> Option<&Rule> {
        let mut rules = self.rules.iter();
        rules.find(|rule| rule.effect == effect && rule.about.pattern().matches(asked))
    }
}

impl Rule {
    /// A rule that lets clients pass.
    pub(crate) fn allow(pattern: &str, place: Place) -> Result<Rule, Complaint> {
        Rule::new(Effect::Allow, pattern, place)
    }

    /// A rule that refuses clients.
    pub(crate) fn deny(pattern: &str, place: Place) -> Result<Rule, Complaint> {
        Rule::new(Effect::Deny, pattern, place)
    }

    fn new(effect: Effect, pattern: &str, place: Place) -> Result<Rule, Complaint> {
        Ok(Rule {
            effect,
            about: About::parse(pattern)?,
            place,
        })
    }

    /// Whether it lets clients pass, rather than refusing them.
    pub(crate) fn is_allow(&self) -> bool {
        self.effect == Effect::Allow
    }

    /// The clients it is about, as it was written.
    pub(crate) fn pattern(&self) -> String {
        match &self.about {
            About::Plain(pattern) => pattern.to_string(),
            About::Respelt(respelt) => respelt.1.clone(),
        }
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
}

impl About {
    fn parse(text: &str) -> Result<About, Complaint> {
        let pattern = Pattern::parse(text)?;
        Ok(if pattern.to_string() == text {
            About::Plain(pattern)
        } else {
            About::Respelt(Box::new((pattern, text.to_owned())))
        })
    }

    fn pattern(&self) -> &Pattern {
        match self {
            About::Plain(pattern) => pattern,
            About::Respelt(respelt) => &respelt.0,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let effect = match self.effect {
            Effect::Allow => "allow",
            Effect::Deny => "deny",
        };
        write!(f, "{effect} {}", self.pattern())
    }
}

#[cfg(test)]
mod tests;
