//! Short connections to a forwarder that listens itself: how many a second, and what one costs; and
//! whether a session still costs the same when thousands are alive.

use super::{Bench, Samples, processor_each, words};
use crate::Outcome;
use crate::commands::Mode;
use crate::contestants::Contestant;
use crate::processes::{Processors, turn};
use crate::results::Row;

pub(super) fn measure(bench: &mut Bench) -> Outcome<()> {
    let rounds = bench.effort.of(1, 5, 15);
    let upstream = bench.backend.at;
    for (clients, milliseconds) in [
        (1, bench.effort.of(20, 500, 1000)),
        (16, bench.effort.of(20, 1000, 2000)),
    ] {
        let entrants = bench.line_up(Mode::Standalone, Processors::All, upstream);
        bench.rounds(rounds, entrants, |entrant| {
            let before = entrant.used();
            let client = words(&[&"storm", &entrant.at, &clients, &milliseconds]);
            let counts = turn(Processors::All, &client)?;
            let (in_time, all) = (counts[0], counts[1]);
            let rate = in_time / (milliseconds as f64 / 1e3);
            let mut samples: Samples = vec![(Row::Rate(clients), rate)];
            let processor = processor_each(before, entrant.used(), all as usize);
            samples.extend(processor.map(|used| (Row::RateProcessor(clients), used)));
            Ok(samples)
        });
    }
    Ok(())
}

pub(super) fn ladder(bench: &mut Bench) -> Outcome<()> {
    let rounds = bench.effort.of(1, 3, 5);
    let (count, window) = bench.effort.of((40, 10), (2000, 50), (5000, 50));
    let upstream = bench.backend.at;
    let mut entrants = bench.line_up(Mode::Standalone, Processors::All, upstream);
    // It is a question about processes, and others have limits below such numbers.
    entrants.retain(|entrant| Contestant::ALWAYS.contains(&entrant.who));
    bench.rounds(rounds, entrants, |entrant| {
        let client = words(&[&"ladder", &entrant.at, &count, &window]);
        let times = turn(Processors::All, &client)?;
        // The sessions of this turn are to be over when the next begins.
        entrant.used();
        Ok(vec![
            (Row::FirstSession, times[0] / 1e3),
            (Row::LastSession(count), times[1] / 1e3),
        ])
    });
    Ok(())
}
