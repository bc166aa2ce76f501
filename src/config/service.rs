//! What it all means for a client: a [`Service`] says everything about how it is served, and was
//! decided before any client connected.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::{Gid, Uid};

use crate::config::file::{Files, MOST_PROBLEMS, Recorded};
use crate::config::settings::{Helper, Written, default};
use crate::config::via;
use crate::config::{Destination, Entry, Unusable};
use crate::gate::{AccessProgram, Gate, Limits, Proxies};
use crate::log::Wording;
use crate::relay::{self, Pacing};
use crate::source::{Bind, Client, Interface, ListenAt};
use crate::sys::program::{Environment, Program};
use crate::sys::user::{Capabilities, Ids};
use crate::terms::endpoint::Endpoint;
use crate::terms::error::Error;
use crate::terms::place::Place;
use crate::terms::value::PortRange;
use crate::upstream::{ForwardProxy, Route, Upstream};

/// What is wrong with a handler whose upstreams somebody is to choose.
pub(crate) const NOT_WITH_HANDLER: &str =
    "acp-server and exec exclude each other: a handler has no upstreams to choose from";

/// How clients are served.
#[derive(Debug)]
pub(crate) struct Service {
    /// What it is called where services are told apart: `*:25`, or `-` for the only one.
    pub(crate) label: String,
    /// The local port that it is for, if it is for one.
    pub(crate) port: Option<u16>,
    /// How many sessions one client may have.
    pub(crate) limits: Limits,
    /// Who has to say whose connection it is that it makes.
    pub(crate) proxies: Proxies,
    /// How long that may take.
    pub(crate) proxy_timeout: Duration,
    /// Who may pass.
    pub(crate) gate: Gate,
    /// What happens to those who may.
    pub(crate) action: Action,
    /// Who it is done as, when started as root.
    pub(crate) ids: Ids,
    /// The user and the group that were asked for.
    pub(crate) chosen: (Option<Uid>, Option<Gid>),
    /// What programs find in their environment.
    pub(crate) environment: Environment,
    /// Whether its listeners also take connections that were made to others.
    pub(crate) transparent: bool,
    /// How long a session may last.
    pub(crate) max_duration: Option<Duration>,
    /// The name under which its sessions are logged, if it has its own.
    pub(crate) log_name: Option<String>,
}

/// What happens to a client that was admitted.
#[derive(Debug)]
pub(crate) enum Action {
    Forward(Forward),
    /// A program is started for it.
    Exec(Program),
}

#[derive(Debug)]
pub(crate) struct Forward {
    /// Where to.
    pub(crate) route: Route,
    /// By what means, and for how long.
    pub(crate) relay: relay::Bounds,
    /// What its bytes are held back by.
    pub(crate) pacing: Pacing,
    /// What the protocol is helped by, if it is.
    pub(crate) help: Option<Help>,
    /// After how long a silence its peers are asked whether they are there, or `None` for never; if
    /// not as the system does.
    pub(crate) keepalive: Option<Option<Duration>>,
    /// The base name of the transcript, if one is to be written.
    pub(crate) transcript: Option<PathBuf>,
}

/// What a protocol is helped by, with what it needs to know.
#[derive(Debug)]
pub(crate) enum Help {
    /// FTP's data connections are followed.
    Ftp(Ftp),
    /// Requests are made what an HTTP proxy understands.
    HttpProxy {
        /// What every request is to ask for, unless this very page led to it.
        force: Option<String>,
    },
}

/// How FTP's data connections are followed.
#[derive(Debug)]
pub(crate) struct Ftp {
    /// What clients are told to connect to, where it is not what they have reached.
    pub(crate) address: Option<Ipv4Addr>,
    /// The ports to listen on, where not any will do.
    pub(crate) ports: Option<PortRange>,
    /// How long to wait for a connection.
    pub(crate) data_timeout: Duration,
}

