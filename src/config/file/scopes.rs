//! Scopes: what is open while a file is read, what is inherited, and the services that come of it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;

use super::reading::Problems;
use super::words::Word;
use super::{MOST_SERVICES, Problem};
use crate::config::service::NOT_WITH_HANDLER;
use crate::config::settings::{Given, Helper, Scope, Setting, Takes, Written};
use crate::config::{Config, Destination, Entry};
use crate::log;
use crate::source::{Bind, Interface};
use crate::sys::names::accounts;
use crate::sys::program::Program;
use crate::terms::escape::brief;
use crate::terms::place::Place;
use crate::terms::value;
use crate::terms::value::Fault;
use crate::upstream::Upstream;

/// Nothing, or what is wrong.
pub(super) type Outcome = Result<(), Problem>;

/// What was written since a scope was opened.
struct Open {
    /// How many scopes were opened before it.
    number: usize,
    interface: Interface,
    port: u16,
    /// Where it was opened.
    place: Place,
    written: Written,
    /// Where each directive stands that can stand only once.
    seen: HashMap<&'static str, Place>,
    destination: Option<(Destination, Place)>,
    /// It could not be read, which was complained about; it is no service.
    unreadable: bool,
    /// A directive in it is none, which was complained about; it may have been the action.
    has_unknown: bool,
    /// It carries interfaces, and need not be a service itself.
    has_interfaces: bool,
}

impl Open {
    fn new(number: usize, bind: Option<Bind>, place: Place) -> Open {
        let unreadable = bind.is_none();
        let Bind { interface, port } = bind.unwrap_or(Bind {
            interface: Interface::Any,
            port: 0,
        });
        Open {
            number,
            interface,
            port,
            place,
            written: Written::default(),
            seen: HashMap::new(),
            destination: None,
            unreadable,
            has_unknown: false,
            has_interfaces: false,
        }
    }
}

/// The defaults, the port and the interface that are open, and what was closed before.
#[derive(Default)]
pub(super) struct Scopes {
    defaults: Written,
    seen_defaults: HashMap<&'static str, Place>,
    port: Option<Open>,
    interface: Option<Open>,
    /// With the number of the scope that each came from: a port's is closed after those of its
    /// interfaces, and they are to stand in the order of the file.
    services: Vec<(usize, Entry)>,
    opened: usize,
    places: HashMap<(Interface, u16), Place>,
    problems: Problems,
}

impl Scopes {
    pub(super) fn finish(mut self) -> Result<Config, Vec<Problem>> {
        self.close_port();
        self.check_daemon();
        self.problems.unless_any(()).map_err(in_order)?;
        self.services.sort_by_key(|(opened, _)| *opened);
        Ok(Config {
            defaults: self.defaults,
            services: self.services.into_iter().map(|(_, entry)| entry).collect(),
        })
    }

    fn check_daemon(&mut self) {
        let mut targets = self.defaults.log_targets.iter();
        let complaint = targets.find_map(log::Target::complaint_of_daemon);
        if let (Some(true), Some(complaint)) = (self.defaults.daemon, complaint)
            && let Some(place) = self.seen_defaults.get("daemon")
        {
            let what = format!("daemon: log: {complaint}");
            self.problem(Problem::misplaced(place.clone(), what));
        }
    }

    /// Notes a problem, unless there are enough.
    pub(super) fn problem(&mut self, problem: Problem) {
        self.problems.note(problem);
    }

    /// Whether there is nothing to be gained by reading on.
    pub(super) fn has_enough_problems(&self) -> bool {
        self.problems.are_enough()
    }

    fn scope(&mut self, bind: Option<Bind>, place: Place) -> Open {
        self.opened += 1;
        Open::new(self.opened, bind, place)
    }

    pub(super) fn open_port(&mut self, values: &[Word], place: Place) -> Outcome {
        self.close_port();
        let port = only(values, "port", &place)
            .and_then(|word| accounts::port(&word.text).map_err(at(&place)));
        let (port, outcome) = split(port);
        let bind = port.map(|port| Bind {
            interface: Interface::Any,
            port,
        });
        self.port = Some(self.scope(bind, place));
        outcome
    }

