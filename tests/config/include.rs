//! `include`: which files are read, in which order, and what they belong to.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::harness::config_file::Conf;
use crate::harness::{Said, TCPPROXY, needs_root};

/// A configuration that is right: one service, on this port.
fn service(port: u16) -> String {
    format!("port {port}\nserver a\n")
}

#[test]
fn a_file_is_read_in_place_relative_to_the_one_that_includes_it() {
    let conf = Conf::new(format!(
        "include sub/first\n{}include sub/../sub/third\n",
        service(2)
    ))
    .with("sub/first", format!("{}include second\n", service(1)))
    .with("sub/second", service(11))
    .with("sub/third", service(3));
    assert_eq!(conf.says(&["-z"]).ok(), "*:1\n*:11\n*:2\n*:3\n");
    // From anywhere, and by an absolute name.
    let path = conf.path();
    let mut command = conf.command(&["-z", "-f", path.to_str().unwrap()]);
    assert_eq!(
        Said::by(command.current_dir("/")).ok(),
        "*:1\n*:11\n*:2\n*:3\n"
    );
    let absolute = conf.scratch().join("sub/third");
    let other = Conf::new(format!("include {}\n", absolute.display()));
    assert_eq!(other.says(&["-z"]).ok(), "*:3\n");
}

#[test]
fn a_pattern_reads_what_it_matches_in_sorted_order_and_no_dot_files() {
    let conf = Conf::new("include d/*.conf\n")
        .with("d/20-b.conf", service(20))
        .with("d/10-a.conf", service(10))
        .with("d/100-c.conf", service(100))
        .with("d/.15-editor.conf", "sever\n")
        .with("d/30-old.conf~", "sever\n")
        .with("d/sub/40.conf", "sever\n");
    assert_eq!(conf.says(&["-z"]).ok(), "*:10\n*:100\n*:20\n");
    for (pattern, expected) in [
        ("d/[12]0-?.conf", "*:10\n*:20\n"),
        ("d/1*.conf d/2*.conf", "*:10\n*:100\n*:20\n"),
        ("d/2*.conf d/1*.conf", "*:20\n*:10\n*:100\n"),
        ("./d//.///2*.conf", "*:20\n"),
        ("d/sub/../2*.conf", "*:20\n"),
    ] {
        let conf = conf_again(&conf, &format!("include {pattern}\n"));
        assert_eq!(conf.says(&["-z"]).ok(), expected, "{pattern}");
    }
    // Asked for by its dot, such a file is read.
    for pattern in ["d/.*.conf", "d/.15-*", "d/.15-editor.conf"] {
        let conf = conf_again(&conf, &format!("include {pattern}\n"));
        let said = conf.says(&["-z"]);
        let lines = said.refused(78);
        assert!(
            lines[0].starts_with("tcpproxy: d/.15-editor.conf:1:1: "),
            "{lines:?}"
        );
    }
}

#[test]
fn a_name_that_is_not_utf_8_matches_no_pattern_and_does_no_harm() {
    let conf = Conf::new("include d/*.conf\n").with("d/x.conf", service(1));
    let directory = conf.scratch().join("d");
    for name in [&b"\xff"[..], b"\xfe.conf", b".\xfd.conf"] {
        std::fs::write(directory.join(OsStr::from_bytes(name)), "sever\n").unwrap();
    }
    assert_eq!(conf.says(&["-z"]).ok(), "*:1\n");
}

/// The directory `d` of a configuration, seen from another file.
fn conf_again(conf: &Conf, text: &str) -> Conf {
    let again = Conf::new(text);
    symlink(conf.scratch().join("d"), again.scratch().join("d")).unwrap();
    again
}

#[test]
fn a_pattern_need_not_match_anything_but_a_plain_name_must_be_there() {
    assert_eq!(
        Conf::new("include none/*.conf\n").says(&["--check"]).ok(),
        "ok\n"
    );
    for (text, at) in [
        ("include none\n", "1:9"),
        ("port 25\nserver a\n include none.conf\n", "3:10"),
    ] {
        let said = Conf::new(text).says(&["--check"]);
        let lines = said.refused(78);
        assert_eq!(lines.len(), 1);
        let start = format!("tcpproxy: conf:{at}: none");
        assert!(lines[0].starts_with(&start), "{lines:?}");
        assert!(
            lines[0].ends_with(" cannot be read: No such file or directory"),
            "{lines:?}"
        );
    }
    // In quotes it is no pattern.
    let quoted = Conf::new("include \"d/*\"\n")
        .with("d/*", service(1))
        .with("d/x", "sever\n");
    assert_eq!(quoted.says(&["-z"]).ok(), "*:1\n");
    let said = Conf::new("include [\n").says(&["--check"]);
    assert!(
        said.refused(78)[0].contains("'[' is not a pattern"),
        "{said:?}"
    );
    let said = Conf::new("include\n").says(&["--check"]);
    assert!(
        said.refused(78)[0].contains("include needs a value"),
        "{said:?}"
    );
}

