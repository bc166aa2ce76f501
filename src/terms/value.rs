//! The values that settings take: text in, a type out, or a sentence that says what would be right.
//!
//! A parser returns the complaint without the setting's name: whoever knows where the text stood
//! (an option, later a line of a file) puts that in front.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::terms::escape::brief;

/// What is wrong with a value, and what would be right.
pub(crate) type Complaint = String;

/// What is wrong with a setting.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The value is none that the setting takes.
    Bad(Complaint),
    /// The value is a good one, but this system or this program will not have it. A configuration
    /// error even on the command line.
    Refused(Complaint),
}

impl From<Complaint> for Fault {
    fn from(complaint: Complaint) -> Fault {
        Fault::Bad(complaint)
    }
}

/// Times above this are taken for mistakes: 100 years, in milliseconds.
const LONGEST: f64 = 100.0 * 366.0 * 86_400e3;

/// A time: a decimal number of seconds, or one with `ms`, `s`, `m` or `h`; rounded up to whole
/// milliseconds.
pub(crate) fn seconds(text: &str) -> Result<Duration, Complaint> {
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let milliseconds = match unit {
        "ms" => 1.0,
        "" | "s" => 1e3,
        "m" => 60e3,
        "h" => 3600e3,
        _ => f64::NAN,
    };
    let amount = number.parse::<f64>().unwrap_or(f64::NAN) * milliseconds;
    if amount.is_nan() {
        return Err(format!(
            "'{}' is not a time: write seconds, or a number with ms, s, m or h, as in 60, 500ms or 2m",
            brief(text)
        ));
    }
    // The finest time there is here is a millisecond: enough for a person, and exact in print.
    if amount > LONGEST {
        return Err(format!(
            "'{}' is out of range: write at most 100 years",
            brief(text)
        ));
    }
    // What the product is off by is not to be rounded up.
    const INEXACT: f64 = 1e-3;
    Ok(Duration::from_millis((amount - INEXACT).ceil() as u64))
}

/// A time for which 0 means that there is no limit.
pub(crate) fn seconds_or_never(text: &str) -> Result<Option<Duration>, Complaint> {
    seconds(text).map(|time| (!time.is_zero()).then_some(time))
}

/// A time above 0.
pub(crate) fn some_seconds(text: &str) -> Result<Duration, Complaint> {
    match seconds(text)? {
        Duration::ZERO => Err("0 is out of range: write a time above 0".to_owned()),
        time => Ok(time),
    }
}

/// After how long a silence a peer is asked whether it is there: 0 for never, or whole seconds, up to
/// what the kernel takes (`MAX_TCP_KEEPIDLE`, Linux 6.18).
pub(crate) fn keepalive(text: &str) -> Result<Option<Duration>, Complaint> {
    const LONGEST: u64 = 32_767;
    match seconds_or_never(text)? {
        Some(time) if time.subsec_nanos() != 0 || time.as_secs() > LONGEST => Err(format!(
            "'{}' is out of range: write 0 (never), or 1 to {LONGEST} whole seconds",
            brief(text)
        )),
        time => Ok(time),
    }
}

/// A number of bytes in this range, optionally with `k` (1024) or `m` (1024²).
pub(crate) fn size(text: &str, smallest: usize, largest: usize) -> Result<usize, Complaint> {
    let (number, factor) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 1024),
        Some(b'm') => (&text[..text.len() - 1], 1024 * 1024),
        _ => (text, 1),
    };
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!(
            "'{}' is not a size: write bytes, or a number with k or m, as in 4096, 64k or 1m",
            brief(text)
        ));
    }
    number
        .parse::<usize>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .filter(|size| (smallest..=largest).contains(size))
        .ok_or_else(|| {
            format!(
                "'{}' is out of range: write {smallest} to {largest} bytes",
                brief(text)
            )
        })
}

/// Ports from the first to the last, without those that need rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortRange {
    first: u16,
    last: u16,
}

/// The ports that only root can bind end before this (ip(7), `ip_unprivileged_port_start`).
const FIRST_UNPRIVILEGED: u16 = 1024;

