//! Configurations from memory: what they mean, and what is wrong with them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::config::settings::Written;
use crate::config::{Config, Destination, Entry};

/// Files in memory.
#[derive(Default)]
struct Memory(BTreeMap<PathBuf, Vec<u8>>);

impl Memory {
    fn with(files: &[(&str, &str)]) -> Memory {
        let files = files.iter();
        Memory(
            files
                .map(|(path, text)| (PathBuf::from(path), text.as_bytes().to_vec()))
                .collect(),
        )
    }
}

impl Files for Memory {
    fn read(&self, path: &Path, most: usize) -> Result<Vec<u8>, String> {
        let bytes = self.0.get(path).ok_or("there is none")?;
        Ok(bytes[..bytes.len().min(most)].to_vec())
    }

    fn matching(&self, pattern: &str) -> Result<Vec<PathBuf>, String> {
        let pattern = glob::Pattern::new(pattern).map_err(|error| error.msg.to_owned())?;
        Ok(self
            .0
            .keys()
            .filter(|path| pattern.matches_path(path))
            .cloned()
            .collect())
    }
}

fn parsed(text: &str) -> Config {
    match parse(Path::new("/c"), &Memory::with(&[("/c", text)])) {
        Ok(config) => config,
        Err(problems) => panic!("{problems:#?}\n{text}"),
    }
}

fn problems(text: &str) -> Vec<String> {
    problems_of(&[("/c", text)])
}

fn problems_of(files: &[(&str, &str)]) -> Vec<String> {
    let problems = parse(Path::new("/c"), &Memory::with(files)).unwrap_err();
    problems.iter().map(ToString::to_string).collect()
}

fn places(config: &Config) -> Vec<String> {
    let services = config.services.iter();
    services
        .map(|entry| format!("{}:{}", entry.interface, entry.port))
        .collect()
}

#[test]
fn interfaces_inherit_from_their_port_and_ports_from_the_defaults() {
    let config = parsed(
        "timeout 5\ndeny 10.0.0.1\n\
         port 25\n timeout 6\n server a\n deny 10.0.0.2\n\
         interface 127.0.0.1\n deny 10.0.0.3\n\
         interface ::1\n exec /bin/b c \"d e\"\n timeout 7\n",
    );
    assert_eq!(places(&config), ["*:25", "127.0.0.1:25", "[::1]:25"]);
    let timeouts: Vec<_> = config
        .services
        .iter()
        .map(|entry| entry.written.timeout)
        .collect();
    let seconds = |number| Some(Some(Duration::from_secs(number)));
    assert_eq!(timeouts, [seconds(6), seconds(6), seconds(7)]);
    assert_eq!(config.defaults.timeout, seconds(5));
    let rules = |written: &Written| -> Vec<String> {
        let rules = written.rules.own();
        rules.map(|rule| rule.pattern()).collect()
    };
    assert_eq!(rules(&config.defaults), ["10.0.0.1"]);
    let within = config.services[1].written.clone();
    assert_eq!(rules(&within), ["10.0.0.2", "10.0.0.3"]);
    assert!(matches!(
        config.services[0].destination,
        Destination::Upstreams(_)
    ));
    let Destination::Handler(program) = &config.services[2].destination else {
        panic!("not the interface's own action")
    };
    assert_eq!(program.words(), ["/bin/b", "c", "d e"]);
}

#[test]
fn a_port_that_only_carries_interfaces_is_no_service() {
    let config = parsed("port 25\n interface 127.0.0.1\n server a\n");
    assert_eq!(places(&config), ["127.0.0.1:25"]);
}

