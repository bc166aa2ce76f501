//! The one table of settings: name, short option, value, default and help line side by side.
//!
//! The command line's parser ([`crate::cli`]) and `--help` are made from it. What the words mean
//! once they are all known is decided in [`crate::service`].

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::gate::Rule;
use crate::log;
use crate::source::Bind;
use crate::value::{self, Account, Complaint};

/// What was written: every setting as it stood on the command line, `None` or empty where it did
/// not. Defaults are not in here; see [`crate::service`].
#[derive(Debug, Default)]
pub struct Written {
    /// `--help` or `--version`.
    pub shown: Option<Shown>,
    /// `--standalone`, or implied by `--bind`.
    pub standalone: bool,
    /// `--bind`, in the order given.
    pub binds: Vec<Bind>,
    /// `--acp`: the access control program and its arguments.
    pub access_program: Option<Vec<String>>,
    /// `--acp-timeout`.
    pub access_program_timeout: Option<Duration>,
    /// `--user`.
    pub user: Option<Account>,
    /// `--group`.
    pub group: Option<Account>,
    /// `--log-name`.
    pub log_name: Option<String>,
    /// `--log`, in the order given.
    pub log_targets: Vec<log::Target>,
    /// `--log-level`.
    pub log_level: Option<log::Level>,
    /// `--timeout`; the inner `None` is "never".
    pub idle_timeout: Option<Option<Duration>>,
    /// `--connect-timeout`.
    pub connect_timeout: Option<Duration>,
    /// `--env-prefix`.
    pub env_prefix: Option<String>,
    /// `--clear-env`.
    pub clear_env: bool,
    /// `--write`: the transcript's base name.
    pub transcript: Option<PathBuf>,
    /// `--allow` and `--deny`.
    pub rules: Vec<Rule>,
    /// `--source`.
    pub source: Option<IpAddr>,
    /// `--buffer-size`, in bytes.
    pub buffer_size: Option<usize>,
}

/// What is shown instead of serving anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// The usage.
    Help,
    /// The version.
    Version,
}

/// One setting.
pub struct Setting {
    /// Its name: the long option without `--`.
    pub name: &'static str,
    /// Its short option.
    pub short: Option<char>,
    /// The word that stands for its value in the help, if it takes one.
    pub value: Option<&'static str>,
    /// What it does, its unit and its default, in a few words.
    pub help: &'static str,
    /// Notes the value down; complains about a bad one, or about a second one where only one can
    /// be. A setting without a value is given the empty string.
    pub write: fn(&mut Written, &str) -> Result<(), Complaint>,
}

/// The least and the greatest number of bytes that a direction may buffer.
pub const BUFFER_SIZES: (usize, usize) = (256, 64 << 20);

