//! The command line: arguments in, what was written out. Touches nothing but its input.
//!
//! getopts(3)-style parsing is the getopts crate's; which options there are is
//! [`crate::settings`]' business. Handler arguments need not be UTF-8, everything else must be.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use getopts::{Fail, Options, ParsingStyle};

use crate::error::Error;
use crate::log::escape;
use crate::program::Program;
use crate::settings::{SETTINGS, Setting, Written};
use crate::upstream::Upstream;
use crate::value::{self, Complaint};

/// A command line, parsed.
#[derive(Debug, Default)]
pub struct CommandLine {
    /// The options.
    pub written: Written,
    /// The `server` argument.
    pub server: Option<Server>,
}

/// What serves a connection, as the `server` argument names it.
#[derive(Debug)]
pub enum Server {
    /// It is forwarded there.
    Upstream(Upstream),
    /// This program is started for it.
    Handler(Program),
}

/// Parses the arguments (without the program's own name). The error is of status 64 and names
/// the option, the word, and what would be right.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<CommandLine, Error> {
    let arguments: Vec<OsString> = arguments.collect();
    let options = options();
    let mut parsed = CommandLine::default();
    let mut rest = arguments.as_slice();
    // Options may stand on both sides of an upstream, but what follows a handler is the
    // handler's own. So getopts is asked for one stretch up to a free argument at a time.
    let mut options_ended = false;
    while !rest.is_empty() {
        if !options_ended {
            (rest, options_ended) = take_options(&options, rest, &mut parsed.written)?;
        }
        let Some((word, after)) = rest.split_first() else {
            break;
        };
        if parsed.server.is_some() {
            return Err(Error::usage(format!(
                "unexpected argument '{}' after the server",
                escape(word.as_bytes())
            )));
        }
        if names_program(word) {
            parsed.server = Some(Server::Handler(handler(word, after)?));
            break;
        }
        parsed.server = Some(Server::Upstream(upstream(word)?));
        rest = after;
    }
    Ok(parsed)
}

fn options() -> Options {
    let mut options = Options::new();
    options.parsing_style(ParsingStyle::StopAtFirstFree);
    for setting in SETTINGS {
        let short = setting.short.map(String::from).unwrap_or_default();
        // All may be repeated as far as getopts is concerned: the table has the better message.
        match setting.value {
            Some(value) => options.optmulti(&short, setting.name, "", value),
            None => options.optflagmulti(&short, setting.name, ""),
        };
    }
    options
}

/// Notes down the options that `arguments` begins with. Returns what follows them, and whether
/// `--` has ended the options for good.
fn take_options<'a>(
    options: &Options,
    arguments: &'a [OsString],
    written: &mut Written,
) -> Result<(&'a [OsString], bool), Error> {
    // getopts takes UTF-8 only; a handler's path and arguments behind the options need not be.
    let text: Vec<&str> = arguments.iter().map_while(|word| word.to_str()).collect();
    let matches = options.parse(&text).map_err(|fail| match fail {
        Fail::ArgumentMissing(name) if text.len() < arguments.len() => Error::usage(format!(
            "option {}: '{}' is not UTF-8",
            spelling(&name),
            escape(arguments[text.len()].as_bytes())
        )),
        fail => complaint_of(&fail),
    })?;
    for setting in SETTINGS {
        let values = match setting.value {
            Some(_) => matches.opt_strs(setting.name),
            None => vec![String::new(); matches.opt_count(setting.name)],
        };
        for value in values {
            (setting.write)(written, &value).map_err(|complaint| bad_value(setting, &complaint))?;
        }
    }
    let taken = text.len() - matches.free.len();
    let rest = &arguments[taken..];
    if let Some(word) = rest.first()
        && word.as_bytes().starts_with(b"-")
        && word.to_str().is_none()
    {
        return Err(Error::usage(format!(
            "option '{}' is not UTF-8",
            escape(word.as_bytes())
        )));
    }
    Ok((rest, matches.free_trailing_start().is_some()))
}

fn bad_value(setting: &Setting, complaint: &Complaint) -> Error {
    Error::usage(format!("option {}: {complaint}", setting.spelling()))
}

fn complaint_of(fail: &Fail) -> Error {
    Error::usage(match fail {
        Fail::UnrecognizedOption(name) => match value::nearest(name, known_names(name)) {
            Some(meant) => format!(
                "unknown option {} (did you mean {}?)",
                escape(dashed(name)),
                dashed(meant)
            ),
            None => format!(
                "unknown option {} (tcpproxy --help lists them)",
                escape(dashed(name))
            ),
        },
        Fail::ArgumentMissing(name) => format!("option {}: needs a value", spelling(name)),
        Fail::UnexpectedArgument(name) => format!("option {}: takes no value", spelling(name)),
        Fail::OptionMissing(name) | Fail::OptionDuplicated(name) => {
            format!("option {}: {fail}", spelling(name))
        }
    })
}

/// The long names, for a misspelt one; nothing is near enough to a single letter.
fn known_names(word: &str) -> impl Iterator<Item = &'static str> {
    let long = word.chars().nth(1).is_some();
    SETTINGS
        .iter()
        .filter(move |_| long)
        .map(|setting| setting.name)
}

