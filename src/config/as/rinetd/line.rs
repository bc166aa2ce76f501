//! A line of rinetd.conf, after the grammar of rinetd 0.73 (`src/parse.peg`) and what rinetd-uv 2.1.3 adds
//! to it. Text in, what it says out; names of services are looked up, and nothing else is touched.

use super::words::{self, Host, NO_UDP, Outcome, Rest, Set, Word, Wrong};
use crate::source::{Bind, Interface};
use crate::terms::escape::brief;
use crate::terms::value;
use crate::upstream::Upstream;

/// What a line says.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    Nothing,
    /// A forwarding rule, and what stands in brackets behind it.
    Forward(Bind, Upstream, Vec<Set>),
    Set(Set),
    /// A pattern of files, and at which character of the line it stands.
    Include(String, usize),
}

/// The words that lines begin with.
const WORDS: [&str; 10] = [
    "allow",
    "deny",
    "logfile",
    "logcommon",
    "pidlogfile",
    "pidfile",
    "include",
    "buffersize",
    "connect-timeout",
    "dns-refresh",
];

const NO_STATUS: &str = "there is no status file: SIGUSR1 has the sessions logged";
const NO_POOL: &str = "there is no pool of buffers";
const ALL_ADDRESSES: &str = "all addresses of a name are tried, of both families (RFC 8305)";

/// rinetd-uv's words that mean nothing here, and why.
const MEANINGLESS: [(&str, &str); 11] = [
    ("statusfile", NO_STATUS),
    ("statusinterval", NO_STATUS),
    ("statusformat", NO_STATUS),
    ("statsloginterval", NO_STATUS),
    ("pool-min-free", NO_POOL),
    ("pool-max-free", NO_POOL),
    ("pool-trim-delay", NO_POOL),
    (
        "listen-backlog",
        "the backlog is 4096, as far as the system lets it be (net.core.somaxconn)",
    ),
    ("max-udp-connections", NO_UDP),
    ("dns-multi-ip-expand", ALL_ADDRESSES),
    ("dns-multi-ip-proto", ALL_ADDRESSES),
];

const OPTIONS: [&str; 6] = [
    "src",
    "timeout",
    "keepalive",
    "connect-timeout",
    "dns-refresh",
    "mode",
];

/// After how many seconds of silence rinetd-uv asks a peer whether it is there.
const KEEPALIVE: &str = "60";

/// What rinetd-uv's connect-timeout of 0 comes to, in seconds: longer than the system itself tries,
/// which is 127 s (`tcp_syn_retries`, tcp(7)).
const AS_LONG_AS_THE_SYSTEM: &str = "150";

/// What a line says.
pub(super) fn parse(text: &str) -> Outcome<Line> {
    let text = text.strip_suffix('\r').unwrap_or(text);
    let mut rest = Rest::of(text);
    rest.skip_blanks();
    if rest.is_over() {
        return Ok(Line::Nothing);
    }
    let line = command(&mut rest)?;
    rest.skip_blanks();
    if !rest.is_over() {
        let word = rest.word();
        return Err(word.wrong(format!("'{}' is one word too many", brief(word.text))));
    }
    let said = &text[..text.len() - rest.text.len()];
    match said.chars().position(|c| c == char::REPLACEMENT_CHARACTER) {
        Some(position) => Err(Wrong {
            column: position + 1,
            what: "is not UTF-8".to_owned(),
        }),
        None => Ok(line),
    }
}

fn command(rest: &mut Rest) -> Outcome<Line> {
    let first = rest.word();
    Ok(match first.text {
        "allow" => client("allow", &first, rest)?,
        "deny" => client("deny", &first, rest)?,
        "logfile" => Line::Set(rest.file_name(&first)?.sets("logfile", "access-log")),
        "pidlogfile" | "pidfile" => {
            let set = rest.file_name(&first)?.sets("pidlogfile", "pidfile");
            Line::Set(match set.value.as_str() {
                // With us these are no names.
                "yes" | "no" => Set {
                    value: format!("./{}", set.value),
                    ..set
                },
                _ => set,
            })
        }
        "logcommon" => Line::Set(Set {
            word: "logcommon",
            name: "access-log-format",
            value: "common".to_owned(),
            column: first.column,
        }),
        "include" => {
            let name = rest.file_name(&first)?;
            Line::Include(name.text.to_owned(), name.column)
        }
        "buffersize" => Line::Set(rest.number(&first)?.sets("buffersize", "buffer-size")),
        "connect-timeout" => Line::Set(connect_timeout(&rest.number(&first)?)),
        "dns-refresh" => {
            // Names are looked up for each connection.
            rest.number(&first)?;
            Line::Nothing
        }
        _ => match MEANINGLESS.iter().find(|(word, _)| *word == first.text) {
            Some((word, why)) => {
                return Err(first.wrong(format!("{word}: {why}: take the line out")));
            }
            None => forward(&first, rest).map_err(|wrong| misspelt(&first).unwrap_or(wrong))?,
        },
    })
}

/// What is wrong with a line whose first word was probably meant to be another.
fn misspelt(first: &Word) -> Option<Wrong> {
    let meant = value::nearest(first.text, WORDS.into_iter())?;
    let word = brief(first.text);
    Some(first.wrong(format!("'{word}' is unknown (did you mean '{meant}'?)")))
}

