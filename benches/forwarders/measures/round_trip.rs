//! Small messages back and forth on one connection, client, forwarder and backend on one processor:
//! what a message costs, without the luck of who is woken where.

use super::{Bench, words};
use crate::Outcome;
use crate::commands::{Mode, SuperServer};
use crate::processes::{Backend, Processors, turn};
use crate::results::Row;

pub(super) fn measure(bench: &mut Bench) -> Outcome<()> {
    let count = bench.effort.of(20, 3000, 10_000);
    let rounds = bench.effort.of(1, 9, 21);
    let backend = Backend::start(Processors::One)?;
    for mode in [Mode::Standalone, Mode::Under(SuperServer::Tcpserver)] {
        let entrants = bench.line_up(mode, Processors::One, backend.at);
        bench.rounds(rounds, entrants, |entrant| {
            let client = words(&[&"round-trips", &entrant.at, &count]);
            let median = turn(Processors::One, &client)?[0];
            Ok(vec![(Row::RoundTrip(mode), median / 1e3)])
        });
    }
    Ok(())
}
