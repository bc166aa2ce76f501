//! What is seen of a start that fails: by the client nothing, by whoever started the program one
//! line that helps.

use std::fs::File;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::panic;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::harness::peers::reset;
use crate::harness::processes::descriptors_of_server;
use crate::harness::super_server::SuperServer;
use crate::harness::{
    Running, TCPPROXY, end_of, free_port, needs_root, read_all, share, socket_pair, tool,
    under_inetd,
};
use tcpproxy::Streams;
use tcpproxy::report_panics;

/// Command lines that fail, or that show something instead of serving, and the exit status.
fn failures() -> Vec<(Vec<String>, i32)> {
    // Nobody listens there.
    let unreachable = format!("127.0.0.1:{}", free_port());
    let handler = "/bin/echo";
    [
        (&["--no-such-option", handler][..], 64),
        (&["-t", "soon", handler], 64),
        (&[], 64),
        (&["-u", "nobody-of-that-name", handler], 78),
        (&["-u", "root", handler], 78),
        (&["-g", "no-group-of-that-name", handler], 78),
        (&["--log", "file:/no/such/directory/log", handler], 71),
        (&["--log", "stderr", "/no/such/handler"], 71),
        (
            &["--log", "stdout", "--acp", "/no/such/program", handler],
            0,
        ),
        (&["--log", "stderr", &unreachable], 69),
        (&["--log", "stderr", "unix:/no/such/socket"], 69),
        (&["--help"], 0),
        (&["--version"], 0),
    ]
    .into_iter()
    .map(|(words, status)| (words.iter().map(|word| word.to_string()).collect(), status))
    .collect()
}

#[test]
fn a_start_that_fails_says_nothing_to_the_client() {
    needs_root();
    for (words, status) in failures() {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (client, mut child) = under_inetd(&words);
        assert_eq!(end_of(&mut child).code(), Some(status), "{words:?}");
        assert_eq!(read_all(client), b"", "{words:?}");
    }
}

#[test]
fn a_start_that_fails_under_a_real_inetd_says_nothing_to_the_client() {
    needs_root();
    for server in SuperServer::WITH_CLIENT_ON_STDERR {
        for (words, _) in failures() {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let activated = server.start("127.0.0.1", &words);
            assert_eq!(read_all(activated.connect()), b"", "{server:?} {words:?}");
        }
    }
}

/// Runs the test below in a process of its own, with these standard streams.
fn panicking(stdin: Stdio, stderr: Stdio) -> std::process::Child {
    // As the test harness calls it: without the name of the crate.
    let (_, module) = module_path!().split_once("::").unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            &format!("{module}::panics_as_the_program_would"),
        ])
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "fails on purpose: a_panic_never_reaches_the_client runs it"]
fn panics_as_the_program_would() {
    report_panics(Streams::shielded().unwrap());
    panic::catch_unwind(|| panic!("a secret\nof two lines")).unwrap_err();
    // What a runtime says that does not ask anybody.
    let _ = std::io::stderr().write_all(b"raw words\n");
    panic!("the last words");
}

#[test]
fn a_panic_never_reaches_the_client() {
    let (client, accepted) = socket_pair();
    let mut child = panicking(share(&accepted), share(&accepted));
    drop(accepted);
    assert!(!end_of(&mut child).success());
    assert_eq!(read_all(client), b"");

    // Where people read it, a panic is a line each.
    let mut child = panicking(Stdio::null(), Stdio::piped());
    let text = String::from_utf8(read_all(child.stderr.take().unwrap())).unwrap();
    end_of(&mut child);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    let place = concat!("tcpproxy: internal error at ", file!(), ":");
    assert!(lines[0].starts_with(place), "{text}");
    assert!(lines[0].ends_with("a secret\\x0aof two lines"), "{text}");
    assert_eq!(lines[1], "raw words");
    assert!(lines[2].ends_with("the last words"), "{text}");
}

/// The one line on standard error of a program that was to fail with status 64.
fn complaint(command: &mut Command, what: &str) -> String {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(end_of(&mut child).code(), Some(64), "{what}");
    assert_eq!(read_all(child.stdout.take().unwrap()), b"", "{what}");
    one_line(&read_all(child.stderr.take().unwrap()), what)
}

fn one_line(text: &[u8], what: &str) -> String {
    let text = std::str::from_utf8(text).unwrap().trim_end();
    assert!(text.starts_with("tcpproxy: "), "{what}: {text}");
    assert_eq!(text.lines().count(), 1, "{what}: {text}");
    text.to_owned()
}

#[test]
fn a_standard_input_that_is_no_socket_is_a_usage_error_that_says_how_to_start() {
    let (pipe, _writer) = std::io::pipe().unwrap();
    let inputs = [
        ("a file", Stdio::from(File::open("/etc/passwd").unwrap())),
        ("a directory", Stdio::from(File::open("/").unwrap())),
        ("/dev/null", Stdio::null()),
        ("a pipe", Stdio::from(OwnedFd::from(pipe))),
    ];
    for (what, input) in inputs {
        let line = complaint(Command::new(TCPPROXY).arg("host:1").stdin(input), what);
        for way in ["inetd", "systemd", "-b "] {
            assert!(line.contains(way), "{what}: {line}");
        }
    }
    let mut closed = Command::new("sh");
    closed.args(["-c", "exec \"$0\" host:1 <&-", TCPPROXY]);
    let line = complaint(&mut closed, "closed");
    assert!(line.contains("inetd"), "{line}");
}

