//! The measures. In each, everybody takes a turn per round; who begins changes from round to round.

mod bulk;
mod memory;
mod rate;
mod round_trip;
mod start;
mod system_calls;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::Outcome;
use crate::accounting::{Account, Accounts};
use crate::arguments::{Arguments, Effort};
use crate::commands::{self, Files, Mode};
use crate::contestants::{Contestant, Design, Installed};
use crate::processes::{Backend, Descriptors, Forwarder, Processors, Scratch};
use crate::results::{Results, Row};

/// A group of rows that are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    Memory,
    SystemCalls,
    Start,
    RoundTrip,
    Bulk,
    Rate,
    Ladder,
}

impl Measure {
    /// In the order in which they are taken: memory first, while the kernel holds nothing that
    /// earlier connections have left.
    pub(crate) const ALL: [Measure; 7] = [
        Measure::Memory,
        Measure::SystemCalls,
        Measure::Start,
        Measure::RoundTrip,
        Measure::Bulk,
        Measure::Rate,
        Measure::Ladder,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Measure::Memory => "memory",
            Measure::SystemCalls => "system-calls",
            Measure::Start => "start",
            Measure::RoundTrip => "round-trip",
            Measure::Bulk => "bulk",
            Measure::Rate => "rate",
            Measure::Ladder => "ladder",
        }
    }
}

pub(crate) fn all(arguments: &Arguments, run: &str) -> Outcome<Results> {
    let mut bench = Bench {
        effort: arguments.effort,
        accounts: Accounts::open(run),
        scratch: Scratch::new(run)?,
        backend: Backend::start(Processors::All)?,
        results: Results::default(),
        started: 0,
    };
    bench.muster(&arguments.contestants);
    for measure in Measure::ALL {
        if !arguments.measures.contains(&measure) {
            continue;
        }
        eprintln!("measuring: {}", measure.name());
        match measure {
            Measure::Memory => memory::measure(&mut bench)?,
            Measure::SystemCalls => system_calls::measure(&mut bench),
            Measure::Start => start::measure(&mut bench)?,
            Measure::RoundTrip => round_trip::measure(&mut bench)?,
            Measure::Bulk => bulk::measure(&mut bench)?,
            Measure::Rate => rate::measure(&mut bench)?,
            Measure::Ladder => rate::ladder(&mut bench)?,
        }
    }
    Ok(bench.results)
}

/// What all measures need.
struct Bench {
    effort: Effort,
    accounts: Option<Accounts>,
    scratch: Scratch,
    backend: Backend,
    results: Results,
    /// How many forwarders have been started: their ports and files are numbered.
    started: u16,
}

/// Below the range that the kernel chooses from, so always free in this namespace.
const FIRST_PORT: u16 = 2000;

/// One of those who take turns.
struct Entrant {
    who: Contestant,
    at: SocketAddr,
    /// None is needed to reach the backend directly.
    forwarder: Option<Forwarder>,
}

impl Entrant {
    /// Processor time that its forwarder has used. Nothing where nobody counts.
    fn used(&self) -> Option<Duration> {
        self.forwarder.as_ref()?.used()
    }
}

/// What a turn yields.
type Samples = Vec<(Row, f64)>;

impl Bench {
    /// Finds out who is there.
    fn muster(&mut self, wanted: &[Contestant]) {
        for &contestant in wanted {
            match contestant.find() {
                Some(installed) => self.results.present.push(installed),
                None => {
                    let note = format!("{} is not installed", contestant.name());
                    self.results.note(note);
                }
            }
        }
        if self.accounts.is_none() {
            let note = "processor time was not measured: no control group (version 2) can be made";
            self.results.note(note.to_owned());
        }
    }

    /// Everybody who knows this mode, started and ready to forward to `upstream`, and the direct way.
    fn line_up(
        &mut self,
        mode: Mode,
        processors: Processors,
        upstream: SocketAddr,
    ) -> Vec<Entrant> {
        let mut entrants = Vec::new();
        for installed in self.results.present.clone() {
            entrants.extend(self.enter(&installed, mode, processors, upstream));
        }
        entrants
    }

    /// One of them. Nothing if it does not know the mode, or fails, which is noted.
    fn enter(
        &mut self,
        installed: &Installed,
        mode: Mode,
        processors: Processors,
        upstream: SocketAddr,
    ) -> Option<Entrant> {
        let who = installed.contestant;
        if who == Contestant::Direct {
            return Some(Entrant {
                who,
                at: upstream,
                forwarder: None,
            });
        }
        match self.start(installed, mode, processors, upstream) {
            Ok(forwarder) => {
                let forwarder = forwarder?;
                Some(Entrant {
                    who,
                    at: forwarder.at,
                    forwarder: Some(forwarder),
                })
            }
            Err(problem) => {
                let note = format!("{}{mode}: {problem}", who.name());
                self.results.failed(who, note);
                None
            }
        }
    }

    fn start(
        &mut self,
        installed: &Installed,
        mode: Mode,
        processors: Processors,
        upstream: SocketAddr,
    ) -> Outcome<Option<Forwarder>> {
        self.started += 1;
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST_PORT + self.started));
        let name = format!("{}-{}", self.started, installed.contestant.name());
        let files = Files {
            stem: self.scratch.join(&name),
        };
        let words = match mode {
            Mode::Standalone => commands::standalone(installed, at, upstream, &files)?,
            Mode::Under(by) => match (by.find(), commands::inherited(installed, upstream)) {
                (Some(program), Some(words)) => Some(by.command(&program, &words, at, &files)?),
                _ => None,
            },
        };
        let Some(words) = words else {
            return Ok(None);
        };
        let account = self.account(&name)?;
        let said = match mode {
            Mode::Standalone => files.stem.with_extension("said"),
            // A disk would be part of what each connection costs.
            Mode::Under(_) => PathBuf::from("/dev/null"),
        };
        // A single process for all connections has its limit raised by whoever runs it.
        let descriptors = match (mode, installed.contestant.design()) {
            (Mode::Standalone, Some(Design::EventLoop)) => Descriptors::All,
            _ => Descriptors::Usual,
        };
        let limits = (processors, descriptors);
        Forwarder::start(&words, at, limits, account, &said).map(Some)
    }

    fn account(&self, name: &str) -> Outcome<Option<Account>> {
        let accounts = self.accounts.as_ref();
        accounts.map(|accounts| accounts.account(name)).transpose()
    }

    /// Has everybody take a turn in each of so many rounds. Who fails is noted and out.
    fn rounds(
        &mut self,
        count: usize,
        mut entrants: Vec<Entrant>,
        mut turn: impl FnMut(&Entrant) -> Outcome<Samples>,
    ) {
        for _ in 0..count {
            if !entrants.is_empty() {
                entrants.rotate_left(1);
            }
            entrants.retain(|entrant| match turn(entrant) {
                Ok(samples) => {
                    for (row, value) in samples {
                        self.results.add(row, entrant.who, value);
                    }
                    true
                }
                Err(problem) => {
                    let note = format!("{}: {problem}", entrant.who.name());
                    self.results.failed(entrant.who, note);
                    false
                }
            });
        }
    }
}

/// Words for a client.
fn words(words: &[&dyn ToString]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

/// Microseconds of processor time for each of so many, if it was counted.
fn processor_each(before: Option<Duration>, after: Option<Duration>, count: usize) -> Option<f64> {
    let used = after?.saturating_sub(before?);
    Some(used.as_secs_f64() * 1e6 / count as f64)
}
