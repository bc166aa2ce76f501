//! The data connections: whom is waited for, who may come, and what they move.

use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Parties;
use super::listener::{Arrival, Listener, listen, listen_anywhere, with_port};
use crate::config::service::{Forward, Ftp};
use crate::log::Journal;
use crate::relay::{Bounds, Engine, Machine, Outcome, Pacing, Relay};
use crate::sys::{self, sockets};
use crate::terms::error::describe;
use crate::terms::reason::Reason;
use crate::upstream::{self, OwnAddress};

/// How many of a session there may be at once: one at a time is what FTP has in mind.
const MOST: usize = 16;

/// How many connections are looked at in one turn.
const ACCEPTED_AT_ONCE: usize = 32;

/// How many lines a session may write about what it refuses.
const MOST_NOTICES: usize = 100;

/// How long a data connection of which nothing is under way outlives the control connection.
const GRACE: Duration = Duration::from_secs(2);

/// Who begins a data connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// The client connects to us, and we to the server.
    Passive,
    /// The server connects to us, and we to the client.
    Active,
}

impl Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Mode::Passive => "passive",
            Mode::Active => "active",
        })
    }
}

/// A data connection, as its line in the log has it.
struct Connection {
    mode: Mode,
    client: SocketAddr,
    server: SocketAddr,
    began: Instant,
}

/// A connection whose other half is being made.
struct Half {
    connection: Connection,
    accepted: OwnedFd,
    connecting: OwnedFd,
    until: Instant,
}

/// A connection that is relayed.
struct Running {
    connection: Connection,
    machine: Machine,
}

/// The data connections of a session.
pub(super) struct Data<'a> {
    parties: Parties,
    plan: &'a Ftp,
    /// Of each connection. That nothing happens concerns the session.
    bounds: Bounds,
    idle_timeout: Option<Duration>,
    pacing: Pacing,
    /// Our own address towards the server, where one was asked for.
    source: Option<IpAddr>,
    connect_timeout: Duration,
    ends_at: Option<Instant>,
    journal: &'a Journal<'a>,
    listener: Option<Listener>,
    halves: Vec<Half>,
    running: Vec<Running>,
    last_activity: Instant,
    /// When the control connection has ended, if it has.
    winds_down_since: Option<Instant>,
    notices: usize,
}