    pub(super) fn open_interface(&mut self, values: &[Word], place: Place) -> Outcome {
        self.close_interface();
        let Some(around) = &mut self.port else {
            let what = "interface belongs into a port: write port first";
            // For what follows to belong to.
            self.interface = Some(self.scope(None, place.clone()));
            return Err(Problem::misplaced(place, what));
        };
        let interface = only(values, "interface", &place)
            .and_then(|word| Interface::parse(&word.text).map_err(at(&place)));
        let (interface, outcome) = split(interface);
        let port = around.port;
        let bind = interface.map(|interface| Bind { interface, port });
        around.has_interfaces = true;
        let (within_unreadable, has_unknown) = (around.unreadable, around.has_unknown);
        let mut open = self.scope(bind, place);
        open.unreadable |= within_unreadable;
        open.has_unknown = has_unknown;
        self.interface = Some(open);
        outcome
    }

    pub(super) fn open_bind(&mut self, values: &[Word], place: Place) -> Outcome {
        self.close_port();
        let bind = only(values, "bind", &place)
            .and_then(|word| Bind::parse(&word.text).map_err(at(&place)))
            .and_then(|bind| match bind.port {
                0 => Err(Problem::wrong(
                    place.clone(),
                    "port 0 is out of range: write 1 to 65535",
                )),
                _ => Ok(bind),
            });
        let (bind, outcome) = split(bind);
        let narrow = bind
            .as_ref()
            .is_some_and(|bind| bind.interface != Interface::Any);
        let open = Some(self.scope(bind, place));
        if narrow {
            self.interface = open;
        } else {
            self.port = open;
        }
        outcome
    }

    pub(super) fn add_servers(
        &mut self,
        values: &[Word],
        place: Place,
        place_of: &dyn Fn(&Word) -> Place,
    ) -> Outcome {
        if values.is_empty() {
            let what = "server needs a value: write host[:port]".to_owned();
            return self.unreadable_service(place, what);
        }
        let mut upstreams = Vec::new();
        for word in values {
            let upstream = Upstream::parse(&word.text);
            match upstream {
                Ok(upstream) => upstreams.push(upstream),
                Err(complaint) => return self.unreadable_service(place_of(word), complaint),
            }
        }
        let open = self.service(&place, "server")?;
        match &mut open.destination {
            None => open.destination = Some((Destination::Upstreams(upstreams), place)),
            Some((Destination::Upstreams(earlier), _)) => earlier.extend(upstreams),
            Some((Destination::Handler(_), earlier)) => {
                let what = format!("server and exec exclude each other: exec is at {earlier}");
                return Err(Problem::misplaced(place, what));
            }
        }
        Ok(())
    }

    pub(super) fn set_handler(&mut self, values: &[Word], place: Place) -> Outcome {
        let words = match command(values) {
            Ok(words) => words,
            Err(complaint) => return self.unreadable_service(place, format!("exec {complaint}")),
        };
        let open = self.service(&place, "exec")?;
        match &open.destination {
            None => open.destination = Some((Destination::Handler(Program::from(words)), place)),
            Some((Destination::Handler(_), earlier)) => {
                let what = format!("exec stands here twice: first at {earlier}");
                return Err(Problem::misplaced(place, what));
            }
            Some((Destination::Upstreams(_), earlier)) => {
                let what = format!("server and exec exclude each other: server is at {earlier}");
                return Err(Problem::misplaced(place, what));
            }
        }
        Ok(())
    }