impl PortRange {
    /// Parses `FIRST-LAST`.
    pub(crate) fn parse(text: &str) -> Result<PortRange, Complaint> {
        let port = |text| whole_number(text).filter(|&port| port >= FIRST_UNPRIVILEGED);
        let ends = text.split_once('-');
        match ends.map(|(first, last)| (port(first), port(last))) {
            Some((Some(first), Some(last))) if first <= last => Ok(PortRange { first, last }),
            _ => Err(format!(
                "'{}' is no range of ports: write FIRST-LAST, each of {FIRST_UNPRIVILEGED} to \
                 65535, as in 50000-50999",
                brief(text)
            )),
        }
    }

    /// Every port in it, from one on that this number chooses.
    pub(crate) fn from(self, number: usize) -> impl Iterator<Item = u16> {
        let count = usize::from(self.last - self.first) + 1;
        // The sum is within the range, and so a port.
        (0..count).map(move |step| self.first + ((number % count + step) % count) as u16)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A command: words as a shell splits them. No shell is run. Never empty.
pub(crate) fn words(text: &str) -> Result<Vec<String>, Complaint> {
    let words = shell_words::split(text)
        .map_err(|_| format!("'{}' has a quote that is not closed", brief(text)))?;
    if words.first().is_none_or(String::is_empty) {
        return Err("is empty: write a program, and its arguments if it takes any".to_owned());
    }
    Ok(words)
}

/// The prefix of the variables that programs see: a letter or `_`, then letters, digits or `_`.
pub(crate) fn prefix(text: &str) -> Result<String, Complaint> {
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if starts_well && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Ok(text.to_owned());
    }
    Err(format!(
        "'{}' is not a prefix: write a letter or _, then letters, digits or _",
        brief(text)
    ))
}

/// A path: not empty, and without control characters.
pub(crate) fn path(text: &str) -> Result<PathBuf, Complaint> {
    match text {
        "" => Err("is empty: write a path".to_owned()),
        _ if text.contains(char::is_control) => Err(format!(
            "'{}' has control characters: write a path without",
            brief(text)
        )),
        _ => Ok(PathBuf::from(text)),
    }
}

/// On or off. Nothing means on.
pub(crate) fn switch(text: &str) -> Result<bool, Complaint> {
    match text {
        "" => Ok(true),
        _ => one_of(text, &[("yes", true), ("no", false)]),
    }
}

/// How many of something there may be; 0 means that there is no limit.
pub(crate) fn count_or_unlimited(text: &str) -> Result<Option<usize>, Complaint> {
    let count = whole_number(text)
        .filter(|&count| count <= MOST)
        .ok_or_else(|| {
            format!(
                "'{}' is not a count: write 0 (no limit) to {MOST}",
                brief(text)
            )
        })?;
    Ok((count != 0).then_some(count))
}

/// More sessions than this no Linux system can have: `PID_MAX_LIMIT`, proc_sys_kernel(5).
const MOST: usize = 4 << 20;

/// Decimal digits, as a number.
pub(crate) fn whole_number<T: FromStr>(text: &str) -> Option<T> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// A word as the configuration file has it: in quotes if it would be read differently without.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '\'' | '\\');
    if !word.is_empty() && !word.starts_with('#') && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in word.chars() {
        match c {
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '"' | '\\' => quoted.extend(['\\', c]),
            _ => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A command as the configuration file has it. One quoted word would be split once more: so it is
/// quoted for that, too.
pub(crate) fn quote_command(words: &[String]) -> String {
    if let [word] = words
        && quote(word) != *word
    {
        return quote(&shell_words::quote(word));
    }
    words
        .iter()
        .map(|word| quote(word))
        .collect::<Vec<_>>()
        .join(" ")
}

/// The name under which lines are logged: printable, and without what would end it early.
pub(crate) fn log_name(text: &str) -> Result<String, Complaint> {
    let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '[' | ']' | ':');
    if !text.is_empty() && text.len() <= 48 && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "'{}' is not a log name: write 1 to 48 printable characters without blanks, ':', '[' or ']'",
        brief(text)
    ))
}

/// The nearest of `known` to a word that was meant to be one of them, if one is near.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let length = word.chars().count();
    known
        .map(|name| (name, 1 + name.len() / 4))
        // No less than the difference of lengths: what takes time and memory in proportion to the
        // product of both is asked of words only that could be near.
        .filter(|&(name, near)| length.abs_diff(name.chars().count()) <= near)
        .map(|(name, near)| (strsim::damerau_levenshtein(word, name), name, near))
        .filter(|&(distance, _, near)| distance <= near)
        .min()
        .map(|(_, name, _)| name)
}

