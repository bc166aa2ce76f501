//! `tcpproxy`, the per-connection TCP forwarder: it takes a connection that inetd, systemd or its
//! own listener hands it, decides who may pass, and forwards it or starts a handler.
//!
//! The way through the house, always from left to right:
//!
//! ```text
//! argv, file ──► cli, config ──► setup: services (what is decided before anybody connects)
//!                                   │
//! source ──► session ──► gate ──► action
//! (a Client)  (the story)  (an Admitted)  (upstream + relay, or a handler) ──► Reason ──► log
//! ```
//!
//! | room | knows | may touch |
//! | --- | --- | --- |
//! | [`cli`] | argv → what was written | services(5), users and groups |
//! | [`config`] | tcpproxy.conf → what was written, with places; and back to text | files to read |
//! | [`settings`] | the one table of options and directives: name, scope, value, default, help line | nothing |
//! | [`terms::value`] | the values that settings take | services(5) |
//! | [`setup`] | command line and file, merged | [`config`] |
//! | [`service`] | what it means for a client; which service is whose | names of interfaces |
//! | [`answer`], [`explain`] | what is printed instead of serving | standard output |
//! | [`source`] | where connected sockets come from: handed over, or accepted | sockets |
//! | [`supervisor`] | accept, count, fork, reap, reload, signals | processes; never a client's byte |
//! | [`session`] | the order of the steps for one connection, and its journal | the rooms right of it |
//! | [`gate`] | limits, rules (pure), the access control program | [`sys::program`], the state directory |
//! | [`upstream`] | names → addresses → a connected socket (RFC 8305) | sockets |
//! | [`relay`] | two directions, their buffers, the idle clock | two descriptors |
//! | [`transcript`] | what `--write` records | a file |
//! | [`log`] | journals, sinks, levels: the only voice | syslog, files, standard streams |
//! | [`notify`], [`pidfile`] | the server's state, for those who watch it | a socket, a file |
//! | [`sys`] | the operating system: waiting, ids, programs, streams, names; `sys::raw` alone is unsafe | processes, descriptors, the resolver |
//! | [`terms`] | nouns and text that all share: endpoint, reason, error, place, value, escaping | nothing |
//!
#![deny(unsafe_code)]

pub mod answer;
pub mod cli;
pub mod config;
pub mod explain;
pub mod gate;
pub mod log;
pub mod notify;
pub mod pidfile;
pub mod relay;
pub mod service;
pub mod session;
pub mod settings;
pub mod setup;
pub mod source;
pub mod supervisor;
pub mod sys;
pub mod terms;
pub mod transcript;
pub mod upstream;

use nix::sys::signal::Signal;

use cli::CommandLine;
use log::Log;
use service::Service;
use setup::Setup;
use source::{Client, Listening, Source};
use supervisor::Again;
pub use sys::Words;
use sys::streams::Streams;
use sys::user::Ids;
use sys::{user, wait};
use terms::error::{Error, Status};
pub use terms::reason;

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
    // A reader of our log, or a peer, that is gone is an error and not an end; so is a limit on
    // the sizes of files that a log or a transcript reaches.
    for signal in [Signal::SIGPIPE, Signal::SIGXFSZ] {
        if sys::ignore(signal).is_err() {
            return Status::System;
        }
    }
    log::report_panics(streams);
    let mut log = Log::at_start(streams);
    match cli::parse(words.all().skip(1)).and_then(|line| run(&line, streams, &mut log)) {
        Ok(status) => status,
        Err(error) => {
            log.fatal(&error);
            error.status()
        }
    }
}

fn run(line: &CommandLine, streams: Streams, log: &mut Log) -> Result<Status, Error> {
    if let Some(status) = answer::instead(line, streams, log)? {
        return Ok(status);
    }
    let setup = Setup::new(line)?;
    *log = open_log(&setup, streams)?;
    let server = &setup.server;
    // Before listening, and where listeners were handed over; one connection needs fewer names.
    let prepare = || {
        supervisor::watch_signals()?;
        setup.services.check_addresses()
    };
    match source::find(server.listening, &server.binds, prepare, streams, log)? {
        Source::Connection(client) => serve_one(client, &setup, log),
        Source::Gone => Ok(log::note_gone(log)),
        Source::Listeners(listeners) => {
            let again = Again {
                setup: &|| Ok(Setup::new(line)?),
                log: &|setup| open_log(setup, streams),
            };
            supervisor::run(listeners, setup, log, again)
        }
    }
}

fn open_log(setup: &Setup, streams: Streams) -> Result<Log, Error> {
    let standalone = setup.server.listening != Listening::Never;
    let log = Log::open(&setup.server.log, standalone, streams)?;
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
    let Some(service) = setup.services.find(&client.local)? else {
        session::note_unserved(&client, log);
        let line = format!("no service is configured for {}", client.local);
        return Err(Error::config(line));
    };
    let state_dir = setup.server.state_dir.as_deref();
    let log = log.under(service.log_name.as_deref());
    Ok(session::serve(client, service, state_dir, &log))
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
