//! Front-ends: the command lines and files of programs in whose place this one can stand. What they say
//! becomes what was written, as if it had been written for us: so defaults, ranges, `--check`, `-zz`,
//! `--explain` and reloads are the same for all.
//!
//! A program is found by `--as NAME` as the first argument, or by the name that ours was started under.
//! Behind `--tcpproxy` come arguments of our own, which win. Another program is a folder here, and a line in
//! [`PROGRAMS`].

mod rinetd;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::cli::{self, CommandLine};
use super::file::{Files, Problem};
use super::settings::{Shown, Written};
use super::{Config, Destination};
use crate::terms::error::Error;
use crate::terms::escape::brief;
use crate::terms::value;

pub use rinetd::parse as parse_rinetd;

/// A program that another one may be started in place of.
#[derive(Debug)]
pub(crate) struct Program {
    /// Behind `--as`, and as the name of the program.
    name: &'static str,
    /// What its arguments come to.
    arguments: fn(&[OsString]) -> Result<Arguments, Error>,
    /// Reads its file.
    read: fn(&Path, &dyn Files) -> Result<Config, Vec<Problem>>,
    /// What its options are.
    usage: &'static str,
    /// The version that is followed.
    version: &'static str,
}

const PROGRAMS: &[Program] = &[rinetd::PROGRAM];

/// What separates the program's arguments from our own.
const OURS: &str = "--tcpproxy";

/// What the arguments of a program come to.
struct Arguments {
    /// What was written there.
    written: Written,
    /// Whom it forwards to, if that stands there.
    destination: Option<Destination>,
    /// What the program does where neither its arguments nor its file say otherwise.
    defaults: Written,
}

/// The program in whose place a command line was written.
#[derive(Debug)]
pub(crate) struct InPlaceOf {
    program: &'static Program,
    defaults: Written,
}

impl InPlaceOf {
    /// Reads the program's file.
    pub(crate) fn read(&self, path: &Path, files: &dyn Files) -> Result<Config, Vec<Problem>> {
        (self.program.read)(path, files)
    }

    /// What holds where nothing was written.
    pub(crate) fn defaults(&self) -> &Written {
        &self.defaults
    }

    /// What is shown instead of serving.
    pub(crate) fn shows(&self, shown: Shown) -> String {
        match shown {
            Shown::Help => self.program.usage.to_owned(),
            Shown::Version => format!(
                "{} {} (tcpproxy {})\n",
                self.program.name,
                self.program.version,
                env!("CARGO_PKG_VERSION")
            ),
        }
    }
}

/// Parses the words of a command line, the program's own name first: ours, or another program's.
pub(crate) fn command_line(
    mut words: impl Iterator<Item = OsString>,
) -> Result<CommandLine, Error> {
    let own_name = words.next().unwrap_or_default();
    let arguments: Vec<OsString> = words.collect();
    if let Some((program, its)) = asked(&arguments)? {
        return of(program, its);
    }
    match named(&own_name) {
        Some(program) => of(program, &arguments),
        None => cli::parse(arguments.into_iter()),
    }
}

/// The program that ours was started as.
fn named(own_name: &OsStr) -> Option<&'static Program> {
    let name = own_name.as_bytes().rsplit(|&byte| byte == b'/').next()?;
    let mut programs = PROGRAMS.iter();
    programs.find(|program| program.name.as_bytes() == name)
}

/// The program that the first argument asks for, and what follows.
fn asked(arguments: &[OsString]) -> Result<Option<(&'static Program, &[OsString])>, Error> {
    let Some((first, rest)) = arguments.split_first() else {
        return Ok(None);
    };
    let (name, rest) = match (first.as_bytes(), rest.split_first()) {
        (b"--as", Some((name, rest))) => (name.as_bytes(), rest),
        (b"--as", None) => return Err(unknown("needs a name".to_owned())),
        ([b'-', b'-', b'a', b's', b'=', name @ ..], _) => (name, rest),
        _ => return Ok(None),
    };
    let Ok(text) = std::str::from_utf8(name) else {
        return Err(unknown(format!("'{}' is not UTF-8", brief(name))));
    };
    match PROGRAMS.iter().find(|program| program.name == text) {
        Some(program) => Ok(Some((program, rest))),
        None => {
            let names: Vec<&str> = PROGRAMS.iter().map(|program| program.name).collect();
            let meant = value::did_you_mean(text, &names);
            Err(unknown(format!("'{}' is unknown{meant}", brief(text))))
        }
    }
}

