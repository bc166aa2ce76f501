//! The formats of the access log, to the column.

use std::fs;
use std::io::Write;

use crate::harness::access_log::{lines, members, request};
use crate::harness::upstreams::Upstream;
use crate::harness::{Scratch, Standalone, field, needs_root, read_all};

/// An upstream that reads to the end, answers with seven bytes, and ends.
fn answering() -> Upstream<()> {
    Upstream::new(|mut stream| {
        read_all(&stream);
        stream.write_all(b"answer\n").unwrap();
    })
}

/// A server with an access log, and what came of a session of each kind.
struct Sessions {
    upstream: String,
    refusing: String,
    lines: Vec<String>,
    /// The server's address for each session, and its client's.
    ends: Vec<(String, String)>,
    /// What the log says about each.
    closed: Vec<String>,
}

impl Sessions {
    /// One session that is served, one that a rule denies, one that no rule allows, one whose
    /// upstream refuses, one of a handler, and one too many; each by a server of its own.
    fn recorded_as(format: &str) -> Sessions {
        needs_root();
        let scratch = Scratch::new();
        let file = scratch.join("access.log");
        let (path, upstream, refusing) = (file.to_str().unwrap(), answering(), "127.0.0.1:1");
        let name = upstream.name();
        let log = ["--access-log", path, "--access-log-format", format];
        let kinds: [&[&str]; 6] = [
            &[&name],
            &["--deny", "127.0.0.1", &name],
            &["--allow", "127.0.0.2", &name],
            &[refusing],
            &["/bin/cat"],
            &["--rate", "1/1h", "/bin/cat"],
        ];
        let (mut ends, mut closed) = (Vec::new(), Vec::new());
        for (number, arguments) in kinds.iter().enumerate() {
            let proxy = Standalone::start(&[&log, *arguments].concat());
            if number == 5 {
                // The one before the one too many is of no interest.
                assert_eq!(request(proxy.connect()), b"hello");
                lines(&file, 6);
                let text = fs::read_to_string(&file).unwrap();
                let kept = text.lines().take(5).map(|line| format!("{line}\n"));
                fs::write(&file, kept.collect::<String>()).unwrap();
            }
            let client = proxy.connect();
            let own = client.local_addr().unwrap().to_string();
            ends.push((proxy.address.to_string(), own.clone()));
            match number {
                0 | 4 => drop(request(client)),
                _ => drop(read_all(client)),
            }
            let line = proxy
                .process
                .log
                .wait_for(&format!(" closed: client={own} "));
            closed.push(line);
            lines(&file, number + 1);
        }
        upstream.result();
        Sessions {
            upstream: name,
            refusing: refusing.to_owned(),
            lines: lines(&file, 6),
            ends,
            closed,
        }
    }
}

const REASONS: [&str; 6] = [
    "client-closed",
    "denied-by-rule",
    "denied-by-rule",
    "connect-refused",
    "handler-exited",
    "too-fast-from-client",
];

/// Fails unless this is a time of today as RFC 3339 has it, with milliseconds.
fn assert_is_timestamp(text: &str) {
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '9' } else { c })
        .collect();
    let shape = shape.replace("-99:99", "+99:99");
    assert_eq!(shape, "9999-99-99T99:99:99.999+99:99", "{text}");
}

#[test]
fn the_programs_own_format_is_the_closed_line_of_the_log() {
    let Sessions { lines, closed, .. } = Sessions::recorded_as("tcpproxy");
    assert_eq!(lines.len(), 6, "{lines:#?}");
    for ((line, closed), reason) in lines.iter().zip(&closed).zip(REASONS) {
        let (time, rest) = line.split_once(' ').unwrap();
        assert_is_timestamp(time);
        assert_eq!(rest, closed, "what standard error was told");
        assert_eq!(field(line, "reason"), reason);
    }
}

/// The host and the port of `HOST:PORT`.
fn split(address: &str) -> [&str; 2] {
    let (host, port) = address.rsplit_once(':').unwrap();
    [host, port]
}

/// What the columns of rinetd's formats have to be, but for the time: client, local host and port,
/// server's host and port, sent, received, result.
fn expected(sessions: &Sessions) -> Vec<[&str; 8]> {
    let results = [
        "done-remote-closed",
        "denied",
        "not-allowed",
        "local-connect-failed",
        "handler-exited",
        "too-fast-from-client",
    ];
    let servers = [
        split(&sessions.upstream),
        ["-", "0"],
        ["-", "0"],
        split(&sessions.refusing),
        ["/bin/cat", "0"],
        ["-", "0"],
    ];
    let bytes = [
        ["5", "7"],
        ["0", "0"],
        ["0", "0"],
        ["0", "0"],
        ["0", "0"],
        ["0", "0"],
    ];
    let columns = |number: usize| {
        let (local, client) = &sessions.ends[number];
        let ([client, _], [host, port]) = (split(client), split(local));
        let [server, server_port] = servers[number];
        let [sent, received] = bytes[number];
        [
            client,
            host,
            port,
            server,
            server_port,
            sent,
            received,
            results[number],
        ]
    };
    (0..results.len()).map(columns).collect()
}