impl Service {
    /// The service that `written` describes, defaults filled in; for a place of its own, or whatever
    /// a client connected to. `via` is the proxy that its upstreams are reached through.
    pub(crate) fn new(
        bind: Option<&Bind>,
        written: Written,
        destination: Destination,
        via: Option<Box<ForwardProxy>>,
    ) -> Result<Service, Error> {
        if let Some(complaint) = Helper::complaint(&written, &destination) {
            return Err(Error::config(complaint));
        }
        let answers = written.acp_server.unwrap_or(false);
        let program = match written.acp {
            None => None,
            Some(words) => Some(AccessProgram {
                program: Program::from(words)
                    .anchored()
                    .map_err(|error| Error::io("acp: working directory", &error))?,
                timeout: written.acp_timeout.unwrap_or(default::ACP_TIMEOUT),
                answers,
            }),
        };
        match &destination {
            Destination::Handler(_) if answers => return Err(Error::config(NOT_WITH_HANDLER)),
            Destination::Upstreams(upstreams) if upstreams.is_empty() && program.is_none() => {
                return Err(Error::config(
                    "has no server, and no access program (acp) that could name one",
                ));
            }
            Destination::Handler(_) | Destination::Upstreams(_) => {}
        }
        let idle_timeout = written.timeout.unwrap_or(default::TIMEOUT);
        let help = written.helper.flatten().map(|helper| match helper {
            Helper::Ftp => Help::Ftp(Ftp {
                address: written.ftp_address,
                ports: written.ftp_ports,
                data_timeout: written
                    .ftp_data_timeout
                    .unwrap_or(default::FTP_DATA_TIMEOUT),
            }),
            Helper::HttpProxy => Help::HttpProxy {
                force: written.http_force,
            },
        });
        let action = match destination {
            Destination::Handler(program) => Action::Exec(program),
            Destination::Upstreams(upstreams) => Action::Forward(Forward {
                route: Route {
                    upstreams,
                    connect_timeout: written.connect_timeout.unwrap_or(default::CONNECT_TIMEOUT),
                    connect_retry: written.connect_retry.unwrap_or(default::CONNECT_RETRY),
                    via,
                    source: written.source,
                    send_proxy: written.send_proxy.unwrap_or_default(),
                },
                relay: relay::Bounds {
                    buffer_size: written.buffer_size.unwrap_or(default::BUFFER_SIZE),
                    idle_timeout,
                    half_close_timeout: written.half_close_timeout,
                },
                pacing: Pacing {
                    bandwidth: written.bandwidth.unwrap_or_default(),
                    delay: written.delay.unwrap_or_default(),
                },
                help,
                keepalive: written.keepalive,
                transcript: written.write,
            }),
        };
        Ok(Service {
            label: bind.map_or_else(|| "-".to_owned(), ToString::to_string),
            port: bind.map(|bind| bind.port),
            limits: Limits {
                max_per_source: written.max_per_source.flatten(),
                rate: written.rate,
            },
            proxies: Proxies::new(written.proxies, written.proxy_others.unwrap_or_default()),
            proxy_timeout: written.proxy_timeout.unwrap_or(default::PROXY_TIMEOUT),
            gate: Gate {
                rules: written.rules,
                allow_levels: written.allow_levels.unwrap_or_default(),
                program,
            },
            action,
            ids: Ids {
                uid: written.user.unwrap_or(default::USER),
                gid: written.group.unwrap_or(default::GROUP),
            },
            chosen: (written.user, written.group),
            environment: Environment {
                prefix: written
                    .env_prefix
                    .unwrap_or_else(|| default::ENV_PREFIX.to_owned()),
                clear: written.clear_env.unwrap_or(false),
            },
            transparent: written.transparent.unwrap_or(false),
            max_duration: written.max_duration.flatten(),
            log_name: written.log_name,
        })
    }

    pub(crate) fn forwards(&self) -> bool {
        matches!(self.action, Action::Forward(_))
    }

    /// Whether a program will be started for a client that the rules let pass.
    pub(crate) fn starts_a_program(&self) -> bool {
        self.gate.program.is_some() || !self.forwards()
    }

    /// Whether the access program may choose the upstreams.
    pub(crate) fn program_may_choose(&self) -> bool {
        let program = self.gate.program.as_ref();
        program.is_some_and(|program| program.answers)
    }

    /// Whether upstreams are to see the client's address.
    pub(crate) fn connects_as_client(&self) -> bool {
        match &self.action {
            Action::Forward(forward) => forward.route.connects_as_client(),
            Action::Exec(_) => false,
        }
    }

    /// What the process of a session has until it is connected.
    pub(crate) fn capabilities(&self) -> Capabilities {
        match (self.connects_as_client(), self.transparent) {
            (true, _) => Capabilities::NetAdmin,
            // What its listener needs is not for sessions.
            (false, true) => Capabilities::None,
            (false, false) => Capabilities::AsStarted,
        }
    }

    /// Whether a client may be sent to where it meant to go before it was redirected.
    pub(crate) fn follows_redirection(&self) -> bool {
        match &self.action {
            Action::Forward(forward) => forward.route.follows_redirection(),
            Action::Exec(_) => false,
        }
    }

