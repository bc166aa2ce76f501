//! The story of one session, from the connected socket to the reason it ended. inetd, systemd,
//! our own listener and the tests all enter through [`serve`].

mod ftp;
mod handler;
mod http;
mod introduction;

use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};

use crate::config::service::{Action, Forward, Ftp, Help, Service};
use crate::gate::{Admitted, Denied, Ledger, Refusal, Standing, StateDir};
use crate::log::{Ended, Journal, Log, Quota};
use crate::protocol::answer;
use crate::protocol::proxy::Announced;
use crate::relay::transcript::Transcript;
use crate::relay::{self, Engine, Hunch, Machine, Outcome, Relay, Tap};
use crate::source::{Client, NoHeader, Origin};
use crate::sys;
use crate::sys::names::lookup;
use crate::sys::program::Program;
use crate::sys::sockets;
use crate::sys::user::{self, Capabilities, Ids};
use crate::sys::vigil::Vigil;
use crate::sys::wait;
use crate::terms::endpoint::Endpoint;
use crate::terms::error::{Error, Status};
use crate::terms::escape::escape_word;
use crate::terms::reason::Reason;
use crate::terms::value::Complaint;
use crate::upstream::{News, Upstream};
use http::Translator;

/// Notes a client that no service is for, and that is closed.
pub(crate) fn note_unserved(client: &Client, refusals: Option<Quota>, log: &Log) {
    Journal::begin(client.facts(), log)
        .limited_by(refusals)
        .close_unserved();
}

/// How long what a session has put off waits for its first bytes.
const MOMENT: Duration = Duration::from_millis(10);

/// How long a call of the relay may wait for the client where somebody else has made its socket block.
const LONGEST_WAIT: Duration = Duration::from_millis(10);

/// Who applies the limits of a client's sessions.
pub(crate) enum Counting<'a> {
    /// This process, which serves nobody else, with those that share this directory.
    AmongProcesses(Option<&'a Path>),
    /// The supervisor. It has done so, unless it is still to be told who the client is.
    BySupervisor(Option<&'a dyn Registrar>),
}

/// Whoever counts sessions and is told of each who its client is.
pub(crate) trait Registrar {
    /// Notes what a proxy has announced, and counts the session. Fails with the reason why it may not
    /// go on.
    fn register(&self, announced: &Announced) -> Result<(), Reason>;
}

/// Serves one client, and returns the status that a process exits with which had no other. Where
/// a handler replaces this process, it does not return. `refusals` is what those of one server share.
pub(crate) fn serve(
    client: Client,
    service: &Service,
    counting: Counting,
    refusals: Option<Quota>,
    log: &Log,
) -> Status {
    let journal = Journal::begin(client.facts(), log).limited_by(refusals);
    let mut journal = journal.of_service(service);
    if service.forwards() {
        sockets::set_urgent_in_line(client.socket.as_fd(), true);
    }
    let ends_at = service.max_duration.map(|time| journal.started() + time);
    let standing = service.proxies.judge(&client.address);
    let entering = Entering {
        service,
        counting,
        ends_at,
    };
    let (client, ids) = match entering.enter(client, standing, &mut journal) {
        Ok(entered) => entered,
        Err(status) => return status,
    };
    if service.follows_redirection() {
        // Why there is none is said when it is that upstream's turn.
        let _ = client.original_destination();
        journal.identify(client.facts());
    }
    if standing == Standing::Stranger {
        journal.open(None, ids);
        journal.refusal("denied by rule: no accept-proxy rule matches");
        return journal.close(Ended {
            not_allowed: true,
            ..Ended::before_action(Reason::DeniedByRule)
        });
    }
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
    let prepare = |program: &Program, client: &Client| {
        let server = service.server_line(|upstream| upstream.name_for(client));
        let mut command = program.command(&service.environment, journal.facts(), server);
        if service.program_may_choose() {
            service.environment.tell_of_answer(&mut command);
        }
        command
    };
    let understand = |answer: &[u8]| choose(answer, &service.action);
    let admitted = service
        .gate
        .admit(passed, prepare, understand, ends_at, &journal);
    let ended = match (admitted, &service.action) {
        (Err(denied), _) => Ended::before_action(match denied {
            Denied::Refused => Reason::DeniedByProgram,
            Denied::Terminated => Reason::Terminated,
            Denied::TimeOver => Reason::MaxDuration,
        }),
        // The access program took its time.
        (Ok((admitted, Some(_))), _) if admitted.client().is_gone() => {
            Ended::before_action(Reason::ClientReset)
        }
        (Ok((admitted, chosen)), Action::Forward(forward)) => {
            if service.gate.program.is_some() {
                // What it has left behind may hold the socket, and whether that blocks is for all who
                // do. Fails on no socket.
                let _ = sockets::bound_waits(admitted.client().socket.as_fd(), LONGEST_WAIT);
            }
            relay_to(admitted, forward, chosen.flatten(), ends_at, &journal)
        }
        (Ok((admitted, _)), Action::Exec(program)) => {
            handler::run(admitted, program, service, ends_at, &journal)
        }
    };
    journal.close(ended)
}

/// What it takes to come before the rules.
struct Entering<'a> {
    service: &'a Service,
    counting: Counting<'a>,
    ends_at: Option<Instant>,
}

