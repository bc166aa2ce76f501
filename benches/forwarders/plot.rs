//! The plot: a panel of horizontal bars for each measure, the best first, ours marked. SVG with
//! nothing from outside, readable on a light and on a dark page.

use std::fmt::Write;

use crate::contestants::Contestant;
use crate::report::number;
use crate::results::{Better, Results, Row};
use crate::setting::Setting;

// All in pixels.
const COLUMNS: usize = 3;
const PANEL: f64 = 320.0;
const GAP: f64 = 24.0;
const MARGIN: f64 = 16.0;
const HEAD: f64 = 64.0;
/// A panel's title and the line below it.
const TITLE: f64 = 42.0;
const BAR: f64 = 14.0;
const STEP: f64 = 19.0;
const NAMES: f64 = 94.0;
/// Room for the number at the end of the longest bar.
const NUMBERS: f64 = 62.0;

const STYLE: &str = "
text { font: 12px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; fill: #1f2328; }
.head { font-size: 17px; font-weight: 600; }
.title { font-size: 13px; font-weight: 600; }
.faint { font-size: 11px; fill: #59636e; }
.name { text-anchor: end; }
.ours { font-weight: 700; }
.page { fill: #ffffff; }
rect.peer { fill: #9aa7b4; }
rect.direct { fill: #dfe4e9; }
rect.ours { fill: #d9480f; }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc; }
.faint { fill: #9198a1; }
.page { fill: #0d1117; }
rect.peer { fill: #5b6775; }
rect.direct { fill: #313842; }
rect.ours { fill: #ff8a4c; }
}
";

pub(crate) fn svg(results: &Results, setting: &Setting) -> String {
    let panels: Vec<Panel> = results
        .rows()
        .filter(|row| row.describe().plotted)
        .map(|row| Panel::new(results, row))
        .filter(|panel| panel.bars.iter().any(|(who, _)| who.is_peer()))
        .collect();
    let mut body = String::new();
    let mut top = HEAD;
    for line in panels.chunks(COLUMNS) {
        for (column, panel) in line.iter().enumerate() {
            let left = MARGIN + column as f64 * (PANEL + GAP);
            panel.draw(&mut body, left, top);
        }
        let tallest = line.iter().map(Panel::height).fold(0.0, f64::max);
        top += tallest + GAP;
    }
    let columns = COLUMNS as f64;
    let width = 2.0 * MARGIN + columns * PANEL + (columns - 1.0) * GAP;
    let height = top;
    let (head, second) = (MARGIN + 14.0, MARGIN + 33.0);
    let facts = escape(&format!(
        "{}, {}. {}; {}. direct: without a forwarder.",
        setting.command, setting.date, setting.hardware, setting.system
    ));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" role=\"img\" \
         aria-label=\"tcpproxy beside its peers, measured\">\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n\
         <text class=\"head\" x=\"{MARGIN}\" y=\"{head}\">tcpproxy beside its peers</text>\n\
         <text class=\"faint\" x=\"{MARGIN}\" y=\"{second}\">{facts}</text>\n{body}</svg>\n"
    )
}

struct Panel {
    row: Row,
    /// The best first, but the direct way before all.
    bars: Vec<(Contestant, f64)>,
}

impl Panel {
    fn new(results: &Results, row: Row) -> Panel {
        let mut bars = results.values(row);
        bars.sort_by(|one, other| match row.describe().better {
            Better::Less => one.1.total_cmp(&other.1),
            Better::More => other.1.total_cmp(&one.1),
        });
        bars.sort_by_key(|&(who, _)| who != Contestant::Direct);
        Panel { row, bars }
    }

    fn height(&self) -> f64 {
        TITLE + self.bars.len() as f64 * STEP
    }

    fn draw(&self, to: &mut String, left: f64, top: f64) {
        let row = self.row.describe();
        let hint = format!("{}, {}", row.unit, row.better.words());
        text(to, "title", left, top + 13.0, &capitalised(&row.title));
        text(to, "faint", left, top + 30.0, &hint);
        let longest = self.bars.iter().map(|bar| bar.1).fold(0.0, f64::max);
        let room = PANEL - NAMES - NUMBERS;
        for (place, &(who, value)) in self.bars.iter().enumerate() {
            let top = top + TITLE + place as f64 * STEP;
            let length = match longest > 0.0 {
                true => (value.max(0.0) / longest * room).max(1.0),
                false => 1.0,
            };
            let (class, mark) = match who {
                Contestant::Direct => ("direct", ""),
                Contestant::Tcpproxy => ("ours", " ours"),
                _ => ("peer", ""),
            };
            let (start, base) = (left + NAMES, top + BAR - 3.0);
            text(to, &format!("name{mark}"), start - 7.0, base, who.name());
            // Writing to a String cannot fail.
            let _ = writeln!(
                to,
                "<rect class=\"{class}\" x=\"{start}\" y=\"{top}\" width=\"{length:.1}\" \
                 height=\"{BAR}\" rx=\"2\"/>"
            );
            let end = start + length + 6.0;
            text(
                to,
                &format!("number{mark}"),
                end,
                base,
                &number(self.row, value),
            );
        }
    }
}

fn text(to: &mut String, class: &str, x: f64, y: f64, content: &str) {
    let content = escape(content);
    let _ = writeln!(
        to,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{content}</text>"
    );
}

fn capitalised(title: &str) -> String {
    let mut letters = title.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