#[test]
fn a_terminal_is_a_usage_error_that_says_how_to_start() {
    let output = Command::new(tool("script"))
        .args(["-qec", &format!("{TCPPROXY} host:1"), "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let line = one_line(&output.stdout, "a terminal");
    assert!(line.contains("inetd") && line.contains("-b "), "{line}");
}

#[test]
fn a_socket_that_is_no_stream_is_a_usage_error_that_says_what_is_served() {
    let udp = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(socket.local_addr().unwrap()).unwrap();
        Stdio::from(OwnedFd::from(socket))
    };
    let unconnected = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (datagram, _other) = UnixDatagram::pair().unwrap();
    for (what, input) in [
        ("UDP", udp()),
        ("unconnected UDP", Stdio::from(OwnedFd::from(unconnected))),
        ("unix datagram", Stdio::from(OwnedFd::from(datagram))),
    ] {
        let line = complaint(Command::new(TCPPROXY).arg("host:1").stdin(input), what);
        assert!(line.contains("not a stream"), "{what}: {line}");
    }
    // As inetd's `dgram wait` has it: whoever sends there must not be answered with a message.
    let mut child = Command::new(TCPPROXY)
        .arg("host:1")
        .stdin(udp())
        .stdout(udp())
        .stderr(udp())
        .spawn()
        .unwrap();
    assert_eq!(end_of(&mut child).code(), Some(64));
}

#[test]
fn a_message_goes_to_standard_error_where_that_is_not_the_client() {
    let (client, accepted) = socket_pair();
    let mut child = Command::new(TCPPROXY)
        .args(["--no-such-option", "host:1"])
        .stdin(share(&accepted))
        .stdout(share(&accepted))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(accepted);
    assert_eq!(end_of(&mut child).code(), Some(64));
    let line = one_line(&read_all(child.stderr.take().unwrap()), "bad option");
    assert!(line.contains("--no-such-option"), "{line}");
    assert_eq!(read_all(client), b"");
}

#[test]
fn connected_unix_sockets_are_served_and_shown_no_messages() {
    let (mut client, server) = UnixStream::pair().unwrap();
    let share = || Stdio::from(OwnedFd::from(server.try_clone().unwrap()));
    let mut child = Command::new(TCPPROXY)
        .args(["--no-such-option"])
        .stdin(share())
        .stdout(share())
        .stderr(share())
        .spawn()
        .unwrap();
    assert_eq!(end_of(&mut child).code(), Some(64));
    drop(server);
    let mut text = Vec::new();
    client.read_to_end(&mut text).unwrap();
    assert_eq!(text, b"");
}

#[test]
fn a_client_that_is_gone_before_the_start_is_no_error() {
    let (client, accepted) = socket_pair();
    reset(client);
    let mut child = Command::new(TCPPROXY)
        .args(["--log", "stderr", "127.0.0.1:1"])
        .stdin(share(&accepted))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(end_of(&mut child).code(), Some(0));
    let log = String::from_utf8(read_all(child.stderr.take().unwrap())).unwrap();
    assert!(log.contains("reason=client-reset"), "{log}");
}

#[test]
fn standard_streams_that_are_not_open_are_nobodys_but_the_null_devices() {
    for closed in 0..8_usize {
        let is_closed = |number: usize| closed & 1 << number != 0;
        let place = format!("127.0.0.1:{}", free_port());
        let redirected = (0..3).map(|number| match is_closed(number) {
            true => format!("{number}>&- "),
            false => format!("{number}<>/dev/zero "),
        });
        let line = format!("exec \"$@\" {}", redirected.collect::<String>());
        let words = [TCPPROXY, "-b", &place, "127.0.0.1:1"];
        let mut server = Running::start(Command::new("sh").args(["-c", &line, "sh"]).args(words));
        let pid = server.pid();
        let of_server = descriptors_of_server(pid);
        for number in 0..3 {
            let expected = match is_closed(number) {
                true => "/dev/null",
                false => "/dev/zero",
            };
            let found = of_server.iter().find(|(open, _)| *open == number as i32);
            let found = found.map(|(_, path)| path.to_str().unwrap());
            assert_eq!(found, Some(expected), "{closed:03b}: {of_server:?}");
        }
        // The shell keeps what it has put away from 10 on.
        let mut others = of_server.iter().filter(|(open, _)| (3..10).contains(open));
        let leaked = others.any(|(_, path)| path.starts_with("/dev"));
        assert!(!leaked, "{closed:03b}: {of_server:?}");
        server.signal(Signal::SIGTERM);
        assert_eq!(server.status().code(), Some(0), "{closed:03b}");
    }
}
