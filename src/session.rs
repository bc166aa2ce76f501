//! The story of one session, from the connected socket to the reason it ended. inetd, systemd,
//! our own listener and the tests all enter through [`serve`].

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{self, Child, ExitStatus, Stdio};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Error, Status};
use crate::gate::{Admitted, Denied};
use crate::log::{Level, Log, escape_word};
use crate::lookup;
use crate::program::{Facts, Program};
use crate::reason::Reason;
use crate::relay::{self, Outcome};
use crate::service::{Action, Forward, Service};
use crate::source::{Client, Endpoint, Origin};
use crate::sys;
use crate::transcript::Transcript;
use crate::user;
use crate::wait::{self, Woken};

/// Serves one client, and returns the status that a process exits with which had no other.
/// Where a handler replaces this process, it does not return.
pub fn serve(client: Client, service: &Service, log: &Log) -> Status {
    if let Action::Forward(_) = service.action {
        relay::keep_urgent_data(client.socket.as_fd());
    }
    let journal = Journal::begin(&client, log);
    // Before the first byte from the client is read.
    let ids = match user::switch_to(service.ids) {
        Ok(ids) => ids,
        Err(error) => {
            log.error(format_args!("session {}: {error}", journal.session));
            journal.close(Ended::before_action(Reason::InternalError));
            return error.status();
        }
    };
    let passed = service.gate.check_rules(&client.address);
    let name = match &client.address {
        Endpoint::Inet(address) if passed.is_ok() && service.starts_a_program() => {
            lookup::confirmed_name(address.ip())
        }
        Endpoint::Inet(_) | Endpoint::Unix => None,
    };
    journal.open(&client, name.as_deref(), ids);
    let passed = match passed {
        Ok(passed) => passed,
        Err(rule) => {
            log.notice(format_args!("session {}: {rule}", journal.session));
            return journal.close(Ended::before_action(Reason::DeniedByRule));
        }
    };
    let facts = Facts::about(&client, name.as_deref());
    let wanted = service.server_for_access_program(&client);
    let admitted = service
        .gate
        .admit(client, passed, &service.environment, &facts, wanted, log);
    let ended = match (admitted, &service.action) {
        (Err(Denied::ByProgram), _) => Ended::before_action(Reason::DeniedByProgram),
        (Err(Denied::ByTermination), _) => Ended::before_action(Reason::Terminated),
        (Ok(admitted), Action::Forward(forward)) => relay_to(&admitted, forward, &journal),
        (Ok(admitted), Action::Exec(handler)) => {
            run_handler(admitted, handler, service, &facts, &journal)
        }
    };
    journal.close(ended)
}

/// How a session ended, and what it had come to.
struct Ended {
    server: String,
    sent: u64,
    received: u64,
    reason: Reason,
}

impl Ended {
    fn before_action(reason: Reason) -> Ended {
        Ended::without_bytes("-", reason)
    }

    fn without_bytes(server: &str, reason: Reason) -> Ended {
        Ended {
            server: server.to_owned(),
            sent: 0,
            received: 0,
            reason,
        }
    }
}

/// The lines that a session leaves in the log.
struct Journal<'a> {
    session: u64,
    client: Endpoint,
    started: Instant,
    log: &'a Log,
}

