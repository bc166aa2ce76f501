//! What cannot be reached through a proxy, and where that is said.

use std::process::Command;

use crate::harness::config_file::Conf;
use crate::harness::{Said, TCPPROXY};

const WHY: &str = "a unix-domain socket cannot be reached through a proxy, and via has one";
const RIGHT: &str = "write via no where it is to be reached";

#[test]
fn a_unix_upstream_is_an_error_where_it_is_named() {
    for (text, complaints) in [
        (
            "via http://p\nport 25\n  server a unix:/x\n",
            &["3:3: server unix:/x: WHY (conf:1:1)"][..],
        ),
        (
            "port 25\nserver unix:/x\nvia socks5://p\nport 26\nserver unix:/y\n",
            &["2:1: server unix:/x: WHY (conf:3:1)"],
        ),
        (
            "via http://p\nport 25\nserver unix:/x\nport 26\nserver unix:/y\n",
            &[
                "3:1: server unix:/x: WHY (conf:1:1)",
                "5:1: server unix:/y: WHY (conf:1:1)",
            ],
        ),
    ] {
        let said = Conf::new(text).says(&["--check"]);
        let expected: Vec<String> = complaints
            .iter()
            .map(|line| format!("tcpproxy: conf:{}: {RIGHT}", line.replace("WHY", WHY)))
            .collect();
        assert_eq!(said.refused(78), expected, "{text}");
    }
    // The option's proxy is that of the file's services, too.
    let conf = Conf::new("port 25\nserver unix:/x\n");
    let said = conf.says(&["--check", "--via", "http://p"]);
    let expected = format!("tcpproxy: conf:2:1: server unix:/x: {WHY} (the command line): {RIGHT}");
    assert_eq!(said.refused(78), [expected]);
    assert_eq!(conf.says(&["--check"]).ok(), "ok\n");
    let said = Said::by(Command::new(TCPPROXY).args(["--via=http://p", "unix:/x", "--check"]));
    let expected = format!("tcpproxy: server unix:/x: {WHY} (the command line): {RIGHT}");
    assert_eq!(said.refused(64), [expected]);
}

#[test]
fn a_service_says_no_to_the_proxy_of_the_defaults() {
    let conf = Conf::new(
        "via http://p\n\
         port 25\nserver a\n\
         port 26\nvia no\nserver unix:/x\n\
         interface 127.0.0.1\nvia socks5://q\nserver b\n",
    );
    assert_eq!(conf.says(&["--check"]).ok(), "ok\n");
    let printed = conf.says(&["-zz"]).ok();
    let vias: Vec<&str> = printed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("via "))
        .collect();
    assert_eq!(vias, ["http://p:3128", "no", "socks5://q:1080"]);
    // Read again, it is the same.
    assert_eq!(Conf::new(&printed).says(&["-zz"]).ok(), printed);
    let text = conf.says(&["--explain", "::1,127.0.0.1:26"]).ok();
    assert!(
        text.ends_with("\nupstream: b:26\nvia: socks5://q:1080\n"),
        "{text}"
    );
    let text = conf.says(&["--explain", "::1,127.0.0.2:26"]).ok();
    assert!(text.ends_with("\nupstream: unix:/x\n"), "{text}");
}
