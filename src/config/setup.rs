//! From what was written to what is done: the command line and the configuration file, merged.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use crate::config::cli::CommandLine;
use crate::config::file::{self, Disk, Files};
use crate::config::service::{NOT_WITH_HANDLER, Service, Services};
use crate::config::settings::{Helper, Overflow, Written, default};
use crate::config::via;
use crate::config::{Config, Destination, Entry, Unusable};
use crate::log;
use crate::source::{Bind, ListenAt, Listening};
use crate::sys::user;
use crate::terms::error::Error;
use crate::terms::place::Place;

/// Everything that is decided before a client connects.
pub(crate) struct Setup {
    /// What holds for the server as a whole.
    pub(crate) server: ServerPlan,
    /// How clients are served.
    pub(crate) services: Services,
}

/// What holds for the server as a whole.
pub(crate) struct ServerPlan {
    /// Whether there is a configuration file, which can be read again.
    pub(crate) from_file: bool,
    /// Whether to listen.
    pub(crate) listening: Listening,
    /// Where to listen.
    pub(crate) places: Vec<ListenAt>,
    /// What was written about the log.
    pub(crate) log: log::Plan,
    /// Whether it goes to the background once it listens.
    pub(crate) daemon: bool,
    /// The pid file, if there is to be one.
    pub(crate) pidfile: Option<PathBuf>,
    /// When the server is to end itself.
    pub(crate) lifetime: Option<Duration>,
    /// Sessions at once.
    pub(crate) max_sessions: Option<usize>,
    /// What happens to clients beyond that.
    pub(crate) overflow: Overflow,
    /// Where processes that others started share their counts.
    pub(crate) state_dir: Option<PathBuf>,
}

impl Setup {
    /// What a command line and the configuration file it calls for come to. The file is read
    /// only if there is no `server` argument, or if it was named.
    pub(crate) fn new(line: &CommandLine, files: &dyn Files) -> Result<Setup, Unusable> {
        let config = config_path(line)?
            .map(|path| read(line, path, files))
            .transpose()?;
        let from_file = config.is_some();
        let standalone_in_file = config.as_ref().and_then(|file| file.defaults.standalone);
        let effective = effective(line, config.as_deref());
        let (services, places) = match &line.destination {
            Some(destination) => {
                let is_handler = matches!(destination, Destination::Handler(_));
                if is_handler && line.written.acp_server == Some(true) {
                    let line = format!("option --acp-server: {NOT_WITH_HANDLER}");
                    return Err(Unusable::Error(Error::usage(line)));
                }
                check_helper(&line.written, &effective, destination)?;
                let via = via::proxy_of_the_only(&effective, destination, files)?;
                let service = Service::new(None, effective.clone(), destination.clone(), via)?;
                let transparent = service.transparent;
                let at = |bind: &Bind| ListenAt {
                    bind: bind.clone(),
                    transparent,
                };
                let places = line.written.binds.iter().map(at).collect();
                (Services::One(Rc::new(service)), places)
            }
            None => {
                let entries = config.map_or_else(Vec::new, |file| file.services);
                let services = Services::of(entries, &effective, files)?;
                let places = services.places();
                (services, places)
            }
        };
        let asked = line.written.standalone == Some(true) || !line.written.binds.is_empty();
        let listening = match (&line.destination, standalone_in_file) {
            _ if asked => Listening::Always,
            (Some(_), _) => Listening::Never,
            (None, Some(true)) => Listening::Always,
            (None, Some(false)) => Listening::Never,
            (None, None) => Listening::Otherwise,
        };
        if asked && places.is_empty() && line.destination.is_some() {
            return Err(Unusable::Error(Error::usage(
                "option -s/--standalone: needs -b [interface:]port to say where to listen",
            )));
        }
        if effective.daemon == Some(true) {
            check_daemon(&line.written, listening, &effective)?;
        }
        Ok(Setup {
            server: ServerPlan::new(from_file, listening, places, effective),
            services,
        })
    }
}

impl Setup {
    /// Gets ready to serve many clients: looks up the names of interfaces, which may take as long as
    /// a name server does, and fails if one cannot be, or if two services are for the same address
    /// and port.
    pub(crate) fn prepare(&self) -> Result<(), Error> {
        if let Services::One(_) = self.services {
            for place in &self.server.places {
                let found = place.bind.interface.addresses();
                found.map_err(|error| error.about("option -b/--bind"))?;
            }
        }
        self.services.check_addresses()?;
        let needs = |service: &&Rc<Service>| service.connects_as_client();
        if let Some(service) = self.services.all().find(needs) {
            user::check_net_admin().map_err(|error| match service.port {
                Some(_) => error.about(&service.label),
                None => error,
            })?;
        }
        self.services
            .all()
            .for_each(|service| service.gate.rules.prepare());
        Ok(())
    }
}

