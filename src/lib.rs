//! `tcpproxy`, the per-connection TCP forwarder: it takes a connection that inetd, systemd or its
//! own listener hands it, decides who may pass, and forwards it or starts a handler.
//!
//! The way through the house, always from left to right:
//!
//! ```text
//! argv, file ──► config ──► Service (what is decided before anybody connects)
//!                              │
//! source ──► session ──► gate ──► action
//! (a Client)  (the story)  (an Admitted)  (upstream + relay, or a handler) ──► Reason ──► log
//! ```
//!
//! A connection walks this line once. Nothing on the right calls back to the left; each step takes
//! what the one before it has proved. inetd, systemd, our own listener and the tests all enter by
//! the same door: `session::serve`.
//!
//! | room | knows | may touch |
//! | --- | --- | --- |
//! | `server` | processes that accept, count, fork, reap, reload; its state for those who watch it | processes, a pid file; never a client's byte |
//! | `session` | the order of the steps for one connection; how a handler serves it; the helper that relays FTP's further connections | the rooms below |
//! | `config` | all that is decided before anybody connects: command line, file, those of other programs (`as`), the one table of settings, services; what is printed instead of serving | files, names of interfaces |
//! | `gate` | who may pass, and who is a proxy: limits and rules (both pure), the access program; counts that processes share | programs, the state directory |
//! | `upstream` | from a route to a connected socket: names, addresses, attempts (RFC 8305), proxies on the way | sockets |
//! | `source` | where clients come from: handed over, or accepted by our own listeners; the header in which a proxy says who they are; where they had meant to go | sockets |
//! | `relay` | two directions until their end: buffers, clocks, transcripts; no rights, no names | two descriptors |
//! | `log` | the only voice: journals of sessions, sinks, levels | syslog, files, standard streams |
//! | `sys` | the operating system: waiting, ids, programs, streams, names; `sys::raw` alone is unsafe | processes, descriptors, the resolver |
//! | `protocol` | bytes of others' protocols: PROXY headers; FTP's control connection; requests of HTTP/1; asking HTTP and SOCKS proxies for connections; answers of access programs | nothing |
//! | `terms` | nouns and text that all share: endpoint, facts, credentials, progress, reason, error, place, value, escaping | nothing |
//!
//! A room imports from those below it in this table, never from one above; `gate` and `upstream`
//! do not know each other, nor do `source` and `relay`.
//!
//! Where to add what: an option or directive is a row in `config::settings::table`, and its meaning
//! goes into `config::service`; a program that this one is started in the place of is a folder in
//! `config::as`; why a session can end is a row in `terms::reason`; a way in which
//! clients come is a file in `source`; a check of who may pass goes into `gate`; a way to reach an
//! upstream into `upstream`. What runs the binary to prove it is in `tests/`, a folder per subject
//! (see `tests/harness/mod.rs`).

#![deny(unsafe_code)]

mod config;
mod gate;
mod log;
mod protocol;
pub mod relay;
mod server;
mod session;
mod source;
mod sys;
mod terms;
mod upstream;

use std::rc::Rc;

use nix::sys::signal::Signal;

use config::cli::CommandLine;
use config::file::Disk;
use config::service::Service;
use config::setup::{self, Setup};
use log::{Log, StandardError};
use server::Again;
use session::Counting;
use source::{Client, Listeners, Listening, Source};
use sys::user::Ids;
use sys::{user, wait};
use terms::error::{Error, Status};
use upstream::without_password;

// What the fuzz targets, the benchmark and the tests name. Nothing else is offered to anybody.
pub use config::{file, parse_rinetd, settings};
pub use log::report_panics;
pub use protocol::{answer, connect, ftp, http, proxy, socks5};
pub use sys::Words;
pub use sys::streams::Streams;
pub use terms::credentials::Credentials;
pub use terms::progress::Progress;
pub use terms::reason::Reason;

/// The whole program, from its arguments to its exit. Nothing is torn down: the kernel does that
/// sooner.
pub fn main(words: Words) -> ! {
    sys::exit_now(status(&words) as i32)
}