impl<'a> Journal<'a> {
    fn begin(client: &Client, log: &'a Log) -> Journal<'a> {
        Journal {
            session: client.session(),
            client: client.address,
            started: Instant::now(),
            log,
        }
    }

    fn open(&self, client: &Client, name: Option<&str>, ids: user::Ids) {
        let name = name.map_or_else(String::new, |name| format!(" name={}", escape_word(name)));
        self.log.info(format_args!(
            "session {} opened: client={}{name} local={} user={ids}",
            self.session, client.address, client.local
        ));
    }

    fn close(&self, ended: Ended) -> Status {
        let Journal {
            session,
            client,
            started,
            log,
        } = self;
        log.line(
            level_of(ended.reason),
            format_args!(
                "session {session} closed: client={client} server={} sent={} received={} \
                 duration={:.3}s reason={}",
                escape_word(&ended.server),
                ended.sent,
                ended.received,
                started.elapsed().as_secs_f64(),
                ended.reason
            ),
        );
        ended.reason.status()
    }
}

fn level_of(reason: Reason) -> Level {
    if reason.is_refusal() {
        Level::Notice
    } else {
        Level::Info
    }
}

/// Notes a client that was gone before anything could be learnt about it. Returns the status of
/// a process that was started for it.
pub fn note_gone(log: &Log) -> Status {
    let session = process::id();
    let reason = Reason::ClientReset;
    log.line(
        level_of(reason),
        format_args!(
            "session {session} closed: client=- server=- sent=0 received=0 \
             duration=0.000s reason={reason}"
        ),
    );
    reason.status()
}

/// Writes the closed line of a session that could not do so itself. `why` is added to it.
pub fn close_for(
    session: u64,
    client: &Endpoint,
    started: Instant,
    reason: Reason,
    why: &str,
    log: &Log,
) {
    log.line(
        level_of(reason),
        format_args!(
            "session {session} closed: client={client} server=- sent=0 received=0 \
             duration={:.3}s reason={reason}{why}",
            started.elapsed().as_secs_f64(),
        ),
    );
}

fn relay_to(admitted: &Admitted, forward: &Forward, journal: &Journal) -> Ended {
    let client = admitted.client();
    let report = |failure: &str| {
        journal
            .log
            .notice(format_args!("session {}: {failure}", journal.session));
    };
    let port = client.local.port();
    let upstream = match forward.route.connect(client.socket.as_fd(), port, report) {
        Ok(upstream) => upstream,
        Err(unreachable) => {
            if unreachable.reason == Reason::ServerReset {
                // Fails on unix-domain sockets, which have no resets: then closing must do.
                let _ = sys::abort_connection(client.socket.as_fd());
            }
            return Ended::without_bytes(&unreachable.name, unreachable.reason);
        }
    };
    let mut transcript = forward.transcript.as_deref().and_then(|base| {
        Transcript::create(base)
            .map_err(|error| warn_of_transcript(journal, &error))
            .ok()
    });
    let relayed = relay::run(
        client.socket.as_fd(),
        upstream.socket.as_fd(),
        forward.relay,
        transcript.as_mut(),
    );
    if let Some(error) = transcript.as_ref().and_then(Transcript::failure) {
        warn_of_transcript(journal, error);
    }
    match relayed {
        Ok(Outcome {
            reason,
            sent,
            received,
        }) => Ended {
            server: upstream.name,
            sent,
            received,
            reason,
        },
        Err(errno) => {
            journal.log.error(format_args!(
                "session {}: relay: {}",
                journal.session,
                errno.desc()
            ));
            Ended::without_bytes(&upstream.name, Reason::InternalError)
        }
    }
}

fn warn_of_transcript(journal: &Journal, error: &Error) {
    journal.log.warning(format_args!(
        "session {}: {error}: the session is not recorded from here on",
        journal.session
    ));
}

/// Starts the handler: in this process where that serves nobody else, in a child otherwise.
fn run_handler(
    admitted: Admitted,
    handler: &Program,
    service: &Service,
    facts: &Facts,
    journal: &Journal,
) -> Ended {
    let server = handler.path.to_string_lossy().into_owned();
    let reason = match start_handler(admitted.into_client(), handler, service, facts) {
        Ok(Handled::Exited(status)) if status.signal().is_none() => Reason::HandlerExited,
        Ok(Handled::Exited(status)) => {
            let signal = status.signal().unwrap_or_default();
            journal.log.notice(format_args!(
                "session {}: handler {} was ended by signal {signal}",
                journal.session,
                handler.shown()
            ));
            Reason::HandlerFailed
        }
        Ok(Handled::Terminated) => Reason::Terminated,
        Err(error) => {
            journal
                .log
                .error(format_args!("session {}: {error}", journal.session));
            Reason::HandlerFailed
        }
    };
    Ended::without_bytes(&server, reason)
}

enum Handled {
    Exited(ExitStatus),
    Terminated,
}

fn start_handler(
    client: Client,
    handler: &Program,
    service: &Service,
    facts: &Facts,
) -> Result<Handled, Error> {
    let what = || format!("handler {}", handler.shown());
    let system = |errno: Errno| Error::system(what(), errno);
    let io = |error: io::Error| Error::io(what(), &error);
    let Client { socket, origin, .. } = client;
    sys::set_blocking(socket.as_fd(), true).map_err(system)?;
    let mut command = handler.command(&service.environment, facts, handler.line());
    let share = || socket.try_clone().map(Stdio::from).map_err(io);
    command.stdin(share()?);
    match origin {
        Origin::Inherited { on_stderr } => {
            if on_stderr {
                command.stderr(share()?);
            }
            command.stdout(socket);
            Err(io(command.exec()))
        }
        Origin::Accepted { .. } => {
            command.stdout(socket);
            sys::restore_default(Signal::SIGCHLD).map_err(system)?;
            // A server that ends kills the sessions that are left, and has no other way to reach
            // their handlers.
            sys::end_with_us(&mut command);
            let mut child = command.spawn().map_err(io)?;
            // With it go our copies of the client's socket: when the handler closes its own, that
            // is the end for the client too.
            drop(command);
            await_handler(&mut child).map_err(io)
        }
    }
}

fn await_handler(child: &mut Child) -> io::Result<Handled> {
    let pid = Pid::from_raw(child.id() as i32);
    let exit = sys::watch_child(pid)?;
    let mut set = [PollFd::new(exit.as_fd(), PollFlags::POLLIN)];
    match wait::wait(&mut set, None)? {
        Woken::Ready | Woken::Deadline => child.wait().map(Handled::Exited),
        Woken::Terminated => {
            // It may have ended just now.
            let _ = kill(pid, Signal::SIGTERM);
            child.wait()?;
            Ok(Handled::Terminated)
        }
    }
}
