//! What the programs that serve a client cannot reach: a terminal, capabilities, other processes.

use std::net::TcpStream;
use std::process::Command;

use nix::unistd::write;

use crate::harness::terminal::{Standing, Terminal};
use crate::harness::{
    Running, Scratch, Standalone, TCPPROXY, end_of, eventually, free_port, hand_over, launched_by,
    needs_root, patient, read_all,
};

/// A script that says whether it has a controlling terminal: of the session that has one, every
/// process can open this.
const SAY_TERMINAL: &str = "if (: </dev/tty) 2>/dev/null; then echo a terminal; else echo none; fi";

fn words(launcher: &[String]) -> Vec<&str> {
    launcher.iter().map(String::as_str).collect()
}

#[test]
fn the_terminal_that_a_test_gives_is_one() {
    let terminal = Terminal::new();
    for standing in Standing::ALL {
        let launcher = terminal.launcher(standing);
        let mut words = words(&launcher).into_iter();
        let mut command = Command::new(words.next().unwrap());
        let command = command.args(words).args(["sh", "-c", SAY_TERMINAL]);
        let output = command.output().unwrap();
        assert_eq!(output.stdout, b"a terminal\n", "{standing:?}: {output:?}");
    }
}

#[test]
fn programs_of_a_server_that_was_started_from_a_terminal_have_none() {
    needs_root();
    let terminal = Terminal::new();
    let scratch = Scratch::new();
    let access = scratch.script("access", SAY_TERMINAL);
    let ids = "cut -d' ' -f1,6 /proc/$$/stat";
    let handler = scratch.script("handler", &format!("{SAY_TERMINAL}; {ids}"));
    let arguments = ["-a", access.to_str().unwrap(), handler.to_str().unwrap()];
    let launcher = terminal.launcher(Standing::LeaderOfSession);
    let server = Standalone::launched_by(&words(&launcher), &arguments);
    let said = String::from_utf8(read_all(server.connect())).unwrap();
    let ids = said.strip_prefix("none\nnone\n").expect(&said);
    let (process, session) = ids.trim().split_once(' ').unwrap();
    assert_eq!(process, session, "a session of its own");
}

#[test]
fn programs_of_a_connection_that_was_handed_over_have_no_terminal() {
    needs_root();
    let scratch = Scratch::new();
    let access = scratch.script("access", SAY_TERMINAL);
    let handler = scratch.script("handler", SAY_TERMINAL);
    let arguments = ["-a", access.to_str().unwrap(), handler.to_str().unwrap()];
    for standing in Standing::ALL {
        let terminal = Terminal::new();
        let launcher = terminal.launcher(standing);
        let (client, mut child) = hand_over(&mut launched_by(&words(&launcher), &arguments));
        let said = String::from_utf8(read_all(client)).unwrap();
        assert_eq!(said, "none\nnone\n", "{standing:?}");
        assert_eq!(end_of(&mut child).code(), Some(0), "{standing:?}");
    }
}

#[test]
fn a_handler_cannot_read_what_is_typed_on_the_terminal_of_the_server() {
    needs_root();
    let terminal = Terminal::new();
    let scratch = Scratch::new();
    let script = "if read typed <&2; then echo \"$typed\"; else echo nothing; fi; echo said >&2";
    let handler = scratch.script("handler", script);
    let port = free_port();
    // As people's are: open for both.
    let start = format!("exec \"$@\" 2<>{}", terminal.path().display());
    let listen = format!("127.0.0.1:{port}");
    let mut command = Command::new("sh");
    command.args(["-c", &start, "sh", TCPPROXY, "-b", &listen]);
    let _server = Running::start(command.arg(handler));
    write(terminal.master(), b"a password\n").unwrap();
    let client = eventually("a listener", || {
        TcpStream::connect(("127.0.0.1", port)).ok()
    });
    let read = String::from_utf8(read_all(patient(client))).unwrap();
    assert_eq!(read, "nothing\n");
}

/// A script that says which capabilities it has, or would hand on.
const SAY_CAPABILITIES: &str = "grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/$$/status";

#[test]
fn programs_have_no_capability_that_the_server_was_given() {
    needs_root();
    let scratch = Scratch::new();
    let access = scratch.script("access", SAY_CAPABILITIES);
    let handler = scratch.script("handler", SAY_CAPABILITIES);
    let arguments = ["-a", access.to_str().unwrap(), handler.to_str().unwrap()];
    let caps = "+net_bind_service,+net_raw";
    // As systemd's AmbientCapabilities= does it; and as root, who may hand on what is inheritable.
    let (inheritable, ambient) = (
        format!("--inh-caps={caps}"),
        format!("--ambient-caps={caps}"),
    );
    let as_nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let as_nobody = [&["setpriv", &inheritable, &ambient][..], &as_nobody].concat();
    for launcher in [&as_nobody[..], &["setpriv", &inheritable]] {
        let given = Command::new("setpriv")
            .args(&launcher[1..])
            .args(["grep", "CapInh", "/proc/self/status"])
            .output()
            .unwrap();
        let given = String::from_utf8(given.stdout).unwrap();
        assert_eq!(given, "CapInh:\t0000000000002400\n");
        let none = ["CapInh", "CapPrm", "CapEff", "CapAmb"]
            .map(|set| format!("{set}:\t0000000000000000\n"))
            .concat()
            .repeat(2);
        let server = Standalone::launched_by(launcher, &arguments);
        let said = String::from_utf8(read_all(server.connect())).unwrap();
        assert_eq!(said, none, "{launcher:?}");
        let (client, mut child) = hand_over(&mut launched_by(launcher, &arguments));
        assert_eq!(String::from_utf8(read_all(client)).unwrap(), none);
        end_of(&mut child);
    }
}

/// A script that says whether it could trace its parent, and that one's parent: what is behind these
/// files is for whoever could (proc(5)).
const SAY_TRACED: &str = "\
    for process in $PPID $(cut -d' ' -f4 /proc/$PPID/stat); do\n\
    if cat /proc/$process/environ >/dev/null 2>&1; then echo open; else echo closed; fi\n\
    done";

#[test]
fn programs_cannot_trace_sessions_or_servers_of_their_own_user() {
    needs_root();
    let scratch = Scratch::new();
    let access = scratch.script("access", SAY_TRACED);
    let handler = scratch.script("handler", SAY_TRACED);
    let as_nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let script = format!("{}; exit 0", handler.display());
    let tried = [&as_nobody[..], &["sh", "-c", &script]].concat();
    let output = Command::new(tried[0]).args(&tried[1..]).output();
    assert!(
        output.unwrap().stdout.starts_with(b"open\n"),
        "it finds out"
    );
    let arguments = ["-a", access.to_str().unwrap(), handler.to_str().unwrap()];
    let server = Standalone::launched_by(&as_nobody, &arguments);
    let said = String::from_utf8(read_all(server.connect())).unwrap();
    assert_eq!(said, "closed\nclosed\n".repeat(2));
    let arguments = ["-a", access.to_str().unwrap(), "/bin/true"];
    let (client, mut child) = hand_over(&mut launched_by(&as_nobody, &arguments));
    let said = String::from_utf8(read_all(client)).unwrap();
    assert!(said.starts_with("closed\n"), "{said}");
    end_of(&mut child);
}
