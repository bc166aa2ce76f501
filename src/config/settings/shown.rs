//! Values as a file has them: what each row of the table shows with. None where nothing is the value.

use std::path::PathBuf;
use std::time::Duration;

use super::Written;
use crate::gate::Rule;
use crate::terms::value::quote;

pub(super) fn one(value: impl ToString) -> Vec<String> {
    vec![value.to_string()]
}

pub(super) fn switch(on: bool) -> Vec<String> {
    one(if on { "yes" } else { "no" })
}

/// A time as a value: exact, and in seconds where it can be.
pub(super) fn time(time: Duration) -> Vec<String> {
    match time.subsec_nanos() {
        0 => one(time.as_secs()),
        _ => one(format!("{}ms", time.as_millis())),
    }
}

pub(super) fn or_never(limit: Option<Duration>) -> Vec<String> {
    time(limit.unwrap_or(Duration::ZERO))
}

pub(super) fn or_unlimited(limit: Option<usize>) -> Vec<String> {
    one(limit.unwrap_or(0))
}

pub(super) fn path(path: Option<&PathBuf>) -> Vec<String> {
    path.iter()
        .map(|path| quote(&path.to_string_lossy()))
        .collect()
}

pub(super) fn word<T: PartialEq>(words: &[(&str, T)], value: T) -> Vec<String> {
    let named = words.iter().find(|(_, named)| *named == value);
    named
        .map(|(word, _)| (*word).to_owned())
        .into_iter()
        .collect()
}

pub(super) fn rules(written: &Written, wanted: impl Fn(&Rule) -> bool) -> Vec<String> {
    let rules = written.rules.own().filter(|rule| wanted(rule));
    rules.map(|rule| rule.pattern()).collect()
}
