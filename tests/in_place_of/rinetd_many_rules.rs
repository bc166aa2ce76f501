//! As many rules as there may be.

use std::fmt::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::config_file::Conf;
use crate::harness::namespaces::privately;
use crate::harness::peers::assert_echoes;
use crate::harness::upstreams::echo;
use crate::harness::{Running, Said, eventually, many_descriptors};
use std::net::TcpStream;

const RULES: u16 = 10_000;

/// The port of the first rule.
const FIRST: u16 = 20_000;

/// A rule for each of so many ports, each with a rule of its own of who may pass.
fn rules(upstream: u16) -> String {
    let mut text = String::new();
    for port in FIRST..FIRST + RULES {
        writeln!(
            text,
            "127.0.0.1 {port} 127.0.0.1 {upstream}\nallow 127.0.0.?"
        )
        .unwrap();
    }
    text
}

#[test]
fn ten_thousand_rules_are_read_at_once() {
    let conf = Conf::new(rules(7));
    let started = Instant::now();
    let check = ["--as", "rinetd", "-c", "conf", "--tcpproxy", "--check"];
    assert_eq!(Said::by(&mut conf.command(&check)).ok(), "ok\n");
    let took = started.elapsed();
    // Optimised it is a twentieth of this.
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[test]
fn the_last_of_ten_thousand_rules_has_its_clients_served_as_the_first_has() {
    many_descriptors();
    privately(|| {
        let conf = Conf::new(rules(echo().port()));
        let mut command = conf.command(&["--as", "rinetd", "-f", "-c", "conf"]);
        let process = Running::start(command.stdin(Stdio::null()));
        // Who reads 10,000 lines on standard error may be slower than they come: the last is tried.
        let last = FIRST + RULES - 1;
        eventually("the last listener", || {
            TcpStream::connect(("127.0.0.1", last)).ok()
        });
        let session = |port: u16| {
            let started = Instant::now();
            let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            client
                .set_read_timeout(Some(crate::harness::PATIENCE))
                .unwrap();
            assert_echoes(&client);
            started.elapsed()
        };
        let mut times = [FIRST, last].map(|port| {
            let mut times: Vec<Duration> = (0..31).map(|_| session(port)).collect();
            times.sort_unstable();
            times[15]
        });
        let [first, last] = &mut times;
        // Both wait for a fork of the same server.
        assert!(
            *last < *first * 3 + Duration::from_millis(2),
            "{first:?}, {last:?}"
        );
        drop(process);
    });
}
