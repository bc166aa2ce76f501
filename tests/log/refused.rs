//! Lines about clients that were refused: so many a second for each service, and how many were left
//! out.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::time::Instant;

use crate::harness::config_file::Conf;
use crate::harness::processes::children;
use crate::harness::{Running, eventually, free_port, needs_root, patient, read_all};

/// Has so many clients refused, and says how many seconds that took.
fn knock(port: u16, clients: usize) -> f64 {
    let start = Instant::now();
    for _ in 0..clients {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert_eq!(read_all(patient(client)), b"");
    }
    start.elapsed().as_secs_f64()
}

/// How many lines the log says were left out.
fn left_out(server: &Running, of: &str) -> usize {
    let text = format!("refused clients of {of}: ");
    let all = server.log.all();
    let lines = all.iter().filter_map(|line| line.split_once(&text));
    lines
        .map(|(_, rest)| rest.strip_suffix(" lines left out").unwrap())
        .map(|count| count.parse::<usize>().unwrap())
        .sum()
}

#[test]
fn at_most_a_hundred_lines_a_second_are_about_refused_clients_of_a_service() {
    needs_root();
    // Who refuses, and how many lines that are about a client.
    for (directives, each, first) in [
        ("deny ANY", 3, 0),
        ("acp /bin/false", 2, 0),
        ("rate 1/1h", 1, 1),
    ] {
        let (port, other) = (free_port(), free_port());
        let conf = Conf::new(format!(
            "standalone yes\naccess-log access\n\
             port {port}\ninterface 127.0.0.1\nexec /bin/true\n{directives}\n\
             port {other}\ninterface 127.0.0.1\nexec /bin/true\ndeny ANY\n"
        ));
        let access_log = conf.scratch().join("access");
        let server = conf.serve(2, &[]);
        let clients = 300;
        knock(port, first);
        let took = knock(port, clients);
        // Another service's have their own.
        knock(other, 1);
        server
            .process
            .log
            .wait_for(&format!("local=127.0.0.1:{other}"));
        let name = format!("127.0.0.1:{port}");
        let count = || {
            let about = |line: &&String| {
                ["denied-by", "too-fast", "denied by rule", ": denied: "]
                    .iter()
                    .any(|word| line.contains(word))
                    || each == 3 && line.contains(&format!(" local={name}"))
            };
            server.process.log.all().iter().filter(about).count() - 2
        };
        // Nobody comes any more; even so it is said.
        eventually("the others to be left out", || {
            let all = count() + left_out(&server.process, &name);
            (all == clients * each).then_some(())
        });
        let most = 100.0 * (took + 1.0);
        // On a machine that is slow today they may have come so slowly that all were within bounds.
        let too_many = (clients * each) as f64 > most;
        assert!(
            !too_many || left_out(&server.process, &name) > 0,
            "{directives}"
        );
        assert!(
            count() >= 100 && count() as f64 <= most,
            "{} in {took} s",
            count()
        );
        // The access log is complete.
        eventually("every session to end", || {
            children(server.process.pid()).is_empty().then_some(())
        });
        let text = fs::read_to_string(&access_log).unwrap();
        assert_eq!(text.lines().count(), first + clients + 1, "{directives}");
    }
}
