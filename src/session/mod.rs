//! The story of one session, from the connected socket to the reason it ended. inetd, systemd,
//! our own listener and the tests all enter through [`serve`].

mod handler;

use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};

use crate::config::service::{Action, Forward, Service};
use crate::gate::{Admitted, Denied, Ledger, Refusal, StateDir};
use crate::log::{Ended, Journal, Log, Quota};
use crate::relay::transcript::Transcript;
use crate::relay::{self, Engine, Hunch, Machine, Outcome, Relay, Tap};
use crate::source::{Client, Origin};
use crate::sys;
use crate::sys::names::lookup;
use crate::sys::program::Program;
use crate::sys::user;
use crate::sys::vigil::Vigil;
use crate::sys::wait;
use crate::terms::endpoint::Endpoint;
use crate::terms::error::{Error, Status};
use crate::terms::escape::escape_word;
use crate::terms::reason::Reason;
use crate::upstream::News;

/// Notes a client that no service is for, and that is closed.
pub(crate) fn note_unserved(client: &Client, refusals: Option<Quota>, log: &Log) {
    Journal::begin(client.facts(), log)
        .limited_by(refusals)
        .close_unserved();
}

/// How long what a session has put off waits for its first bytes.
const MOMENT: Duration = Duration::from_millis(10);

/// Serves one client, and returns the status that a process exits with which had no other. Where
/// a handler replaces this process, it does not return. `state_dir` is where processes that serve
/// one client each share their counts; `refusals`, what those of one server share.
pub(crate) fn serve(
    client: Client,
    service: &Service,
    state_dir: Option<&Path>,
    refusals: Option<Quota>,
    log: &Log,
) -> Status {
    let mut journal = Journal::begin(client.facts(), log).limited_by(refusals);
    if service.forwards() {
        relay::set_urgent_in_line(client.socket.as_fd(), true);
    }
    if let Origin::Inherited { .. } = client.origin
        && let Err(reason) = count_among_processes(&client, service, state_dir, &journal)
    {
        return journal.close(Ended::before_action(reason));
    }
    // Before the first byte from the client is read.
    let ids = match user::switch_to(service.ids) {
        Ok(ids) => ids,
        Err(error) => {
            journal.error(&error);
            journal.close(Ended::before_action(Reason::InternalError));
            return error.status();
        }
    };
    let passed = match service.gate.check_rules(client) {
        Ok(passed) => passed,
        Err(refused) => {
            journal.open(None, ids);
            journal.refusal(&refused);
            return journal.close(Ended {
                not_allowed: refused.no_rule_allows(),
                ..Ended::before_action(Reason::DeniedByRule)
            });
        }
    };
    // Before anything is begun for it: where an upstream is, at the end of some chain, this very server,
    // each client that has gone would make the connection for another one. Who was handed over was
    // looked at a moment ago.
    if matches!(passed.client().origin, Origin::Accepted { .. }) && passed.client().is_gone() {
        journal.open(None, ids);
        return journal.close(Ended::before_action(Reason::ClientReset));
    }
    let name = match &passed.client().address {
        Endpoint::Inet(address) if service.starts_a_program() => {
            lookup::confirmed_name(address.ip())
        }
        Endpoint::Inet(_) | Endpoint::Unix => None,
    };
    journal.open(name, ids);
    if service.starts_a_program() {
        journal.catch_up();
    }
    if wait::is_end_asked_for() {
        return journal.close(Ended::before_action(Reason::Terminated));
    }
    let ends_at = service.max_duration.map(|time| journal.started() + time);
    let port = passed.client().local.port();
    let prepare = |program: &Program| {
        let server = service.server_line(port);
        program.command(&service.environment, journal.facts(), server)
    };
    let admitted = service.gate.admit(passed, prepare, ends_at, &journal);
    let ended = match (admitted, &service.action) {
        (Err(denied), _) => Ended::before_action(match denied {
            Denied::Refused => Reason::DeniedByProgram,
            Denied::Terminated => Reason::Terminated,
            Denied::TimeOver => Reason::MaxDuration,
        }),
        // The access program took its time.
        (Ok(admitted), _) if service.gate.program.is_some() && admitted.client().is_gone() => {
            Ended::before_action(Reason::ClientReset)
        }
        (Ok(admitted), Action::Forward(forward)) => relay_to(admitted, forward, ends_at, &journal),
        (Ok(admitted), Action::Exec(program)) => {
            handler::run(admitted, program, service, ends_at, &journal)
        }
    };
    journal.close(ended)
}

