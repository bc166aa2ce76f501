//! The tables, in Markdown.

use std::fmt::Write;

use crate::commands::Mode;
use crate::contestants::Contestant;
use crate::results::{Results, Row};
use crate::setting::Setting;

pub(crate) fn markdown(results: &Results, setting: &Setting) -> String {
    let mut text = String::from("# tcpproxy beside its peers\n\n");
    let Setting {
        date,
        command,
        hardware,
        system,
    } = setting;
    let facts = [
        ("Date", date.clone()),
        ("Machine", hardware.clone()),
        ("System", system.clone()),
        ("Command", format!("`{command}`")),
        ("Versions", versions(results)),
    ];
    // Writing to a String cannot fail.
    for (name, value) in facts {
        let _ = writeln!(text, "- {name}: {value}");
    }
    text.push_str("\n## Ours and the best\n\n");
    text.push_str(&summary(results));
    text.push_str("\n## Everybody\n\n");
    text.push_str(&everybody(results));
    if !results.notes.is_empty() {
        text.push_str("\n## Notes of this run\n\n");
        for note in &results.notes {
            let _ = writeln!(text, "- {note}");
        }
    }
    text.push_str(METHOD);
    text
}

const METHOD: &str = "
## How it was measured

Medians of rounds in which everybody takes turns, in a network namespace of their own. Client and
backend are processes beside the forwarder and share the processors with it; *direct* is the client
at the backend, without a forwarder. CPU is the forwarder's alone, user and system time, all its
processes included: under a super-server also that one's fork and the program's execve.

- Connection under a super-server: a request of 64 bytes, the same back, the client ends its side, and
  waits until the forwarder has ended the other. systemd is systemd-socket-activate --accept --inetd.
- System calls: those of one such connection by strace, children's included.
- Round trip: 64 bytes there and back on one connection; client, forwarder and backend on one processor.
- Bulk: every byte is compared with what was sent. The mean is over 1 and 8 connections, up and down.
- Connections per second: as above, but the client closes when it has its reply.
- Idle connection: the Pss of the forwarder's processes (user), and what the kernel needs for them by
  /proc/meminfo (kernel), less what direct connections need of it.
- Connect to first byte: medians of 50 sessions, the first ones and the last ones of so many that are
  all alive.

Everybody is an installed file; tcpproxy is copied, as the linker's own output is slower to start for
as long as it stays in the page cache. Nobody logs (tcpproxy: `--log-level error`), but for tcpproxy
under super-servers: it is run there without any option, and writes its two lines for each session to
/dev/null. Limits are out of the way. haproxy splices always, with 1 MiB pipes, and socat has buffers
of 128 KiB; the others run with their defaults, tcpproxy too.

## Make your own

Ratios carry over to other machines better than numbers do. `cargo bench` measures tcpproxy beside the
programs it replaces, as far as they are installed: what it costs to be started for a connection, bulk
data, round trips, connections a second, memory. Everybody takes turns in one run.

    tests/setup --bench             # Debian, Ubuntu: unpacks the peers under target/peers, starts nothing
    cargo bench                     # all of it, about half an hour; -- --quick takes 4 minutes
    cargo bench -- --only bulk --peers haproxy,socat
    cargo bench -- --publish        # this file and the picture beside it, results.svg, anew
";

fn versions(results: &Results) -> String {
    let versions = results.present.iter();
    let versions = versions.filter(|one| one.contestant != Contestant::Direct);
    let versions: Vec<&str> = versions.map(|one| &*one.version).collect();
    versions.join("; ")
}

fn summary(results: &Results) -> String {
    let mut table = Table::new([
        "measure",
        "direct",
        "tcpproxy",
        "to direct",
        "best peer",
        "to it",
    ]);
    table.head.push("best with a process each".into());
    table.head.push("to it".into());
    for row in results.rows() {
        let ours = results.value(row, Contestant::Tcpproxy);
        let direct = results.value(row, Contestant::Direct);
        let best = results.best_peer(row);
        let forking = results.best_forking_peer(row);
        // Where all are started for each connection, all have a process each.
        let forking = forking.filter(|_| {
            let standalone = Row::Memory(Mode::Standalone);
            matches!(row, Row::Rate(_) | Row::RateProcessor(_)) || row == standalone
        });
        let named = |best: Option<(Contestant, f64)>| match best {
            Some((who, value)) => format!("{} {}", who.name(), number(row, value)),
            None => NONE.into(),
        };
        table.rows.push(vec![
            title(row),
            shown(row, direct),
            shown(row, ours),
            ratio(ours, direct),
            named(best),
            ratio(ours, best.map(|(_, value)| value)),
            named(forking),
            ratio(ours, forking.map(|(_, value)| value)),
        ]);
    }
    table.text()
}

fn everybody(results: &Results) -> String {
    let columns = results.columns();
    let mut table = Table::new(["measure"]);
    table
        .head
        .extend(columns.iter().map(|who| who.name().to_owned()));
    for row in results.rows() {
        let mut cells = vec![title(row)];
        cells.extend(
            columns
                .iter()
                .map(|&who| shown(row, results.value(row, who))),
        );
        table.rows.push(cells);
    }
    table.text()
}

/// Where there is no value.
const NONE: &str = "–";

fn title(row: Row) -> String {
    let row = row.describe();
    format!("{}, {} ({})", row.title, row.unit, row.better.words())
}

fn shown(row: Row, value: Option<f64>) -> String {
    value.map_or(NONE.into(), |value| number(row, value))
}

fn ratio(ours: Option<f64>, other: Option<f64>) -> String {
    match (ours, other) {
        (Some(ours), Some(other)) if other > 0.0 => format!("{:.2}×", ours / other),
        _ => NONE.into(),
    }
}

/// A value with as many decimals as its row has, and thousands set apart.
pub(crate) fn number(row: Row, value: f64) -> String {
    let digits = format!("{value:.*}", row.describe().decimals);
    let (whole, fraction) = match digits.split_once('.') {
        Some((whole, fraction)) => (whole, format!(".{fraction}")),
        None => (&*digits, String::new()),
    };
    let (sign, whole) = match whole.strip_prefix('-') {
        Some(whole) => ("-", whole),
        None => ("", whole),
    };
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{fraction}")
}

struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new<const N: usize>(head: [&str; N]) -> Table {
        Table {
            head: head.map(str::to_owned).to_vec(),
            rows: Vec::new(),
        }
    }

    /// Columns are padded: it is read in terminals, too.
    fn text(&self) -> String {
        let lines = || std::iter::once(&self.head).chain(&self.rows);
        let width = |column: usize| {
            let widths = lines().map(|cells| cells[column].chars().count());
            widths.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let mut text = String::new();
        for (place, cells) in lines().enumerate() {
            text.push('|');
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                let cell = match column {
                    0 => format!(" {cell:<width$} |"),
                    _ => format!(" {cell:>width$} |"),
                };
                text.push_str(&cell);
            }
            text.push('\n');
            if place == 0 {
                text.push('|');
                for (column, width) in widths.iter().enumerate() {
                    let rule = "-".repeat(*width);
                    text.push_str(&match column {
                        0 => format!(" {rule} |"),
                        _ => format!(" {rule}:|"),
                    });
                }
                text.push('\n');
            }
        }
        text
    }
}