    /// What a client wants to reach, as access programs are told: the upstreams by their names,
    /// separated by blanks, or the handler's command.
    pub(crate) fn server_line(&self, name: impl Fn(&Upstream) -> String) -> OsString {
        match &self.action {
            Action::Exec(program) => program.line(),
            Action::Forward(forward) => {
                let names = forward.route.upstreams.iter().map(name);
                names.collect::<Vec<_>>().join(" ").into()
            }
        }
    }
}

impl Wording for Service {
    fn listener(&self) -> Option<String> {
        let (interface, _) = self.label.rsplit_once(':')?;
        (interface != "*").then(|| interface.trim_matches(['[', ']']).to_owned())
    }

    fn server(&self, local_port: Option<u16>) -> String {
        match &self.action {
            Action::Exec(program) => program.path.to_string_lossy().into_owned(),
            Action::Forward(forward) => {
                let first = forward.route.upstreams.first();
                first.map_or_else(|| "-".to_owned(), |upstream| upstream.name(local_port))
            }
        }
    }
}

/// Every service there is.
pub(crate) enum Services {
    /// The command line's: whatever a client connected to.
    One(Rc<Service>),
    /// The configuration file's: by what a client connected to.
    ByPlace(Places),
}

/// The services of a file, in its order.
pub(crate) struct Places {
    placed: Vec<Placed>,
    /// The indices of those on each port: there may be thousands, and every client is for one.
    on_port: HashMap<u16, Vec<usize>>,
}

impl Places {
    fn of(placed: Vec<Placed>) -> Places {
        let mut on_port: HashMap<u16, Vec<usize>> = HashMap::new();
        for (index, placed) in placed.iter().enumerate() {
            on_port.entry(placed.bind.port).or_default().push(index);
        }
        Places { placed, on_port }
    }

    fn on(&self, port: u16) -> impl Iterator<Item = &Placed> {
        let indices = self.on_port.get(&port).into_iter().flatten();
        indices.map(|&index| &self.placed[index])
    }
}

/// A service, and the local side it is for.
pub(crate) struct Placed {
    place: Place,
    bind: Bind,
    service: Rc<Service>,
    /// The addresses that the interface stands for, once they had to be known.
    addresses: OnceCell<Vec<IpAddr>>,
}

impl Services {
    /// The services of a configuration file whose settings hold within `defaults`.
    pub(crate) fn of(
        entries: Vec<Entry>,
        defaults: &Written,
        files: &dyn Files,
    ) -> Result<Services, Unusable> {
        // Each is read once: thousands of services may name the same.
        let files = Recorded::new(files);
        let mut problems = via::unused_auth(&entries, defaults);
        let mut placed = Vec::new();
        for entry in entries {
            let Entry {
                place,
                interface,
                port,
                written,
                destination,
                destination_place,
            } = entry;
            let bind = Bind { interface, port };
            let effective = written.in_service(defaults);
            let via = match via::proxy_for(&effective, &destination, &destination_place, &files) {
                Ok(via) => via,
                Err(_) if problems.len() >= MOST_PROBLEMS => break,
                Err(problem) => {
                    // What is wrong with the defaults is so in all of them.
                    if !problems.contains(&problem) {
                        problems.push(problem);
                    }
                    continue;
                }
            };
            let service = Service::new(Some(&bind), effective, destination, via)
                .map_err(|error| error.at(&place))?;
            placed.push(Placed {
                place,
                bind,
                service: Rc::new(service),
                addresses: OnceCell::new(),
            });
        }
        if problems.is_empty() {
            Ok(Services::ByPlace(Places::of(placed)))
        } else {
            Err(Unusable::Problems(problems))
        }
    }

