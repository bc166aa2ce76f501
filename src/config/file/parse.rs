//! The file's lines: read, included, and told to the scopes that they belong to.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::scopes::{Outcome, Scopes};
use super::words::{self, Word};
use super::{Files, LONGEST, Problem};
use crate::config::Config;
use crate::config::settings::{SETTINGS, Scope};
use crate::terms::escape::{brief, escape};
use crate::terms::place::Place;
use crate::terms::value;

/// Longer lines are mistakes, in bytes.
const LONGEST_LINE: usize = 64 << 10;
/// How many files may include each other in a row.
const DEEPEST_INCLUDE: usize = 16;
/// How many files may be read in all.
const MOST_FILES: usize = 1000;

/// The directives that give the file its structure.
const STRUCTURE: [&str; 6] = ["port", "interface", "bind", "server", "exec", "include"];

/// Parses a file and those it includes. Without a configuration there is at least one problem.
pub fn parse(path: &Path, files: &dyn Files) -> Result<Config, Vec<Problem>> {
    let mut parser = Parser {
        files,
        including: Vec::new(),
        files_read: 0,
        bytes_read: 0,
        scopes: Scopes::default(),
    };
    parser.read_first(path);
    parser.scopes.finish()
}

struct Parser<'a> {
    files: &'a dyn Files,
    /// The files that are being read, the innermost last.
    including: Vec<PathBuf>,
    files_read: usize,
    bytes_read: usize,
    scopes: Scopes,
}

impl Parser<'_> {
    fn read_first(&mut self, path: &Path) {
        match self.files.read(path, LONGEST + 1) {
            Ok(bytes) => self.read(path, &bytes),
            Err(why) => {
                let place = Place::File {
                    path: Rc::new(path.to_owned()),
                    line: 1,
                    column: 1,
                };
                let what = format!("cannot be read: {why}");
                self.scopes.problem(Problem::wrong(place, what));
            }
        }
    }

    fn read(&mut self, path: &Path, bytes: &[u8]) {
        self.including.push(path.to_owned());
        self.files_read += 1;
        self.bytes_read += bytes.len();
        let path = Rc::new(path.to_owned());
        let place = |line, column: usize| Place::File {
            path: Rc::clone(&path),
            line,
            // No line is as long as would be cut here.
            column: column as u32,
        };
        // Some editors put it there; it means nothing in UTF-8.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        if self.bytes_read > LONGEST {
            let what = format!("there are more than {LONGEST} bytes, all files together");
            self.scopes.problem(Problem::wrong(place(1, 1), what));
        } else {
            for (bytes, line) in bytes.split(|&byte| byte == b'\n').zip(1..) {
                if self.scopes.has_enough_problems() {
                    break;
                }
                if bytes.len() > LONGEST_LINE {
                    let what = format!("the line is longer than {LONGEST_LINE} bytes");
                    self.scopes.problem(Problem::wrong(place(line, 1), what));
                    continue;
                }
                let text = match std::str::from_utf8(bytes) {
                    Ok(text) => text,
                    Err(error) => {
                        let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
                        let column = before.chars().count() + 1;
                        self.scopes
                            .problem(Problem::wrong(place(line, column), "is not UTF-8"));
                        continue;
                    }
                };
                match words::split(text) {
                    Ok(words) => self.directive(&words, &|word: &Word| place(line, word.column)),
                    Err(unclosed) => {
                        let what = "a quote is opened and not closed on its line";
                        self.scopes
                            .problem(Problem::wrong(place(line, unclosed.column), what));
                    }
                }
            }
        }
        self.including.pop();
    }

    fn directive(&mut self, words: &[Word], place_of: &dyn Fn(&Word) -> Place) {
        let Some((name, values)) = words.split_first() else {
            return;
        };
        let place = place_of(name);
        if let Some(zero) = words.iter().find(|word| word.text.contains('\0')) {
            self.scopes.problem(Problem::wrong(
                place_of(zero),
                "a NUL character cannot be part of anything",
            ));
            return;
        }
        let complaint = match name.text.as_str() {
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
        };
        if let Err(problem) = complaint {
            self.scopes.problem(problem);
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
        // Relative to the file that includes.
        let directory = self.including.last().and_then(|path| path.parent());
        let pattern =
            directory.map_or_else(|| PathBuf::from(&word.text), |dir| dir.join(&word.text));
        let is_pattern = !word.quoted && word.text.contains(['*', '?', '[']);
        let paths = if is_pattern {
            self.files
                .matching(&pattern.to_string_lossy())
                .map_err(|error| format!("'{}' is not a pattern: {error}", brief(&word.text)))?
        } else {
            vec![pattern]
        };
        for path in paths {
            let shown = escape(path.as_os_str().as_encoded_bytes());
            if self.including.contains(&path) {
                return Err(format!("{shown} includes itself"));
            }
            if self.including.len() >= DEEPEST_INCLUDE {
                return Err(format!("{shown} is included {DEEPEST_INCLUDE} files deep"));
            }
            if self.files_read >= MOST_FILES {
                return Err(format!(
                    "{shown} would be one of more than {MOST_FILES} files"
                ));
            }
            // One byte more than there may be, so that it can be told.
            let most = LONGEST.saturating_sub(self.bytes_read) + 1;
            match self.files.read(&path, most) {
                Ok(bytes) => self.read(&path, &bytes),
                Err(why) => return Err(format!("{shown} cannot be read: {why}")),
            }
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
