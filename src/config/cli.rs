//! The command line: arguments in, what was written out. Names of ports, users and groups are looked
//! up, and whether a word behind `-p` is a program; nothing else is touched.
//!
//! getopts(3)-style parsing is the getopts crate's; which options there are is
//! [`crate::config::settings`]' business. Handler arguments need not be UTF-8, everything else must be.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use getopts::{Fail, HasArg, Matches, Occur, Options, ParsingStyle};
use nix::unistd::{AccessFlags, access};

use crate::config::Destination;
use crate::config::InPlaceOf;
use crate::config::settings::{Given, SETTINGS, Setting, Takes, Written};
use crate::sys::program::Program;
use crate::terms::error::Error;
use crate::terms::escape::brief;
use crate::terms::place::Place;
use crate::terms::value;
use crate::terms::value::Fault;
use crate::upstream::Upstream;

#[derive(Debug, Default)]
pub(crate) struct CommandLine {
    pub written: Written,
    /// The `server` argument.
    pub destination: Option<Destination>,
    /// The program whose command line it is, if it is another's.
    pub in_place_of: Option<Box<InPlaceOf>>,
}

/// Parses the arguments (without the program's own name). The error names the option, the word,
/// and what would be right; it is of status 64, or 78 for users and groups that cannot be.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<CommandLine, Error> {
    let arguments: Vec<OsString> = arguments.collect();
    let settings = mentioned(&arguments);
    let options = options(&settings);
    let mut parsed = CommandLine::default();
    let mut state = State::default();
    let mut rest = arguments.as_slice();
    // Options may stand on both sides of an upstream, but what follows a handler is the
    // handler's own. So getopts is asked for one stretch up to a free argument at a time.
    while !rest.is_empty() {
        if !state.options_ended && rest[0].as_bytes().starts_with(b"-") {
            rest = take_options(&settings, &options, rest, &mut parsed.written, &mut state)?;
        }
        let Some((word, after)) = rest.split_first() else {
            break;
        };
        let behind_pidfile = state.pidfile_flags == 1
            && arguments[..arguments.len() - rest.len()]
                .last()
                .is_some_and(|option| is_bare_pidfile(option));
        if state.pidfile_wanted() {
            let name = word
                .to_str()
                .ok_or_else(|| not_utf8("-p/--pidfile", word))?;
            let path = value::path(name)
                .map_err(|complaint| Error::usage(format!("option -p/--pidfile: {complaint}")))?;
            parsed.written.pidfile = Some(Some(path));
            state.pidfile_named = true;
        } else if parsed.destination.is_some() {
            let hint = state
                .server_behind_pidfile
                .map_or_else(String::new, |file| {
                    format!(" '{}': {}", brief(file.as_bytes()), naming_pidfile(file))
                });
            return Err(Error::usage(format!(
                "unexpected argument '{}' after the server{hint}",
                brief(word.as_bytes())
            )));
        } else if behind_pidfile && word.as_bytes().ends_with(b".pid") {
            return Err(Error::usage(format!(
                "option -p/--pidfile: '{}' would be the server: {}",
                brief(word.as_bytes()),
                naming_pidfile(word)
            )));
        } else if names_program(word) {
            let program = handler(word, after)?;
            if behind_pidfile && !is_executable(Path::new(&program.path)) {
                return Err(Error::usage(format!(
                    "option -p/--pidfile: '{}' would be the handler, and is not a program: {}",
                    brief(word.as_bytes()),
                    naming_pidfile(word)
                )));
            }
            parsed.destination = Some(Destination::Handler(program));
            break;
        } else {
            parsed.destination = Some(Destination::Upstreams(vec![upstream(word)?]));
            state.server_behind_pidfile = behind_pidfile.then_some(word);
        }
        rest = after;
    }
    if state.pidfile_wanted() {
        return Err(Error::usage(
            "option -p/--pidfile: given twice, it needs the file's name as an argument",
        ));
    }
    Ok(parsed)
}

/// What has been seen of the command line.
#[derive(Default)]
struct State<'a> {
    /// `--` was among it.
    options_ended: bool,
    /// Which options, by name, so often.
    seen: BTreeMap<&'static str, usize>,
    /// `-p` so many times.
    pidfile_flags: usize,
    /// The file of `-p -p` has been named.
    pidfile_named: bool,
    /// An upstream that came right behind the only `-p`, as its file would.
    server_behind_pidfile: Option<&'a OsStr>,
}

impl State<'_> {
    /// Whether the next free argument is the pid file's name.
    fn pidfile_wanted(&self) -> bool {
        self.pidfile_flags > 1 && !self.pidfile_named
    }
}

/// Whether an option ends with `-p`, or is that without a file. Who writes another word behind it may
/// mean the file.
fn is_bare_pidfile(option: &OsStr) -> bool {
    match option.as_bytes() {
        b"--pidfile" => true,
        [b'-', b'-', ..] => false,
        [b'-', shorts @ ..] => shorts.ends_with(b"p"),
        _ => false,
    }
}

