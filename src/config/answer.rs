//! What is printed instead of serving anything: help and version, `--check`, `-z`, `-zz` and
//! `--explain`.

use std::io::{self, Write};

use crate::config::cli::CommandLine;
use crate::config::explain;
use crate::config::file::Disk;
use crate::config::settings::{self, Explained, Shown};
use crate::config::setup::{self, Setup};
use crate::config::{Entry, Unusable, file};
use crate::log::Log;
use crate::sys::streams::Streams;
use crate::terms::error::{Error, Status};

/// Gives the answer that a command line asks for; `None` if it asks to serve.
pub(crate) fn instead(
    line: &CommandLine,
    streams: Streams,
    log: &Log,
) -> Result<Option<Status>, Error> {
    let written = &line.written;
    let asked = (written.shown.is_some() || written.check == Some(true))
        || (written.list.is_some() || written.explain.is_some());
    if asked {
        give(line, streams, log)
    } else {
        Ok(None)
    }
}

// Cold: what it needs of the stack is not to be touched by every session's start.
#[cold]
fn give(line: &CommandLine, streams: Streams, log: &Log) -> Result<Option<Status>, Error> {
    let written = &line.written;
    if let Some(shown) = written.shown {
        return show(line, shown, streams).map(Some);
    }
    if written.check == Some(true) {
        return check(line, streams, log).map(Some);
    }
    if let Some(times) = written.list {
        return list(line, times, streams).map(Some);
    }
    if let Some(asked) = &written.explain {
        return explain(asked, &Setup::new(line, &Disk)?, streams).map(Some);
    }
    Ok(None)
}

/// Says `ok`, or everything that is wrong with the configuration.
fn check(line: &CommandLine, streams: Streams, log: &Log) -> Result<Status, Error> {
    match Setup::new(line, &Disk) {
        Ok(_) => print("ok\n", streams),
        Err(Unusable::Error(error)) => Err(error),
        Err(Unusable::Problems(problems)) => {
            for problem in problems {
                log.fatal(&Error::config(problem.to_string()));
            }
            Ok(Status::Config)
        }
    }
}

/// Lists the listeners, or the whole configuration.
fn list(line: &CommandLine, times: usize, streams: Streams) -> Result<Status, Error> {
    let config = setup::effective_config(line)?;
    if times > 1 {
        let text = match &line.destination {
            Some(destination) if config.services.is_empty() => {
                file::print_handed_over(&config.defaults, destination)
            }
            _ => file::print(&config),
        };
        return print(&text, streams);
    }
    let place = |entry: &Entry| format!("{}:{}\n", entry.interface, entry.port);
    print(
        &config.services.iter().map(place).collect::<String>(),
        streams,
    )
}

fn explain(asked: &Explained, setup: &Setup, streams: Streams) -> Result<Status, Error> {
    let explanation = explain::explain(asked, &setup.services)?;
    print(&explanation.text, streams)?;
    Ok(if explanation.admitted {
        Status::Done
    } else {
        Status::NotAdmitted
    })
}

/// Shows the usage or the version.
fn show(line: &CommandLine, shown: Shown, streams: Streams) -> Result<Status, Error> {
    let text = match (&line.in_place_of, shown) {
        (Some(other), shown) => other.shows(shown),
        (None, Shown::Help) => settings::usage(),
        (None, Shown::Version) => format!("tcpproxy {}\n", env!("CARGO_PKG_VERSION")),
    };
    print(&text, streams)
}

/// Prints on standard output, unless a client is there.
fn print(text: &str, streams: Streams) -> Result<Status, Error> {
    if !streams.stdout_is_client() {
        let mut stdout = io::stdout();
        stdout
            .write_all(text.as_bytes())
            // Without std's own start and end around `main`, nobody else does.
            .and_then(|()| stdout.flush())
            .map_err(|error| Error::io("standard output", &error))?;
    }
    Ok(Status::Done)
}
