//! Who may pass. Rules are asked first, as they cost nothing; then the access control program.
//!
//! The verdict is a type: an [`Admitted`] is made nowhere else, and no way leads to an upstream
//! or a handler without one.

mod program;
mod rules;

use std::ffi::OsString;
use std::fmt;

use crate::log::Log;
use crate::program::{Environment, Facts};
use crate::source::{Client, Endpoint};

pub use program::AccessProgram;
pub use rules::{Rule, Rules};

/// What a client has to pass.
#[derive(Debug)]
pub struct Gate {
    /// The access rules.
    pub rules: Rules,
    /// The access control program, if there is one.
    pub program: Option<AccessProgram>,
}

/// A client the gate let in. Only [`Gate::admit`] makes one.
#[must_use]
pub struct Admitted {
    client: Client,
}

impl Admitted {
    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The client, for whom it is handed on to.
    pub fn into_client(self) -> Client {
        self.client
    }
}

/// Proof that the rules let a client pass.
pub struct PassedRules(());

/// The rule that a client was refused by.
#[derive(Debug, PartialEq, Eq)]
pub struct RefusedBy(String);

impl fmt::Display for RefusedBy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "denied by rule: {}", self.0)
    }
}

/// Why a client that passed the rules was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The access program did not grant access.
    ByProgram,
    /// The session was asked to end before the access program had answered.
    ByTermination,
}

impl Gate {
    /// Asks the rules about a client's address.
    pub fn check_rules(&self, client: &Endpoint) -> Result<PassedRules, RefusedBy> {
        self.rules.check(client).map(|()| PassedRules(()))
    }

    /// Asks the access program, if there is one. It fails closed. A client that is denied has
    /// been sent all that the program had to say to it when this returns.
    pub fn admit(
        &self,
        client: Client,
        _: PassedRules,
        environment: &Environment,
        facts: &Facts,
        server: OsString,
        log: &Log,
    ) -> Result<Admitted, Denied> {
        if let Some(program) = &self.program
            && let Err(denied) = program.ask(&client, environment, facts, server, log)
        {
            program::dismiss(&client);
            return Err(denied);
        }
        Ok(Admitted { client })
    }
}