impl Entering<'_> {
    /// Learns who the client is, where a proxy says so, has it counted, and gives up the rights of this
    /// process: before the first byte from the client is read, unless a child reads it. Where the
    /// session ends here, it is closed.
    fn enter(
        self,
        mut client: Client,
        standing: Standing,
        journal: &mut Journal,
    ) -> Result<(Client, Ids), Status> {
        let Entering {
            service,
            counting,
            ends_at,
        } = self;
        let mut is_known = standing != Standing::Proxy;
        if let Counting::AmongProcesses(state_dir) = counting {
            if !is_known && state_dir.is_some() && !service.limits.are_none() {
                let announced = introduction::read_without_rights(&client, service, ends_at);
                introduce(announced, &mut client, journal)?;
                is_known = true;
            }
            count_among_processes(&client, service, state_dir, journal)
                .map_err(|reason| journal.close(Ended::before_action(reason)))?;
        }
        let capabilities = service.capabilities();
        // No process with a capability reads what a client has sent.
        let read_apart = !is_known && capabilities == Capabilities::NetAdmin;
        let announced =
            read_apart.then(|| introduction::read_without_rights(&client, service, ends_at));
        let ids = user::switch_to(service.ids, capabilities).map_err(|error| {
            journal.error(&error);
            journal.close(Ended::before_action(Reason::InternalError));
            error.status()
        })?;
        if !is_known {
            let announced =
                announced.unwrap_or_else(|| introduction::read(&client, service, ends_at));
            let announced = introduce(announced, &mut client, journal)?;
            if let Counting::BySupervisor(Some(registrar)) = counting
                && let Err(reason) = registrar.register(&announced)
            {
                if reason == Reason::InternalError {
                    let line = "no answer from the server, which was to count the client";
                    journal.error(&Error::new(Status::System, line));
                }
                return Err(journal.close(Ended::before_action(reason)));
            }
        }
        Ok((client, ids))
    }
}