/// How to name the pid file.
fn naming_pidfile(file: &OsStr) -> String {
    let file = brief(file.as_bytes());
    format!("to name the pid file, write -p -p {file} or --pidfile={file}")
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && access(path, AccessFlags::X_OK).is_ok()
}

/// The settings that words could name, and perhaps some more: all others cost time at every start.
fn mentioned(words: &[OsString]) -> Vec<&'static Setting> {
    let names = |word: &OsString, setting: &Setting| match word.as_bytes() {
        [b'-', b'-', long @ ..] => long.starts_with(setting.name.as_bytes()),
        [b'-', shorts @ ..] => setting
            .short
            .iter()
            .any(|short| shorts.contains(&(*short as u8))),
        _ => false,
    };
    SETTINGS
        .iter()
        .filter(|setting| words.iter().any(|word| names(word, setting)))
        .collect()
}

fn options(settings: &[&Setting]) -> Options {
    let mut options = Options::new();
    options.parsing_style(ParsingStyle::StopAtFirstFree);
    for setting in settings {
        // All may be repeated as far as getopts is concerned: we have the better message.
        let mut shorts = setting.short.iter().map(char::to_string);
        let short = shorts.next().unwrap_or_default();
        match setting.takes {
            Takes::Switch | Takes::Nothing => {
                options.optflagmulti(&short, setting.name, "");
            }
            Takes::Value(value) | Takes::Command(value) => {
                options.optmulti(&short, setting.name, "", value);
                for other in shorts {
                    options.optmulti(&other, "", "", value);
                }
            }
            // The short form takes no value, so that `-p server` means what it says.
            Takes::Perhaps(value) => {
                options.optflagmulti(&short, "", "");
                options.opt("", setting.name, "", value, HasArg::Maybe, Occur::Multi);
            }
        }
    }
    options
}

/// Notes down the options that `arguments` begins with. Returns what follows them.
fn take_options<'a>(
    settings: &[&Setting],
    options: &Options,
    arguments: &'a [OsString],
    written: &mut Written,
    state: &mut State,
) -> Result<&'a [OsString], Error> {
    // getopts takes UTF-8 only; a handler's path and arguments behind the options need not be.
    let text: Vec<&str> = arguments.iter().map_while(|word| word.to_str()).collect();
    let matches = options.parse(&text).map_err(|fail| match fail {
        Fail::ArgumentMissing(name) if text.len() < arguments.len() => {
            not_utf8(&spelling(&name), &arguments[text.len()])
        }
        fail => complaint_of(&fail),
    })?;
    for setting in settings {
        let values = values_of(setting, &matches);
        if values.is_empty() {
            continue;
        }
        let seen = state.seen.entry(setting.name).or_default();
        *seen += values.len();
        if let Takes::Perhaps(_) = setting.takes {
            state.pidfile_flags += values.iter().filter(|value| value.is_empty()).count();
        } else if *seen > 1 && !setting.repeatable {
            return Err(bad_value(setting, "is given twice"));
        }
        for text in &values {
            let given = Given {
                text,
                place: &Place::CommandLine,
            };
            (setting.write)(written, given).map_err(|fault| match fault {
                Fault::Bad(complaint) => bad_value(setting, &complaint),
                Fault::Refused(complaint) => {
                    Error::config(format!("option {}: {complaint}", setting.spelling()))
                }
            })?;
        }
    }
    let taken = text.len() - matches.free.len();
    let rest = &arguments[taken..];
    state.options_ended = matches.free_trailing_start().is_some();
    if let Some(word) = rest.first()
        && word.as_bytes().starts_with(b"-")
        && word.to_str().is_none()
    {
        return Err(Error::usage(format!(
            "option '{}' is not UTF-8",
            brief(word.as_bytes())
        )));
    }
    Ok(rest)
}

/// The values that a setting was given; the empty string for each time without one.
fn values_of(setting: &Setting, matches: &Matches) -> Vec<String> {
    let times = |name: &str| vec![String::new(); matches.opt_count(name)];
    match setting.takes {
        Takes::Switch | Takes::Nothing => times(setting.name),
        Takes::Value(_) | Takes::Command(_) => {
            let others = setting.short.iter().skip(1);
            let others = others.flat_map(|short| matches.opt_strs(&short.to_string()));
            matches
                .opt_strs(setting.name)
                .into_iter()
                .chain(others)
                .collect()
        }
        Takes::Perhaps(_) => {
            let named = matches.opt_strs(setting.name);
            let bare = matches.opt_count(setting.name) - named.len();
            let short = setting
                .short
                .iter()
                .flat_map(|short| times(&short.to_string()));
            named
                .into_iter()
                .chain(vec![String::new(); bare])
                .chain(short)
                .collect()
        }
    }
}

