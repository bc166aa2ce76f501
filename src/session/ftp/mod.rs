//! FTP: the control connection is read by lines, and its data connections are relayed beside it.
//!
//! `control` is between the two sides' lines, and `data` has the connections that they speak of, for each of
//! which there is a `listener` first. What the lines mean is `protocol::ftp`'s business, and who moves the bytes is the relay's: each connection is a
//! machine of its own, and all are driven together.

mod control;
mod data;
mod listener;

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Instant;

use nix::sys::socket::{SockaddrStorage, getpeername};

use crate::config::service::{Forward, Ftp};
use crate::log::Journal;
use crate::relay::transcript::Transcript;
use crate::relay::{self, Bounds, Hunch, Machine, Outcome, Relay, Tap};
use crate::source::Client;
use crate::sys::wait;
use crate::terms::endpoint::Endpoint;
use crate::terms::reason::Reason;
use control::Control;
use data::Data;

/// The addresses of a session.
#[derive(Clone, Copy)]
pub(super) struct Parties {
    /// The client's: who comes from another is none.
    client: SocketAddr,
    /// Ours, as the client has reached it.
    reached: SocketAddr,
    /// Ours towards the server.
    towards_server: SocketAddr,
    server: SocketAddr,
}

impl Parties {
    /// `None` where one has no address, so that there can be no data connections.
    pub(super) fn of(client: &Client, upstream: BorrowedFd) -> Option<Parties> {
        let server = getpeername::<SockaddrStorage>(upstream.as_raw_fd()).ok()?;
        let inet = |endpoint: Endpoint| match endpoint {
            Endpoint::Inet(address) => Some(address),
            Endpoint::Unix => None,
        };
        Some(Parties {
            client: inet(client.address)?,
            // Not what it meant to reach before it was redirected: that is not ours.
            reached: inet(
                client
                    .relayed
                    .map_or(client.local, |relayed| relayed.destination),
            )?,
            towards_server: inet(Endpoint::local(upstream)?)?,
            server: inet(Endpoint::from_address(&server)?)?,
        })
    }
}

/// The bounds of the control connection's machine. That nothing happens concerns the data connections as
/// well: so its time is kept here.
pub(super) fn bounds(forward: &Forward) -> Bounds {
    Bounds {
        idle_timeout: None,
        half_close_timeout: None,
        ..forward.relay
    }
}

/// Drives a session of FTP to its end. What is under way by data connections when the control connection
/// ends is still delivered.
#[cold]
pub(super) fn drive(
    machine: &mut Machine,
    parties: Parties,
    forward: &Forward,
    plan: &Ftp,
    ends_at: Option<Instant>,
    mut transcript: Option<&mut Transcript>,
    journal: &Journal,
) -> nix::Result<Outcome> {
    journal.catch_up();
    let mut control = Control::new(&parties, plan);
    let mut data = Data::new(parties, forward, plan, ends_at, journal);
    let mut hunch = Hunch::default();
    loop {
        let idle = quiet_end(machine, &data, forward.relay);
        let until = [data.wakes_at(), control.wakes_at(), idle.map(|(at, _)| at)];
        let until = until.into_iter().flatten().min();
        let tap = transcript.as_deref_mut().map(|tap| tap as &mut dyn Tap);
        let now = {
            let (beside, mut relays) = data.waits_and_relays(Relay { machine, tap });
            relay::turn(&mut relays, &beside, &mut hunch, until)?
        };
        data.advance(now);
        if let Some(wrong) = control.edit(machine, &mut data, now, journal) {
            journal.notice(wrong);
            machine.give_up(Reason::ProtocolError);
        }
        if let Some(error) = transcript.as_deref_mut().and_then(Transcript::take_failure) {
            super::warn_of_transcript(journal, &error);
        }
        match quiet_end(machine, &data, forward.relay) {
            Some((at, reason)) if at <= now => machine.give_up(reason),
            _ => {}
        }
        if let Some(outcome) = machine.end() {
            if wait::is_end_asked_for() {
                data.stop(Reason::Terminated, now);
            } else if is_for_all(outcome.reason) {
                data.stop(outcome.reason, now);
            } else {
                data.wind_down(outcome.reason, now);
            }
            if data.is_over() {
                return Ok(outcome);
            }
        }
    }
}

/// When the session comes to its end if no byte passes by any of its connections, and why.
fn quiet_end(machine: &Machine, data: &Data, bounds: Bounds) -> Option<(Instant, Reason)> {
    if machine.end().is_some() {
        return None;
    }
    let (timeout, reason) = match bounds.half_close_timeout {
        Some(timeout) if machine.is_half_closed() => (timeout, Reason::HalfCloseTimeout),
        _ => (bounds.idle_timeout?, Reason::IdleTimeout),
    };
    let latest = machine.last_activity().max(data.last_activity());
    Some((latest + timeout, reason))
}

/// Whether it is the whole session that ends so, and not the control connection alone.
fn is_for_all(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::IdleTimeout
            | Reason::HalfCloseTimeout
            | Reason::MaxDuration
            | Reason::Terminated
            | Reason::InternalError
    )
}
