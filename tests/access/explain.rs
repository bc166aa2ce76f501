//! `--explain`: what would happen to a client, and that it then does.

use std::process::Command;
use std::thread;

use crate::harness::clients::connect_from;
use crate::harness::config_file::Conf;
use crate::harness::{Said, TCPPROXY, free_port, needs_root, read_all, tool};

/// The explanation of a client, and the status.
fn explained(conf: &Conf, arguments: &[&str], asked: &str) -> (i32, String) {
    let Said { status, out, err } = conf.says(&[arguments, &["--explain", asked]].concat());
    assert_eq!(err, "", "{asked}");
    (status, out)
}

/// The value of a line `key: value` of an explanation that has one such line.
#[track_caller]
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let start = format!("{key}: ");
    let mut values = text.lines().filter_map(|line| line.strip_prefix(&start));
    let value = values
        .next()
        .unwrap_or_else(|| panic!("no {key} in {text}"));
    assert_eq!(values.next(), None, "{text}");
    value
}

#[test]
fn everything_about_a_client_is_said_in_order() {
    needs_root();
    let conf = Conf::new(
        "acp /bin/ask \"a b\"\n\
         port 25\n\
         \x20   deny 192.0.2.66\n\
         \x20   interface 198.51.100.1\n\
         \x20       server mail.example:26 unix:/x y\n\
         \x20       uid 1001\n\
         port 79\n\
         \x20   exec /bin/date -u \"+%H %M\"\n\
         \x20   gid 1002\n",
    );
    let (status, text) = explained(&conf, &[], "192.0.2.66,198.51.100.1:25");
    assert_eq!(
        (status, text.as_str()),
        (
            1,
            "client: 192.0.2.66\n\
             service: 198.51.100.1:25\n\
             rules: refused\n\
             rule: deny 192.0.2.66 (conf:3:5)\n\
             program: /bin/ask a b\n\
             user: 1001:65534\n\
             upstream: mail.example:26 unix:/x y:25\n"
        )
    );
    let (status, text) = explained(&conf, &[], "192.0.2.66,79");
    assert_eq!(
        (status, text.as_str()),
        (
            0,
            "client: 192.0.2.66\n\
             service: *:79\n\
             rules: admitted\n\
             rule: none applies\n\
             program: /bin/ask a b\n\
             user: 65535:1002\n\
             handler: /bin/date -u +%H %M\n"
        )
    );
}

#[test]
fn the_rule_that_decides_is_named_with_where_it_stands() {
    let conf = Conf::new(
        "allow 192.0.2.0/24\n\
         include rules\n\
         port 25\nserver a\n deny 192.0.2.7\n  allow 10.*\n",
    )
    .with("rules", "# for all\n  deny 192.0.2.128/25\n");
    let options = ["--allow", "2001:db8::/32", "--deny", "10.0.0.66"];
    for (client, admitted, rule) in [
        ("192.0.2.1", true, "allow 192.0.2.0/24 (conf:1:1)"),
        ("192.0.2.7", false, "deny 192.0.2.7 (conf:5:2)"),
        ("192.0.2.200", false, "deny 192.0.2.128/25 (rules:2:3)"),
        ("10.1.2.3", true, "allow 10.* (conf:6:3)"),
        ("10.0.0.66", false, "deny 10.0.0.66 (the command line)"),
        (
            "2001:db8::1",
            true,
            "allow 2001:db8::/32 (the command line)",
        ),
        ("198.51.100.1", false, "no allow rule matches"),
        ("unix", false, "no allow rule matches"),
    ] {
        let (status, text) = explained(&conf, &options, client);
        assert_eq!(value(&text, "rule"), rule, "{client}");
        let rules = if admitted { "admitted" } else { "refused" };
        assert_eq!(value(&text, "rules"), rules, "{client}");
        assert_eq!(status, i32::from(!admitted), "{client}");
    }
    let (status, text) = explained(&Conf::new("port 25\nserver a\n"), &[], "192.0.2.1");
    assert_eq!((status, value(&text, "rule")), (0, "none applies"));
}