/// Takes a proxy's word for who the client is, if there is one.
fn introduce(
    announced: Result<Announced, NoHeader>,
    client: &mut Client,
    journal: &mut Journal,
) -> Result<Announced, Status> {
    match announced {
        Ok(announced) => {
            client.identify(announced);
            journal.identify(client.facts());
            Ok(announced)
        }
        Err(none) => Err(journal.close(introduction::refuse(&none, journal))),
    }
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
        if !limits.are_none() {
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

/// The upstreams that an access program has chosen, if it has.
fn choose(answer: &[u8], action: &Action) -> Result<Option<Vec<Upstream>>, Complaint> {
    let servers = answer::servers(answer)?.into_iter();
    let upstreams = servers
        .map(Upstream::parse)
        .collect::<Result<Vec<_>, _>>()?;
    let Action::Forward(forward) = action else {
        return Ok(None);
    };
    if upstreams.is_empty() && forward.route.upstreams.is_empty() {
        return Err("it names no server, and the service has none".to_owned());
    }
    let refused = upstreams
        .iter()
        .find_map(|upstream| Some((upstream, forward.route.objection(upstream)?)));
    if let Some((upstream, why)) = refused {
        return Err(format!("server {}: {why}", upstream.name(None)));
    }
    Ok((!upstreams.is_empty()).then_some(upstreams))
}

/// What a session's protocol is helped by.
enum Helping<'a> {
    Ftp(ftp::Parties, &'a Ftp),
    Http(Translator<'a>),
}

fn relay_to(
    admitted: Admitted,
    forward: &Forward,
    chosen: Option<Vec<Upstream>>,
    ends_at: Option<Instant>,
    journal: &Journal,
) -> Ended {
    let client = admitted.into_client();
    let news = |news: News| match news {
        News::Waiting => journal.catch_up(),
        News::Failed(failure) => journal.notice(failure),
    };
    let vigil = Vigil::over(client.socket.as_fd(), ends_at);
    let chosen = chosen.map(|upstreams| forward.route.to(upstreams));
    let route = chosen.as_ref().unwrap_or(&forward.route);
    let connected = route.connect(&client, vigil, news);
    if forward.route.connects_as_client()
        && let Err(errno) = sys::give_up_capabilities()
    {
        journal.error(&Error::system(
            "cannot give up CAP_NET_ADMIN: capset",
            errno,
        ));
        return Ended::before_action(Reason::InternalError);
    }
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
    let helping = match &forward.help {
        None => None,
        Some(Help::Ftp(plan)) => ftp_parties(&client, upstream.socket.as_fd(), journal)
            .map(|parties| Helping::Ftp(parties, plan)),
        // Where a client meant to go, it finds what understands it.
        Some(Help::HttpProxy { .. }) if upstream.is_original => None,
        Some(Help::HttpProxy { force }) => {
            let original = client.original_destination().ok();
            let translator = Translator::new(original, force.as_deref(), ends_at, journal);
            Some(Helping::Http(translator))
        }
    };
    let engine = match (&helping, &transcript) {
        (Some(_), _) => Engine::Edited,
        (None, Some(_)) => Engine::Copy,
        (None, None) => Engine::Adaptive,
    };
    let bounds = match helping {
        Some(Helping::Ftp(..)) => ftp::bounds(forward),
        Some(Helping::Http(_)) | None => forward.relay,
    };
    // The upstream's has been: what was held back for it is to go with the client's first bytes.
    sockets::prepare_for_relay(client.socket.as_fd());
    let sockets = [client.socket, upstream.socket];
    let now = Instant::now();
    let mut machine = Machine::new(sockets, bounds, engine, ends_at, now);
    if let Some(after) = forward.keepalive {
        machine.ask_silent_peers(after);
    }
    // FTP's control connection is not held back, but each of its data connections.
    if !forward.pacing.is_none() && !matches!(helping, Some(Helping::Ftp(..))) {
        machine.pace(&forward.pacing, now);
    }
    let tap = transcript.as_mut();
    let relayed = match helping {
        Some(Helping::Ftp(parties, plan)) => {
            ftp::drive(&mut machine, parties, forward, plan, ends_at, tap, journal)
        }
        Some(Helping::Http(translator)) => translator.drive(&mut machine, tap),
        None => drive(&mut machine, tap, journal),
    };
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

/// Between whom FTP's data connections are to be followed. A client that has no address has none of
/// those.
#[cold]
fn ftp_parties(client: &Client, upstream: BorrowedFd, journal: &Journal) -> Option<ftp::Parties> {
    let parties = ftp::Parties::of(client, upstream);
    if parties.is_none() {
        journal.notice("helper ftp: a side has no IP address, so that nothing is followed");
    }
    parties
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
        let now = relay::turn(&mut [Relay { machine, tap }], &[], &mut hunch, put_off)?;
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
