//! What was measured: rows of samples, one for each contestant and round.

use std::collections::BTreeMap;

use crate::Outcome;
use crate::commands::{Mode, SuperServer};
use crate::contestants::{Contestant, Design, Installed};
use crate::load::Way;

/// What a row of the table is about. They appear in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Row {
    StartTime(SuperServer),
    StartProcessor(SuperServer),
    SystemCalls,
    RoundTrip(Mode),
    BulkMean(Mode),
    Bulk(Mode, usize, WayOrder),
    BulkProcessor(Mode),
    Rate(usize),
    RateProcessor(usize),
    Memory(Mode),
    MemoryUser(Mode),
    MemoryKernel(Mode),
    FirstSession,
    LastSession(usize),
}

/// `Way`, in the order of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WayOrder {
    Up,
    Down,
}

impl From<Way> for WayOrder {
    fn from(way: Way) -> WayOrder {
        match way {
            Way::Up => WayOrder::Up,
            Way::Down => WayOrder::Down,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Less,
    More,
}

impl Better {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Better::Less => "less is better",
            Better::More => "more is better",
        }
    }
}

/// How a row is shown.
pub(crate) struct Description {
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) decimals: usize,
    /// Whether the plot has it: the rest is detail.
    pub(crate) plotted: bool,
}

impl Row {
    pub(crate) fn describe(self) -> Description {
        use Better::{Less, More};
        let (title, unit, better, decimals, plotted) = match self {
            Row::StartTime(by) => {
                let title = format!("connection under {}", by.name());
                (title, "µs p50", Less, 0, true)
            }
            Row::StartProcessor(by) => {
                let title = format!("connection under {}, CPU", by.name());
                (title, "µs", Less, 0, by == SuperServer::Tcpserver)
            }
            Row::SystemCalls => {
                let title = "system calls, execve to exit".to_owned();
                (title, "per connection", Less, 0, true)
            }
            Row::RoundTrip(mode) => {
                let title = format!("round trip{mode}");
                (
                    title,
                    "µs p50, on one CPU",
                    Less,
                    1,
                    mode == Mode::Standalone,
                )
            }
            Row::BulkMean(mode) => (format!("bulk{mode}"), "GiB/s, mean", More, 2, true),
            Row::Bulk(mode, connections, way) => {
                let way = match way {
                    WayOrder::Up => "up",
                    WayOrder::Down => "down",
                };
                let title = format!("bulk{mode}, {}, {way}", plural(connections, "connection"));
                (title, "GiB/s", More, 2, false)
            }
            Row::BulkProcessor(mode) => (format!("bulk{mode}, CPU"), "s/GiB", Less, 2, true),
            Row::Rate(clients) => {
                let title = format!("connections, {}", plural(clients, "client"));
                (title, "per second", More, 0, true)
            }
            Row::RateProcessor(clients) => {
                let title = format!("connection, {}, CPU", plural(clients, "client"));
                (title, "µs", Less, 0, clients > 1)
            }
            Row::Memory(mode) => (format!("idle connection{mode}"), "KiB", Less, 0, true),
            Row::MemoryUser(mode) => (
                format!("idle connection{mode}, user"),
                "KiB",
                Less,
                0,
                false,
            ),
            Row::MemoryKernel(mode) => (
                format!("idle connection{mode}, kernel"),
                "KiB",
                Less,
                0,
                false,
            ),
            Row::FirstSession => {
                let title = "connect to first byte, 1st session".to_owned();
                (title, "µs", Less, 0, false)
            }
            Row::LastSession(number) => {
                let title = format!("connect to first byte, {number}th live session");
                (title, "µs", Less, 0, false)
            }
        };
        Description {
            title,
            unit,
            better,
            decimals,
            plotted,
        }
    }
}

fn plural(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

#[derive(Default)]
pub(crate) struct Results {
    samples: BTreeMap<Row, BTreeMap<Contestant, Vec<f64>>>,
    pub(crate) present: Vec<Installed>,
    /// What was not there, or did not work, in words for a reader.
    pub(crate) notes: Vec<String>,
    /// What did not work and has to.
    own_failures: Vec<String>,
}

impl Results {
    pub(crate) fn add(&mut self, row: Row, who: Contestant, value: f64) {
        let row = self.samples.entry(row).or_default();
        row.entry(who).or_default().push(value);
    }

    pub(crate) fn note(&mut self, text: String) {
        let text = text.replace(env!("CARGO_MANIFEST_DIR"), ".");
        if !self.notes.contains(&text) {
            eprintln!("note: {text}");
            self.notes.push(text);
        }
    }

    /// A peer that fails is a note; tcpproxy, or the way without a forwarder, may not fail.
    pub(crate) fn failed(&mut self, who: Contestant, text: String) {
        if !who.is_peer() {
            self.own_failures.push(text.clone());
        }
        self.note(text);
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = Row> {
        self.samples.keys().copied()
    }

    /// The contestants that have a value anywhere.
    pub(crate) fn columns(&self) -> Vec<Contestant> {
        let has_value = |who: &Contestant| self.samples.values().any(|row| row.contains_key(who));
        Contestant::ALL.into_iter().filter(has_value).collect()
    }

    pub(crate) fn value(&self, row: Row, who: Contestant) -> Option<f64> {
        Some(median(self.samples.get(&row)?.get(&who)?.clone()))
    }

    pub(crate) fn values(&self, row: Row) -> Vec<(Contestant, f64)> {
        let value = |who| Some((who, self.value(row, who)?));
        Contestant::ALL.into_iter().filter_map(value).collect()
    }

    pub(crate) fn best_peer(&self, row: Row) -> Option<(Contestant, f64)> {
        self.best(row, Contestant::is_peer)
    }

    /// Of those that have a process for each connection, as tcpproxy has.
    pub(crate) fn best_forking_peer(&self, row: Row) -> Option<(Contestant, f64)> {
        self.best(row, |who| {
            who.is_peer() && who.design() == Some(Design::ProcessEach)
        })
    }

    fn best(&self, row: Row, which: impl Fn(Contestant) -> bool) -> Option<(Contestant, f64)> {
        let values = self.values(row).into_iter().filter(|&(who, _)| which(who));
        match row.describe().better {
            Better::Less => values.min_by(|one, other| one.1.total_cmp(&other.1)),
            Better::More => values.max_by(|one, other| one.1.total_cmp(&other.1)),
        }
    }

    /// An error if tcpproxy could not be measured.
    pub(crate) fn complain(&self) -> Outcome<()> {
        if let Some(failure) = self.own_failures.first() {
            return Err(failure.clone().into());
        }
        if self.samples.is_empty() {
            return Err("nothing was measured".into());
        }
        match self
            .rows()
            .find(|&row| self.value(row, Contestant::Tcpproxy).is_none())
        {
            Some(row) => Err(format!("tcpproxy was not measured: {}", row.describe().title).into()),
            None => Ok(()),
        }
    }
}

/// The middle value; 0 of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}
