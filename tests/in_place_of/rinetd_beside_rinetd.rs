//! rinetd 0.73 and we, with the same files, and clients that do the same: what they receive, and what is
//! logged of them, to the byte. Every difference stands here, beside its reason.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use nix::sys::signal::Signal;

use crate::harness::clients::connect_from;
use crate::harness::namespaces::{Replaced, privately};
use crate::harness::peers::reset;
use crate::harness::super_server::unpacked;
use crate::harness::{Running, Scratch, TCPPROXY, eventually, patient};

/// What a client does that has connected.
#[derive(Debug, Clone, Copy)]
enum Client {
    /// Says five bytes, reads five, and ends.
    Asks,
    /// Reads to the end.
    Listens,
    /// Says five bytes, ends its side, and reads to the end.
    HalfCloses,
    /// Says five bytes, reads five, and resets.
    Resets,
}

use Client::*;

/// A file, its clients (from where, to where), and what is different: lines that rinetd has where we
/// have others.
struct Case {
    file: &'static str,
    clients: &'static [(&'static str, &'static str, Client)],
    theirs: &'static [&'static str],
    ours: &'static [&'static str],
}

const LOCAL: &str = "127.0.0.1";
const HERE: &str = "127.0.0.1:8001";

/// Both do the same.
const fn same(
    file: &'static str,
    clients: &'static [(&'static str, &'static str, Client)],
) -> Case {
    Case {
        file,
        clients,
        theirs: &[],
        ours: &[],
    }
}

