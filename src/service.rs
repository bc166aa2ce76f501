//! What it all means: a [`Service`] says everything about how a client is served, and was decided
//! before any client connected.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::cli::Server;
use crate::error::Error;
use crate::gate::{AccessProgram, Gate, Rules};
use crate::program::{Environment, Program};
use crate::relay;
use crate::settings::Written;
use crate::source::Client;
use crate::upstream::Route;
use crate::user::Ids;

/// How clients are served.
#[derive(Debug)]
pub struct Service {
    /// Who may pass.
    pub gate: Gate,
    /// What happens to those who may.
    pub action: Action,
    /// Who it is done as, when started as root.
    pub ids: Ids,
    /// What programs find in their environment.
    pub environment: Environment,
}

/// What happens to a client that was admitted.
#[derive(Debug)]
pub enum Action {
    /// Its connection is forwarded.
    Forward(Forward),
    /// A program is started for it.
    Exec(Program),
}

/// How a connection is forwarded.
#[derive(Debug)]
pub struct Forward {
    /// Where to.
    pub route: Route,
    /// By what means, and for how long.
    pub relay: relay::Settings,
    /// The base name of the transcript, if one is to be written.
    pub transcript: Option<PathBuf>,
}

/// Settings that nothing was written for.
mod default {
    use std::time::Duration;

    pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
    pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
    pub(super) const ACCESS_PROGRAM_TIMEOUT: Duration = Duration::from_secs(10);
    pub(super) const BUFFER_SIZE: usize = 64 << 10;
}

impl Service {
    /// The service that a command line describes.
    pub fn new(written: Written, server: Option<Server>) -> Result<Service, Error> {
        let server = server.ok_or_else(|| {
            Error::usage(
                "no server given: write host[:port], [v6]:port, unix:/path, \
                 or a program's path that begins with / or . (tcpproxy --help)",
            )
        })?;
        let ids = Ids::find(written.user.as_ref(), written.group.as_ref())?;
        let timeout: Duration = written
            .access_program_timeout
            .unwrap_or(default::ACCESS_PROGRAM_TIMEOUT);
        let program = match written.access_program {
            None => None,
            Some(words) => Some(AccessProgram {
                program: Program::from(words)
                    .anchored()
                    .map_err(|error| Error::io("option -a/--acp: working directory", &error))?,
                timeout,
            }),
        };
        let action = match server {
            Server::Handler(program) => Action::Exec(program),
            Server::Upstream(upstream) => Action::Forward(Forward {
                route: Route {
                    upstreams: vec![upstream],
                    connect_timeout: written.connect_timeout.unwrap_or(default::CONNECT_TIMEOUT),
                    source: written.source,
                },
                relay: relay::Settings {
                    engine: relay::Engine::Splice,
                    buffer_size: written.buffer_size.unwrap_or(default::BUFFER_SIZE),
                    idle_timeout: written.idle_timeout.unwrap_or(Some(default::IDLE_TIMEOUT)),
                },
                transcript: written.transcript,
            }),
        };
        Ok(Service {
            gate: Gate {
                rules: Rules::from(written.rules),
                program,
            },
            action,
            ids,
            environment: Environment {
                prefix: written
                    .env_prefix
                    .unwrap_or_else(|| Environment::DEFAULT_PREFIX.to_owned()),
                clear: written.clear_env,
            },
        })
    }

    /// Whether a program will be started for a client that the rules let pass.
    pub fn starts_a_program(&self) -> bool {
        self.gate.program.is_some() || matches!(self.action, Action::Exec(_))
    }

    /// What an access program is told that the client wants to reach: the upstreams separated by
    /// blanks, or the handler's command.
    pub fn server_for_access_program(&self, client: &Client) -> OsString {
        match &self.action {
            Action::Exec(program) => program.line(),
            Action::Forward(forward) => {
                let port = client.local.port();
                let names = forward
                    .route
                    .upstreams
                    .iter()
                    .map(|upstream| upstream.name(port));
                names.collect::<Vec<_>>().join(" ").into()
            }
        }
    }
}