#[test]
fn the_originals_sample_means_what_its_manual_says() {
    // With the white space of the page that it is copied from.
    let config = parsed(
        "\u{a0}#\n\u{a0}# /etc/tcpproxy.conf - sample configuration\n\
         \u{a0}port 25\n\n\u{a0}\u{a0}\u{a0}# ... for outgoing ...\n\
         \u{a0}\u{a0}\u{a0}interface 192.168.1.1\n\u{a0} server mailrelay.provider.com\n\
         interface 192.44.100.7\n server mail.domain.com\n\
         port 119\n interface 192.168.1.1\n server nntp.provider.com\n \n\
         interface 192.168.2.1\n server nntp.other-provider.com\n\
         port 110\n interface 192.44.100.7\n exec /usr/local/sbin/pop3.proxy mail.domain.com\n",
    );
    assert_eq!(
        places(&config),
        [
            "192.168.1.1:25",
            "192.44.100.7:25",
            "192.168.1.1:119",
            "192.168.2.1:119",
            "192.44.100.7:110"
        ]
    );
}

#[test]
fn the_originals_names_and_ours_are_one_setting() {
    for (theirs, ours) in [
        ("uid 7", "user 7"),
        ("gid 7", "group 7"),
        ("logname x", "log-name x"),
        ("setenv X_", "env-prefix X_"),
        ("writefile /x", "write /x"),
        ("clear-env", "clear-env yes"),
    ] {
        assert_eq!(parsed(theirs).defaults, parsed(ours).defaults, "{theirs}");
        let twice = problems(&format!("{theirs}\n{ours}\n"));
        assert!(
            twice[0].contains("stands here twice: first at /c:1:1"),
            "{twice:?}"
        );
    }
}

#[test]
fn a_quoted_command_is_split_once_more() {
    let expected = parsed("port 1\n exec /bin/a 'b c'\n");
    assert_eq!(parsed("port 1\n exec \"/bin/a 'b c'\"\n"), expected);
    assert_eq!(
        parsed("acp \"/bin/a 'b c'\"\n").defaults.acp.unwrap(),
        ["/bin/a", "b c"]
    );
}

#[test]
fn several_servers_add_up() {
    let config = parsed("port 1\n server a b:2\n server unix:/c\n");
    let Destination::Upstreams(upstreams) = &config.services[0].destination else {
        panic!("no upstreams")
    };
    let names: Vec<_> = upstreams
        .iter()
        .map(|upstream| upstream.name(Some(1)))
        .collect();
    assert_eq!(names, ["a:1", "b:2", "unix:/c"]);
}

#[test]
fn every_problem_is_reported_with_its_place() {
    let reported = problems(
        "sever a\n\
         timeout x\n\
         port\n\
         server a\n\
         port 70000\n\
         \u{e9}\n\
         port 25\n\
         \x20 timeout 1\n\
         \x20 timeout 2\n\
         \x20 standalone no\n\
         \x20 server a b 'c\n\
         port 26\n\
         port 27\n\
         \x20 server a\n\
         \x20 exec /b\n\
         port 27\n\
         \x20 server b\n\
         clear-env maybe\n\
         timeout 1 2\n",
    );
    let expected = [
        "/c:1:1: unknown directive 'sever' (did you mean 'server'?)",
        "/c:2:9: timeout: 'x' is not a time",
        "/c:3:1: port needs a value",
        "/c:5:1: port 70000 is out of range: write 1 to 65535",
        "/c:6:1: unknown directive 'é'",
        "/c:7:1: has neither server nor exec",
        "/c:9:3: timeout stands here twice: first at /c:8:3",
        "/c:10:3: standalone belongs before the first port",
        "/c:11:14: a quote is opened and not closed on its line",
        "/c:12:1: has neither server nor exec",
        "/c:15:3: server and exec exclude each other: server is at /c:14:3",
        "/c:16:1: *:27 is served already: at /c:13:1",
        "/c:18:11: clear-env: 'maybe' is unknown",
        "/c:19:11: '2' is one word too many: timeout takes a value",
    ];
    assert_eq!(reported.len(), expected.len(), "{reported:#?}");
    for (reported, expected) in reported.iter().zip(expected) {
        assert!(reported.starts_with(expected), "{reported}\n{expected}");
    }
}

