//! The one table of settings: name, short option, scope, value, range, default and help line side
//! by side, and how a value is read and written.
//!
//! The command line's parser (`config::cli`), the configuration file's (`config::file`),
//! `--help` and `-zz` are made from it, so that what one accepts, the other accepts. What the words
//! mean once they are all known is decided in `config::service`.

pub(crate) mod default;
mod explained;
mod shown;
mod table;
mod written;

use crate::config::Destination;
use crate::relay::Delay;
use crate::terms::escape::brief;
use crate::terms::place::Place;
use crate::terms::value::{Complaint, Fault};
use crate::upstream::{OwnAddress, Upstream};

pub(crate) use explained::Explained;
pub use table::SETTINGS;
pub(crate) use written::Written;

/// What is shown instead of serving anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// The usage.
    Help,
    /// The version.
    Version,
}

/// What happens to clients when there are as many sessions as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Overflow {
    /// They wait in the backlog.
    #[default]
    Defer,
    /// They are closed at once.
    Drop,
}

impl Overflow {
    /// The ways by name.
    pub(crate) const WORDS: &[(&str, Overflow)] =
        &[("defer", Overflow::Defer), ("drop", Overflow::Drop)];
}

/// What a protocol is helped by whose messages say where they are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Helper {
    /// FTP's control connection is read, and its data connections are relayed.
    Ftp,
    /// Requests that were meant for origin servers are made what an HTTP proxy understands.
    HttpProxy,
}

impl Helper {
    /// The helpers by name.
    pub(crate) const WORDS: &[(&str, Option<Helper>)] = &[
        ("no", None),
        ("ftp", Some(Helper::Ftp)),
        ("http-proxy", Some(Helper::HttpProxy)),
    ];

    /// What cannot be helped, where these settings hold for what leads there, in a sentence.
    pub(crate) fn complaint(written: &Written, destination: &Destination) -> Option<String> {
        let helper = written.helper.flatten()?;
        let is_unix = |upstreams: &[Upstream]| upstreams.iter().any(Upstream::is_unix);
        let has_via = written.via.as_ref().is_some_and(|via| via.value.is_some());
        let what = match (helper, destination) {
            (_, Destination::Handler(_)) => "a handler",
            (Helper::Ftp, Destination::Upstreams(upstreams)) => {
                if is_unix(upstreams) {
                    "a unix upstream"
                } else if has_via {
                    "via"
                } else if written.source.is_some_and(OwnAddress::is_clients) {
                    "source client"
                } else {
                    return None;
                }
            }
            // What is held back are bytes as they came, and these are others.
            (Helper::HttpProxy, Destination::Upstreams(_)) => {
                if written.delay.is_some_and(|delay| delay != Delay::default()) {
                    "delay"
                } else {
                    return None;
                }
            }
        };
        let name = match helper {
            Helper::Ftp => "ftp",
            Helper::HttpProxy => "http-proxy",
        };
        Some(format!(
            "helper: {name} cannot go with {what}: leave that out, or write helper no"
        ))
    }
}

/// A URL that requests can be sent to, as it is written in them.
pub(super) fn url(text: &str) -> Result<String, Complaint> {
    let after_scheme = ["http://", "https://"]
        .into_iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    let host = after_scheme.map(|rest| rest.split(['/', '?']).next().unwrap_or(rest));
    let is_plain = text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    if is_plain && host.is_some_and(|host| !host.is_empty()) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "'{}' is not a URL that requests can be sent to: write http://HOST[:PORT]/PATH, without \
             blanks and #",
            brief(text)
        ))
    }
}

/// One setting.
pub struct Setting {
    /// Its name: the long option without `--`, and the directive.
    pub name: &'static str,
    /// Its short options.
    pub short: &'static [char],
    /// Another name that it has as a directive: the original's.
    pub directive: Option<&'static str>,
    /// Where it may stand.
    pub scope: Scope,
    /// What it takes.
    pub takes: Takes,
    /// Whether it may stand more than once in a scope.
    pub repeatable: bool,
    /// Whether its value may have a password in it, which no message has, then.
    pub secret: bool,
    /// What it does, its unit and its default, in a few words.
    pub help: &'static str,
    /// Notes the value down. A setting without one is given the empty string.
    pub(crate) write: fn(&mut Written, Given) -> Result<(), Fault>,
    /// The effective values as a file would have them, defaults included; none where nothing is
    /// the value.
    pub(crate) show: fn(&Written) -> Vec<String>,
}

/// Where a setting may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// On the command line alone.
    CommandLine,
    /// There, and in a file before the first port.
    Server,
    /// There, and anywhere in a file.
    Service,
}

/// What a setting takes, and the word that stands for it in the help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Nothing on the command line; `yes` or `no` in a file.
    Switch,
    /// Nothing on the command line; it cannot stand in a file.
    Nothing,
    /// A value.
    Value(&'static str),
    /// A value, or nothing: then attached by `=` to the long option.
    Perhaps(&'static str),
    /// A command: in a file, all words of the rest of the line.
    Command(&'static str),
}

/// A value as it was written, and where.
#[derive(Clone, Copy)]
pub(crate) struct Given<'a> {
    /// The text.
    pub text: &'a str,
    /// Where it stands.
    pub place: &'a Place,
}

impl Setting {
    /// How messages name the option: `-t/--timeout`, or `--allow`.
    pub fn spelling(&self) -> String {
        match self.short.first() {
            Some(short) => format!("-{short}/--{}", self.name),
            None => format!("--{}", self.name),
        }
    }

    /// Whether it takes a value that has to be there.
    pub fn needs_value(&self) -> bool {
        matches!(self.takes, Takes::Value(_) | Takes::Command(_))
    }

    /// Whether this is one of its names as a directive.
    pub fn is_directive(&self, name: &str) -> bool {
        self.scope != Scope::CommandLine && (self.name == name || self.directive == Some(name))
    }
}

/// What `--help` prints.
pub fn usage() -> String {
    let mut text = String::from(
        "usage: tcpproxy [options] [server]\n\
         \n\
         Forwards the connection it is handed (by inetd or systemd, or with -b by its own\n\
         listener) to server: host[:port], [v6]:port, unix:/path or original-dst[:port];\n\
         or, if server begins with / or ., starts that program for it. Without server,\n\
         /etc/tcpproxy.conf says what is served.\n\
         \n",
    );
    for setting in SETTINGS {
        let help = setting.help.replace('\n', &format!("\n{:36}", ""));
        let short: String = setting
            .short
            .iter()
            .map(|short| format!("-{short}, "))
            .collect();
        let long = match setting.takes {
            Takes::Switch | Takes::Nothing => setting.name.to_owned(),
            Takes::Value(value) | Takes::Command(value) => format!("{} {value}", setting.name),
            Takes::Perhaps(value) => format!("{}[={value}]", setting.name),
        };
        text += &format!("  {short:>8}--{long:<23} {help}\n");
    }
    text
}