/// The status to exit with.
fn status(words: &Words) -> Status {
    let streams = match Streams::shielded() {
        Ok(streams) => streams,
        // Where the client cannot be kept apart from messages, there are none.
        Err(error) => return error.status(),
    };
    if sys::ignore_what_writing_raises().is_err() {
        return Status::System;
    }
    log::report_panics(streams);
    let mut log = Log::at_start(streams);
    let line = config::command_line(words.all());
    if line.as_ref().is_ok_and(|line| line.written.via.is_some()) {
        words.show_as(without_password);
    }
    match line.and_then(|line| run(&line, streams, &mut log)) {
        Ok(status) => status,
        Err(error) => {
            log.fatal(&error);
            error.status()
        }
    }
}

fn run(line: &CommandLine, streams: Streams, log: &mut Log) -> Result<Status, Error> {
    if let Some(status) = config::answer::instead(line, streams, log)? {
        return Ok(status);
    }
    let setup = Setup::new(line, &Disk)?;
    let stderr = Rc::default();
    *log = open_log(&setup, streams, &stderr)?;
    let plan = &setup.server;
    // Before listening, and where listeners were handed over; one connection needs fewer names.
    let prepare = || {
        server::watch_signals_until_ready()?;
        setup.prepare()?;
        server::watch_signals()
    };
    let source = source::find(plan.listening, &plan.places, prepare, streams, log)?;
    let is_daemon = plan.daemon;
    if is_daemon && !source.is_own() {
        return Err(setup::no_daemon());
    }
    match source {
        Source::Connection(client) => serve_one(client, &setup, log),
        Source::Gone => Ok(log::note_gone(log)),
        Source::Listeners(listeners) => {
            let again = Again {
                setup: &|files| Ok(Setup::new(line, files)?),
                log: &|setup| open_log(setup, streams, &stderr),
            };
            if is_daemon {
                return in_background(listeners, setup, log, again);
            }
            server::run(listeners, setup, log, again, None)
        }
    }
}

// Cold: what it needs of the stack is not to be touched by every server's start.
#[cold]
fn in_background(
    listeners: Listeners,
    setup: Setup,
    log: &mut Log,
    again: Again,
) -> Result<Status, Error> {
    server::in_background(|starter| {
        match server::run(listeners, setup, log, again, Some(starter)) {
            Ok(status) => status,
            Err(error) => {
                log.fatal(&error);
                error.status()
            }
        }
    })
}

fn open_log(setup: &Setup, streams: Streams, stderr: &Rc<StandardError>) -> Result<Log, Error> {
    let standalone = setup.server.listening != Listening::Never;
    let log = Log::open(&setup.server.log, standalone, streams, stderr)?;
    setup
        .services
        .all()
        .for_each(|service| warn_of_ids(service, &log));
    Ok(log)
}

/// Serves the one connection that this process was started for.
fn serve_one(client: Client, setup: &Setup, log: &Log) -> Result<Status, Error> {
    // What a server is told by these is not for those that serve one client.
    let deaf_to = [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1];
    sys::watch_signals(&wait::ENDING, &deaf_to).map_err(|errno| Error::system("signals", errno))?;
    let found = setup.services.find_for(&client).and_then(|found| {
        let line = || format!("no service is configured for {}", client.local);
        found.ok_or_else(|| Error::config(line()))
    });
    let service = match found {
        Ok(service) => service,
        Err(error) => {
            session::note_unserved(&client, None, log);
            return Err(error);
        }
    };
    let counting = Counting::AmongProcesses(setup.server.state_dir.as_deref());
    let log = log.under(service.log_name.as_deref());
    Ok(session::serve(client, service, counting, None, &log))
}

fn warn_of_ids(service: &Service, log: &Log) {
    let (user, group) = service.chosen;
    if (user, group) == (None, None) {
        return;
    }
    let current = Ids::current();
    let others = user.is_some_and(|user| user != current.uid)
        || group.is_some_and(|group| group != current.gid);
    if others && !user::has_root() {
        log.warning(format_args!(
            "not started as root: serving as {current}, not as {}",
            service.ids
        ));
    }
}