#[test]
fn with_allow_levels_each_both_rules_are_named_or_the_level_that_lacks_one() {
    for (levels, client, admitted, rule) in [
        ("any", "192.0.2.1", true, "allow 192.0.2.0/24 (conf:1:1)"),
        ("any", "198.51.100.1", false, "no allow rule matches"),
        (
            "each",
            "192.0.2.7",
            true,
            "allow 192.0.2.0/24 (conf:1:1), allow 192.0.2.7 (conf:4:1)",
        ),
        (
            "each",
            "192.0.2.1",
            false,
            "no allow rule of the service matches",
        ),
        (
            "each",
            "198.51.100.1",
            false,
            "no allow rule of the defaults matches",
        ),
    ] {
        let directive = format!("allow-levels {levels}");
        // As an option, as a default, and in the service.
        for (default, own, options) in [
            ("", "", vec!["--allow-levels", levels]),
            (directive.as_str(), "", vec![]),
            ("", directive.as_str(), vec!["--allow-levels", "any"]),
        ] {
            let conf = Conf::new(format!(
                "allow 192.0.2.0/24\n{default}\nport 25\nallow 192.0.2.7\nserver a\n{own}\n"
            ));
            let (status, text) = explained(&conf, &options, client);
            assert_eq!(value(&text, "rule"), rule, "{levels} {client} {options:?}");
            assert_eq!(status, i32::from(!admitted), "{levels} {client}");
        }
    }
    let wrong = Conf::new("allow-levels both\n");
    let said = wrong.says(&["--check"]);
    let line = "tcpproxy: conf:1:14: allow-levels: 'both' is unknown: write any, each";
    assert_eq!(said.refused(78), [line]);
}

#[test]
fn an_address_is_compared_as_a_client_of_it_would_be() {
    let conf = Conf::new("deny 192.0.2.7\nport 25\nserver a\n");
    for client in [
        "192.0.2.7",
        "::ffff:192.0.2.7",
        "::ffff:c000:207",
        "[::ffff:192.0.2.7]",
    ] {
        let (status, text) = explained(&conf, &[], client);
        assert_eq!(
            (status, value(&text, "client")),
            (1, "192.0.2.7"),
            "{client}"
        );
    }
    let (_, text) = explained(&conf, &[], "2001:DB8:0::0:1");
    assert_eq!(value(&text, "client"), "2001:db8::1");
    // Only ANY is a rule for those that have no address.
    let (status, text) = explained(&conf, &[], "unix");
    assert_eq!((status, value(&text, "client")), (0, "unix"));
    let (status, _) = explained(&conf, &["--deny", "*"], "unix");
    assert_eq!(status, 0);
    let (status, text) = explained(&conf, &["--deny", "ANY"], "unix");
    assert_eq!(
        (status, value(&text, "rule")),
        (1, "deny ANY (the command line)")
    );
}

/// The services that are explained, in order.
fn services(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("service: "))
        .collect()
}

#[test]
fn what_is_reached_may_be_an_address_a_port_both_or_neither() {
    let conf = Conf::new(
        "port 25\nserver a\ninterface 192.0.2.1\nserver b\n\
         port 26\ninterface 2001:db8::1\nserver c\ndeny ANY\n\
         port 27\ninterface 192.0.2.2\nserver d\n",
    );
    for (asked, expected, status) in [
        (
            "10.0.0.1",
            &["*:25", "192.0.2.1:25", "[2001:db8::1]:26", "192.0.2.2:27"][..],
            1,
        ),
        ("10.0.0.1,25", &["*:25", "192.0.2.1:25"], 0),
        ("10.0.0.1,:25", &["*:25", "192.0.2.1:25"], 0),
        ("10.0.0.1,*:25", &["*:25", "192.0.2.1:25"], 0),
        ("10.0.0.1,smtp", &["*:25", "192.0.2.1:25"], 0),
        ("10.0.0.1,192.0.2.1:25", &["192.0.2.1:25"], 0),
        ("10.0.0.1,[::ffff:192.0.2.1]:25", &["192.0.2.1:25"], 0),
        ("10.0.0.1,192.0.2.9:25", &["*:25"], 0),
        ("10.0.0.1,192.0.2.1", &["192.0.2.1:25"], 0),
        ("10.0.0.1,192.0.2.2", &["*:25", "192.0.2.2:27"], 0),
        ("::1,2001:db8::1", &["*:25", "[2001:db8::1]:26"], 1),
        ("::1,[2001:db8::1]:26", &["[2001:db8::1]:26"], 1),
    ] {
        let (found, text) = explained(&conf, &[], asked);
        assert_eq!(services(&text), expected, "{asked}");
        assert_eq!(found, status, "{asked}");
        // An empty line in between, and nowhere else.
        let empty = text.lines().filter(|line| line.is_empty()).count();
        assert_eq!(empty, expected.len() - 1, "{text}");
    }
    for asked in [
        "10.0.0.1,28",
        "10.0.0.1,192.0.2.9:27",
        "10.0.0.1,[2001:db8::2]:26",
    ] {
        let (status, text) = explained(&conf, &[], asked);
        assert_eq!(status, 1, "{asked}");
        assert_eq!(
            text,
            "service: none is configured for that address and port\n"
        );
    }
}

#[test]
fn upstreams_without_a_port_are_explained_with_the_one_that_is_reached() {
    let conf = Conf::new("port 25\nserver a b:26 ::1\n");
    let (_, text) = explained(&conf, &[], "10.0.0.1,25");
    assert_eq!(value(&text, "upstream"), "a:25 b:26 [::1]:25");
}

