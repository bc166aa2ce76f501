//! Bulk transfers, every byte compared with what was sent: over one connection and over eight, up
//! and down, and what processor time a GiB costs the forwarder.

use super::{Bench, Samples, words};
use crate::Outcome;
use crate::commands::{Mode, SuperServer};
use crate::load::Way;
use crate::processes::{Processors, turn};
use crate::results::Row;

const GIB: f64 = (1u64 << 30) as f64;

pub(super) fn measure(bench: &mut Bench) -> Outcome<()> {
    let total: u64 = bench.effort.of(8 << 20, 384 << 20, 2 << 30);
    let rounds = bench.effort.of(1, 3, 9);
    let upstream = bench.backend.at;
    for mode in [Mode::Standalone, Mode::Under(SuperServer::Tcpserver)] {
        let entrants = bench.line_up(mode, Processors::All, upstream);
        bench.rounds(rounds, entrants, |entrant| {
            let before = entrant.used();
            let mut samples = Samples::new();
            let mut rates = 0.0;
            let mut moved = 0.0;
            for (connections, way) in [(1, Way::Up), (1, Way::Down), (8, Way::Up), (8, Way::Down)] {
                let each = total / connections as u64;
                let client = words(&[&"bulk", &entrant.at, &way.name(), &connections, &each]);
                let elapsed = turn(Processors::All, &client)?[0];
                let rate = total as f64 / GIB / (elapsed / 1e9);
                samples.push((Row::Bulk(mode, connections, way.into()), rate));
                rates += rate;
                moved += total as f64 / GIB;
            }
            samples.push((Row::BulkMean(mode), rates / 4.0));
            if let (Some(before), Some(after)) = (before, entrant.used()) {
                let used = after.saturating_sub(before).as_secs_f64();
                samples.push((Row::BulkProcessor(mode), used / moved));
            }
            Ok(samples)
        });
    }
    Ok(())
}
