//! `tcpproxy`, the per-connection TCP forwarder: it takes a connection that inetd, systemd or its
//! own listener hands it, decides who may pass, and forwards it or starts a handler.
//!
//! The way through the house, always from left to right:
//!
//! ```text
//! argv ──► cli ──► Service (what is decided before anybody connects)
//!                     │
//! source ──► session ──► gate ──► action
//! (a Client)  (the story)  (an Admitted)  (upstream + relay, or a handler) ──► Reason ──► log
//! ```
//!
//! | room | knows | may touch |
//! | --- | --- | --- |
//! | [`cli`] | argv → what was written | nothing |
//! | [`settings`] | the one table of options: name, value, default, help line | nothing |
//! | [`value`] | the values that settings take | services(5) |
//! | [`service`] | what it all means, decided once | user and group names |
//! | [`source`] | where connected sockets come from: handed over, or accepted | sockets |
//! | [`supervisor`] | accept, fork, reap, end | processes, signals; never a client's byte |
//! | [`session`] | the order of the steps for one connection | the rooms right of it |
//! | [`gate`] | rules (pure), the access control program | [`program`] |
//! | [`program`] | what a program is started with | processes |
//! | [`user`] | groups → gid → uid, verified | ids |
//! | [`lookup`] | names and addresses, within a time | the resolver, in a child |
//! | [`upstream`] | names → addresses → a connected socket (RFC 8305) | sockets |
//! | [`relay`] | two directions, their buffers, the idle clock | two descriptors |
//! | [`transcript`] | what `--write` records | a file |
//! | [`wait`] | the one way in which a session sleeps | poll |
//! | [`log`] | sinks, levels, escaping: the only voice | syslog, files, standard streams |
//! | [`reason`], [`error`] | why a session, and why the program, ended | nothing |
//! | [`sys`] | every `unsafe` line | libc |

#![deny(unsafe_code)]

pub mod cli;
pub mod error;
pub mod gate;
pub mod log;
pub mod lookup;
pub mod program;
pub mod reason;
pub mod relay;
pub mod service;
pub mod session;
pub mod settings;
pub mod source;
pub mod supervisor;
#[expect(unsafe_code, reason = "this is where unsafe lives")]
pub mod sys;
pub mod transcript;
pub mod upstream;
pub mod user;
pub mod value;
pub mod wait;

use std::io::{self, Write};
use std::{env, mem};

use nix::sys::signal::Signal;

use cli::CommandLine;
use error::{Error, Status};
use log::Log;
use service::Service;
use settings::Shown;
use source::{Source, Streams};
use user::Ids;

/// The whole program, from its arguments to the status it exits with.
pub fn main() -> Status {
    let streams = match Streams::shielded() {
        Ok(streams) => streams,
        // Where the client cannot be kept apart from messages, there are none.
        Err(error) => return error.status(),
    };
    log::report_panics(streams);
    let mut log = Log::at_start(streams);
    match cli::parse(env::args_os().skip(1)).and_then(|line| run(line, streams, &mut log)) {
        Ok(status) => status,
        Err(error) => {
            log.fatal(&error);
            error.status()
        }
    }
}

fn run(line: CommandLine, streams: Streams, log: &mut Log) -> Result<Status, Error> {
    let CommandLine {
        mut written,
        server,
    } = line;
    if let Some(shown) = written.shown {
        return show(shown, streams);
    }
    let standalone = written.standalone;
    let binds = mem::take(&mut written.binds);
    if standalone && binds.is_empty() {
        return Err(Error::usage(
            "option -s/--standalone: needs -b [interface:]port to say where to listen",
        ));
    }
    let log_settings = log::Settings {
        name: written.log_name.take(),
        level: written.log_level,
        targets: mem::take(&mut written.log_targets),
    };
    let (user_is_chosen, group_is_chosen) = (written.user.is_some(), written.group.is_some());
    let service = Service::new(written, server)?;
    // A log or a transcript that reaches a limit on file sizes must not end the session.
    sys::ignore(Signal::SIGXFSZ).map_err(|errno| Error::system("signals", errno))?;
    *log = Log::open(log_settings, standalone, streams)?;
    if (user_is_chosen || group_is_chosen) && !user::has_root() {
        let current = Ids::current();
        let others = user_is_chosen && service.ids.uid != current.uid
            || group_is_chosen && service.ids.gid != current.gid;
        if others {
            log.warning(format_args!(
                "not started as root: serving as {current}, not as {}",
                service.ids
            ));
        }
    }
    match source::find(standalone, &binds, streams, log)? {
        Source::Connection(client) => {
            sys::watch_signals(&wait::ENDING).map_err(|errno| Error::system("signals", errno))?;
            Ok(session::serve(client, &service, log))
        }
        Source::Gone => Ok(session::note_gone(log)),
        Source::Listeners(listeners) => supervisor::run(listeners, &service, log),
    }
}

/// Shows the usage or the version; on standard output unless a client is there.
fn show(shown: Shown, streams: Streams) -> Result<Status, Error> {
    let text = match shown {
        Shown::Help => settings::usage(),
        Shown::Version => format!("tcpproxy {}\n", env!("CARGO_PKG_VERSION")),
    };
    if !streams.stdout_is_client {
        io::stdout()
            .write_all(text.as_bytes())
            .map_err(|error| Error::io("standard output", &error))?;
    }
    Ok(Status::Done)
}
