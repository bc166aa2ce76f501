//! Who may pass. Rules are asked first, as they cost nothing; then the access control program.
//!
//! The verdict is a type: an [`Admitted`] is made nowhere else, and no way leads to an upstream
//! or a handler without one.

mod counts;
mod heard;
mod ledger;
mod limits;
mod program;
mod proxies;
mod rules;
mod state_dir;

use std::fmt;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Instant;

use crate::log::Journal;
use crate::source::Client;
use crate::sys::program::Program;
use crate::sys::sockets;
use crate::terms::endpoint::Endpoint;
use crate::terms::value::Complaint;

pub(crate) use counts::Counts;
pub(crate) use ledger::{Ledger, Refusal, Seat};
pub(crate) use limits::{Limits, Rate};
pub(crate) use program::AccessProgram;
pub(crate) use proxies::{Others, Proxies, Standing};
pub(crate) use rules::{AllowLevels, Denial, Rule, Rules, Verdict};
pub(crate) use state_dir::StateDir;

/// What a client has to pass.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) rules: Rules,
    /// Where one of them has to allow a client.
    pub(crate) allow_levels: AllowLevels,
    /// The access control program, if there is one.
    pub(crate) program: Option<AccessProgram>,
}

/// A client the gate let in. Only [`Gate::admit`] makes one.
#[must_use]
pub(crate) struct Admitted {
    client: Client,
}

impl Admitted {
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The client, for whom it is handed on to.
    pub(crate) fn into_client(self) -> Client {
        self.client
    }
}

/// A client that the rules let pass. Only [`Gate::check_rules`] makes one.
#[must_use]
pub(crate) struct Passed {
    client: Client,
}

impl Passed {
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }
}

/// What a client was refused by: a rule, or that none lets it pass.
#[derive(Debug)]
pub(crate) struct RefusedBy<'a>(Denial<'a>);

impl RefusedBy<'_> {
    /// Whether it was that no allow rule matched, and not a deny rule.
    pub(crate) fn no_rule_allows(&self) -> bool {
        !matches!(self.0, Denial::By(_))
    }
}

impl fmt::Display for RefusedBy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "denied by rule: {}", self.0)
    }
}

/// Why a client that passed the rules was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The access program did not grant access.
    Refused,
    /// The session was asked to end before the access program had answered.
    Terminated,
    /// The session's time was over before the access program had answered.
    TimeOver,
}

impl Gate {
    /// What the rules say of a client.
    pub(crate) fn judge(&self, client: &Endpoint) -> Verdict<'_> {
        self.rules.judge(client, self.allow_levels)
    }

    /// Asks the rules about a client. One that is refused is closed.
    pub(crate) fn check_rules(&self, client: Client) -> Result<Passed, RefusedBy<'_>> {
        match self.judge(&client.address) {
            Verdict::Pass(_) => Ok(Passed { client }),
            Verdict::Refuse(denial) => Err(RefusedBy(denial)),
        }
    }

    /// Asks the access program, if there is one; `prepare` makes it the command that tells it of this
    /// client, and `understand` makes something of what it answers. It fails closed. A client that is
    /// denied has been sent all that the program had to say to it when this returns.
    pub(crate) fn admit<T>(
        &self,
        Passed { client }: Passed,
        prepare: impl FnOnce(&Program, &Client) -> Command,
        understand: impl FnOnce(&[u8]) -> Result<T, Complaint>,
        ends_at: Option<Instant>,
        journal: &Journal,
    ) -> Result<(Admitted, Option<T>), Denied> {
        let Some(access) = &self.program else {
            return Ok((Admitted { client }, None));
        };
        let command = prepare(&access.program, &client);
        match access.ask(&client, command, understand, ends_at, journal) {
            Ok(understood) => Ok((Admitted { client }, Some(understood))),
            Err(denied) => {
                sockets::dismiss(client.socket.as_fd());
                Err(denied)
            }
        }
    }
}
