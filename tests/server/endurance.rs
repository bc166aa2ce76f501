//! A server that has served many: nothing of them is left in it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::harness::clients::connect_from;
use crate::harness::peers::{assert_echoes, read_to_ending};
use crate::harness::processes::{children, cpu_time, descriptors, written_memory};
use crate::harness::upstreams::echo;
use crate::harness::{Standalone, eventually, needs_root};

/// Has so many clients served, a few at a time, and waits until nothing is left of them.
fn serve(proxy: &Standalone, count: usize) {
    const AT_ONCE: usize = 4;
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                for _ in 0..count / AT_ONCE {
                    let mut client = proxy.connect();
                    client.write_all(b"x").unwrap();
                    client.shutdown(Shutdown::Write).unwrap();
                    let mut back = Vec::new();
                    client.read_to_end(&mut back).unwrap();
                    assert_eq!(back, b"x");
                }
            });
        }
    });
    eventually("every child to be reaped", || {
        children(proxy.process.pid()).is_empty().then_some(())
    });
}

#[test]
fn twenty_thousand_sessions_leave_no_descriptor_child_or_memory_behind() {
    let limits = ["--max-per-source", "100", "--rate", "1000000/1"];
    let quiet = ["--log-level", "notice", &echo().to_string()];
    let proxy = Standalone::start(&[&limits[..], &quiet].concat());
    let pid = proxy.process.pid();
    serve(&proxy, 2_000);
    let before = (descriptors(pid), written_memory(pid));
    serve(&proxy, 20_000);
    let after = (descriptors(pid), written_memory(pid));
    assert_eq!(after.0, before.0);
    // A few pages.
    let gained = after.1.saturating_sub(before.1);
    assert!(gained <= 32 << 10, "{gained} bytes gained ");
}

#[test]
fn ten_thousand_clients_are_remembered_and_forgotten() {
    const COUNT: usize = 10_000;
    // Each is remembered for 10 ms, and turned away: what is seen is the supervisor.
    let limits = ["--max-per-source", "1", "--rate", "1/10ms", "--deny", "ANY"];
    let quiet = ["--log-level", "notice", "127.0.0.1:1"];
    let proxy = Standalone::start(&[&limits[..], &quiet].concat());
    let pid = proxy.process.pid();
    let visit = |numbers: std::ops::Range<usize>| {
        for number in numbers {
            let source = format!("127.{}.{}.9", 1 + number / 250, number % 250);
            let client = connect_from(&source, proxy.address);
            assert_eq!(read_to_ending(&client).0, b"");
        }
        eventually("every child to be reaped", || {
            children(pid).is_empty().then_some(())
        });
    };
    visit(0..COUNT / 5);
    let before = written_memory(pid);
    visit(COUNT / 5..COUNT);
    let gained = written_memory(pid).saturating_sub(before);
    // Ten thousand that were not forgotten would take a megabyte.
    assert!(gained <= 256 << 10, "{gained} bytes gained");
}

#[test]
fn a_server_that_may_have_no_more_memory_lives_on_and_recovers() {
    needs_root();
    let proxy = Standalone::start(&[&echo().to_string()]);
    let pid = proxy.process.pid();
    assert_echoes(&proxy.connect());
    proxy.process.log.wait_for("session 1 closed: ");
    let limit = |what: &str| {
        let done = Command::new("prlimit")
            .args(["--pid", &pid.to_string(), what])
            .status();
        assert!(done.expect("prlimit: run tests/setup").success());
    };
    // Below what it has already: neither it nor a child can map a page more.
    limit("--as=1:");
    let before = cpu_time(pid);
    for _ in 0..20 {
        let client = proxy.connect();
        client.shutdown(Shutdown::Write).unwrap();
        // Served or not, it is not left hanging.
        assert_eq!(read_to_ending(&client).0, b"");
    }
    proxy.process.log.wait_for("session 21 closed: ");
    assert!(cpu_time(pid) - before <= Duration::from_millis(100));
    limit("--as=unlimited:");
    assert_echoes(&proxy.connect());
}
