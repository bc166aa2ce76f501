//! The configuration file as an administrator meets it: what is listed and said about it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use tcpproxy::settings::{SETTINGS, Scope};

use crate::harness::config_file::{Conf, Configured};
use crate::harness::namespaces::{privately, run};
use crate::harness::upstreams::Upstream;
use crate::harness::{Said, Scratch, TCPPROXY, needs_root, tool};

#[test]
fn listeners_are_listed_in_order_as_numbers_with_brackets_and_an_asterisk_for_any() {
    let conf = Conf::new(
        "port smtp\n server a\n\
         bind [::1]:7001\n server a\n\
         port 7002\n interface lo\n server a\n interface 2001:DB8::0:1\n server a\n\
         interface no.such.host.invalid\n server a\n\
         port 7003\n server a\n interface 127.0.0.2\n\
         bind 7004\n server a\n\
         bind *:7005\n server a\n\
         port 7006\n interface [fe80::1%lo]\n server a\n\
         port 7000\n server a\n",
    );
    let expected = [
        "*:25",
        "[::1]:7001",
        "lo:7002",
        "[2001:db8::1]:7002",
        "no.such.host.invalid:7002",
        "*:7003",
        "127.0.0.2:7003",
        "*:7004",
        "*:7005",
        "[fe80::1%lo]:7006",
        "*:7000",
    ];
    for option in [&["-z"][..], &["--list"]] {
        let listed = conf.says(option).ok();
        assert_eq!(listed.lines().collect::<Vec<_>>(), expected, "{option:?}");
    }
}

#[test]
fn the_check_says_every_problem_in_a_line_of_its_own_with_its_place() {
    let conf = Conf::new(
        "sever a\n\
         timeout x\n\
         \u{a0}\tuser root\n\
         port 70000\n\
         port 25\n\
         \x20 timeout 1\n\
         \x20 timeout 2\n\
         \x20 standalone no\n\
         \x20 server a b 'c\n\
         port 26\n\
         \x20 é \n\
         \x20 server a \n\
         \x20 exec /b\n\
         \x20 log-level inof\n\
         include none\n",
    );
    let said = conf.says(&["--check"]);
    let expected = [
        "1:1: unknown directive 'sever' (did you mean 'server'?)",
        "2:9: timeout: 'x' is not a time: write seconds",
        "3:8: user: ",
        "4:1: port 70000 is out of range: write 1 to 65535",
        "7:3: timeout stands here twice: first at conf:6:3",
        "8:3: standalone belongs before the first port",
        "9:14: a quote is opened and not closed on its line",
        "5:1: has neither server nor exec: write one of them",
        "11:3: unknown directive 'é' (see tcpproxy.conf(5))",
        "13:3: server and exec exclude each other: server is at conf:12:3",
        "14:3: log-level belongs before the first port",
        "15:9: none cannot be read: No such file or directory",
    ];
    let lines = said.refused(78);
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    let mut unmatched: BTreeSet<&str> = lines.iter().copied().collect();
    for expected in expected {
        let start = format!("tcpproxy: conf:{expected}");
        let matching = unmatched
            .iter()
            .find(|line| line.starts_with(&start))
            .copied();
        let line = matching.unwrap_or_else(|| panic!("no {start} in {lines:#?}"));
        unmatched.remove(line);
    }
}

#[test]
fn a_start_that_a_file_prevents_says_one_line() {
    let conf = Conf::new("sever a\ntimeout x\nport\n");
    for arguments in [&[][..], &["-s"], &["-z"], &["-zz"], &["--explain", "::1"]] {
        let said = conf.says(arguments);
        assert_eq!(
            said.refused(78),
            [
                "tcpproxy: conf:1:1: unknown directive 'sever' (did you mean 'server'?) \
              (and 2 more: --check shows them)"
            ],
            "{arguments:?}"
        );
    }
    // What says most comes first, wherever it stands.
    for (text, first, more) in [
        (
            "port 25\nport 26\n server a\n timeout x\n",
            "4:10: timeout: 'x' is not a time",
            1,
        ),
        (
            "port 25\nport 26\n sever a\n",
            "3:2: unknown directive 'sever'",
            1,
        ),
        ("server a\nport 25\n server b\nuid root\n", "4:5: uid: ", 1),
        (
            "port 25\nport 26\n server a\nport 26\n server b\n",
            "4:1: *:26 is served already: at conf:2:1",
            1,
        ),
    ] {
        let said = Conf::new(text).says(&[]);
        let line = said.refused(78).concat();
        assert!(
            line.starts_with(&format!("tcpproxy: conf:{first}")),
            "{line}"
        );
        assert!(
            line.ends_with(&format!("(and {more} more: --check shows them)")),
            "{line}"
        );
    }
    let one = Conf::new("timeout x\n");
    let said = one.says(&[]);
    let lines = said.refused(78);
    assert!(lines.len() == 1 && !lines[0].contains("more"), "{lines:?}");
}