/// Every setting, in the order of the help.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "acp",
        short: Some('a'),
        value: Some("P"),
        help: "ask access control program P (with arguments) about every client",
        write: |written, text| once(&mut written.access_program, value::words(text)),
    },
    Setting {
        name: "bind",
        short: Some('b'),
        value: Some("A"),
        help: "listen on [interface:]port; may be repeated",
        write: |written, text| {
            written.standalone = true;
            written.binds.push(Bind::parse(text)?);
            Ok(())
        },
    },
    Setting {
        name: "group",
        short: Some('g'),
        value: Some("G"),
        help: "serve as this group when started as root (default 65534)",
        write: |written, text| once(&mut written.group, value::account(text)),
    },
    Setting {
        name: "help",
        short: Some('h'),
        value: None,
        help: "show this text",
        write: |written, _| {
            written.shown = Some(Shown::Help);
            Ok(())
        },
    },
    Setting {
        name: "log-name",
        short: Some('l'),
        value: Some("N"),
        help: "log under this name (default tcpproxy)",
        write: |written, text| once(&mut written.log_name, value::log_name(text)),
    },
    Setting {
        name: "standalone",
        short: Some('s'),
        value: None,
        help: "listen on the ports given, do not look for a connection handed over",
        write: |written, _| {
            written.standalone = true;
            Ok(())
        },
    },
    Setting {
        name: "timeout",
        short: Some('t'),
        value: Some("S"),
        help: "end a session after S seconds without a byte (default 60, 0 = never)",
        write: |written, text| once(&mut written.idle_timeout, value::seconds_or_never(text)),
    },
    Setting {
        name: "user",
        short: Some('u'),
        value: Some("U"),
        help: "serve as this user when started as root (default 65535)",
        write: |written, text| once(&mut written.user, value::account(text)),
    },
    Setting {
        name: "env-prefix",
        short: Some('v'),
        value: Some("P"),
        help: "prefix of the variables that programs see (default PROXY_)",
        write: |written, text| once(&mut written.env_prefix, value::prefix(text)),
    },
    Setting {
        name: "version",
        short: Some('V'),
        value: None,
        help: "show the version",
        write: |written, _| {
            written.shown = written.shown.or(Some(Shown::Version));
            Ok(())
        },
    },
    Setting {
        name: "write",
        short: Some('w'),
        value: Some("F"),
        help: "write a transcript of every session to F.PID.log",
        write: |written, text| {
            once(
                &mut written.transcript,
                value::not_empty(text).map(PathBuf::from),
            )
        },
    },
    Setting {
        name: "clear-env",
        short: Some('y'),
        value: None,
        help: "clear the environment before a program starts",
        write: |written, _| {
            written.clear_env = true;
            Ok(())
        },
    },
    Setting {
        name: "allow",
        short: None,
        value: Some("R"),
        help: "let in clients that match R, and no others; may be repeated",
        write: |written, text| {
            written.rules.push(Rule::allow(text)?);
            Ok(())
        },
    },
    Setting {
        name: "deny",
        short: None,
        value: Some("R"),
        help: "refuse clients that match R; may be repeated",
        write: |written, text| {
            written.rules.push(Rule::deny(text)?);
            Ok(())
        },
    },
    Setting {
        name: "connect-timeout",
        short: None,
        value: Some("S"),
        help: "seconds for reaching an upstream (default 10)",
        write: |written, text| once(&mut written.connect_timeout, value::some_seconds(text)),
    },
    Setting {
        name: "acp-timeout",
        short: None,
        value: Some("S"),
        help: "seconds that an access control program may take (default 10)",
        write: |written, text| {
            once(
                &mut written.access_program_timeout,
                value::some_seconds(text),
            )
        },
    },
    Setting {
        name: "log",
        short: None,
        value: Some("T"),
        help: "log to syslog (the default), stderr, stdout or file:PATH; may be repeated",
        write: |written, text| {
            written.log_targets.push(log::Target::parse(text)?);
            Ok(())
        },
    },
    Setting {
        name: "log-level",
        short: None,
        value: Some("L"),
        help: "log error, warning, notice, info or debug, and what is graver (default info)",
        write: |written, text| {
            once(
                &mut written.log_level,
                value::one_of(text, log::Level::WORDS),
            )
        },
    },
    Setting {
        name: "source",
        short: None,
        value: Some("A"),
        help: "local address for connections to the upstream",
        write: |written, text| {
            let address = text
                .parse::<IpAddr>()
                .map_err(|_| format!("'{}' is not an IP address", log::escape(text)));
            once(&mut written.source, address)
        },
    },
    Setting {
        name: "buffer-size",
        short: None,
        value: Some("N"),
        help: "bytes buffered per direction (default 64k)",
        write: |written, text| {
            let (smallest, largest) = BUFFER_SIZES;
            once(
                &mut written.buffer_size,
                value::size(text, smallest, largest),
            )
        },
    },
];

/// Notes down the value of a setting that only makes sense once.
fn once<T>(place: &mut Option<T>, value: Result<T, Complaint>) -> Result<(), Complaint> {
    if place.is_some() {
        return Err("is given twice".to_owned());
    }
    *place = Some(value?);
    Ok(())
}

impl Setting {
    /// How messages name the setting: `-t/--timeout`, or `--allow`.
    pub fn spelling(&self) -> String {
        match self.short {
            Some(short) => format!("-{short}/--{}", self.name),
            None => format!("--{}", self.name),
        }
    }
}

/// What `--help` prints.
pub fn usage() -> String {
    let mut text = String::from(
        "usage: tcpproxy [options] [server]\n\
         \n\
         Forwards the connection it is handed (by inetd or systemd, or with -b by its own\n\
         listener) to server: host[:port], [v6]:port or unix:/path; or, if server begins\n\
         with / or ., starts that program for it.\n\
         \n",
    );
    for setting in SETTINGS {
        let short = setting
            .short
            .map_or("   ".to_owned(), |short| format!("-{short},"));
        let long = [Some(setting.name), setting.value].into_iter().flatten();
        let long = long.collect::<Vec<_>>().join(" ");
        text += &format!("  {short} --{long:<20} {}\n", setting.help);
    }
    text
}
