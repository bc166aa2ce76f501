//! User and password: told to the proxy, and shown to nobody else.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::harness::config_file::Conf;
use crate::harness::forward_proxies::Scripted;
use crate::harness::processes::only_child;
use crate::harness::reloading::Reloadable;
use crate::harness::{
    Running, Said, Scratch, Standalone, TCPPROXY, field, free_port, needs_root, patient, read_all,
    under_inetd,
};

/// Of `some user:sec:ret`.
const BASIC: &str = "\r\nProxy-Authorization: Basic c29tZSB1c2VyOnNlYzpyZXQ=\r\n";
const IN_URL: &str = "some%20user:sec%3Aret";

/// A proxy that says no to everybody, once it has heard who they are.
fn refusing() -> Scripted {
    Scripted::new(|asked, _| {
        asked.connect();
        asked.say("HTTP/1.1 407 No\r\n\r\n");
    })
}

fn url(proxy: &Scripted) -> String {
    proxy.http().replace("//", &format!("//{IN_URL}@"))
}

#[test]
fn an_http_proxy_is_told_them_in_each_request() {
    let proxy = refusing();
    let server = Standalone::start(&["--via", &url(&proxy), "mail:25"]);
    assert_eq!(read_all(server.connect()), b"");
    let requests = proxy.requests();
    assert!(requests[0].contains(BASIC), "{requests:?}");
    server
        .process
        .log
        .wait_for("it answered 'HTTP/1.1 407 No': it does not take this user and password");
}

#[test]
fn a_socks_proxy_is_told_them_where_it_asks() {
    for version in [1, 5] {
        let proxy = Scripted::new(move |asked, _| {
            assert_eq!(asked.read(4), [5, 2, 0, 2]);
            asked.say([5, 2]);
            assert_eq!(asked.read(19), b"\x01\x09some user\x07sec:ret");
            asked.say([version, 0]);
            asked.socks_request();
            asked.say(b"\x05\0\0\x01\0\0\0\0\0\0hello");
        });
        let url = proxy.socks().replace("//", &format!("//{IN_URL}@"));
        let server = Standalone::start(&["--via", &url, "mail:25"]);
        assert_eq!(read_all(server.connect()), b"hello");
    }
    let proxy = Scripted::new(|asked, _| {
        asked.read(4);
        asked.say([5, 0xff]);
    });
    let url = proxy.socks().replace("//", &format!("//{IN_URL}@"));
    let server = Standalone::start(&["--via", &url, "mail:25"]);
    assert_eq!(read_all(server.connect()), b"");
    let words = "it said no: it wants something else than a user and a password";
    server.process.log.wait_for(words);
}

#[test]
fn the_password_is_in_no_line_and_not_in_the_command_line() {
    let proxy = refusing();
    for (arguments, shown) in [
        (vec!["--via".to_owned(), url(&proxy)], ""),
        (vec![format!("--via={}", url(&proxy))], "--via="),
    ] {
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        arguments.extend(["--log-level", "debug", "-l", "some-name", "mail.example:25"]);
        let mut server = Standalone::start(&arguments);
        let shown = format!("{shown}http://some%20user:***@{}\0", proxy.address);
        let client = server.connect();
        let line = fs::read_to_string(format!("/proc/{}/cmdline", server.process.pid())).unwrap();
        assert!(line.contains(&shown), "{line}");
        assert!(!line.contains("sec"), "{line}");
        // What stands behind it is as it was.
        assert!(
            line.contains("\0--log-level\0debug\0-l\0some-name\0mail.example:25\0"),
            "{line}"
        );
        assert_eq!(read_all(client), b"");
        server.closed();
        server.process.signal(Signal::SIGUSR1);
        server.process.log.wait_for("sessions: live=");
        server.process.signal(Signal::SIGTERM);
        server.process.status();
        let all = server.process.log.all();
        let notice = format!("through http://some%20user:***@{}: ", proxy.address);
        assert!(all.concat().contains(&notice), "{all:#?}");
        assert!(!all.concat().contains("sec%3Aret"), "{all:#?}");
        assert!(!all.concat().contains("sec:ret"), "{all:#?}");
    }
}