#[test]
fn what_clashes_is_named_at_both_places() {
    for (text, at, earlier) in [
        ("port 25\nserver a\nport 25\nserver b\n", "3:1", "1:1"),
        ("port 25\nserver a\nbind *:25\nserver b\n", "3:1", "1:1"),
        ("port smtp\nserver a\nport 25\nserver b\n", "3:1", "1:1"),
        (
            "port 25\n interface ::1\n server a\n interface [0::1]\n server b\n",
            "4:2",
            "2:2",
        ),
        (
            "bind 127.0.0.1:25\nserver a\nport 25\ninterface 127.0.0.1\nserver b\n",
            "4:1",
            "1:1",
        ),
        ("port 25\nserver a\nexec /b\n", "3:1", "2:1"),
        ("port 25\nexec /b\nserver a\n", "3:1", "2:1"),
        ("port 25\nexec /b\nexec /c\n", "3:1", "2:1"),
        ("timeout 1\ntimeout 1\n", "2:1", "1:1"),
        ("uid 77\n user 77\n", "2:2", "1:1"),
        ("port 25\nserver a\n writefile x\n write y\n", "4:2", "3:2"),
        ("clear-env\nclear-env no\n", "2:1", "1:1"),
        ("pidfile\npidfile /p\n", "2:1", "1:1"),
    ] {
        let said = Conf::new(text).says(&["--check"]);
        let lines = said.refused(78);
        assert_eq!(lines.len(), 1, "{text}: {lines:#?}");
        assert!(
            lines[0].starts_with(&format!("tcpproxy: conf:{at}: ")),
            "{text}: {lines:?}"
        );
        // Which, where an address and a port do.
        assert!(
            !lines[0].contains("served already") || lines[0].contains(":25 is served already"),
            "{text}: {lines:?}"
        );
        assert!(
            lines[0].contains(&format!("at conf:{earlier}")),
            "{text}: {lines:?}"
        );
    }
    let conf = Conf::new("timeout 1\ninclude other\n").with("other", "\n  timeout 2\n");
    let said = conf.says(&["--check"]);
    let expected = "tcpproxy: other:2:3: timeout stands here twice: first at conf:1:1";
    assert_eq!(said.refused(78), [expected]);
}

