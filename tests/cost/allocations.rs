//! What bytes on their way cost: no memory is asked for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::Shutdown;
use std::thread;
use std::time::Instant;

use crate::harness::noise::Noise;
use crate::harness::socket_pair;
use tcpproxy::relay::{self, Engine, Hunch, Machine, Relay};

/// The system's allocator, which counts what each thread asks of it.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does all of it; a thread's own counter is no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// How many allocations a relay makes that moves so many bytes each way.
fn allocations(bytes: u64) -> usize {
    let (client, ours) = socket_pair();
    let (server, theirs) = socket_pair();
    let relay = thread::spawn(move || {
        let bounds = relay::Bounds {
            buffer_size: 1 << 20,
            idle_timeout: None,
            half_close_timeout: None,
        };
        let sockets = [ours.into(), theirs.into()];
        let before = ALLOCATIONS.get();
        let mut hunch = Hunch::default();
        let mut machine = Machine::new(sockets, bounds, Engine::Adaptive, None, Instant::now());
        let outcome = loop {
            let machine = &mut machine;
            relay::turn(&mut [Relay { machine, tap: None }], &[], &mut hunch, None).unwrap();
            if let Some(outcome) = machine.end() {
                break outcome;
            }
        };
        let count = ALLOCATIONS.get() - before;
        assert_eq!(outcome.sent, bytes);
        count
    });
    thread::scope(|scope| {
        for (from, to) in [(&client, &server), (&server, &client)] {
            scope.spawn(move || {
                Noise::new(3).send(from, bytes);
                from.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || Noise::new(3).expect(to, bytes));
        }
    });
    relay.join().unwrap()
}

#[test]
fn bytes_on_their_way_cost_no_allocation() {
    for mib in [0, 1, 100] {
        assert_eq!(allocations(mib << 20), 0, "{mib} MiB");
    }
}