/// The nearest of `known` to a misspelt word, as a question to put behind it; empty if none is near.
pub(crate) fn did_you_mean(word: &str, known: &[&str]) -> String {
    nearest(word, known.iter().copied())
        .map(|word| format!(" (did you mean '{word}'?)"))
        .unwrap_or_default()
}

/// One of a closed set of words.
pub(crate) fn one_of<T: Copy>(text: &str, known: &[(&'static str, T)]) -> Result<T, Complaint> {
    if let Some((_, value)) = known.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
    Err(format!(
        "'{}' is unknown{}: write {}",
        brief(text),
        did_you_mean(text, &words),
        words.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_take_units_and_fractions() {
        for (text, milliseconds) in [
            ("0", 0),
            ("60", 60_000),
            ("1.5", 1_500),
            ("250ms", 250),
            ("3s", 3_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("9ms", 9),
            ("2.0065", 2_007),
            ("2007ms", 2_007),
            ("1.1h", 3_960_000),
            ("0.0001", 1),
        ] {
            assert_eq!(
                seconds(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "-1",
            "s",
            "1d",
            "1 s",
            ".",
            "1.2.3",
            "nan",
            "inf",
            "1e3",
            "99999999999999",
        ] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert!(some_seconds("0").is_err());
        assert_eq!(seconds_or_never("0ms"), Ok(None));
    }

    #[test]
    fn silence_is_measured_in_whole_seconds_that_the_kernel_takes() {
        assert_eq!(keepalive("0"), Ok(None));
        assert_eq!(keepalive("1m"), Ok(Some(Duration::from_secs(60))));
        assert_eq!(keepalive("32767"), Ok(Some(Duration::from_secs(32_767))));
        for text in ["", "off", "500ms", "1.5", "32768", "1000h"] {
            assert!(keepalive(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_bounded_and_do_not_overflow() {
        assert_eq!(size("64k", 256, 1 << 26), Ok(65_536));
        assert_eq!(size("1m", 256, 1 << 26), Ok(1 << 20));
        for text in [
            "",
            "k",
            "-1",
            "255",
            "65m",
            "1g",
            "18446744073709551615m",
            "1.5k",
            "é",
        ] {
            assert!(size(text, 256, 1 << 26).is_err(), "{text}");
        }
    }

    #[test]
    fn words_are_split_as_a_shell_splits_them() {
        assert_eq!(
            words("/bin/a 'b c' \"d\" e\\ f").unwrap(),
            ["/bin/a", "b c", "d", "e f"]
        );
        for text in ["", "   ", "''", "'a", "\"a"] {
            assert!(words(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_nearest_word_is_suggested_only_if_it_is_near() {
        let known = ["timeout", "bind", "user"];
        assert_eq!(nearest("tiemout", known.into_iter()), Some("timeout"));
        assert_eq!(nearest("xyzzy", known.into_iter()), None);
        assert_eq!(nearest("usr", known.into_iter()), Some("user"));
    }

    #[test]
    fn a_range_of_ports_is_gone_round_once_from_any_of_them() {
        let range = PortRange::parse("1024-1027").unwrap();
        assert_eq!(range.to_string(), "1024-1027");
        for (number, expected) in [
            (0, [1024, 1025, 1026, 1027]),
            (3, [1027, 1024, 1025, 1026]),
            (usize::MAX, [1027, 1024, 1025, 1026]),
        ] {
            assert!(range.from(number).eq(expected), "{number}");
        }
        let all = PortRange::parse("1024-65535").unwrap();
        assert_eq!(all.from(7).count(), 64_512);
        for text in [
            "",
            "1024",
            "1024-",
            "-1024",
            "1023-1024",
            "1025-1024",
            "1-65536",
            "a-b",
        ] {
            assert!(PortRange::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_word_that_is_too_long_to_be_near_is_not_compared() {
        let known = ["timeout", "half-close-timeout", "access-log-format"];
        let long = "x".repeat(65_000);
        let started = std::time::Instant::now();
        for _ in 0..100 {
            assert_eq!(nearest(&long, known.into_iter()), None);
        }
        // Compared letter by letter it takes minutes.
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}
