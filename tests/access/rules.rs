//! Access rules, as clients of either family meet them.

use std::net::TcpStream;
use std::process::{Command, Stdio};

use crate::harness::upstreams::Forbidden;
use crate::harness::{
    Running, Scratch, Standalone, TCPPROXY, field, free_port, needs_root, patient, read_all,
    under_inetd,
};

const SERVED: &[u8] = b"served\n";

/// What a client from 127.0.0.1 reads from a handler behind these rules.
fn answer_to(rules: &[&str]) -> Vec<u8> {
    let arguments = [rules, &["/bin/echo", "served"]].concat();
    let (client, child) = under_inetd(&arguments);
    let log = crate::harness::Lines::default();
    let _server = Running { child, log };
    read_all(client)
}

/// Forms that match 127.0.0.1, and forms that do not.
const MATCHING: [&str; 12] = [
    "ANY",
    "127.0.0.1",
    "127.0.0.1/32",
    "127.0.0.0/8",
    "127.255.255.255/8",
    "0.0.0.0/0",
    "127.0.0.0/255.0.0.0",
    "127.0.0.1/255.255.255.255",
    "127.*",
    "127.0.0.?",
    "*",
    "::ffff:127.0.0.1",
];
const OTHERS: [&str; 10] = [
    "127.0.0.2",
    "127.0.0.2/32",
    "10.0.0.0/8",
    "128.0.0.0/1",
    "127.1.0.0/255.255.0.0",
    "::1",
    "::/0",
    "127.0.0.1?",
    "27.*",
    "*:*",
];

#[test]
fn a_deny_refuses_whom_it_matches_and_nobody_else() {
    needs_root();
    for rule in MATCHING {
        assert_eq!(answer_to(&["--deny", rule]), b"", "{rule}");
    }
    for rule in OTHERS {
        assert_eq!(answer_to(&["--deny", rule]), SERVED, "{rule}");
    }
}

#[test]
fn where_there_are_allows_one_must_match() {
    needs_root();
    for rule in MATCHING {
        let rules = ["--allow", "10.0.0.1", "--allow", rule];
        assert_eq!(answer_to(&rules), SERVED, "{rule}");
    }
    for rule in OTHERS {
        assert_eq!(answer_to(&["--allow", rule]), b"", "{rule}");
    }
}

#[test]
fn a_deny_refuses_in_whatever_order_and_whatever_allows() {
    needs_root();
    for rules in [
        ["--allow", "ANY", "--deny", "127.0.0.1"],
        ["--deny", "127.0.0.1", "--allow", "ANY"],
        ["--deny", "ANY", "--allow", "127.0.0.1"],
    ] {
        assert_eq!(answer_to(&rules), b"", "{rules:?}");
    }
    let rules = ["--allow", "127.0.0.0/8", "--deny", "127.0.0.2"];
    assert_eq!(answer_to(&rules), SERVED);
}

/// A listener for both families that starts a handler.
fn dual_stack(rules: &[&str]) -> (Running, u16) {
    let port = free_port();
    let mut command = Command::new(TCPPROXY);
    command.args(["--log", "stderr", "-b", &format!("[::]:{port}")]);
    command.args(rules).args(["/bin/echo", "served"]);
    let server = Running::start(command.stdin(Stdio::null()));
    server.log.wait_for("listening on ");
    (server, port)
}

#[test]
fn an_ipv4_client_of_an_ipv6_listener_is_compared_as_ipv4() {
    needs_root();
    for rule in [
        "127.0.0.1",
        "127.0.0.0/8",
        "127.0.0.0/255.255.255.0",
        "127.0.0.?",
        "127.*",
        "::ffff:127.0.0.1",
        "::ffff:0:0/96",
    ] {
        let (server, port) = dual_stack(&["--deny", rule]);
        let v4 = patient(TcpStream::connect(("127.0.0.1", port)).unwrap());
        assert_eq!(read_all(v4), b"", "{rule}");
        let closed = server.log.wait_for("session 1 closed: ");
        assert_eq!(field(&closed, "reason"), "denied-by-rule", "{rule}");
        assert!(field(&closed, "client").starts_with("127.0.0.1:"));
        let v6 = patient(TcpStream::connect(("::1", port)).unwrap());
        assert_eq!(read_all(v6), SERVED, "{rule}");
    }
    // No rule for IPv6 is one for IPv4.
    for rule in ["::/0", "::ffff:*", "*:*"] {
        let (_server, port) = dual_stack(&["--deny", rule]);
        let v4 = patient(TcpStream::connect(("127.0.0.1", port)).unwrap());
        assert_eq!(read_all(v4), SERVED, "{rule}");
    }
}

#[test]
fn ipv6_clients_are_compared_by_network_and_by_text() {
    needs_root();
    for rule in ["::1", "::1/128", "::/64", "0:0::0:1", "::?", "*:*", "ANY"] {
        let (_server, port) = dual_stack(&["--deny", rule]);
        let v6 = patient(TcpStream::connect(("::1", port)).unwrap());
        assert_eq!(read_all(v6), b"", "{rule}");
    }
    for rule in [
        "::2",
        "::2/128",
        "fe80::/10",
        "127.0.0.1",
        "0.0.0.0/0",
        "1*",
    ] {
        let (_server, port) = dual_stack(&["--deny", rule]);
        let v6 = patient(TcpStream::connect(("::1", port)).unwrap());
        assert_eq!(read_all(v6), SERVED, "{rule}");
    }
}

#[test]
fn the_access_program_is_not_asked_about_a_client_that_a_rule_refuses() {
    needs_root();
    let scratch = Scratch::new();
    let asked = scratch.join("asked");
    let program = format!("/usr/bin/touch {}", asked.display());
    let upstream = Forbidden::new();
    let name = upstream.name();
    for rules in [["--deny", "127.0.0.1"], ["--allow", "10.0.0.1"]] {
        let arguments = [&rules[..], &["--acp", &program, &name]].concat();
        let proxy = Standalone::start(&arguments);
        assert_eq!(read_all(proxy.connect()), b"", "{rules:?}");
        assert_eq!(field(&proxy.closed(), "reason"), "denied-by-rule");
        assert!(!asked.exists(), "{rules:?}");
    }
    upstream.assert_untouched();

    // It is asked about one that they let pass, and has the last word.
    let proxy = Standalone::start(&["--allow", "ANY", "--acp", &program, "/bin/echo", "served"]);
    assert_eq!(read_all(proxy.connect()), SERVED);
    assert!(asked.exists());
}

#[test]
fn the_log_names_the_rule_that_refused() {
    needs_root();
    for (rules, why) in [
        (&["--deny", "10.0.0.1", "--deny", "127.*"][..], "deny 127.*"),
        (&["--allow", "10.0.0.1"], "no allow rule matches"),
    ] {
        let proxy = Standalone::start(&[rules, &["127.0.0.1:1"]].concat());
        assert_eq!(read_all(proxy.connect()), b"");
        assert_eq!(field(&proxy.closed(), "reason"), "denied-by-rule");
        let line = proxy.process.log.wait_for("denied by rule");
        assert!(line.contains(why), "{line}");
    }
}
