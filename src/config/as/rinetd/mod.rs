//! rinetd 0.73 and, in the form of text, rinetd-uv 2.1.3: its options, and what it does unless its file
//! says otherwise. The file is [`conf`]'s.

mod conf;
mod line;
#[cfg(test)]
mod tests;
mod words;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use getopts::{Fail, Options};

use super::{Arguments, Program};
use crate::config::settings::{Shown, Written};
use crate::gate::AllowLevels;
use crate::log;
use crate::terms::error::Error;
use crate::terms::escape::brief;
use crate::terms::value;

pub use conf::parse;

pub(super) const PROGRAM: Program = Program {
    name: "rinetd",
    arguments,
    read: parse,
    usage: USAGE,
    version: "0.73",
};

/// The file that is read unless another is named.
const CONFIG: &str = "/etc/rinetd.conf";
/// The pid file of one in the background, unless its file names another.
const PIDFILE: &str = "/var/run/rinetd.pid";

const USAGE: &str = "usage: rinetd [options] [--tcpproxy options of tcpproxy]

Forwards TCP connections as /etc/rinetd.conf says; this is tcpproxy in its place.

  -c, --conf-file FILE   read this file instead of /etc/rinetd.conf
  -d, --debug            log more
  -f, --foreground       stay in the foreground, and log to standard error
  -h, --help             show this text
  -v, --version          show the version
  --tcpproxy ...         tcpproxy's own options follow: --check, -zz, --explain C, ...
";

/// The options, and what rinetd does by default.
fn arguments(words: &[OsString]) -> Result<Arguments, Error> {
    let mut options = Options::new();
    options.optmulti("c", "conf-file", "", "FILE");
    options.optflagmulti("d", "debug", "");
    options.optflagmulti("f", "foreground", "");
    options.optflagmulti("h", "help", "");
    options.optflagmulti("v", "version", "");
    let text = |word: &OsString| {
        let not_utf8 = || Error::usage(format!("'{}' is not UTF-8", brief(word.as_bytes())));
        word.to_str().map(str::to_owned).ok_or_else(not_utf8)
    };
    let words = words.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let given = options.parse(words).map_err(|fail| {
        let what = match fail {
            Fail::UnrecognizedOption(name) => format!("there is no option '{}'", brief(name)),
            Fail::ArgumentMissing(name) => format!("the option '{name}' needs a value"),
            Fail::UnexpectedArgument(name) => format!("the option '{name}' takes no value"),
            Fail::OptionMissing(_) | Fail::OptionDuplicated(_) => fail.to_string(),
        };
        Error::usage(format!("{what}: write -c FILE, -d, -f, -h or -v"))
    })?;
    if let Some(word) = given.free.first() {
        let what = brief(word);
        return Err(Error::usage(format!(
            "unexpected argument '{what}': write -c FILE to name the file"
        )));
    }
    // The last one counts, as there.
    let path = match given.opt_strs("c").pop() {
        Some(path) => value::path(&path)
            .map_err(|complaint| Error::usage(format!("option -c/--conf-file: {complaint}")))?,
        None => PathBuf::from(CONFIG),
    };
    let shown = match (given.opt_present("h"), given.opt_present("v")) {
        (true, _) => Some(Shown::Help),
        (false, true) => Some(Shown::Version),
        (false, false) => None,
    };
    Ok(Arguments {
        written: Written {
            config: Some(path),
            shown,
            // Whatever it was handed, it listens.
            standalone: Some(true),
            log_level: given.opt_present("d").then_some(log::Level::Debug),
            ..Written::default()
        },
        destination: None,
        defaults: defaults(given.opt_present("f")),
    })
}

/// What holds where the file says nothing.
fn defaults(foreground: bool) -> Written {
    let written = Written {
        allow_levels: Some(AllowLevels::Each),
        timeout: Some(None),
        log_name: Some(PROGRAM.name.to_owned()),
        // It tells the system whom it refuses, and not of each connection.
        log_level: Some(log::Level::Notice),
        access_log_format: Some(log::Format::RinetdOpened),
        // As many as there are descriptors, which is for the system to say.
        max_sessions: Some(None),
        ..Written::default()
    };
    if foreground {
        Written {
            log_targets: vec![log::Target::Stderr],
            ..written
        }
    } else {
        Written {
            daemon: Some(true),
            pidfile: Some(Some(PathBuf::from(PIDFILE))),
            ..written
        }
    }
}

#[cfg(test)]
mod options {
    use super::*;

    fn of(words: &[&str]) -> Result<Arguments, String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        arguments(&words).map_err(|error| error.to_string())
    }

    #[test]
    fn its_options_are_read_in_each_of_their_forms() {
        for (words, path) in [
            (&[][..], CONFIG),
            (&["-c", "/x"], "/x"),
            (&["-fc/x"], "/x"),
            (&["--conf-file=/x", "--foreground"], "/x"),
            (&["--conf-file", "/y", "-c", "/x"], "/x"),
        ] {
            let written = of(words).unwrap().written;
            assert_eq!(written.config, Some(path.into()), "{words:?}");
        }
        let shown = |words| of(words).unwrap().written.shown;
        assert_eq!(shown(&["-v"]), Some(Shown::Version));
        assert_eq!(shown(&["--version", "-h"]), Some(Shown::Help));
    }

    #[test]
    fn what_is_none_is_refused() {
        for (words, what) in [
            (&["-x"][..], "'x': write -c FILE"),
            (&["-c"], "'c'"),
            (&["-c", ""], "option -c/--conf-file: is empty"),
            (&["/etc/rinetd.conf"], "unexpected argument"),
        ] {
            let complaint = of(words).err().unwrap();
            assert!(complaint.contains(what), "{words:?}: {complaint}");
        }
    }

    #[test]
    fn in_the_background_it_has_a_pid_file_and_before_it_a_terminal() {
        let background = of(&[]).unwrap().defaults;
        assert_eq!(background.pidfile, Some(Some(PIDFILE.into())));
        assert_eq!(background.daemon, Some(true));
        assert!(background.log_targets.is_empty());
        let foreground = of(&["-f"]).unwrap().defaults;
        assert_eq!((foreground.pidfile, foreground.daemon), (None, None));
        assert_eq!(foreground.log_targets, [log::Target::Stderr]);
    }
}