    /// The places to listen at.
    pub(crate) fn places(&self) -> Vec<ListenAt> {
        match self {
            Services::One(_) => Vec::new(),
            Services::ByPlace(places) => {
                let placed = places.placed.iter();
                let at = |placed: &Placed| ListenAt {
                    bind: placed.bind.clone(),
                    transparent: placed.service.transparent,
                };
                placed.map(at).collect()
            }
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Rc<Service>> {
        let (one, placed) = match self {
            Services::One(service) => (Some(service), &[][..]),
            Services::ByPlace(places) => (None, &places.placed[..]),
        };
        one.into_iter()
            .chain(placed.iter().map(|placed| &placed.service))
    }

    /// Whether clients of all of them are forwarded.
    pub(crate) fn all_forward(&self) -> bool {
        self.all().all(|service| service.forwards())
    }

    /// Resolves the names of interfaces. Fails if one cannot be, or if two services turn out to be
    /// for the same address and port.
    pub(crate) fn check_addresses(&self) -> Result<(), Error> {
        let Services::ByPlace(places) = self else {
            return Ok(());
        };
        let mut taken = HashMap::new();
        for placed in &places.placed {
            if placed.bind.interface == Interface::Any {
                continue;
            }
            for address in placed.addresses()? {
                let key = (*address, placed.bind.port);
                if let Some(earlier) = taken.insert(key, &placed.place) {
                    return Err(Error::config(format!(
                        "{}: {} is served already: at {earlier}",
                        placed.place, placed.bind
                    )));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn all_on(&self, port: u16) -> Vec<&Service> {
        match self {
            Services::One(service) => vec![service],
            Services::ByPlace(places) => {
                let on_port = places.on(port);
                on_port.map(|placed| placed.service.as_ref()).collect()
            }
        }
    }

    /// Every service that a client of this local address can reach.
    pub(crate) fn all_for(&self, local: IpAddr) -> Result<Vec<&Service>, Error> {
        let local = local.to_canonical();
        let places = match self {
            Services::One(service) => return Ok(vec![service]),
            Services::ByPlace(places) => places,
        };
        let mut reached = Vec::new();
        for placed in &places.placed {
            let endpoint = Endpoint::Inet((local, placed.bind.port).into());
            let found = self.find(&endpoint)?;
            if found.is_some_and(|found| Rc::ptr_eq(found, &placed.service)) {
                reached.push(placed.service.as_ref());
            }
        }
        Ok(reached)
    }

    /// The service for a client, by its own socket's address. What was made to others and came through a
    /// transparent listener has their ports and perhaps their addresses: it is looked for at the listener's
    /// port, and then at the listener's address.
    pub(crate) fn find_for(&self, client: &Client) -> Result<Option<&Rc<Service>>, Error> {
        let (Some(Endpoint::Inet(listener)), Endpoint::Inet(local)) =
            (client.listener, client.local)
        else {
            return self.find(&client.local);
        };
        let at_port = Endpoint::Inet((local.ip(), listener.port()).into());
        match self.find(&at_port)? {
            Some(service) => Ok(Some(service)),
            None => self.find(&Endpoint::Inet(listener)),
        }
    }

    /// The service for a client that has connected here: the narrower one wins. An interface's
    /// name may have to be resolved. Where it cannot be, there is no telling.
    pub(crate) fn find(&self, local: &Endpoint) -> Result<Option<&Rc<Service>>, Error> {
        let places = match self {
            Services::One(service) => return Ok(Some(service)),
            Services::ByPlace(places) => places,
        };
        let Endpoint::Inet(local) = local else {
            return Ok(None);
        };
        let mut closest: Option<(Closeness, &Rc<Service>)> = None;
        for placed in places.on(local.port()) {
            let closeness = placed.closeness(local.ip())?;
            if closeness > closest.map(|(closeness, _)| closeness) {
                closest = closeness.map(|closeness| (closeness, &placed.service));
            }
        }
        Ok(closest.map(|(_, service)| service))
    }
}

/// How closely a service is for a local address, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Closeness {
    /// It is for any.
    Any,
    /// It is for any of IPv6, which reaches IPv4 as well where that has no listener.
    OtherFamily,
    /// It is for any of the address's family.
    Family,
    /// It is for this one.
    Address,
}

impl Placed {
    /// The addresses that the interface stands for.
    fn addresses(&self) -> Result<&[IpAddr], Error> {
        if let Some(addresses) = self.addresses.get() {
            return Ok(addresses);
        }
        let found = self.bind.interface.addresses();
        let found = found.map_err(|error| error.at(&self.place))?;
        Ok(self.addresses.get_or_init(|| found))
    }

    /// How closely it is for a client of this address, if it is.
    fn closeness(&self, local: IpAddr) -> Result<Option<Closeness>, Error> {
        Ok(match &self.bind.interface {
            Interface::Any => Some(Closeness::Any),
            Interface::Address(address) if address.is_unspecified() => {
                match (address.is_ipv4(), local.is_ipv4()) {
                    (true, false) => None,
                    (false, true) => Some(Closeness::OtherFamily),
                    (true, true) | (false, false) => Some(Closeness::Family),
                }
            }
            Interface::Address(address) => {
                (address.to_canonical() == local).then_some(Closeness::Address)
            }
            Interface::Named(_) => {
                let mut addresses = self.addresses()?.iter();
                let is_one = addresses.any(|address| address.to_canonical() == local);
                is_one.then_some(Closeness::Address)
            }
        })
    }
}