#[test]
fn a_misspelt_directive_is_not_complained_about_as_a_lack() {
    for text in [
        "port 25\n sever x\n",
        "port 25\n sever x\n interface 127.0.0.1\n timeout 1\n",
        "port 25\n interface 127.0.0.1\n sever x\n",
        "bind 127.0.0.1:25\n exce /x\n",
    ] {
        let reported = problems(text);
        assert_eq!(reported.len(), 1, "{text}: {reported:?}");
        assert!(reported[0].contains("unknown directive"), "{reported:?}");
    }
    // Another scope's lack is another's, and a clash is no lack.
    let reported = problems("port 25\n sever x\nport 26\n");
    assert_eq!(reported.len(), 2, "{reported:?}");
    let reported = problems("port 25\n server x\nport 25\n server y\n tiemout 1\n");
    assert_eq!(reported.len(), 2, "{reported:?}");
}

#[test]
fn files_are_included_in_place_and_in_order() {
    let config = parse(
        Path::new("/etc/c"),
        &Memory::with(&[
            ("/etc/c", "include d/*.conf\ninclude none/*\ntimeout 9\n"),
            ("/etc/d/2.conf", "port 2\n server b\n"),
            ("/etc/d/1.conf", "port 1\n server a\n include ../e\n"),
            ("/etc/d/../e", "interface 127.0.0.1\n"),
        ]),
    )
    .unwrap();
    assert_eq!(places(&config), ["*:1", "127.0.0.1:1", "*:2"]);
    // What follows an include belongs to the scope that it has left open.
    assert_eq!(
        config.services[2].written.timeout,
        Some(Some(Duration::from_secs(9)))
    );
}

#[test]
fn includes_that_fail_or_never_end_are_problems() {
    assert!(problems("include none\n")[0].starts_with("/c:1:9: /none cannot be read"));
    assert!(problems("include c\n")[0].ends_with("/c includes itself"));
    let cycle = problems_of(&[("/c", "include d\n"), ("/d", "include c\n")]);
    assert_eq!(cycle, ["/d:1:9: /c includes itself"]);
    let chain: Vec<(String, String)> = (0..40)
        .map(|n| (format!("/{n}"), format!("include {}\n", n + 1)))
        .chain([("/c".to_owned(), "include 0\n".to_owned())])
        .collect();
    let chain: Vec<(&str, &str)> = chain
        .iter()
        .map(|(a, b)| (a.as_str(), b.as_str()))
        .collect();
    assert!(problems_of(&chain)[0].contains("files deep"));
}

#[test]
fn what_is_too_much_is_a_problem_and_problems_are_not_without_end() {
    assert!(problems(&"x".repeat(70_000))[0].contains("longer than"));
    let long = "#".repeat(40_000) + "\n";
    let quarter = long.repeat(LONGEST / 4 / long.len());
    let of_all = |text: &str| problems_of(&[("/c", text), ("/d", &quarter)]);
    assert_eq!(
        of_all("include d d d d\ninclude d\ntimeout x\n"),
        [
            format!("/d:1:1: there are more than {LONGEST} bytes, all files together"),
            "/c:3:9: timeout: 'x' is not a time: write seconds, or a number with ms, s, m or h, as in 60, 500ms or 2m".to_owned(),
        ]
    );
    let many = problems(&"x\n".repeat(5_000));
    assert_eq!(many.len(), 100);
    assert!(many[99].ends_with("(further problems are not shown)"));
    assert!(problems("acp \"a\0b\"\n")[0].contains("NUL"));
    // Nor is there a search for what each of a million words may have meant.
    let started = std::time::Instant::now();
    assert_eq!(problems(&"timeuot\n".repeat(1_000_000)).len(), 100);
    assert!(started.elapsed() < Duration::from_secs(10));
}

/// A generator of numbers that looks random and is the same every time (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