/// A rule of who may pass.
fn client(name: &'static str, first: &Word, rest: &mut Rest) -> Outcome<Line> {
    rest.skip_blanks();
    let pattern = rest.take_while(|c| !words::is_blank(c) && c != '#');
    let may_stand =
        |c: char| c.is_ascii_hexdigit() || matches!(c, '[' | ']' | ':' | '.' | '*' | '?');
    if pattern.text.is_empty() {
        return Err(first.wrong(format!(
            "{name} needs an address, or a pattern with * and ?"
        )));
    }
    if let Some(position) = pattern.text.chars().position(|c| !may_stand(c)) {
        let what = format!(
            "'{}' is not a pattern: write an address, or one with * and ?; names are not looked up",
            brief(pattern.text)
        );
        let column = pattern.column + position;
        return Err(Wrong { column, what });
    }
    Ok(Line::Set(Set {
        word: name,
        name,
        value: over_addresses(pattern.text),
        column: pattern.column,
    }))
}

const MAPPED: &str = "::ffff:";

/// A pattern over addresses as we write them: without brackets, and IPv4 ones of an IPv6 listener as
/// IPv4. rinetd sees `::ffff:192.0.2.1` there, and so does who has written rules for it.
fn over_addresses(pattern: &str) -> String {
    let bare = pattern.replace(['[', ']'], "");
    // All of it is ASCII.
    match bare.split_at_checked(MAPPED.len()) {
        Some((start, "*")) if start.eq_ignore_ascii_case(MAPPED) => "0.0.0.0/0".to_owned(),
        Some((start, v4)) if start.eq_ignore_ascii_case(MAPPED) && v4.contains('.') => {
            v4.to_owned()
        }
        _ => bare,
    }
}

fn connect_timeout(seconds: &Word) -> Set {
    let set = seconds.sets("connect-timeout", "connect-timeout");
    if set.value.bytes().all(|digit| digit == b'0') {
        return Set {
            value: AS_LONG_AS_THE_SYSTEM.to_owned(),
            ..set
        };
    }
    set
}

fn forward(first: &Word, rest: &mut Rest) -> Outcome<Line> {
    if first.text.starts_with("unix:") {
        let what = "unix: is where to connect, and not where to listen: write bindaddress bindport";
        return Err(first.wrong(what));
    }
    let interface = match Host::of(first)? {
        Host::Address(address) => Interface::Address(address.to_canonical()),
        Host::Name(name) => Interface::Named(name.to_owned()),
    };
    let port = rest.part("bindport")?.port()?;
    rest.skip_blanks();
    let upstream = if rest.text.starts_with("unix:") {
        let word = rest.take_while(|c| !words::is_blank(c) && !matches!(c, '[' | ']'));
        Upstream::parse(word.text).map_err(|complaint| word.wrong(complaint))?
    } else {
        let host = match Host::of(&rest.part("connectaddress")?)? {
            Host::Address(address) => address.to_string(),
            // With us it is no host, but with a dot behind it, which changes nothing.
            Host::Name("original-dst") => "original-dst.".to_owned(),
            Host::Name(name) => name.to_owned(),
        };
        let port = Some(rest.part("connectport")?.port()?);
        Upstream::Host { host, port }
    };
    let settings = options(rest)?;
    Ok(Line::Forward(Bind { interface, port }, upstream, settings))
}

/// What stands in brackets, if anything does.
fn options(rest: &mut Rest) -> Outcome<Vec<Set>> {
    let mut settings = Vec::new();
    rest.skip_blanks();
    let bracket = rest.here();
    if !rest.skip('[') {
        return Ok(settings);
    }
    loop {
        rest.skip_blanks();
        let name = rest.take_while(|c| c.is_ascii_alphanumeric() || c == '-');
        rest.skip_blanks();
        if !rest.skip('=') {
            return Err(rest.here().wrong(format!(
                "an option is missing here: write name=value, with one of {}",
                OPTIONS.join(", ")
            )));
        }
        rest.skip_blanks();
        let value = rest.value();
        settings.extend(option(&name, &value)?);
        rest.skip_blanks();
        if rest.skip(']') {
            return Ok(settings);
        }
        if !rest.skip(',') {
            return Err(bracket.wrong("the bracket is not closed on its line: write ]"));
        }
    }
}

fn option(name: &Word, value: &Word) -> Outcome<Option<Set>> {
    if value.text.is_empty() {
        return Err(value.wrong(format!("{} needs a value", brief(name.text))));
    }
    Ok(match name.text {
        "src" => match Host::of(value)? {
            Host::Address(address) => Some(Set {
                value: address.to_string(),
                ..value.sets("src", "source")
            }),
            Host::Name(_) => {
                let what = format!("src: '{}' is not an address: write one", brief(value.text));
                return Err(value.wrong(what));
            }
        },
        "keepalive" => {
            let seconds = value::one_of(value.text, &[("on", KEEPALIVE), ("off", "0")]);
            let seconds = seconds.map_err(|what| value.wrong(format!("keepalive: {what}")))?;
            Some(Set {
                value: seconds.to_owned(),
                ..value.sets("keepalive", "keepalive")
            })
        }
        "connect-timeout" => Some(connect_timeout(value.number()?)),
        // Of UDP; and names are looked up for each connection.
        "timeout" | "dns-refresh" => value.number().map(|_| None)?,
        "mode" => {
            let what = "mode: is of a listener on a unix socket, which cannot be made here";
            return Err(name.wrong(what));
        }
        _ => {
            let word = brief(name.text);
            let meant = value::did_you_mean(name.text, &OPTIONS);
            let what = format!(
                "the option '{word}' is unknown{meant}: write one of {}",
                OPTIONS.join(", ")
            );
            return Err(name.wrong(what));
        }
    })
}