/// What both do alike. 7001 echoes, 7002 says `bye` and ends, 7003 says who its client is and ends, at
/// 7009 there is nobody; LOG is the log file, and UNENDED the end of a line that has none.
const ALIKE: &[Case] = &[
    same("127.0.0.1 8001 127.0.0.1 7001", &[(LOCAL, HERE, Asks)]),
    same(
        "127.0.0.1 8001 127.0.0.1 7001\nlogfile LOG\n",
        &[(LOCAL, HERE, Asks)],
    ),
    same(
        "logfile LOG\n0.0.0.0 8001 127.0.0.1 7001\n",
        &[(LOCAL, HERE, Asks), ("127.0.0.2", "127.0.0.2:8001", Asks)],
    ),
    same(
        "logfile LOG\n127.0.0.1 8001 127.0.0.1 7002\n",
        &[(LOCAL, HERE, Listens)],
    ),
    same(
        "logfile LOG\n127.0.0.1 8001 127.0.0.1 7001\n",
        &[(LOCAL, HERE, Resets)],
    ),
    same(
        "logfile LOG\n::1 8001 ::1 7001\n",
        &[("::1", "[::1]:8001", Asks)],
    ),
    same(
        "logfile LOG\n:: 8001 ::1 7001\n",
        &[("::1", "[::1]:8001", Asks)],
    ),
    same(
        "logfile LOG\n::1 8001 127.0.0.1 7001\n",
        &[("::1", "[::1]:8001", Asks)],
    ),
    same(
        "logfile LOG\n127.0.0.1 8001 ::1 7001\n",
        &[(LOCAL, HERE, Asks)],
    ),
    same(
        "logfile LOG\n127.0.0.1 8001/tcp 127.0.0.1 7001/tcp\n",
        &[(LOCAL, HERE, Asks)],
    ),
    same(
        "logfile LOG\n127.0.0.1 http 127.0.0.1 7001\n",
        &[(LOCAL, "127.0.0.1:80", Asks)],
    ),
    same(
        "logfile LOG\n127.0.0.1 8001 127.0.0.1 smtp\n",
        &[(LOCAL, HERE, Asks)],
    ),
    same(
        "logfile LOG\n127.0.0.1 8001 localhost 7001\n",
        &[(LOCAL, HERE, Asks)],
    ),
    same(
        "logfile LOG\nfour.example 8001 four.example 7001\n",
        &[(LOCAL, HERE, Asks)],
    ),
    same(
        "# a comment\r\n\r\n\tlogfile LOG\t\r\n  127.0.0.1\t8001  127.0.0.1 \t 7001 # another\r\n",
        &[(LOCAL, HERE, Asks)],
    ),
    same(
        "logfile /nowhere\nlogfile LOG\n127.0.0.1 8001 127.0.0.1 7001#x",
        &[(LOCAL, HERE, Asks)],
    ),
    same(
        "logfile LOG\n127.0.0.1 8001 127.0.0.1 7003 [src=127.0.0.9]\n",
        &[(LOCAL, HERE, Listens)],
    ),
    same(
        "logfile LOG\n127.0.0.1 8001 127.0.0.1 7003[ src = 127.0.0.9 , timeout = 1 ] # x\n",
        &[(LOCAL, HERE, Listens)],
    ),
    same(
        "logfile LOG\n127.0.0.1 8001 127.0.0.1 7001 [timeout=1]\n127.0.0.2 8001 127.0.0.1 7002\n\
         127.0.0.1 8002 127.0.0.1 7003\n",
        &[
            (LOCAL, HERE, Asks),
            (LOCAL, "127.0.0.2:8001", Listens),
            (LOCAL, "127.0.0.1:8002", Listens),
        ],
    ),
    // Who passes. What is logged of the others is below.
    same(
        "allow 127.*\n127.0.0.1 8001 127.0.0.1 7001",
        &[(LOCAL, HERE, Asks)],
    ),
    same(
        "allow 10.*\n127.0.0.1 8001 127.0.0.1 7001",
        &[(LOCAL, HERE, Listens)],
    ),
    same(
        "allow 127.0.0.?\ndeny 127.0.0.1\n127.0.0.1 8001 127.0.0.1 7001",
        &[
            (LOCAL, HERE, Listens),
            ("127.0.0.2", HERE, Asks),
            ("127.0.0.12", HERE, Listens),
        ],
    ),
    same(
        "allow *.0.*\ndeny *2*1\n127.0.0.1 8001 127.0.0.1 7001",
        &[(LOCAL, HERE, Listens), ("127.0.0.3", HERE, Asks)],
    ),
    same(
        "allow 127.*\n127.0.0.1 8001 127.0.0.1 7001\ndeny 127.0.0.3\n\
         127.0.0.1 8002 127.0.0.1 7001\nallow 127.0.0.3\n",
        &[
            (LOCAL, HERE, Asks),
            ("127.0.0.3", HERE, Listens),
            (LOCAL, "127.0.0.1:8002", Listens),
            ("127.0.0.3", "127.0.0.1:8002", Asks),
        ],
    ),
    same(
        "allow ::1\ndeny fe80:*\n::1 8001 ::1 7001",
        &[("::1", "[::1]:8001", Asks)],
    ),
    // What cannot be read starts neither.
    same("127.0.0.1 8001 127.0.0.1\n", &[]),
    same("127.0.0.1 8001 127.0.0.1 7001 7002\n", &[]),
    same("127.0.0.1 8001 127.0.0.1 no-such-service\n", &[]),
    same("127.0.0.1 8001 127.0.0.1 7001 [x=1]\n", &[]),
    same("127.0.0.1 8001 127.0.0.1 7001\ndeny host.example\n", &[]),
    same("logfil LOG\n", &[]),
    same("no-such-host.invalid 8001 127.0.0.1 7001\n", &[]),
    // Nor does what is listened at twice.
    same(
        "0.0.0.0 8001 127.0.0.1 7001\n127.0.0.2 8001 127.0.0.1 7002\n",
        &[],
    ),
    same(
        "127.0.0.1 8001 127.0.0.1 7001\n127.0.0.1 8001 127.0.0.1 7002\n",
        &[],
    ),
];