#[test]
fn any_bytes_give_a_configuration_or_problems() {
    let pieces: [&[u8]; 24] = [
        b"port ",
        b"interface ",
        b"server ",
        b"exec ",
        b"include ",
        b"bind ",
        b"25",
        b"127.0.0.1",
        b"\n",
        b"\n",
        b" ",
        b"\"",
        b"'",
        b"\\",
        b"#",
        b"\xff",
        b"\xc2\xa0",
        b"\0",
        b"timeout ",
        b"allow ",
        b"c",
        b"*",
        b"acp ",
        b"/x",
    ];
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for _ in 0..20_000 {
        let length = numbers.below(24);
        let text: Vec<u8> = (0..length)
            .flat_map(|_| pieces[numbers.below(pieces.len())].to_vec())
            .collect();
        let files = Memory([(PathBuf::from("/c"), text.clone())].into());
        if let Err(problems) = parse(Path::new("/c"), &files) {
            assert!(!problems.is_empty(), "{}", String::from_utf8_lossy(&text));
        }
    }
}

#[test]
fn what_is_printed_means_what_was_parsed() {
    let lines = [
        "timeout 1500ms",
        "timeout 0",
        "half-close-timeout 3",
        "max-duration 1h",
        "uid 77",
        "gid 0",
        "acp /bin/a \"b c\" 'd\"e' \"\\\\ \\n\"",
        "acp-timeout 2",
        "logname x-y",
        "setenv A_",
        "writefile \"/tmp/a b#\"",
        "clear-env yes",
        "allow 10.0.0.0/8",
        "allow ANY",
        "deny 2001:db8::/32",
        "deny 10.*",
        "allow-levels each",
        "connect-timeout 1",
        "connect-retry 30",
        "max-per-source 3",
        "rate 10/60:5",
        "source ::1",
        "buffer-size 1m",
    ];
    let global = [
        "standalone no",
        "max-sessions 7",
        "overflow drop",
        "log syslog",
        "log file:/a",
        "log-level debug",
        "lifetime 9",
        "access-log /x",
        "access-log-format json",
        "state-dir /s",
        "pidfile /p",
    ];
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    for _ in 0..2_000 {
        let mut text = String::new();
        let mut some = |text: &mut String, lines: &[&str]| {
            let mut names: Vec<&str> = Vec::new();
            for _ in 0..numbers.below(6) {
                let line = lines[numbers.below(lines.len())];
                let name = line.split(' ').next().unwrap_or_default();
                if !names.contains(&name) || matches!(name, "allow" | "deny" | "log") {
                    names.push(name);
                    *text += &format!("{line}\n");
                }
            }
        };
        some(&mut text, &global);
        some(&mut text, &lines);
        for (opening, server) in [
            ("port 25", "server a b:26 unix:/c"),
            ("interface 127.0.0.1", ""),
            ("interface eth0", "exec /bin/x \"y z\""),
            ("port 26", "server ::1 [::2]:27"),
            ("bind [::1]:28", "server fe80::1%eth0"),
        ] {
            text += &format!("{opening}\n{server}\n");
            some(&mut text, &lines);
        }
        let config = parsed(&text);
        let printed = print(&config);
        let again = parsed(&printed);
        assert_eq!(print(&again), printed, "{text}");
        let meanings = |config: &Config| -> Vec<_> {
            let services = config.services.iter();
            let meaning = |entry: &Entry| {
                let written = entry.written.clone().in_service(&config.defaults);
                let place = (entry.interface.clone(), entry.port);
                let rules = |allow: bool| -> Vec<String> {
                    let all = config.defaults.rules.own().chain(entry.written.rules.own());
                    let of_kind = all.filter(|rule| rule.is_allow() == allow);
                    of_kind.map(ToString::to_string).collect()
                };
                (
                    place,
                    format!("{:?}", entry.destination),
                    written.acp,
                    written.allow_levels.unwrap_or_default(),
                    rules(true),
                    rules(false),
                )
            };
            services.map(meaning).collect()
        };
        assert_eq!(meanings(&again), meanings(&config), "{text}");
    }
}
