//! Started for each connection: how long one takes, from connect to the end of both directions, and
//! what processor time it costs, the super-server's fork and the program's execve included.

use super::{Bench, Samples, processor_each, words};
use crate::Outcome;
use crate::commands::{Mode, SuperServer};
use crate::processes::{Processors, turn};
use crate::results::Row;

pub(super) fn measure(bench: &mut Bench) -> Outcome<()> {
    let count = bench.effort.of(2, 25, 50);
    let rounds = bench.effort.of(1, 12, 40);
    for by in SuperServer::ALL {
        if by.find().is_none() {
            bench
                .results
                .note(format!("{} is not installed", by.name()));
            continue;
        }
        let upstream = bench.backend.at;
        let entrants = bench.line_up(Mode::Under(by), Processors::All, upstream);
        bench.rounds(rounds, entrants, |entrant| {
            let before = entrant.used();
            let client = words(&[&"connections", &entrant.at, &count]);
            let median = turn(Processors::All, &client)?[0];
            let mut samples: Samples = vec![(Row::StartTime(by), median / 1e3)];
            let processor = processor_each(before, entrant.used(), count);
            samples.extend(processor.map(|used| (Row::StartProcessor(by), used)));
            Ok(samples)
        });
    }
    Ok(())
}