fn spelling(name: &str) -> String {
    SETTINGS
        .iter()
        .find(|setting| {
            setting.name == name || setting.short.is_some_and(|s| name == s.to_string())
        })
        .map_or_else(|| dashed(name), Setting::spelling)
}

fn dashed(name: &str) -> String {
    match name.chars().nth(1) {
        Some(_) => format!("--{name}"),
        None => format!("-{name}"),
    }
}

fn names_program(word: &OsStr) -> bool {
    matches!(word.as_bytes().first(), Some(b'/' | b'.'))
}

fn handler(word: &OsStr, arguments: &[OsString]) -> Result<Program, Error> {
    if let ([], Some(text)) = (arguments, word.to_str())
        && text.contains(|c: char| c.is_ascii_whitespace())
    {
        let words = value::words(text)
            .map_err(|complaint| Error::usage(format!("handler: {complaint}")))?;
        return Ok(Program::from(words));
    }
    Ok(Program {
        path: word.to_owned(),
        arguments: arguments.to_vec(),
    })
}

fn upstream(word: &OsStr) -> Result<Upstream, Error> {
    let text = word.to_str().ok_or_else(|| {
        Error::usage(format!("server '{}' is not UTF-8", escape(word.as_bytes())))
    })?;
    Upstream::parse(text).map_err(|complaint| Error::usage(format!("server: {complaint}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    fn parsed(words: &[&str]) -> CommandLine {
        parse(words.iter().map(OsString::from)).unwrap()
    }

    fn refused(words: &[&str]) -> String {
        parse(words.iter().map(OsString::from))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn options_may_stand_on_both_sides_of_an_upstream() {
        let line = parsed(&["-t", "5", "host:25", "-y"]);
        assert!(line.written.idle_timeout.is_some() && line.written.clear_env);
        assert!(matches!(line.server, Some(Server::Upstream(_))));
    }

    #[test]
    fn everything_after_a_handler_is_the_handlers() {
        let line = parsed(&["-y", "/bin/echo", "-t", "--help", "x"]);
        let Some(Server::Handler(program)) = line.server else {
            panic!("no handler")
        };
        assert_eq!(program.path, "/bin/echo");
        assert_eq!(program.arguments, ["-t", "--help", "x"]);
        assert!(line.written.shown.is_none());
    }

    #[test]
    fn a_handler_of_one_word_is_split_as_a_shell_splits_it() {
        let line = parsed(&["./serve 'a b' c"]);
        let Some(Server::Handler(program)) = line.server else {
            panic!("no handler")
        };
        assert_eq!(program.arguments, ["a b", "c"]);
    }

    #[test]
    fn handler_arguments_need_not_be_utf8() {
        let raw = OsString::from_vec(vec![0xff, 0xfe]);
        let line = parse(
            ["-y", "/bin/cat"]
                .into_iter()
                .map(OsString::from)
                .chain([raw.clone()]),
        );
        let Some(Server::Handler(program)) = line.unwrap().server else {
            panic!("no handler")
        };
        assert_eq!(program.arguments, [raw]);
    }

    #[test]
    fn other_words_must_be_utf8_and_the_message_can_be_printed() {
        for before in [&["-w"][..], &[], &["-y"]] {
            let words = before.iter().map(OsString::from);
            let error =
                parse(words.chain([OsString::from_vec(b"a\xff\x1b".to_vec())])).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("UTF-8") && text.contains("a\\xff"), "{text}");
            assert!(!text.contains('\x1b'), "{text}");
        }
    }

    #[test]
    fn short_options_are_grouped_and_values_attached() {
        let line = parsed(&["-yt5", "-wF", "--connect-timeout=3", "h:1"]);
        assert!(line.written.clear_env);
        assert_eq!(
            line.written.idle_timeout,
            Some(Some(std::time::Duration::from_secs(5)))
        );
        assert_eq!(line.written.transcript, Some("F".into()));
    }

    #[test]
    fn two_dashes_end_the_options() {
        let line = parsed(&["--", "host:25"]);
        assert!(matches!(line.server, Some(Server::Upstream(_))));
        assert!(refused(&["--", "host:25", "-y"]).contains("unexpected argument '-y'"));
    }

    #[test]
    fn complaints_name_the_option_and_what_would_be_right() {
        for (words, expected) in [
            (
                &["--tiemout", "5", "h"][..],
                "--tiemout (did you mean --timeout?)",
            ),
            (&["-x"], "unknown option -x"),
            (&["-t"], "-t/--timeout: needs a value"),
            (
                &["--timeout", "abc", "h"],
                "-t/--timeout: 'abc' is not a time",
            ),
            (&["-t", "1", "-t", "2", "h"], "-t/--timeout: is given twice"),
            (&["--clear-env=1", "h"], "-y/--clear-env: takes no value"),
            (&["--log-level", "inof", "h"], "did you mean 'info'?"),
            (
                &["--source", "localhost", "h"],
                "'localhost' is not an IP address",
            ),
            (&["h:1", "h:2"], "unexpected argument 'h:2'"),
        ] {
            let text = refused(words);
            assert!(text.contains(expected), "{words:?}: {text}");
        }
    }
}