#[test]
fn a_session_has_the_same_command_line_as_its_server() {
    let proxy = Scripted::new(|asked, _| {
        asked.connect();
        asked.say("HTTP/1.1 200 OK\r\n\r\n");
        let _ = read_all(&asked.stream);
    });
    let server = Standalone::start(&["--via", &url(&proxy), "mail.example:25"]);
    let _client = server.connect();
    let session = only_child(server.process.pid());
    let line = fs::read_to_string(format!("/proc/{session}/cmdline")).unwrap();
    assert!(line.contains(":***@") && !line.contains("sec"), "{line}");
}

#[test]
fn what_shows_a_configuration_does_not_show_the_password() {
    let via = format!("--via=http://{IN_URL}@proxy");
    let file = format!("via 'http://{IN_URL}@proxy'\nport 25\nserver mail\n");
    let conf = Conf::new(&file);
    let base = Conf::new("port 25\nserver mail\n");
    let listed = "\n    via http://some%20user:***@proxy:3128\n    # via-auth is not set\n";
    let explained = "\nupstream: mail:25\nvia: http://some%20user:***@proxy:3128\n";
    for (conf, options) in [(&conf, &[][..]), (&base, &[via.as_str()])] {
        let says = |more: &[&str]| conf.says(&[options, more].concat()).ok();
        let text = says(&["-zz"]);
        assert!(text.contains(listed), "{text}");
        let text = says(&["--explain", "192.0.2.7,25"]);
        assert!(text.ends_with(explained), "{text}");
        assert_eq!(says(&["--check"]), "ok\n");
        for text in [says(&["-zz"]), says(&["-z"]), says(&["--explain", "::1"])] {
            assert!(!text.contains("sec"), "{text}");
        }
    }
    let text = Said::by(Command::new(TCPPROXY).args([&via, "-zz", "mail:25"])).ok();
    assert!(
        text.contains("\nvia http://some%20user:***@proxy:3128\n"),
        "{text}"
    );
    // What is printed is not taken for a password.
    let again = Conf::new(format!("{}\n", says_zz(&conf))).says(&["--check"]);
    let line = again.refused(78)[0].to_owned();
    assert!(line.ends_with("write the true one, or via-auth"), "{line}");
}

fn says_zz(conf: &Conf) -> String {
    conf.says(&["-zz"]).ok()
}

#[test]
fn no_complaint_about_a_url_has_a_part_of_it() {
    for url in [
        "http://user:secret@proxy:99999",
        "http://user:secret",
        "user:secret@proxy",
        "http://user:%secret@proxy",
        "ftp://user:secret@proxy",
        "socks5://:secret@proxy",
        "http://user:secret@proxy/secret",
    ] {
        let said = Said::by(Command::new(TCPPROXY).args(["--via", url, "mail:25", "--check"]));
        let line = said.refused(64).concat();
        assert!(line.contains("option --via: "), "{line}");
        assert!(!line.contains("secret"), "{line}");
        let said = Conf::new(format!("via '{url}'\nport 25\nserver a\n")).says(&["--check"]);
        let line = said.refused(78).concat();
        assert!(line.contains("conf:1:5: via: "), "{line}");
        assert!(!line.contains("secret"), "{line}");
    }
    // A blank in a password, without quotes.
    let said = Conf::new("via http://user:sec secret@proxy\nport 25\nserver a\n").says(&["-zz"]);
    let line = said.refused(78).concat();
    assert_eq!(
        line,
        "tcpproxy: conf:1:21: this is one word too many: via takes a value"
    );
}