/// What is different, on purpose.
const DIFFERENT: &[Case] = &[
    // A last line that does not end with a newline is not read there.
    Case {
        file: "127.0.0.1 8001 127.0.0.1 7001\n127.0.0.1 8002 127.0.0.1 7002\ndeny *UNENDED",
        clients: &[(LOCAL, HERE, Asks), (LOCAL, "127.0.0.1:8002", Listens)],
        theirs: &["127.0.0.1:8002 received 'bye'"],
        ours: &["127.0.0.1:8002 received ''"],
    },
    // Half-close: the answer to a client that has ended its side is lost there.
    Case {
        file: "127.0.0.1 8001 127.0.0.1 7001",
        clients: &[(LOCAL, HERE, HalfCloses)],
        theirs: &["127.0.0.1:8001 received ''"],
        ours: &["127.0.0.1:8001 received 'hello'"],
    },
    // It writes 'opened' before it has connected, and takes a refusal for an end.
    Case {
        file: "logfile LOG\n127.0.0.1 8001 127.0.0.1 7009\n",
        clients: &[(LOCAL, HERE, Listens)],
        theirs: &["TIME \t127.0.0.1\t127.0.0.1\t8001\t127.0.0.1\t7009\t0\t0\tdone-local-closed"],
        ours: &["TIME \t127.0.0.1\t127.0.0.1\t8001\t127.0.0.1\t7009\t0\t0\tlocal-connect-failed -"],
    },
    // Its table of words lacks one, so that it writes the next: what it meant is what we write.
    Case {
        file: "logfile LOG\nallow 127.0.0.1\n127.0.0.1 8001 127.0.0.1 7001\n",
        clients: &[("127.0.0.2", HERE, Listens)],
        theirs: &["TIME \t127.0.0.2\t127.0.0.1\t8001\t127.0.0.1\t7001\t0\t0\tdenied"],
        ours: &["TIME \t127.0.0.2\t127.0.0.1\t8001\t127.0.0.1\t7001\t0\t0\tnot-allowed"],
    },
    Case {
        file: "logfile LOG\ndeny 127.0.0.2\nallow 127.*\n127.0.0.1 8001 127.0.0.1 7001\n",
        clients: &[("127.0.0.2", HERE, Listens)],
        theirs: &["TIME \t127.0.0.2\t127.0.0.1\t8001\t127.0.0.1\t7001\t0\t0\t(null)"],
        ours: &["TIME \t127.0.0.2\t127.0.0.1\t8001\t127.0.0.1\t7001\t0\t0\tdenied"],
    },
    // Where a client matches a deny and no allow, both mean the allow.
    Case {
        file: "logfile LOG\ndeny 127.0.0.2\nallow 10.*\n127.0.0.1 8001 127.0.0.1 7001\n",
        clients: &[("127.0.0.2", HERE, Listens)],
        theirs: &["TIME \t127.0.0.2\t127.0.0.1\t8001\t127.0.0.1\t7001\t0\t0\tdenied"],
        ours: &["TIME \t127.0.0.2\t127.0.0.1\t8001\t127.0.0.1\t7001\t0\t0\tnot-allowed"],
    },
    // The first rule of a file is lost there, if it is the first server's (issue 23).
    Case {
        file: "127.0.0.1 8001 127.0.0.1 7001\ndeny 127.0.0.1\ndeny 127.0.0.2\n",
        clients: &[(LOCAL, HERE, Asks)],
        theirs: &["127.0.0.1:8001 received 'hello'"],
        ours: &["127.0.0.1:8001 received ''"],
    },
    // An IPv4 client of an IPv6 listener is compared as ::ffff:127.0.0.1 there.
    Case {
        file: "deny 127.0.0.1\n:: 8001 127.0.0.1 7001\n",
        clients: &[(LOCAL, HERE, Asks)],
        theirs: &["127.0.0.1:8001 received 'hello'"],
        ours: &["127.0.0.1:8001 received ''"],
    },
    Case {
        file: "allow 127.0.0.1\n:: 8001 127.0.0.1 7001\n",
        clients: &[(LOCAL, HERE, Asks)],
        theirs: &["127.0.0.1:8001 received ''"],
        ours: &["127.0.0.1:8001 received 'hello'"],
    },
    // It is logged so, too.
    Case {
        file: "logfile LOG\nallow ::ffff:127.*\n:: 8001 127.0.0.1 7002\n",
        clients: &[(LOCAL, HERE, Listens)],
        theirs: &[
            "TIME \t::ffff:127.0.0.1\t::\t8001\t127.0.0.1\t7002\t0\t0\topened",
            "TIME \t::ffff:127.0.0.1\t::\t8001\t127.0.0.1\t7002\t0\t3\tdone-local-closed",
        ],
        ours: &[
            "TIME \t127.0.0.1\t::\t8001\t127.0.0.1\t7002\t0\t0\topened",
            "TIME \t127.0.0.1\t::\t8001\t127.0.0.1\t7002\t0\t3\tdone-local-closed",
        ],
    },
    // Its grammar has brackets around addresses, and its resolver then knows none of them.
    Case {
        file: "[::1] 8001 [::1] 7002\n",
        clients: &[("::1", "[::1]:8001", Listens)],
        theirs: &["does not start", "[::1]:8001 refused"],
        ours: &["starts", "[::1]:8001 received 'bye'"],
    },
    // Addresses are logged in one spelling: 0 is 0.0.0.0.
    Case {
        file: "logfile LOG\n0 8001 ::0001 7002\n",
        clients: &[(LOCAL, HERE, Listens)],
        theirs: &[
            "TIME \t127.0.0.1\t0\t8001\t::0001\t7002\t0\t0\topened",
            "TIME \t127.0.0.1\t0\t8001\t::0001\t7002\t0\t3\tdone-local-closed",
        ],
        ours: &[
            "TIME \t127.0.0.1\t0.0.0.0\t8001\t::1\t7002\t0\t0\topened",
            "TIME \t127.0.0.1\t0.0.0.0\t8001\t::1\t7002\t0\t3\tdone-local-closed",
        ],
    },
    // Programs that read the logs of web servers would count each connection twice, and are told the
    // zone behind one blank.
    Case {
        file: "logfile LOG\nlogcommon\n127.0.0.1 8001 127.0.0.1 7002\n",
        clients: &[(LOCAL, HERE, Listens)],
        theirs: &[
            "127.0.0.1 - - [TIME  +0000] \"GET /rinetd-services/127.0.0.1/8001/127.0.0.1/7002/opened HTTP/1.0\" 200 0 - - - 0",
            "127.0.0.1 - - [TIME  +0000] \"GET /rinetd-services/127.0.0.1/8001/127.0.0.1/7002/done-local-closed HTTP/1.0\" 200 3 - - - 0",
        ],
        ours: &[
            "127.0.0.1 - - [TIME +0000] \"GET /rinetd-services/127.0.0.1/8001/127.0.0.1/7002/done-local-closed HTTP/1.0\" 200 3 - - - 0",
        ],
    },
    // Quotes around a file's name are taken for a part of it there.
    Case {
        file: "logfile \"LOG\"\n127.0.0.1 8001 127.0.0.1 7002\n",
        clients: &[(LOCAL, HERE, Listens)],
        theirs: &[],
        ours: &[
            "TIME \t127.0.0.1\t127.0.0.1\t8001\t127.0.0.1\t7002\t0\t0\topened",
            "TIME \t127.0.0.1\t127.0.0.1\t8001\t127.0.0.1\t7002\t0\t3\tdone-local-closed",
        ],
    },
    // Both families on one port are no conflict.
    Case {
        file: "0.0.0.0 8001 127.0.0.1 7002\n:: 8001 ::1 7001\n",
        clients: &[(LOCAL, HERE, Listens), ("::1", "[::1]:8001", Asks)],
        theirs: &[
            "does not start",
            "127.0.0.1:8001 refused",
            "[::1]:8001 refused",
        ],
        ours: &[
            "starts",
            "127.0.0.1:8001 received 'bye'",
            "[::1]:8001 received 'hello'",
        ],
    },
    // A name that is not known yet keeps only its own rule's clients waiting: it is looked up for each.
    Case {
        file: "127.0.0.1 8001 no-such-host.invalid 7001\n127.0.0.1 8002 127.0.0.1 7002\n",
        clients: &[(LOCAL, HERE, Listens), (LOCAL, "127.0.0.1:8002", Listens)],
        theirs: &[
            "does not start",
            "127.0.0.1:8001 refused",
            "127.0.0.1:8002 refused",
        ],
        ours: &[
            "starts",
            "127.0.0.1:8001 received ''",
            "127.0.0.1:8002 received 'bye'",
        ],
    },
    // What is accepted there and does not do what was meant, or what is not done here, is an error.
    Case {
        file: "127.0.0.1 8001/udp 127.0.0.1 7001\n",
        clients: &[],
        theirs: &["starts"],
        ours: &["does not start"],
    },
    Case {
        file: "deny 10.0.0\n127.0.0.1 8001 127.0.0.1 7001\n",
        clients: &[],
        theirs: &["starts"],
        ours: &["does not start"],
    },
    Case {
        file: "logfile /no/such/directory/log\n127.0.0.1 8001 127.0.0.1 7001\n",
        clients: &[],
        theirs: &["starts"],
        ours: &["does not start"],
    },
    Case {
        file: "# nothing\n",
        clients: &[],
        theirs: &["starts"],
        ours: &["does not start"],
    },
];

