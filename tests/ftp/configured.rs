//! What may be written about FTP, and what is said where it may not.

use std::process::Command;

use crate::harness::config_file::Conf;
use crate::harness::{Said, TCPPROXY};

#[track_caller]
fn refused(arguments: &[&str], status: i32, expected: &str) {
    let said = Said::by(Command::new(TCPPROXY).args(arguments));
    let lines = said.refused(status);
    assert!(lines.len() == 1 && lines[0].contains(expected), "{lines:?}");
}

#[test]
fn wrong_values_say_what_would_be_right() {
    for (option, value, expected) in [
        ("--helper", "ftps", "'ftps'"),
        ("--ftp-address", "::1", "'::1' is not an IPv4 address"),
        ("--ftp-address", "host", "'host' is not an IPv4 address"),
        ("--ftp-ports", "50000", "write FIRST-LAST"),
        ("--ftp-ports", "50001-50000", "write FIRST-LAST"),
        ("--ftp-ports", "1000-2000", "each of 1024 to 65535"),
        ("--ftp-ports", "50000-65536", "write FIRST-LAST"),
        ("--ftp-data-timeout", "0", "above 0"),
    ] {
        let arguments = ["-b", "127.0.0.1:0", option, value, "192.0.2.1:21"];
        refused(&arguments, 64, &format!("option {option}: "));
        refused(&arguments, 64, expected);
    }
}

#[test]
fn a_handler_a_unix_upstream_or_the_clients_address_cannot_be_helped() {
    let helped = |server| ["-b", "127.0.0.1:0", "--helper", "ftp", server];
    refused(
        &helped("/bin/cat"),
        64,
        "option --helper: ftp cannot go with a handler",
    );
    refused(
        &helped("unix:/run/ftp"),
        64,
        "option --helper: ftp cannot go with a unix upstream",
    );
    let conf = Conf::new(
        "port 2121\n    exec /bin/cat\n    helper ftp\n\
         port 2122\n    server 192.0.2.1 unix:/run/ftp\n    helper ftp\n\
         port 2123\n    server 192.0.2.1\n    helper ftp\n    source client\n\
         port 2124\n    server 192.0.2.1\n    helper ftp\n    via socks5://192.0.2.9\n",
    );
    let said = conf.says(&["--check"]);
    let lines = said.refused(78);
    assert_eq!(lines.len(), 4, "{lines:?}");
    for (line, expected) in lines.iter().zip([
        "conf:3:5: helper: ftp cannot go with a handler",
        "conf:6:5: helper: ftp cannot go with a unix upstream",
        "conf:9:5: helper: ftp cannot go with source client",
        "conf:13:5: helper: ftp cannot go with via",
    ]) {
        assert!(line.contains(expected), "{line}");
    }
    // What the command line adds to the defaults is found too.
    let conf = Conf::new("port 2121\n    exec /bin/cat\n");
    let said = conf.says(&["--helper", "ftp", "--check"]);
    let lines = said.refused(78);
    assert!(
        lines[0].contains("conf:1:1: helper: ftp cannot go with a handler"),
        "{lines:?}"
    );
}

#[test]
fn a_service_need_not_be_helped_as_others_are() {
    let conf = Conf::new(
        "helper ftp\nftp-ports 50000-50009\nftp-address 192.0.2.9\nftp-data-timeout 90\n\
         port 2121\n    server 192.0.2.1\nport 2122\n    exec /bin/cat\n    helper no\n",
    );
    assert_eq!(conf.says(&["--check"]).ok(), "ok\n");
    let printed = conf.says(&["-zz"]).ok();
    let (first, second) = printed.split_once("bind *:2122").unwrap();
    for line in [
        "    helper ftp\n",
        "    ftp-address 192.0.2.9\n",
        "    ftp-ports 50000-50009\n",
        "    ftp-data-timeout 90\n",
    ] {
        assert!(first.contains(line), "{line}{printed}");
    }
    assert!(second.contains("    helper no\n"), "{printed}");
    // What is printed means the same.
    assert_eq!(Conf::new(&printed).says(&["-zz"]).ok(), printed);
}

#[test]
fn explain_names_the_helper() {
    let conf = Conf::new("port 2121\n    server 192.0.2.1\n    helper ftp\n");
    let said = conf.says(&["--explain", "192.0.2.7"]).ok();
    assert!(said.contains("\nhelper: ftp\n"), "{said}");
}