#[test]
fn two_names_for_one_address_are_found_at_the_start() {
    let port = crate::harness::free_port();
    let conf = Conf::new(format!(
        "port {port}\n interface 127.0.0.1\n server a\n interface lo\n server b\n"
    ));
    assert_eq!(conf.says(&["--check"]).ok(), "ok\n");
    let expected = format!("conf:4:2: lo:{port} is served already: at conf:2:2");
    for arguments in [&["-s", "--log", "file:log"][..], &["--log", "file:log"]] {
        let said = conf.says(arguments);
        assert_eq!(said.refused(78), [format!("tcpproxy: {expected}")]);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_said_with_its_name() {
    needs_root();
    let conf = Conf::new("port 25\nserver a\n");
    fs::create_dir(conf.scratch().join("dir")).unwrap();
    for (file, why) in [
        ("none", "No such file or directory"),
        (
            "dir",
            "it is a directory: a configuration is a regular file, which can be read again",
        ),
        ("conf/x", "Not a directory"),
    ] {
        for more in [&[][..], &["--check"], &["-z"], &["-b", "0", "h:1"]] {
            let said = Said::by(&mut conf.command(&[&["-f", file], more].concat()));
            let expected = format!("tcpproxy: {file}:1:1: cannot be read: {why}");
            assert_eq!(said.refused(78), [expected], "{more:?}");
        }
    }
    fs::set_permissions(conf.path(), fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = Command::new(tool("setpriv"));
    command.args(["--reuid=65535", "--regid=65534", "--clear-groups", TCPPROXY]);
    let said = Said::by(command.arg("--check").arg("-f").arg(conf.path()));
    let lines = said.refused(78);
    assert!(lines.len() == 1 && lines[0].ends_with("cannot be read: Permission denied"));
}

#[test]
fn what_is_no_text_is_refused_where_it_stops_being_one() {
    for (bytes, expected) in [
        (&b"port 25\nserver \xff\n"[..], "conf:2:8: is not UTF-8"),
        (b"timeout 1\0\n", "conf:1:9: a NUL character"),
        (b"\x7fELF\x02\x01", "conf:1:1: unknown directive"),
    ] {
        let conf = Conf::new(bytes);
        let said = conf.says(&["--check"]);
        let lines = said.refused(78);
        assert!(
            lines.iter().any(|line| line.contains(expected)),
            "{lines:?}"
        );
        // Nothing of it reaches a terminal as it is.
        assert!(
            !lines.iter().any(|line| line.contains(char::is_control)),
            "{lines:?}"
        );
    }
    let marked = Conf::new("\u{feff}port 25\r\nserver a\r\n");
    assert_eq!(marked.says(&["-z"]).ok(), "*:25\n");
}

#[test]
fn both_options_for_the_file_are_the_same() {
    let conf = Conf::new("timeout 7\nport 25\nserver a\n");
    let expected = conf.says(&["-zz"]).ok();
    assert!(expected.contains("bind *:25\n"), "{expected}");
    for form in [
        &["-c", "conf"][..],
        &["-cconf"],
        &["--config", "conf"],
        &["--config=conf"],
    ] {
        let said = Said::by(&mut conf.command(&[form, &["-zz"]].concat()));
        assert_eq!(said.ok(), expected, "{form:?}");
    }
    assert_eq!(Said::by(&mut conf.command(&["-zfconf"])).ok(), "*:25\n");
    let twice = Said::by(&mut conf.command(&["-f", "conf", "-c", "conf", "-z"]));
    assert_eq!(twice.refused(64).len(), 1);
}

#[test]
fn without_a_server_the_file_in_etc_is_read() {
    privately(|| {
        // A copy of /etc, in which there can be such a file without anybody else's seeing it.
        let copy = Scratch::new();
        run("cp", &["-a", "/etc/.", copy.path().to_str().unwrap()]);
        run("mount", &["--bind", copy.path().to_str().unwrap(), "/etc"]);
        let file = copy.join("tcpproxy.conf");
        let _ = fs::remove_file(&file);
        let says = |arguments: &[&str]| Said::by(Command::new(TCPPROXY).args(arguments));

        for arguments in [
            &[][..],
            &["-s"],
            &["--check"],
            &["-z"],
            &["--explain", "::1"],
        ] {
            let said = says(arguments);
            let lines = said.refused(64);
            assert_eq!(lines.len(), 1, "{lines:?}");
            let expected = "tcpproxy: no server given, and there is no /etc/tcpproxy.conf: write ";
            assert!(lines[0].starts_with(expected), "{lines:?}");
        }

        let port = crate::harness::free_port();
        fs::write(&file, format!("port {port}\nexec /bin/echo from etc\n")).unwrap();
        assert_eq!(says(&["--check"]).ok(), "ok\n");
        assert_eq!(says(&["-z"]).ok(), format!("*:{port}\n"));
        let server = Configured {
            conf: Conf::new(""),
            process: crate::harness::Running::start(
                Command::new(TCPPROXY).args(["--log", "stderr"]),
            ),
        };
        server.process.log.wait_for("listening on ");
        assert_eq!(server.answer("127.0.0.1", port), "from etc\n");

        // With a server, or another file, it does not matter what it says.
        fs::write(&file, "sever\n").unwrap();
        let upstream = Upstream::new(drop);
        assert_eq!(says(&["--check", &upstream.name()]).ok(), "ok\n");
        let other = Conf::new("port 25\nserver a\n");
        assert_eq!(other.says(&["-z"]).ok(), "*:25\n");
        assert_eq!(says(&["--check"]).refused(78).len(), 1);

        // One that is there and cannot be read is not taken for none.
        fs::remove_file(&file).unwrap();
        symlink("/nowhere", &file).unwrap();
        let said = says(&[]);
        let expected =
            "tcpproxy: /etc/tcpproxy.conf:1:1: cannot be read: No such file or directory";
        assert_eq!(said.refused(78), [expected]);
    });
}

#[test]
fn the_manual_has_an_item_for_every_directive_and_for_no_other() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/man/tcpproxy.conf.5");
    let page = fs::read_to_string(path).unwrap();
    let mut found = Vec::new();
    for item in page.lines().filter_map(|line| line.strip_prefix(".It Ic ")) {
        found.extend(
            item.split(" , Ic ")
                .map(|part| part.split(' ').next().unwrap()),
        );
    }
    let settings = SETTINGS
        .iter()
        .filter(|setting| setting.scope != Scope::CommandLine);
    let mut expected: Vec<&str> = settings
        .flat_map(|setting| [Some(setting.name), setting.directive])
        .flatten()
        .chain(["port", "interface", "bind", "server", "exec", "include"])
        .collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
}
