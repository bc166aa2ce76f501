//! rinetd.conf: lines in, what was written out. Before the first forwarding rule everything holds for all
//! of them; `allow` and `deny` behind one are its own.

use std::collections::HashMap;
use std::path::Path;

use super::line::{self, Line};
use super::words::{Set, Wrong};
use crate::config::file::reading::{self, Problems, Reading};
use crate::config::file::{Files, MOST_SERVICES, Problem};
use crate::config::settings::{Given, SETTINGS, Written};
use crate::config::{Config, Destination, Entry};
use crate::source::{Bind, Interface};
use crate::terms::escape::brief;
use crate::terms::place::Place;
use crate::terms::value::Fault;
use crate::upstream::Upstream;

/// Parses a file of rinetd's and those it includes. Without a configuration there is at least one
/// problem.
pub fn parse(path: &Path, files: &dyn Files) -> Result<Config, Vec<Problem>> {
    let mut parser = Parser {
        reading: Reading::of(files),
        config: Config::default(),
        listening: HashMap::new(),
        problems: Problems::default(),
    };
    match parser.reading.first(path) {
        Ok(bytes) => parser.read(path, &bytes),
        Err(problem) => parser.problems.note(problem),
    }
    let Parser {
        config, problems, ..
    } = parser;
    problems.unless_any(config)
}

struct Parser<'a> {
    reading: Reading<'a>,
    config: Config,
    /// Where each address and port is listened at.
    listening: HashMap<(Interface, u16), Place>,
    problems: Problems,
}

impl Parser<'_> {
    fn read(&mut self, path: &Path, bytes: &[u8]) {
        let path = match self.reading.begin(path, bytes) {
            Ok(path) => path,
            Err(problem) => return self.problems.note(problem),
        };
        for (number, bytes) in reading::lines(bytes) {
            if self.problems.are_enough() {
                break;
            }
            let place = |column| Place::in_file(&path, number, column);
            let read = match bytes {
                // A comment may be in any encoding.
                Ok(bytes) => self.line(&String::from_utf8_lossy(bytes), &place),
                Err(what) => Err(Problem::wrong(place(1), what)),
            };
            if let Err(problem) = read {
                self.problems.note(problem);
            }
        }
        self.reading.end();
    }

    fn line(&mut self, text: &str, place: &dyn Fn(usize) -> Place) -> Result<(), Problem> {
        let wrong = |wrong: Wrong| Problem::wrong(place(wrong.column), wrong.what);
        match line::parse(text).map_err(wrong)? {
            Line::Nothing => Ok(()),
            Line::Include(name, column) => self
                .include(&name)
                .map_err(|what| Problem::wrong(place(column), what)),
            Line::Set(given) => {
                let at = place(given.column);
                set(self.scope_of(&given), &given, at)
            }
            Line::Forward(bind, upstream, options) => {
                let column = text.chars().position(|c| c != ' ' && c != '\t');
                let at = place(column.unwrap_or(0) + 1);
                let entry = self.forward(bind, upstream, &options, at, place)?;
                self.config.services.push(entry);
                Ok(())
            }
        }
    }

    /// Where a setting belongs that stands on a line of its own: wherever it stands, all but the rules of
    /// who may pass hold for every client.
    fn scope_of(&mut self, given: &Set) -> &mut Written {
        match self.config.services.last_mut() {
            Some(last) if given.is_of_clients() => &mut last.written,
            _ => &mut self.config.defaults,
        }
    }

    fn forward(
        &mut self,
        bind: Bind,
        upstream: Upstream,
        options: &[Set],
        at: Place,
        place: &dyn Fn(usize) -> Place,
    ) -> Result<Entry, Problem> {
        let key = (bind.interface.clone(), bind.port);
        if let Some(earlier) = self.listening.get(&key) {
            let what = format!("{bind} is forwarded already: at {earlier}");
            return Err(Problem::misplaced(at, what));
        }
        self.listening.insert(key, at.clone());
        if self.config.services.len() >= MOST_SERVICES {
            let what = format!("there are more than {MOST_SERVICES} forwarding rules");
            return Err(Problem::wrong(at, what));
        }
        let mut written = Written::default();
        for option in options {
            set(&mut written, option, place(option.column))?;
        }
        Ok(Entry {
            place: at.clone(),
            interface: bind.interface,
            port: bind.port,
            written,
            destination: Destination::Upstreams(vec![upstream]),
            destination_place: at,
        })
    }

    /// Reads what a name or a pattern names. There must be a file of that name, as it may be one that
    /// refuses clients.
    fn include(&mut self, name: &str) -> Result<(), String> {
        let is_pattern = name.contains(['*', '?', '[']);
        for path in self.reading.named(name, is_pattern)? {
            let bytes = self.reading.included(&path)?;
            self.read(&path, &bytes);
        }
        Ok(())
    }
}

/// Notes a setting down as our own parsers do.
fn set(written: &mut Written, given: &Set, place: Place) -> Result<(), Problem> {
    let (word, text) = (given.word, given.value.as_str());
    let Some(setting) = SETTINGS.iter().find(|setting| setting.name == given.name) else {
        return Err(Problem::wrong(place, format!("{word} is not known here")));
    };
    let written = (setting.write)(
        written,
        Given {
            text,
            place: &place,
        },
    );
    written.map_err(|fault| match fault {
        Fault::Bad(_) | Fault::Refused(_) if given.is_of_clients() => {
            let what = format!("no address matches '{}'", brief(text));
            let right = "write one, or a pattern with * and ?";
            Problem::wrong(place.clone(), format!("{word}: {what}: {right}"))
        }
        Fault::Bad(what) | Fault::Refused(what) => {
            Problem::wrong(place.clone(), format!("{word}: {what}"))
        }
    })
}
