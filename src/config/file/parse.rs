//! The file's lines: read, included, and told to the scopes that they belong to.

use std::path::Path;

use super::reading::{self, Reading};
use super::scopes::{Outcome, Scopes};
use super::words::{self, Word};
use super::{Files, Problem};
use crate::config::Config;
use crate::config::settings::{SETTINGS, Scope};
use crate::terms::escape::brief;
use crate::terms::place::Place;
use crate::terms::value;

/// The directives that give the file its structure.
const STRUCTURE: [&str; 6] = ["port", "interface", "bind", "server", "exec", "include"];

/// Parses a file and those it includes. Without a configuration there is at least one problem.
pub fn parse(path: &Path, files: &dyn Files) -> Result<Config, Vec<Problem>> {
    let mut parser = Parser {
        reading: Reading::of(files),
        scopes: Scopes::default(),
    };
    match parser.reading.first(path) {
        Ok(bytes) => parser.read(path, &bytes),
        Err(problem) => parser.scopes.problem(problem),
    }
    parser.scopes.finish()
}

struct Parser<'a> {
    reading: Reading<'a>,
    scopes: Scopes,
}

impl Parser<'_> {
    fn read(&mut self, path: &Path, bytes: &[u8]) {
        let path = match self.reading.begin(path, bytes) {
            Ok(path) => path,
            Err(problem) => return self.scopes.problem(problem),
        };
        for (line, bytes) in reading::lines(bytes) {
            if self.scopes.has_enough_problems() {
                break;
            }
            let place = |column| Place::in_file(&path, line, column);
            if let Err(problem) = self.line(bytes, &place) {
                self.scopes.problem(problem);
            }
        }
        self.reading.end();
    }

    fn line(&mut self, bytes: Result<&[u8], String>, place: &dyn Fn(usize) -> Place) -> Outcome {
        let bytes = bytes.map_err(|what| Problem::wrong(place(1), what))?;
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            Problem::wrong(place(before.chars().count() + 1), "is not UTF-8")
        })?;
        let words = words::split(text).map_err(|unclosed| {
            let what = "a quote is opened and not closed on its line";
            Problem::wrong(place(unclosed.column), what)
        })?;
        self.directive(&words, &|word: &Word| place(word.column))
    }

    fn directive(&mut self, words: &[Word], place_of: &dyn Fn(&Word) -> Place) -> Outcome {
        let Some((name, values)) = words.split_first() else {
            return Ok(());
        };
        let place = place_of(name);
        if let Some(zero) = words.iter().find(|word| word.text.contains('\0')) {
            let what = "a NUL character cannot be part of anything";
            return Err(Problem::wrong(place_of(zero), what));
        }
        match name.text.as_str() {
            "port" => self.scopes.open_port(values, place),
            "interface" => self.scopes.open_interface(values, place),
            "bind" => self.scopes.open_bind(values, place),
            "server" => self.scopes.add_servers(values, place, place_of),
            "exec" => self.scopes.set_handler(values, place),
            "include" => self.include(values, place, place_of),
            _ => match SETTINGS
                .iter()
                .find(|setting| setting.is_directive(&name.text))
            {
                Some(setting) => self.scopes.set(setting, name, values, place_of),
                None => self.scopes.unknown(place, unknown(&name.text)),
            },
        }
    }

    fn include(
        &mut self,
        values: &[Word],
        place: Place,
        place_of: &dyn Fn(&Word) -> Place,
    ) -> Outcome {
        if values.is_empty() {
            let what = "include needs a value: write a file or a pattern";
            return Err(Problem::wrong(place, what));
        }
        for word in values {
            self.include_one(word)
                .map_err(|what| Problem::wrong(place_of(word), what))?;
        }
        Ok(())
    }

    fn include_one(&mut self, word: &Word) -> Result<(), String> {
        let is_pattern = !word.quoted && word.text.contains(['*', '?', '[']);
        for path in self.reading.named(&word.text, is_pattern)? {
            let bytes = self.reading.included(&path)?;
            self.read(&path, &bytes);
        }
        Ok(())
    }
}

fn unknown(name: &str) -> String {
    let settings = SETTINGS
        .iter()
        .filter(|setting| setting.scope != Scope::CommandLine);
    let names = settings.flat_map(|setting| [Some(setting.name), setting.directive]);
    let meant = value::nearest(name, names.flatten().chain(STRUCTURE)).map_or_else(
        || " (see tcpproxy.conf(5))".to_owned(),
        |meant| format!(" (did you mean '{meant}'?)"),
    );
    format!("unknown directive '{}'{meant}", brief(name))
}