/// Applies the limits of a client's sessions where nobody else does: no supervisor of ours knows
/// of the other processes. If that cannot be done, nobody is let in.
fn count_among_processes(
    client: &Client,
    service: &Service,
    state_dir: Option<&Path>,
    journal: &Journal,
) -> Result<(), Reason> {
    let limits = &service.limits;
    let Some(path) = state_dir else {
        if limits.max_per_source.is_some() || limits.rate.is_some() {
            journal.warning("max-per-source and rate are not applied here without a state-dir");
        }
        return Ok(());
    };
    let service_name = match client.local.port() {
        // One that has no name of its own is its port.
        Some(port) if service.label == "-" => format!("*:{port}"),
        _ => service.label.clone(),
    };
    let counted = StateDir::open(path)
        .map_err(Refusal::Unknown)
        .and_then(|state| state.admit(&service_name, &client.address, limits));
    counted.map(drop).map_err(|refusal| {
        if let Refusal::Unknown(error) = &refusal {
            journal.error(error);
        }
        refusal.reason()
    })
}

fn relay_to(
    admitted: Admitted,
    forward: &Forward,
    ends_at: Option<Instant>,
    journal: &Journal,
) -> Ended {
    let client = admitted.into_client();
    let news = |news: News| match news {
        News::Waiting => journal.catch_up(),
        News::Failed(failure) => journal.notice(failure),
    };
    let vigil = Vigil::over(client.socket.as_fd(), ends_at);
    let connected = forward.route.connect(&client, vigil, news);
    let upstream = match connected {
        Ok(upstream) => upstream,
        Err(unreachable) => {
            let socket = client.socket.as_fd();
            if unreachable.reason == Reason::ServerReset {
                // Fails on unix-domain sockets, which have no resets: then closing must do.
                let _ = sys::abort_connection(socket);
            }
            // A process that the access program has left behind may hold the socket, and closing
            // our own end of it would tell the client nothing. Fails if the client has gone.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
            return Ended::without_bytes(unreachable.name, unreachable.reason);
        }
    };
    journal.debug(format_args!("connected to {}", escape_word(&upstream.name)));
    let mut transcript = forward.transcript.as_deref().and_then(|base| {
        Transcript::create(base)
            .map_err(|error| warn_of_transcript(journal, &error))
            .ok()
    });
    let engine = match transcript {
        Some(_) => Engine::Copy,
        None => Engine::Adaptive,
    };
    let sockets = [client.socket, upstream.socket];
    let mut machine = Machine::new(sockets, forward.relay, engine, ends_at, Instant::now());
    let relayed = drive(&mut machine, transcript.as_mut(), journal);
    // Both sides have been told. The process ends with its session, and the kernel then closes what
    // is open without being called for each.
    mem::forget(machine);
    match relayed {
        Ok(Outcome {
            reason,
            sent,
            received,
        }) => Ended {
            sent,
            received,
            ..Ended::without_bytes(upstream.name, reason)
        },
        Err(errno) => {
            journal.error(&Error::system("relay", errno));
            Ended::without_bytes(upstream.name, Reason::InternalError)
        }
    }
}

/// Drives a relay to its end. The journal's line that was put off is written once there is time for
/// it: when the first bytes have been passed on, or none have come for a moment.
fn drive(
    machine: &mut Machine,
    mut transcript: Option<&mut Transcript>,
    journal: &Journal,
) -> nix::Result<Outcome> {
    let began = machine.last_activity();
    let mut put_off = Some(began + MOMENT);
    let mut hunch = Hunch::default();
    loop {
        let tap = transcript.as_deref_mut().map(|tap| tap as &mut dyn Tap);
        let now = relay::turn(&mut [Relay { machine, tap }], &mut hunch, put_off)?;
        let is_time = |latest: &mut Instant| machine.last_activity() > began || *latest <= now;
        if put_off.take_if(is_time).is_some() {
            journal.catch_up();
        }
        let failure = transcript.as_deref_mut().and_then(Transcript::take_failure);
        if let Some(error) = failure {
            warn_of_transcript(journal, &error);
        }
        if let Some(outcome) = machine.end() {
            return Ok(outcome);
        }
    }
}

fn warn_of_transcript(journal: &Journal, error: &Error) {
    journal.warning(format_args!(
        "{error}: the session is not recorded from here on"
    ));
}