impl<'a> Data<'a> {
    pub(super) fn new(
        parties: Parties,
        forward: &Forward,
        plan: &'a Ftp,
        ends_at: Option<Instant>,
        journal: &'a Journal<'a>,
    ) -> Data<'a> {
        Data {
            parties,
            plan,
            bounds: Bounds {
                idle_timeout: None,
                ..forward.relay
            },
            idle_timeout: forward.relay.idle_timeout,
            pacing: forward.pacing,
            source: match forward.route.source {
                Some(OwnAddress::Fixed(address)) => Some(address),
                // A helper cannot go with the client's.
                Some(OwnAddress::Clients | OwnAddress::ClientsWithPort) | None => None,
            },
            connect_timeout: forward.route.connect_timeout,
            ends_at,
            journal,
            listener: None,
            halves: Vec::new(),
            running: Vec::new(),
            last_activity: Instant::now(),
            winds_down_since: None,
            notices: 0,
        }
    }

    /// Says what was refused, unless enough was said.
    pub(super) fn notice(&mut self, what: impl Display) {
        self.notices += 1;
        if self.notices <= MOST_NOTICES {
            self.journal.notice(what);
        }
        if self.notices == MOST_NOTICES {
            self.journal
                .notice("no more is said of what this session refuses");
        }
    }

    /// Listens for the client, whose connection is for this port of the server's. Returns our port.
    pub(super) fn listen_for_client(&mut self, server_port: u16) -> Option<u16> {
        // First: it may have the only port.
        self.listener = None;
        let (reached, ports) = (self.parties.reached, self.plan.ports);
        let found = listen(reached, ports).or_else(|errno| match errno {
            // What a proxy has announced is an address of its own.
            Errno::EADDRNOTAVAIL => listen_anywhere(reached, ports),
            errno => Err(errno),
        });
        // The server's own address, whatever it names.
        let leads_to = with_port(self.parties.server, server_port);
        self.wait_at(found, Mode::Passive, leads_to)
    }

    /// Listens for the server, whose connection is for this port of the client's. Returns where.
    pub(super) fn listen_for_server(&mut self, client_port: u16) -> Option<SocketAddr> {
        self.listener = None;
        let at = self.parties.towards_server;
        let leads_to = with_port(self.parties.client, client_port);
        let port = self.wait_at(listen(at, self.plan.ports), Mode::Active, leads_to)?;
        Some(with_port(at, port))
    }

    /// Waits there, where nothing else is waited for.
    fn wait_at(
        &mut self,
        found: nix::Result<(OwnedFd, u16)>,
        mode: Mode,
        leads_to: SocketAddr,
    ) -> Option<u16> {
        if self.running.len() + self.halves.len() >= MOST {
            self.notice(format_args!(
                "refused: there are {MOST} data connections already"
            ));
            return None;
        }
        match found {
            Ok((socket, port)) => {
                self.listener = Some(Listener {
                    socket,
                    mode,
                    expected: match mode {
                        Mode::Passive => self.parties.client.ip(),
                        Mode::Active => self.parties.server.ip(),
                    },
                    leads_to,
                    until: Instant::now() + self.plan.data_timeout,
                });
                Some(port)
            }
            Err(errno) => {
                let why = describe(errno);
                self.notice(format_args!("no port to take a data connection on: {why}"));
                None
            }
        }
    }

    /// Whether the server has connected, and our connection to the client does not stand yet.
    pub(super) fn is_reaching_the_client(&self) -> bool {
        let is_active = |half: &Half| half.connection.mode == Mode::Active;
        self.halves.iter().any(is_active)
    }

    /// What the relay's loop is to wait for besides, and the machines to drive, the first one's first.
    pub(super) fn waits_and_relays<'b>(
        &'b mut self,
        first: Relay<'b>,
    ) -> (Vec<PollFd<'b>>, Vec<Relay<'b>>) {
        let connecting = |half: &'b Half| PollFd::new(half.connecting.as_fd(), PollFlags::POLLOUT);
        let listener = self.listener.iter().map(Listener::polled);
        let beside = listener.chain(self.halves.iter().map(connecting)).collect();
        let mut relays = vec![first];
        relays.extend(self.running.iter_mut().map(|running| Relay {
            machine: &mut running.machine,
            tap: None,
        }));
        (beside, relays)
    }

    /// Does whatever is ready or due, but for what the machines do.
    pub(super) fn advance(&mut self, now: Instant) {
        self.accept(now);
        if self
            .listener
            .as_ref()
            .is_some_and(|listener| listener.until <= now)
        {
            self.listener = None;
            self.notice("no data connection has come in time");
        }
        for at in (0..self.halves.len()).rev() {
            let half = &self.halves[at];
            let outcome = match is_decided(&half.connecting) {
                true => upstream::outcome(&half.connecting),
                false if half.until <= now => Err(Errno::ETIMEDOUT),
                false => continue,
            };
            let half = self.halves.swap_remove(at);
            match outcome {
                Ok(()) => self.relay(half, now),
                Err(errno) => self.fail(half.connection, &half.accepted, errno),
            }
        }
        for at in (0..self.running.len()).rev() {
            let running = &self.running[at];
            self.last_activity = self.last_activity.max(running.machine.last_activity());
            if let Some(outcome) = running.machine.end() {
                let ended = self.running.swap_remove(at);
                self.log(&ended.connection, outcome);
            }
        }
    }

    /// Takes the connection that is waited for, if it has come. Strangers are closed.
    pub(super) fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTED_AT_ONCE {
            let Some(listener) = &self.listener else {
                return;
            };
            let (mode, leads_to) = (listener.mode, listener.leads_to);
            match listener.accept() {
                Ok(Arrival::Nobody) => return,
                Ok(Arrival::Expected(socket, from)) => {
                    self.listener = None;
                    let (client, server) = match mode {
                        Mode::Passive => (from, leads_to),
                        Mode::Active => (leads_to, from),
                    };
                    let connection = Connection {
                        mode,
                        client,
                        server,
                        began: now,
                    };
                    return self.reach(connection, socket, leads_to, now);
                }
                Ok(Arrival::Stranger(from)) => {
                    let expected = listener.expected;
                    let from = from.map_or_else(|| "-".to_owned(), |from| from.to_string());
                    self.notice(format_args!(
                        "refused: {from} has come for the data connection of {expected}"
                    ));
                }
                Err(errno) => {
                    // It would be ready for ever.
                    self.listener = None;
                    let why = describe(errno);
                    return self
                        .notice(format_args!("a data connection could not be taken: {why}"));
                }
            }
        }
    }

    /// Makes the other half of a connection.
    fn reach(
        &mut self,
        connection: Connection,
        accepted: OwnedFd,
        leads_to: SocketAddr,
        now: Instant,
    ) {
        let source = match connection.mode {
            Mode::Passive => self.source,
            Mode::Active => Some(self.parties.reached.ip()),
        };
        let started = start(leads_to, source);
        let latest = now + self.connect_timeout;
        let until = self.ends_at.map_or(latest, |ends_at| ends_at.min(latest));
        match started {
            Ok((connecting, is_connected)) => {
                let half = Half {
                    connection,
                    accepted,
                    connecting,
                    until,
                };
                if is_connected {
                    self.relay(half, now);
                } else {
                    self.halves.push(half);
                }
            }
            Err(errno) => self.fail(connection, &accepted, errno),
        }
    }

    fn relay(&mut self, half: Half, now: Instant) {
        let Half {
            connection,
            accepted,
            connecting,
            ..
        } = half;
        let sockets = match connection.mode {
            Mode::Passive => [accepted, connecting],
            Mode::Active => [connecting, accepted],
        };
        for socket in &sockets {
            sockets::prepare_for_relay(socket.as_fd());
        }
        let mut machine = Machine::new(sockets, self.bounds, Engine::Adaptive, self.ends_at, now);
        if !self.pacing.is_none() {
            machine.pace(&self.pacing, now);
        }
        self.running.push(Running {
            connection,
            machine,
        });
    }

    /// Ends a connection whose other half could not be made.
    fn fail(&mut self, connection: Connection, accepted: &OwnedFd, errno: Errno) {
        let to = match connection.mode {
            Mode::Passive => connection.server,
            Mode::Active => connection.client,
        };
        let why = describe(errno);
        self.notice(format_args!("data connection to {to}: {why}"));
        let reason = match errno {
            Errno::ECONNREFUSED => Reason::ConnectRefused,
            Errno::ETIMEDOUT => Reason::ConnectTimeout,
            // It stood, and was broken off before a byte came.
            Errno::ECONNRESET => match connection.mode {
                Mode::Passive => Reason::ServerReset,
                Mode::Active => Reason::ClientReset,
            },
            _ => Reason::ConnectFailed,
        };
        self.drop_half(&connection, accepted, reason);
    }

    fn drop_half(&mut self, connection: &Connection, accepted: &OwnedFd, reason: Reason) {
        // Not an end of data. Fails where it has been reset itself.
        let _ = sys::abort_connection(accepted.as_fd());
        let outcome = Outcome {
            reason,
            sent: 0,
            received: 0,
        };
        self.log(connection, outcome);
    }

    fn log(&self, connection: &Connection, outcome: Outcome) {
        let Connection {
            mode,
            client,
            server,
            began,
        } = connection;
        let Outcome {
            reason,
            sent,
            received,
        } = outcome;
        let duration = began.elapsed().as_secs_f64();
        self.journal.data_connection(format_args!(
            "mode={mode} client={client} server={server} sent={sent} received={received} \
             duration={duration:.3}s reason={reason}"
        ));
    }

    /// When a byte was last moved by one of them.
    pub(super) fn last_activity(&self) -> Instant {
        self.last_activity
    }

    /// When something is due, if nothing happens until then.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let listener = self.listener.iter().map(|listener| listener.until);
        let halves = self.halves.iter().map(|half| half.until);
        let ends = self
            .running
            .iter()
            .filter_map(|running| self.quiet_end(running));
        listener.chain(halves).chain(ends).min()
    }

    /// Once the control connection has ended: when a connection is to end that moves nothing.
    fn quiet_end(&self, running: &Running) -> Option<Instant> {
        let since = running.machine.last_activity().max(self.winds_down_since?);
        if running.machine.is_empty() {
            return Some(since + GRACE);
        }
        self.idle_timeout.map(|timeout| since + timeout)
    }

    /// Lets them end by themselves, or when nothing is under way any more: the control connection has ended,
    /// for this reason.
    pub(super) fn wind_down(&mut self, reason: Reason, now: Instant) {
        if self.winds_down_since.is_none() {
            self.winds_down_since = Some(now);
            self.accept(now);
            self.listener = None;
        }
        for at in 0..self.running.len() {
            let ends = self.quiet_end(&self.running[at]);
            if ends.is_some_and(|ends| ends <= now) {
                self.running[at].machine.give_up(reason);
            }
        }
        self.advance(now);
    }

    /// Ends them at once.
    pub(super) fn stop(&mut self, reason: Reason, now: Instant) {
        self.listener = None;
        for running in &mut self.running {
            running.machine.give_up(reason);
        }
        for half in std::mem::take(&mut self.halves) {
            self.drop_half(&half.connection, &half.accepted, reason);
        }
        self.advance(now);
    }

    pub(super) fn is_over(&self) -> bool {
        self.listener.is_none() && self.halves.is_empty() && self.running.is_empty()
    }
}

/// Begins to connect, from this address if it is ours.
fn start(to: SocketAddr, own: Option<IpAddr>) -> nix::Result<(OwnedFd, bool)> {
    match upstream::begin_connecting(to, own) {
        // A proxy's address, or one that means nothing without its zone.
        Err(Errno::EADDRNOTAVAIL | Errno::EINVAL) if own.is_some() => {
            upstream::begin_connecting(to, None)
        }
        started => started,
    }
}

/// Whether a connection stands or has failed.
fn is_decided(connecting: &OwnedFd) -> bool {
    let mut set = [PollFd::new(connecting.as_fd(), PollFlags::POLLOUT)];
    poll(&mut set, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