#[test]
fn a_server_that_is_named_on_the_command_line_is_explained_too() {
    let says = |arguments: &[&str]| Said::by(Command::new(TCPPROXY).args(arguments));
    let said = says(&[
        "--deny",
        "10.0.0.0/8",
        "-b",
        "25",
        "--explain",
        "10.1.2.3",
        "h:1",
    ]);
    assert_eq!((said.status, value(&said.out, "service")), (1, "-"));
    assert_eq!(
        value(&said.out, "rule"),
        "deny 10.0.0.0/8 (the command line)"
    );
    let said = says(&["--explain", "10.1.2.3,25", "h"]);
    assert_eq!((said.status, value(&said.out, "upstream")), (0, "h:25"));
    let said = says(&["--explain", "10.1.2.3", "/bin/x", "y"]);
    assert_eq!((said.status, value(&said.out, "handler")), (0, "/bin/x y"));
}

#[test]
fn without_root_the_user_is_who_asks_and_who_it_would_be_is_said() {
    needs_root();
    let mut command = Command::new(tool("setpriv"));
    command.args(["--reuid=1234", "--regid=1235", "--clear-groups", TCPPROXY]);
    let text = Said::by(command.args(["-u", "77", "--explain", "::1", "h:1"])).ok();
    assert_eq!(
        value(&text, "user"),
        "1234:1235 (started as root: 77:65534)"
    );
}

#[test]
fn what_is_no_address_is_a_usage_error() {
    let conf = Conf::new("port 25\nserver a\n");
    for asked in [
        "",
        "localhost",
        "192.0.2",
        "192.0.2.0/24",
        "192.0.2.1:25",
        "::1%lo",
        "unix,",
        "Unix",
        "::1,",
        "::1,x.example:25",
        "::1,70000",
        "::1,0",
        "::1,::1:25x",
        "::1,no-such-service",
        "::1,[::1",
        "::1,25,26",
    ] {
        let said = conf.says(&["--explain", asked]);
        let lines = said.refused(64);
        assert_eq!(lines.len(), 1, "{asked}");
        assert!(
            lines[0].starts_with("tcpproxy: option --explain: "),
            "{lines:?}"
        );
    }
    let said = conf.says(&["--explain", "::1", "--explain", "::1"]);
    assert_eq!(said.refused(64).len(), 1);
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
fn what_is_explained_is_what_happens() {
    needs_root();
    let patterns = [
        "ANY",
        "127.0.0.1",
        "127.0.0.2",
        "127.0.0.0/30",
        "127.0.0.4/255.255.255.252",
        "127.0.1.*",
        "127.0.?.9",
        "127.0.0.0/16",
        "127.1.0.0/16",
        "127.128.0.0/9",
        "::1",
        "::ffff:127.0.0.0/125",
        "10.*",
        "*.7",
    ];
    let clients = [
        "127.0.0.1",
        "127.0.0.2",
        "127.0.0.3",
        "127.0.0.7",
        "127.0.1.9",
        "127.1.2.3",
        "127.200.1.7",
        "127.0.0.66",
    ];
    let verdicts = |seed| {
        let mut numbers = Numbers(seed);
        let (mut admitted, mut refused) = (0, 0);
        for _ in 0..7 {
            let [first, second] = [(); 2].map(|()| free_port());
            let mut rules = |most: usize| -> String {
                let count = numbers.below(most + 1);
                let rule = |_| {
                    let kind = ["allow", "deny"][numbers.below(2)];
                    format!("{kind} {}\n", patterns[numbers.below(patterns.len())])
                };
                (0..count).map(rule).collect()
            };
            let conf = Conf::new(format!(
                "{}port {first}\nexec /bin/echo served\n{}port {second}\nexec /bin/echo served\n{}",
                rules(1),
                rules(3),
                rules(3)
            ));
            let conf_text = std::fs::read_to_string(conf.path()).unwrap();
            let server = conf.serve(2, &[]);
            for (client, port) in clients.iter().flat_map(|c| [(*c, first), (*c, second)]) {
                let asked = format!("{client},127.0.0.1:{port}");
                let (status, text) = explained(&server.conf, &[], &asked);
                let expected: &[u8] = match status {
                    0 => b"served\n",
                    _ => b"",
                };
                let answer = read_all(connect_from(client, ([127, 0, 0, 1], port).into()));
                assert_eq!(answer, expected, "{client}: {text}\n{conf_text}");
                *(if status == 0 {
                    &mut admitted
                } else {
                    &mut refused
                }) += 1;
                let rule = value(&text, "rule").split_once(" (");
                if let (1, Some((rule, _))) = (status, rule) {
                    server.process.log.wait_for(&format!("{rule} "));
                }
            }
        }
        assert!(admitted > 20 && refused > 20, "{admitted} and {refused}");
    };
    thread::scope(|scope| {
        scope.spawn(|| verdicts(0x9e37_79b9_7f4a_7c15));
        scope.spawn(|| verdicts(0x1234_5678_9abc_def1));
    });
}