    pub(super) fn set(
        &mut self,
        setting: &'static Setting,
        name: &Word,
        values: &[Word],
        place_of: &dyn Fn(&Word) -> Place,
    ) -> Outcome {
        let place = place_of(name);
        let name = name.text.as_str();
        let (written, seen) = match self.interface.as_mut().or(self.port.as_mut()) {
            Some(_) if setting.scope == Scope::Server => {
                let what = format!("{name} belongs before the first port");
                return Err(Problem::misplaced(place, what));
            }
            Some(open) => (&mut open.written, &mut open.seen),
            None => (&mut self.defaults, &mut self.seen_defaults),
        };
        if !setting.repeatable || setting.takes == Takes::Switch {
            if let Some(earlier) = seen.get(setting.name) {
                let what = format!("{name} stands here twice: first at {earlier}");
                return Err(Problem::misplaced(place, what));
            }
            seen.insert(setting.name, place.clone());
        }
        let needs = match setting.takes {
            Takes::Switch | Takes::Nothing => "yes or no",
            Takes::Value(_) | Takes::Perhaps(_) | Takes::Command(_) => "a value",
        };
        let (text, value_place) = match (setting.takes, values) {
            (Takes::Command(_), values) => {
                let words = command(values)
                    .map_err(|what| Problem::wrong(place.clone(), format!("{name} {what}")))?;
                (shell_words::join(words), place.clone())
            }
            (Takes::Switch | Takes::Nothing | Takes::Perhaps(_), []) => {
                (String::new(), place.clone())
            }
            // Nothing is one thing, and an empty word another.
            (Takes::Switch | Takes::Nothing | Takes::Perhaps(_), [word])
                if word.text.is_empty() =>
            {
                return Err(Problem::wrong(
                    place_of(word),
                    format!("{name} takes {needs}"),
                ));
            }
            (_, [word]) => (word.text.clone(), place_of(word)),
            (_, []) => return Err(Problem::wrong(place, format!("{name} needs {needs}"))),
            (_, [_, extra, ..]) => {
                let extra_place = place_of(extra);
                let what = if setting.secret {
                    format!("this is one word too many: {name} takes {needs}")
                } else {
                    let extra = brief(&extra.text);
                    format!("'{extra}' is one word too many: {name} takes {needs}")
                };
                return Err(Problem::wrong(extra_place, what));
            }
        };
        let given = Given {
            text: &text,
            place: &place,
        };
        (setting.write)(written, given).map_err(|fault| match fault {
            Fault::Bad(what) | Fault::Refused(what) => {
                Problem::wrong(value_place, format!("{name}: {what}"))
            }
        })
    }

    /// Complains about a directive that is none, and no more about its service's having nothing to do:
    /// that may be what was misspelt.
    pub(super) fn unknown(&mut self, place: Place, complaint: String) -> Outcome {
        if let Some(open) = self.interface.as_mut().or(self.port.as_mut()) {
            open.has_unknown = true;
        }
        Err(Problem::wrong(place, complaint))
    }

    /// Complains about what a service is to do, and no more about its having nothing to do.
    fn unreadable_service(&mut self, place: Place, complaint: String) -> Outcome {
        if let Some(open) = self.interface.as_mut().or(self.port.as_mut()) {
            open.unreadable = true;
        }
        Err(Problem::wrong(place, complaint))
    }

    /// The scope that a server or exec directive belongs to.
    fn service(&mut self, place: &Place, name: &str) -> Result<&mut Open, Problem> {
        match self.interface.as_mut().or(self.port.as_mut()) {
            Some(open) => Ok(open),
            None => Err(Problem::misplaced(
                place.clone(),
                format!("{name} belongs into a port: write port first"),
            )),
        }
    }

    fn close_interface(&mut self) {
        let Some(mut open) = self.interface.take() else {
            return;
        };
        if let Some(around) = &self.port {
            open.destination = open.destination.or_else(|| around.destination.clone());
            open.written = open.written.within(&around.written);
        }
        self.close(open);
    }

    fn close_port(&mut self) {
        self.close_interface();
        if let Some(open) = self.port.take() {
            self.close(open);
        }
    }