#[test]
fn a_cycle_is_an_error_at_the_line_that_closes_it() {
    for (conf, expected) in [
        (
            Conf::new("include conf\n"),
            "conf:1:9: conf includes itself",
        ),
        (
            Conf::new("include b\n")
                .with("b", "\ninclude c\n")
                .with("c", "include b\n"),
            "c:1:9: b includes itself",
        ),
        (
            Conf::new("include d/*\n").with("d/x", "include x\n"),
            "d/x:1:9: d/x includes itself",
        ),
    ] {
        let said = conf.says(&["--check"]);
        assert_eq!(said.refused(78), [format!("tcpproxy: {expected}")]);
    }
    // Through links, or around corners, it is not known for one, but it ends.
    for path in ["./conf", "link"] {
        let conf = Conf::new(format!("include {path}\n"));
        symlink("conf", conf.scratch().join("link")).unwrap();
        let said = conf.says(&["--check"]);
        let lines = said.refused(78);
        assert!(lines.len() == 1, "{lines:?}");
        assert!(
            lines[0].contains("includes itself") || lines[0].contains("files deep"),
            "{lines:?}"
        );
    }
}

#[test]
fn one_file_may_be_read_twice_and_its_services_then_clash() {
    let conf = Conf::new("include x x\n").with("x", service(25));
    let said = conf.says(&["--check"]);
    let expected = "tcpproxy: x:1:1: *:25 is served already: at x:1:1";
    assert_eq!(said.refused(78), [expected]);
    let defaults =
        Conf::new("port 1\ninclude x\nport 2\ninclude x\n").with("x", "server a\ntimeout 7\n");
    assert_eq!(defaults.says(&["-z"]).ok(), "*:1\n*:2\n");
}

#[test]
fn an_included_file_belongs_to_the_scope_it_stands_in_and_leaves_its_own_open() {
    let conf = Conf::new("port 1\ninclude action\ninclude next\ntimeout 8\n")
        .with("action", "server a\ntimeout 7\n")
        .with("next", "port 2\nserver b\n");
    let text = conf.says(&["-zz"]).ok();
    let (first, second) = text.split_once("\nbind *:2\n").unwrap();
    assert!(
        first.contains("    server a\n") && first.contains("    timeout 7\n"),
        "{text}"
    );
    assert!(
        second.contains("    server b\n") && second.contains("    timeout 8\n"),
        "{text}"
    );
}

#[test]
fn problems_in_included_files_are_all_reported_with_their_own_places() {
    let conf = Conf::new("include d/*\nsever\n")
        .with("d/a", "\n  sever\n")
        .with("d/b", "port 25\n")
        .with("d/c", "port 25\nserver x\nport 25\nserver y\n");
    let said = conf.says(&["--check"]);
    let mut lines = said.refused(78);
    lines.sort_unstable();
    let starts = [
        "tcpproxy: conf:2:1: unknown directive 'sever'",
        "tcpproxy: d/a:2:3: unknown directive 'sever'",
        "tcpproxy: d/b:1:1: has neither server nor exec",
        "tcpproxy: d/c:3:1: *:25 is served already: at d/c:1:1",
    ];
    assert_eq!(lines.len(), starts.len(), "{lines:#?}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn what_is_no_regular_file_is_refused_at_once_and_named() {
    needs_root();
    let conf = Conf::new("include fifo\n").with("directory/x", "");
    let fifo = conf.scratch().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let _socket = UnixListener::bind(conf.scratch().join("socket")).unwrap();
    let as_file = |name: &str, what: &str| {
        for arguments in [&["--check"][..], &[], &["-zz"]] {
            let said = Said::by(&mut conf.command(&[&["-f", name], arguments].concat()));
            let expected = format!(
                "tcpproxy: {name}:1:1: cannot be read: it is {what}: a configuration is a regular \
                 file, which can be read again"
            );
            assert_eq!(said.refused(78), [expected], "{arguments:?}");
        }
    };
    as_file("fifo", "a pipe");
    as_file("directory", "a directory");
    as_file("socket", "a socket");
    as_file("/dev/zero", "a device");
    as_file("/proc/kmsg", "one that the kernel makes up (proc(5))");
    let said = conf.says(&["--check"]);
    let included = "tcpproxy: conf:1:9: fifo cannot be read: it is a pipe: ";
    assert!(said.refused(78)[0].starts_with(included), "{said:?}");
    // As bash writes it; and a regular file that is standard input.
    let by_bash = |words: &str| {
        let script = format!("{TCPPROXY} --check {words}");
        Said::by(
            Command::new("bash")
                .args(["-c", &script])
                .current_dir(conf.scratch().path()),
        )
    };
    let said = by_bash("-f <(echo port 25)");
    assert!(said.refused(78)[0].contains("it is a pipe: "), "{said:?}");
    assert_eq!(by_bash("-f /dev/stdin < directory/x").ok(), "ok\n");
}
