//! Memory per idle connection. User memory is the growth of the forwarder's processes' Pss, which
//! counts a page that several share once. Kernel memory is the growth of Slab, KernelStack,
//! PageTables and Percpu in /proc/meminfo, less that of as many direct connections: what client and
//! backend hold is not the forwarder's.

use std::thread;
use std::time::{Duration, Instant};

use super::{Bench, Entrant, words};
use crate::Outcome;
use crate::accounting::{kernel_memory, user_memory};
use crate::commands::{Mode, SuperServer};
use crate::contestants::Contestant;
use crate::processes::{Client, Processors};
use crate::results::Row;

/// KiB per connection.
#[derive(Clone, Copy)]
struct Growth {
    user: f64,
    kernel: f64,
}

pub(super) fn measure(bench: &mut Bench) -> Outcome<()> {
    let count = bench.effort.of(10, 200, 400);
    let rounds = bench.effort.of(1, 3, 7);
    let upstream = bench.backend.at;
    for mode in [Mode::Standalone, Mode::Under(SuperServer::Tcpserver)] {
        for _ in 0..rounds {
            // Each starts anew: what a forwarder keeps from earlier connections would not be counted.
            let mut direct = None;
            for installed in bench.results.present.clone() {
                let who = installed.contestant;
                let entrant = bench.enter(&installed, mode, Processors::All, upstream);
                let Some(entrant) = entrant else {
                    continue;
                };
                match growth(&entrant, count) {
                    Ok(growth) => {
                        // The direct way is always the first.
                        let common = direct.get_or_insert(growth);
                        let kernel = match who {
                            Contestant::Direct => growth.kernel,
                            _ => growth.kernel - common.kernel,
                        };
                        let results = &mut bench.results;
                        results.add(Row::MemoryUser(mode), who, growth.user);
                        results.add(Row::MemoryKernel(mode), who, kernel);
                        results.add(Row::Memory(mode), who, growth.user + kernel);
                    }
                    Err(problem) => {
                        let note = format!("{}{mode}: {problem}", who.name());
                        bench.results.failed(who, note);
                    }
                }
            }
        }
    }
    Ok(())
}

fn growth(entrant: &Entrant, count: usize) -> Outcome<Growth> {
    let user = || {
        let forwarder = entrant.forwarder.as_ref();
        forwarder.map_or(0, |forwarder| user_memory(&forwarder.processes()))
    };
    // Looking at processes costs kernel memory of its own, so it comes first here and last there.
    let user_before = user();
    settle();
    let kernel_before = kernel_memory();
    let mut client = Client::start(Processors::All, &words(&[&"hold", &entrant.at, &count]))?;
    client.times()?;
    let kernel_after = kernel_memory();
    let user_after = user();
    client.leave()?;
    let each = |before: u64, after: u64| (after as f64 - before as f64) / count as f64;
    Ok(Growth {
        user: each(user_before, user_after),
        kernel: each(kernel_before, kernel_after),
    })
}

/// What the kernel frees after the end of processes it frees a little later: waits until it does
/// not get less any more.
fn settle() {
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut before = kernel_memory();
    while Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
        let now = kernel_memory();
        if now >= before {
            return;
        }
        before = now;
    }
}