#[test]
fn rinetds_format_has_its_nine_columns() {
    let sessions = Sessions::recorded_as("rinetd");
    for (line, expected) in sessions.lines.iter().zip(expected(&sessions)) {
        let columns: Vec<&str> = line.split('\t').collect();
        assert_eq!(columns[1..], expected, "{line}");
        let shape = columns[0].replace(|c: char| c.is_ascii_digit(), "9");
        let month = columns[0].split('/').nth(1).unwrap();
        assert_eq!(shape, format!("99/{month}/9999:99:99:99"), "{line}");
        assert_eq!(month.len(), 3, "{line}");
    }
}

#[test]
fn the_common_format_is_that_of_web_servers() {
    let sessions = Sessions::recorded_as("common");
    for (line, expected) in sessions.lines.iter().zip(expected(&sessions)) {
        let [
            client,
            host,
            port,
            server,
            server_port,
            sent,
            received,
            result,
        ] = expected;
        let (before, rest) = line.split_once(" [").unwrap();
        let (time, rest) = rest.split_once("] ").unwrap();
        assert_eq!(before, format!("{client} - -"), "{line}");
        let shape = time
            .replace(|c: char| c.is_ascii_digit(), "9")
            .replace(" -", " +");
        let month = time.split('/').nth(1).unwrap();
        assert_eq!(shape, format!("99/{month}/9999:99:99:99 +9999"), "{line}");
        assert_eq!(
            rest,
            format!(
                "\"GET /rinetd-services/{host}/{port}/{server}/{server_port}/{result} HTTP/1.0\" \
                 200 {received} - - - {sent}"
            ),
            "{line}"
        );
    }
}

#[test]
fn json_has_an_object_a_line_with_what_is_known() {
    let sessions = Sessions::recorded_as("json");
    assert_eq!(sessions.lines.len(), 6);
    for (number, (line, columns)) in sessions.lines.iter().zip(expected(&sessions)).enumerate() {
        let members = members(line);
        let (local, client) = &sessions.ends[number];
        let closed = &sessions.closed[number];
        let serial = if number == 5 { "2" } else { "1" };
        let mut expected = vec![("session", serial)];
        expected.extend([
            ("client", split(client)[0]),
            ("client_port", split(client)[1]),
        ]);
        expected.extend([("local", split(local)[0]), ("local_port", split(local)[1])]);
        match number {
            0 => expected.push(("server", &sessions.upstream)),
            3 => expected.push(("server", &sessions.refusing)),
            4 => expected.push(("server", "/bin/cat")),
            _ => {}
        }
        expected.extend([("sent", columns[5]), ("received", columns[6])]);
        expected.push(("duration", field(closed, "duration").trim_end_matches('s')));
        expected.push(("reason", REASONS[number]));
        let (time, rest) = members.split_first().unwrap();
        assert_eq!(time.0, "time");
        assert_is_timestamp(&time.1);
        // A handler's client has its name looked up.
        let rest: Vec<(&str, &str)> = rest
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .filter(|(name, _)| *name != "name")
            .collect();
        assert_eq!(rest, expected, "{line}");
    }
}

#[test]
fn what_comes_from_outside_cannot_break_a_line() {
    needs_root();
    for format in ["tcpproxy", "rinetd", "common", "json"] {
        let scratch = Scratch::new();
        let file = scratch.join("access.log");
        let handler = scratch.script("an odd \"name\"\\\n\u{e9}", "cat");
        let log = [
            "--access-log",
            file.to_str().unwrap(),
            "--access-log-format",
            format,
        ];
        // With an argument, its name is not split into words.
        let command = [handler.to_str().unwrap(), "argument"];
        let proxy = Standalone::start(&[&log[..], &command].concat());
        assert_eq!(request(proxy.connect()), b"hello");
        proxy.closed();
        let line = &lines(&file, 1)[..];
        assert_eq!(line.len(), 1, "{line:#?}");
        assert!(
            !line[0].replace('\t', "").contains(char::is_control),
            "{line:?}"
        );
        match format {
            "rinetd" => assert_eq!(line[0].split('\t').count(), 9, "{line:?}"),
            "json" => drop(members(&line[0])),
            _ => {}
        }
    }
}