/// A file that nobody but root can read.
fn auth(scratch: &Scratch, content: &str) -> String {
    let path = scratch.join("auth");
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_file_of_roots_is_read_by_a_server_at_its_start_and_under_inetd_each_time() {
    needs_root();
    let scratch = Scratch::new();
    for content in [
        "some user:sec:ret",
        "some user:sec:ret\n",
        "some user:sec:ret\r\nanother:one\n",
    ] {
        let proxy = refusing();
        let auth = auth(&scratch, content);
        let arguments = ["--via", &proxy.http(), "--via-auth", &auth, "mail:25"];
        let server = Standalone::start(&arguments);
        // It is not read again.
        fs::write(&auth, "changed:since\n").unwrap();
        assert_eq!(read_all(server.connect()), b"");
        assert!(proxy.requests()[0].contains(BASIC), "{content:?}");
        server
            .process
            .log
            .wait_for("through http://some%20user:***@");
        for content in [content, "another:one\n"] {
            fs::write(&auth, content).unwrap();
            let (client, mut child) = under_inetd(&arguments);
            assert_eq!(read_all(client), b"");
            assert_eq!(child.wait().unwrap().code(), Some(69));
        }
        let requests = proxy.requests();
        assert!(requests[1].contains(BASIC), "{requests:?}");
        assert!(
            requests[2].contains("Basic YW5vdGhlcjpvbmU=\r\n"),
            "{requests:?}"
        );
    }
}

#[test]
fn a_file_that_is_none_is_an_error_that_names_it() {
    let scratch = Scratch::new();
    let missing = scratch.join("missing").to_str().unwrap().to_owned();
    let directory = scratch.path().to_str().unwrap().to_owned();
    for (content, complaint) in [
        (
            "secret",
            "its first line is not user:password: it has no colon",
        ),
        ("", "its first line is not user:password: it has no colon"),
        (
            "\nuser:secret",
            "its first line is not user:password: it has no colon",
        ),
        (
            "user:secret\x07",
            "its first line user or password has a control character: write them without",
        ),
        (
            &"secret:".repeat(300),
            "its first line has more than 2048 bytes",
        ),
    ] {
        assert_refused(&auth(&scratch, content), "http://proxy", complaint);
    }
    let empty = auth(&scratch, ":secret");
    assert_refused(
        &empty,
        "socks5://proxy",
        "the user has 0 bytes: SOCKS5 has room for 1 to 255",
    );
    assert_refused(
        &missing,
        "http://proxy",
        "cannot be read: No such file or directory",
    );
    assert_refused(
        &directory,
        "http://proxy",
        "cannot be read: it is a directory",
    );
}

/// Fails unless this file is refused, with this complaint and its name, wherever it is named.
fn assert_refused(auth: &str, via: &str, complaint: &str) {
    let expected = format!("{auth}: {complaint}");
    let arguments = ["--via", via, "--via-auth", auth, "mail:25"];
    for more in [&["--check"][..], &["-b", "127.0.0.1:0"]] {
        let mut command = Command::new(TCPPROXY);
        let said = Said::by(command.args(arguments).args(more));
        let line = said.refused(78).concat();
        let start = format!("tcpproxy: option --via-auth: {expected}");
        assert!(line.starts_with(&start), "{line}");
    }
    let conf = Conf::new(format!(
        "via {via}\nvia-auth {auth}\nport 25\nserver mail\nport 26\nserver mail\n"
    ));
    let said = conf.says(&["--check"]);
    let [line] = said.refused(78)[..] else {
        panic!("{said:?}");
    };
    let start = format!("tcpproxy: conf:2:1: via-auth: {expected}");
    assert!(line.starts_with(&start), "{line}");
    assert!(!said.err.contains("secret"), "{said:?}");
}

#[test]
fn a_server_reads_the_file_again_at_sighup_and_keeps_what_it_has_if_that_is_wrong() {
    let scratch = Scratch::new();
    let auth = auth(&scratch, "first:one\n");
    let proxy = refusing();
    let port = free_port();
    let text = format!(
        "via {}\nvia-auth {auth}\nbind 127.0.0.1:{port}\nserver mail:25\n",
        proxy.http()
    );
    let mut server = Reloadable::start(&text, &[]);
    let told = || {
        let client = patient(TcpStream::connect(("127.0.0.1", port)).unwrap());
        assert_eq!(read_all(client), b"");
        let request = proxy.requests().pop().unwrap();
        let (_, rest) = request.split_once("Basic ").unwrap();
        rest.trim_end().to_owned()
    };
    assert_eq!(told(), "Zmlyc3Q6b25l");
    fs::write(&auth, "second:two\n").unwrap();
    assert_eq!(told(), "Zmlyc3Q6b25l");
    server.hang_up();
    assert_eq!(told(), "c2Vjb25kOnR3bw==");
    fs::remove_file(&auth).unwrap();
    let lines = server.hang_up().concat();
    assert!(lines.contains("not reloaded: "), "{lines}");
    assert!(
        lines.contains(&format!("via-auth: {auth}: cannot be read")),
        "{lines}"
    );
    assert_eq!(told(), "c2Vjb25kOnR3bw==");
}

#[test]
fn a_file_and_a_user_in_the_url_exclude_each_other_and_one_without_a_proxy_is_a_mistake() {
    let both = [
        "--via",
        "http://u:p@proxy",
        "--via-auth",
        "/x",
        "mail:25",
        "--check",
    ];
    let said = Said::by(Command::new(TCPPROXY).args(both));
    let expected = "tcpproxy: option --via-auth: via has a user and a password already \
                    (the command line): write them in one of the two";
    assert_eq!(said.refused(64), [expected]);
    let none = ["--via-auth", "/x", "mail:25", "--check"];
    let said = Said::by(Command::new(TCPPROXY).args(none));
    let expected =
        "tcpproxy: option --via-auth: there is no via here, to whose proxy it could be told";
    assert_eq!(said.refused(64), [expected]);
    for (text, places) in [
        ("via-auth /x\nport 25\nserver a\n", &["1:1"][..]),
        (
            "port 25\nserver a\nvia-auth /x\nport 26\nserver a\nvia http://p\n",
            &["3:1"],
        ),
        (
            "via http://p\nport 25\nserver a\nvia no\nvia-auth /x\n",
            &["5:1"],
        ),
        (
            "via http://u:p@p\nport 25\nserver a\nvia-auth /x\n",
            &["4:1"],
        ),
        (
            "via http://u:p@p\nport 25\nserver a\nvia-auth /x\nport 26\nserver a\nvia-auth /y\n",
            &["4:1", "7:1"],
        ),
    ] {
        let said = Conf::new(text).says(&["--check"]);
        let lines = said.refused(78);
        assert_eq!(lines.len(), places.len(), "{text}{lines:?}");
        for (line, place) in lines.iter().zip(places) {
            assert!(
                line.starts_with(&format!("tcpproxy: conf:{place}: via-auth: ")),
                "{line}"
            );
        }
    }
    // One that some use, and with a handler one that nobody needs, is none.
    let file = "via-auth /etc/passwd\nport 25\nserver a\nport 26\nserver a\nvia http://p\n";
    assert_eq!(Conf::new(file).says(&["--check"]).ok(), "ok\n");
    let handler = "via http://p\nvia-auth /missing\nport 25\nexec /bin/true\n";
    assert_eq!(Conf::new(handler).says(&["--check"]).ok(), "ok\n");
}

#[test]
fn one_proxy_is_not_told_what_is_for_another() {
    let scratch = Scratch::new();
    let auth = auth(&scratch, "some user:sec:ret\n");
    let [outer, inner] = [refusing(), refusing()];
    let ports = [free_port(), free_port(), free_port()];
    let [with, another, direct] = ports;
    let text = format!(
        "via {}\nvia-auth {auth}\n\
         bind 127.0.0.1:{with}\nserver mail:25\n\
         bind 127.0.0.1:{another}\nserver mail:25\nvia {}\n\
         bind 127.0.0.1:{direct}\nserver unix:/nowhere\nvia no\n",
        outer.http(),
        inner.http()
    );
    let scratch = Scratch::new();
    fs::write(scratch.join("conf"), text).unwrap();
    let mut command = Command::new(TCPPROXY);
    command
        .args(["--log", "stderr", "-f"])
        .arg(scratch.join("conf"));
    let process = Running::start(command.stdin(Stdio::null()));
    process.log.wait_for_count("listening on ", 3);
    for port in ports {
        let client = patient(TcpStream::connect(("127.0.0.1", port)).unwrap());
        assert_eq!(read_all(client), b"");
    }
    assert!(outer.requests()[0].contains(BASIC));
    assert_eq!(inner.requests().len(), 1);
    assert!(!inner.requests()[0].contains("Authorization"));
    let lines = process.log.wait_for_count(" closed: ", 3);
    let unix = lines
        .iter()
        .find(|line| line.contains("server=unix:/nowhere"));
    assert_eq!(field(unix.unwrap(), "reason"), "connect-failed");
}