/// The servers that clients are forwarded to, until the test ends.
fn serve() {
    let at = |address: &str, script: fn(TcpStream)| {
        let listener = TcpListener::bind(address).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = patient(stream.unwrap());
                thread::spawn(move || script(stream));
            }
        });
    };
    let echo = |stream: TcpStream| {
        // A client that resets is none of the echo's business.
        let _ = std::io::copy(&mut &stream, &mut &stream);
    };
    for address in ["127.0.0.1:7001", "[::1]:7001", "127.0.0.1:25"] {
        at(address, echo);
    }
    for address in ["127.0.0.1:7002", "[::1]:7002"] {
        at(address, |mut stream| stream.write_all(b"bye").unwrap());
    }
    at("127.0.0.1:7003", |mut stream| {
        let client = stream.peer_addr().unwrap().ip();
        stream.write_all(client.to_string().as_bytes()).unwrap();
    });
}

/// What a client receives, whatever ends it.
fn received(mut stream: TcpStream, client: Client) -> String {
    let mut bytes = Vec::new();
    // Who is refused may be so before it has said anything.
    let mut say = || {
        let _ = stream.write_all(b"hello");
    };
    match client {
        Asks | Resets => {
            say();
            let mut answer = [0; 5];
            if stream.read_exact(&mut answer).is_ok() {
                bytes.extend(answer);
            }
            if let Resets = client {
                reset(stream);
            }
        }
        Listens => {
            let _ = stream.read_to_end(&mut bytes);
        }
        HalfCloses => {
            say();
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut bytes);
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Who is looked at.
#[derive(Clone, Copy, PartialEq)]
enum Who {
    Rinetd,
    Us,
}

/// How many lines of a file are forwarding rules.
fn rules(file: &str) -> usize {
    let is_rule = |line: &&str| {
        line.split_whitespace()
            .nth(3)
            .is_some_and(|word| word != "#")
    };
    file.lines().filter(is_rule).count()
}

/// What can be seen of a server with this file: whether it starts, what each client receives, and what is
/// logged of it.
fn seen(who: Who, case: &Case) -> Vec<String> {
    let scratch = Scratch::new();
    let log = scratch.join("log");
    let conf = scratch.join("rinetd.conf");
    let file = case.file.replace("LOG", log.to_str().unwrap());
    let end = if file.ends_with('\n') { "" } else { "\n" };
    let file = format!("{file}{end}").replace("UNENDED\n", "");
    fs::write(&conf, file).unwrap();
    let mut command = match who {
        Who::Rinetd => Command::new(unpacked("rinetd/usr/sbin/rinetd")),
        Who::Us => {
            let mut command = Command::new(TCPPROXY);
            command.args(["--as", "rinetd"]);
            command
        }
    };
    // In the zone of Greenwich, as logs of web servers have one.
    command.env("TZ", "UTC").arg("-f").arg("-c").arg(&conf);
    let mut server = Running::start(command.stdin(Stdio::null()));
    let is_up = |lines: &[String]| match who {
        Who::Rinetd => lines
            .iter()
            .any(|line| line.contains("starting redirections")),
        Who::Us => {
            let listening = lines.iter().filter(|line| line.contains("listening on "));
            listening.count() >= rules(case.file).max(1)
        }
    };
    let starts = eventually("the server to start, or not", || {
        let has_ended = server.child.try_wait().unwrap().is_some();
        let is_up = is_up(&server.log.all());
        (is_up || has_ended).then_some(is_up)
    });
    if !starts {
        let refused = case
            .clients
            .iter()
            .map(|(_, to, _)| format!("{to} refused"));
        return [vec!["does not start".to_owned()], refused.collect()].concat();
    }
    let mut seen = vec!["starts".to_owned()];
    let is_logged = case.file.contains("logfile LOG");
    for (number, (from, to, client)) in case.clients.iter().enumerate() {
        let stream = connect_from(from, to.parse().unwrap());
        seen.push(format!("{to} received '{}'", received(stream, *client)));
        if is_logged {
            eventually("the client's last line", || {
                let ended = lines_of(&log).into_iter();
                let ended = ended.filter(|line| !line.contains("opened"));
                (ended.count() > number).then_some(())
            });
        }
    }
    server.signal(Signal::SIGTERM);
    assert!(server.status().success());
    seen.extend(lines_of(&log));
    seen
}

/// The lines of a log, as if they had all been written at one time.
fn lines_of(log: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let whole = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    let timeless = |line: &str| {
        let line = line.trim_end_matches('\n');
        let start = line.find('[').map_or(0, |bracket| bracket + 1);
        let end = start + "20/Nov/2026:06:25:39".len();
        format!("{}TIME{}", &line[..start], &line[end..])
    };
    whole.map(timeless).collect()
}

/// The lines that the one has and the other has not.
fn without(mut lines: Vec<String>, others: &[String]) -> Vec<String> {
    for other in others {
        if let Some(position) = lines.iter().position(|line| line == other) {
            lines.remove(position);
        }
    }
    lines
}

fn compare(cases: &[Case]) {
    privately(|| {
        let scratch = Scratch::new();
        let hosts = "127.0.0.1 localhost four.example\n::1 localhost\n";
        let _hosts = Replaced::with(&scratch, "/etc/hosts", hosts);
        serve();
        for case in cases {
            let (theirs, ours) = (seen(Who::Rinetd, case), seen(Who::Us, case));
            let different = [
                without(theirs.clone(), &ours),
                without(ours.clone(), &theirs),
            ];
            assert_eq!(
                different,
                [case.theirs, case.ours],
                "rinetd: {theirs:#?}, we: {ours:#?}, with {}",
                case.file
            );
            if case.theirs.is_empty() && case.ours.is_empty() {
                assert_eq!(theirs, ours, "{}", case.file);
            }
        }
    });
}

#[test]
fn what_rinetd_does_is_done() {
    compare(ALIKE);
}

#[test]
fn what_is_not_done_as_rinetd_does_it_is_so_on_purpose() {
    compare(DIFFERENT);
}