fn not_utf8(option: &str, word: &OsStr) -> Error {
    Error::usage(format!(
        "option {option}: '{}' is not UTF-8",
        brief(word.as_bytes())
    ))
}

fn bad_value(setting: &Setting, complaint: &str) -> Error {
    Error::usage(format!("option {}: {complaint}", setting.spelling()))
}

fn complaint_of(fail: &Fail) -> Error {
    Error::usage(match fail {
        Fail::UnrecognizedOption(name) => match value::nearest(name, known_names(name)) {
            Some(meant) => format!(
                "unknown option {} (did you mean {}?)",
                brief(dashed(name)),
                dashed(meant)
            ),
            None => format!(
                "unknown option {} (tcpproxy --help lists them)",
                brief(dashed(name))
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
            let is_short = |short: &char| name == short.to_string();
            setting.name == name || setting.short.iter().any(is_short)
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
    let text = word
        .to_str()
        .ok_or_else(|| Error::usage(format!("server '{}' is not UTF-8", brief(word.as_bytes()))))?;
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
        assert!(line.written.timeout.is_some() && line.written.clear_env == Some(true));
        assert!(matches!(line.destination, Some(Destination::Upstreams(_))));
    }

    #[test]
    fn everything_after_a_handler_is_the_handlers() {
        let line = parsed(&["-y", "/bin/echo", "-t", "--help", "x"]);
        let Some(Destination::Handler(program)) = line.destination else {
            panic!("no handler")
        };
        assert_eq!(program.path, "/bin/echo");
        assert_eq!(program.arguments, ["-t", "--help", "x"]);
        assert!(line.written.shown.is_none());
    }

    #[test]
    fn a_handler_of_one_word_is_split_as_a_shell_splits_it() {
        let line = parsed(&["./serve 'a b' c"]);
        let Some(Destination::Handler(program)) = line.destination else {
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
        let Some(Destination::Handler(program)) = line.unwrap().destination else {
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
        assert_eq!(line.written.clear_env, Some(true));
        assert_eq!(
            line.written.timeout,
            Some(Some(std::time::Duration::from_secs(5)))
        );
        assert_eq!(line.written.write, Some("F".into()));
    }

    #[test]
    fn two_dashes_end_the_options() {
        let line = parsed(&["--", "host:25"]);
        assert!(matches!(line.destination, Some(Destination::Upstreams(_))));
        assert!(refused(&["--", "host:25", "-y"]).contains("unexpected argument '-y'"));
    }

    #[test]
    fn the_pid_file_is_named_in_each_of_its_forms() {
        for (words, path) in [
            (&["-p", "h:1"][..], "/var/run/tcpproxy.pid"),
            (&["--pidfile", "h:1"], "/var/run/tcpproxy.pid"),
            (&["--pidfile=/x", "h:1"], "/x"),
            (&["-pp", "/x", "h:1"], "/x"),
            (&["-p", "-p", "/x", "-b", "1", "h:1"], "/x"),
            (&["-p", "-t", "5", "-p", "x", "/bin/cat"], "x"),
        ] {
            let line = parsed(words);
            assert_eq!(line.written.pidfile, Some(Some(path.into())), "{words:?}");
            assert!(line.destination.is_some(), "{words:?}");
        }
        assert!(refused(&["-pp"]).contains("needs the file's name"));
    }

    #[test]
    fn a_word_behind_p_that_was_meant_to_be_the_file_is_not_taken_for_the_server() {
        for (file, words) in [
            ("/run/x.pid", &["-p", "/run/x.pid", "-b", "25", "h:1"][..]),
            ("/run/x.pid", &["-b", "25", "-p", "/run/x.pid", "h:1"]),
            (
                "/nonexistent/x",
                &["-p", "/nonexistent/x", "-b", "25", "h:1"],
            ),
            ("/etc", &["-sp", "/etc", "h:1"]),
            (
                "/etc/passwd",
                &["--pidfile", "/etc/passwd", "-b", "25", "h:1"],
            ),
            ("x.pid", &["-p", "x.pid", "-b", "25", "h:1"]),
            ("x", &["-p", "x", "-b", "25", "h:1"]),
            ("./x", &["-p", "./x"]),
        ] {
            let text = refused(words);
            let right = format!("write -p -p {file} or --pidfile={file}");
            assert!(text.ends_with(&right), "{words:?}: {text}");
        }
        // What can be a server is one.
        for words in [
            &["-p", "/bin/cat", "-b", "25"][..],
            &["-p", "/bin/sh -c 'exit 0'"],
            &["-p", "-t", "5", "/nonexistent/handler"],
            &["-p", "--", "/nonexistent/handler"],
            &["-p", "host", "-b", "25"],
            &["-wp", "/nonexistent/handler"],
            &["/nonexistent/x.pid"],
        ] {
            assert!(parsed(words).destination.is_some(), "{words:?}");
        }
        assert!(refused(&["h:1", "-p", "h:2"]).ends_with("'h:2' after the server"));
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