impl ServerPlan {
    fn new(
        from_file: bool,
        listening: Listening,
        places: Vec<ListenAt>,
        effective: Written,
    ) -> ServerPlan {
        let daemon = effective.daemon.unwrap_or(false);
        ServerPlan {
            from_file,
            listening,
            places,
            log: log::Plan {
                name: effective.log_name,
                level: effective.log_level.unwrap_or_default(),
                targets: effective.log_targets,
                access_log: effective.access_log.map(|path| log::AccessLogPlan {
                    path,
                    format: effective.access_log_format.unwrap_or_default(),
                }),
                in_background: daemon,
            },
            daemon,
            pidfile: effective.pidfile.flatten(),
            lifetime: effective.lifetime.flatten(),
            max_sessions: effective.max_sessions.unwrap_or(default::MAX_SESSIONS),
            overflow: effective.overflow.unwrap_or_default(),
            state_dir: effective.state_dir,
        }
    }
}

/// Whether the server, which is to go to the background, can.
fn check_daemon(written: &Written, listening: Listening, effective: &Written) -> Result<(), Error> {
    if listening == Listening::Never {
        return Err(no_daemon());
    }
    let mut targets = effective.log_targets.iter();
    match targets.find_map(log::Target::complaint_of_daemon) {
        Some(complaint) if !written.log_targets.is_empty() => {
            Err(Error::usage(format!("option --log: {complaint}")))
        }
        // Where both stand in the file, that was complained about there.
        Some(complaint) => {
            let line = format!("option --daemon: the file's log: {complaint}");
            Err(Error::usage(line))
        }
        None => Ok(()),
    }
}

/// What is to go to the background, but serves what it was handed.
pub(crate) fn no_daemon() -> Error {
    Error::usage(
        "daemon: only a server with listeners of its own goes to the background: \
         whoever hands over a connection or a listener waits for this process",
    )
}

/// Fails where the command line asks for a helper that cannot help with its server, or for what only a
/// helper has a use for that there is not.
fn check_helper(
    written: &Written,
    effective: &Written,
    destination: &Destination,
) -> Result<(), Error> {
    if written.helper.is_some()
        && let Some(complaint) = Helper::complaint(effective, destination)
    {
        return Err(Error::usage(format!("option --{complaint}")));
    }
    if written.http_force.is_some() && effective.helper.flatten() != Some(Helper::HttpProxy) {
        let what = "option --http-force: is of no use without --helper http-proxy";
        return Err(Error::usage(what));
    }
    Ok(())
}

/// The configuration that a command line calls for, if it does, with the command line's own
/// settings over the file's defaults, as `-zz` prints it.
pub(crate) fn effective_config(line: &CommandLine) -> Result<Config, Unusable> {
    let config = config_path(line)?
        .map(|path| read(line, path, &Disk))
        .transpose()?;
    let defaults = effective(line, config.as_deref());
    let mut config = *config.unwrap_or_default();
    config.defaults = defaults;
    if let Some(destination) = &line.destination {
        let entry = |bind: &Bind| Entry {
            place: Place::CommandLine,
            interface: bind.interface.clone(),
            port: bind.port,
            written: Written::default(),
            destination: destination.clone(),
            destination_place: Place::CommandLine,
        };
        config.services = line.written.binds.iter().map(entry).collect();
    }
    Ok(config)
}

/// What holds where a service does not say otherwise: the command line's settings over the file's, and
/// both over what is done by the program in whose place they were written.
fn effective(line: &CommandLine, config: Option<&Config>) -> Written {
    let written = line.written.clone();
    let written = match config {
        Some(file) => written.within(&file.defaults),
        None => written,
    };
    match &line.in_place_of {
        Some(other) => written.within(other.defaults()),
        None => written,
    }
}

/// The configuration file that a command line calls for, if it does.
fn config_path(line: &CommandLine) -> Result<Option<&Path>, Unusable> {
    if line.destination.is_none() && !line.written.binds.is_empty() {
        return Err(Unusable::Error(Error::usage(
            "option -b/--bind: needs a server: write host[:port], [v6]:port, unix:/path, \
             or a program's path that begins with / or .",
        )));
    }
    let path = match (&line.written.config, &line.destination) {
        (Some(path), _) => path.as_path(),
        (None, Some(_)) => return Ok(None),
        (None, None) => Path::new(default::CONFIG),
    };
    if line.written.config.is_none() && !exists(path) {
        return Err(Unusable::Error(Error::usage(format!(
            "no server given, and there is no {}: write host[:port], [v6]:port, unix:/path, \
             or a program's path that begins with / or . (tcpproxy --help)",
            default::CONFIG
        ))));
    }
    Ok(Some(path))
}

// Cold: what it needs of the stack is not to be touched by every session's start.
#[cold]
fn read(line: &CommandLine, path: &Path, files: &dyn Files) -> Result<Box<Config>, Unusable> {
    let parsed = match &line.in_place_of {
        Some(other) => other.read(path, files),
        None => file::parse(path, files),
    };
    parsed.map(Box::new).map_err(Unusable::Problems)
}

/// Whether there is something of this name, readable or not.
fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