    /// Makes a service of a scope that has been read to its end.
    fn close(&mut self, open: Open) {
        if open.unreadable || (open.has_interfaces && open.destination.is_none()) {
            return;
        }
        let acp_server = open.written.acp_server.or(self.defaults.acp_server);
        let names_servers = acp_server.unwrap_or(false);
        let destination = match open.destination {
            None if names_servers => Some((Destination::Upstreams(Vec::new()), open.place.clone())),
            Some((Destination::Handler(_), place)) if names_servers => {
                let place = open.seen.get("acp-server").unwrap_or(&place).clone();
                return self.problem(Problem::misplaced(place, NOT_WITH_HANDLER));
            }
            destination => destination,
        };
        let Some((destination, destination_place)) = destination else {
            if open.has_unknown {
                return;
            }
            let what = "has neither server nor exec: write one of them";
            return self.problem(Problem::missing(open.place, what));
        };
        let helper = open.written.helper.or(self.defaults.helper).flatten();
        let effective = helper.map(|_| open.written.clone().within(&self.defaults));
        if let Some(complaint) =
            effective.and_then(|written| Helper::complaint(&written, &destination))
        {
            let place = open.seen.get("helper").unwrap_or(&open.place);
            return self.problem(Problem::misplaced(place.clone(), complaint));
        }
        if let Some(place) = open.seen.get("http-force")
            && helper != Some(Helper::HttpProxy)
        {
            let what = "http-force is of no use without helper http-proxy";
            return self.problem(Problem::misplaced(place.clone(), what));
        }
        let key = (open.interface.clone(), open.port);
        if let Some(earlier) = self.places.get(&key) {
            let (interface, port) = key;
            let bind = Bind { interface, port };
            let what = format!("{bind} is served already: at {earlier}");
            return self.problem(Problem::misplaced(open.place, what));
        }
        self.places.insert(key, open.place.clone());
        if self.services.len() >= MOST_SERVICES {
            let what = format!("there are more than {MOST_SERVICES} services");
            return self.problem(Problem::wrong(open.place, what));
        }
        let entry = Entry {
            place: open.place,
            interface: open.interface,
            port: open.port,
            written: open.written,
            destination,
            destination_place,
        };
        self.services.push((open.number, entry));
    }
}

/// Problems in the order of the files, and within a file in that of its lines: a scope's own are
/// only known at its end.
fn in_order(mut problems: Vec<Problem>) -> Vec<Problem> {
    let mut paths: Vec<Rc<PathBuf>> = Vec::new();
    problems.sort_by_cached_key(|problem| match &problem.place {
        Place::CommandLine => (0, 0, 0),
        Place::File { path, line, column } => {
            let known = paths.iter().position(|known| known == path);
            let file = known.unwrap_or_else(|| {
                paths.push(Rc::clone(path));
                paths.len() - 1
            });
            (file, *line, *column)
        }
    });
    problems
}

/// Has a complaint stand where the directive does.
fn at(place: &Place) -> impl Fn(String) -> Problem {
    move |what| Problem::wrong(place.clone(), what)
}

/// The value, if there is one, and the complaint, if there is none.
fn split<T>(result: Result<T, Problem>) -> (Option<T>, Outcome) {
    match result {
        Ok(value) => (Some(value), Ok(())),
        Err(complaint) => (None, Err(complaint)),
    }
}

/// The single value of a directive.
fn only<'a>(values: &'a [Word], name: &str, place: &Place) -> Result<&'a Word, Problem> {
    match values {
        [word] => Ok(word),
        [] => Err(Problem::wrong(
            place.clone(),
            format!("{name} needs a value"),
        )),
        [_, extra, ..] => {
            let extra = brief(&extra.text);
            let what = format!("'{extra}' is one word too many: {name} takes a value");
            Err(Problem::wrong(place.clone(), what))
        }
    }
}

/// The words of a command: a single quoted word is split once more.
fn command(values: &[Word]) -> Result<Vec<String>, String> {
    match values {
        [word] if word.quoted => value::words(&word.text),
        [first, ..] if !first.text.is_empty() => {
            Ok(values.iter().map(|word| word.text.clone()).collect())
        }
        _ => Err("is empty: write a program, and its arguments if it takes any".to_owned()),
    }
}