fn unknown(what: String) -> Error {
    let names: Vec<&str> = PROGRAMS.iter().map(|program| program.name).collect();
    Error::usage(format!("option --as: {what}: write {}", names.join(", ")))
}

// Cold: what it needs of the stack is not to be touched by every session's start.
#[cold]
fn of(program: &'static Program, arguments: &[OsString]) -> Result<CommandLine, Error> {
    let end = arguments.iter().position(|argument| argument == OURS);
    let (its, ours) = arguments.split_at(end.unwrap_or(arguments.len()));
    let Arguments {
        written,
        destination,
        defaults,
    } = (program.arguments)(its).map_err(|error| error.about(program.name))?;
    let ours = cli::parse(ours.iter().skip(1).cloned())?;
    Ok(CommandLine {
        written: ours.written.within(&written),
        destination: ours.destination.or(destination),
        in_place_of: Some(Box::new(InPlaceOf { program, defaults })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> Result<CommandLine, String> {
        let words = words.iter().map(OsString::from);
        command_line(words).map_err(|error| error.to_string())
    }

    fn program(words: &[&str]) -> Option<&'static str> {
        let line = line(words).unwrap();
        line.in_place_of.map(|other| other.program.name)
    }

    #[test]
    fn a_program_is_asked_for_first_or_by_the_name_of_ours() {
        for words in [
            &["tcpproxy", "--as", "rinetd"][..],
            &["tcpproxy", "--as=rinetd", "-f"],
            &["rinetd"],
            &["/usr/sbin/rinetd", "-c", "/x"],
            &["-x-", "--as", "rinetd", "--tcpproxy", "--check"],
        ] {
            assert_eq!(program(words), Some("rinetd"), "{words:?}");
        }
        for words in [
            &["tcpproxy", "h:1"][..],
            &["/rinetd/tcpproxy", "h:1"],
            &["rinetd2", "h:1"],
            &["tcpproxy", "/bin/echo", "--as", "rinetd", "--tcpproxy"],
        ] {
            assert_eq!(program(words), None, "{words:?}");
        }
        assert!(line(&[]).is_ok());
    }

    #[test]
    fn what_is_unknown_is_named_beside_what_is_not() {
        for (words, text) in [
            (
                &["x", "--as"][..],
                "option --as: needs a name: write rinetd",
            ),
            (
                &["x", "--as", "rinted"],
                "option --as: 'rinted' is unknown (did you mean 'rinetd'?): write rinetd",
            ),
            (
                &["x", "--as=/rinetd"],
                "option --as: '/rinetd' is unknown (did you mean 'rinetd'?): write rinetd",
            ),
            (
                &["x", "h:1", "--as", "rinetd"],
                "option --as: belongs before all other arguments: write tcpproxy --as rinetd ...",
            ),
            (
                &["x", "h:1", "--tcpproxy"],
                "option --tcpproxy: belongs behind the arguments of the program that --as names",
            ),
        ] {
            assert_eq!(line(words).unwrap_err(), text, "{words:?}");
        }
    }

    #[test]
    fn arguments_of_our_own_win() {
        let words = ["rinetd", "-c", "/a", "--tcpproxy", "-c", "/b", "-t", "5"];
        let line = line(&words).unwrap();
        assert_eq!(line.written.config, Some("/b".into()));
        let five = std::time::Duration::from_secs(5);
        assert_eq!(line.written.timeout, Some(Some(five)));
        let defaults = line.in_place_of.unwrap().defaults;
        assert_eq!(defaults.timeout, Some(None));
    }
}
