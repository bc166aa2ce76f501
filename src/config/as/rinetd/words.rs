//! What lines of rinetd.conf are made of: words, each at its character of the line, and what they set.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::sys::names::accounts;
use crate::terms::escape::brief;

/// What is wrong with a line, and at which character of it.
#[derive(Debug, PartialEq)]
pub(super) struct Wrong {
    pub(super) column: usize,
    pub(super) what: String,
}

pub(super) type Outcome<T> = Result<T, Wrong>;

pub(super) const NO_UDP: &str = "UDP is not forwarded, only TCP";
const RULE: &str = "bindaddress bindport connectaddress connectport";

/// A setting of ours, as it is written in our own file, and at which character of the line it stands.
#[derive(Debug, PartialEq)]
pub(super) struct Set {
    /// What rinetd calls it.
    pub(super) word: &'static str,
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) column: usize,
}

impl Set {
    /// Whether it is a rule of who may pass.
    pub(super) fn is_of_clients(&self) -> bool {
        matches!(self.name, "allow" | "deny")
    }
}

/// An address, or the name of a host.
pub(super) enum Host<'a> {
    Address(IpAddr),
    Name(&'a str),
}

impl<'a> Host<'a> {
    pub(super) fn of(word: &Word<'a>) -> Outcome<Host<'a>> {
        let text = word.text;
        let bracketed = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        if text == "0" {
            return Ok(Host::Address(Ipv4Addr::UNSPECIFIED.into()));
        }
        if let Ok(address) = text.parse() {
            return Ok(Host::Address(address));
        }
        if let Some(address) = bracketed.and_then(|inner| inner.parse::<Ipv6Addr>().ok()) {
            return Ok(Host::Address(address.into()));
        }
        let is_label = |label: &str| {
            let may_stand = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
            !label.is_empty() && !label.starts_with('-') && label.bytes().all(may_stand)
        };
        let name = text.strip_suffix('.').unwrap_or(text);
        // What looks like an address and is none would be taken for another one.
        let is_name =
            name.split('.').all(is_label) && name.contains(|c: char| c.is_ascii_alphabetic());
        if is_name {
            return Ok(Host::Name(text));
        }
        Err(word.wrong(format!(
            "'{}' is not an address: write a.b.c.d, an IPv6 address or the name of a host",
            brief(text)
        )))
    }
}

/// A part of a line.
pub(super) struct Word<'a> {
    pub(super) text: &'a str,
    pub(super) column: usize,
}

impl Word<'_> {
    pub(super) fn wrong(&self, what: impl Into<String>) -> Wrong {
        Wrong {
            column: self.column,
            what: what.into(),
        }
    }

    pub(super) fn sets(&self, word: &'static str, name: &'static str) -> Set {
        Set {
            word,
            name,
            value: self.text.to_owned(),
            column: self.column,
        }
    }

    pub(super) fn number(&self) -> Outcome<&Self> {
        let is_number = !self.text.is_empty() && self.text.bytes().all(|b| b.is_ascii_digit());
        if is_number {
            return Ok(self);
        }
        Err(self.wrong(format!("'{}' is not a number", brief(self.text))))
    }

    /// A port, with its protocol or without.
    pub(super) fn port(&self) -> Outcome<u16> {
        let (port, protocol) = self.text.split_once('/').unwrap_or((self.text, "tcp"));
        match protocol {
            "tcp" => accounts::port(port).map_err(|complaint| self.wrong(complaint)),
            "udp" => Err(self.wrong(format!("'{}': {NO_UDP}", brief(self.text)))),
            _ => Err(self.wrong(format!(
                "'{}' has a protocol that is none: write a port, or one with /tcp",
                brief(self.text)
            ))),
        }
    }
}

pub(super) fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

/// What is left of a line.
pub(super) struct Rest<'a> {
    pub(super) text: &'a str,
    /// The character that it begins with, from 1.
    column: usize,
}

impl<'a> Rest<'a> {
    pub(super) fn of(text: &'a str) -> Rest<'a> {
        Rest { text, column: 1 }
    }

    /// Whether nothing follows but a comment.
    pub(super) fn is_over(&self) -> bool {
        self.text.is_empty() || self.text.starts_with('#')
    }

    pub(super) fn here(&self) -> Word<'a> {
        Word {
            text: "",
            column: self.column,
        }
    }

    fn take(&mut self, length: usize) -> Word<'a> {
        let (text, rest) = self.text.split_at(length);
        let word = Word {
            text,
            column: self.column,
        };
        self.text = rest;
        self.column += text.chars().count();
        word
    }

    pub(super) fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> Word<'a> {
        let end = self.text.find(|c| !belongs(c));
        self.take(end.unwrap_or(self.text.len()))
    }

    pub(super) fn skip_blanks(&mut self) {
        self.take_while(is_blank);
    }

    /// Whether this came next, and is skipped.
    pub(super) fn skip(&mut self, wanted: char) -> bool {
        let is_next = self.text.starts_with(wanted);
        if is_next {
            self.take(wanted.len_utf8());
        }
        is_next
    }

    /// A word, which a comment or an opening bracket ends as well as a blank; one of an IPv6 address is
    /// part of it.
    pub(super) fn word(&mut self) -> Word<'a> {
        self.up_to(|c| is_blank(c) || matches!(c, '#' | '['))
    }

    /// The value of an option.
    pub(super) fn value(&mut self) -> Word<'a> {
        self.up_to(|c| is_blank(c) || matches!(c, '#' | ',' | ']'))
    }

    fn up_to(&mut self, ends: impl Fn(char) -> bool) -> Word<'a> {
        let address = match self.text.find(']') {
            Some(end) if self.text.starts_with('[') => end + 1,
            _ => 0,
        };
        let end = self.text[address..].find(ends).map(|end| address + end);
        self.take(end.unwrap_or(self.text.len()))
    }

    /// A part of a forwarding rule.
    pub(super) fn part(&mut self, name: &str) -> Outcome<Word<'a>> {
        self.skip_blanks();
        let word = self.word();
        if word.text.is_empty() {
            return Err(word.wrong(format!("{name} is missing: write {RULE}")));
        }
        Ok(word)
    }

    pub(super) fn number(&mut self, first: &Word) -> Outcome<Word<'a>> {
        self.skip_blanks();
        let word = self.word();
        if word.text.is_empty() {
            return Err(first.wrong(format!("{} needs a number", first.text)));
        }
        word.number()?;
        Ok(word)
    }

    /// The name of a file: in quotes, which cannot be part of it, or up to a blank.
    pub(super) fn file_name(&mut self, first: &Word) -> Outcome<Word<'a>> {
        self.skip_blanks();
        if !self.skip('"') {
            let name = self.take_while(|c| !is_blank(c));
            if name.text.is_empty() {
                return Err(first.wrong(format!("{} needs the name of a file", first.text)));
            }
            return Ok(name);
        }
        let name = self.take_while(|c| c != '"');
        if !self.skip('"') {
            return Err(name.wrong("a quote is opened and not closed on its line"));
        }
        Ok(name)
    }
}
