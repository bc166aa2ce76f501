//! What becomes of a program, and of what it has started, when its session's process is gone.

use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};

use crate::harness::peers::read_to_ending;
use crate::harness::processes::{
    Leftover, assert_nobody_is_left_of, children, is_alive, living_in_group, only_child,
};
use crate::harness::upstreams::Forbidden;
use crate::harness::{
    Scratch, Standalone, end_of, eventually, hand_over, launched_by, needs_root, read_all,
};

/// What serves a client, or decides about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Access,
    Handler,
}

impl Program {
    const ALL: [Program; 2] = [Program::Access, Program::Handler];

    /// A script that starts others, and has none of them end when they are asked to.
    fn arguments(self, scratch: &Scratch, upstream: &str) -> Vec<String> {
        let body = format!(
            "trap '' TERM\nsleep 1000 & (sleep 1000; exit) &\necho $$ >{}\nwait; wait; sleep 1000",
            scratch.join("group").display()
        );
        let script = scratch.script("script", &body).display().to_string();
        match self {
            Program::Access => ["--acp", &script, upstream].map(str::to_owned).into(),
            Program::Handler => vec![script],
        }
    }
}

/// A server whose one session waits for a program of three processes.
struct Waiting {
    server: Standalone,
    client: TcpStream,
    group: Leftover,
    upstream: Forbidden,
    _scratch: Scratch,
}

impl Waiting {
    fn on(program: Program) -> Waiting {
        let scratch = Scratch::new();
        let upstream = Forbidden::new();
        let arguments = program.arguments(&scratch, &upstream.name());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let server = Standalone::start(&arguments);
        let client = server.connect();
        let group = Leftover::noted_in(&scratch.join("group"));
        eventually("three processes", || {
            (living_in_group(group.0).len() >= 3).then_some(())
        });
        Waiting {
            server,
            client,
            group,
            upstream,
            _scratch: scratch,
        }
    }

    fn assert_nothing_is_left(self) {
        assert_nobody_is_left_of(self.group.0);
        // Nobody holds its connection any more.
        assert_eq!(read_to_ending(&self.client).0, b"");
        self.upstream.assert_untouched();
    }
}

#[test]
fn a_program_and_its_group_end_when_their_session_is_killed() {
    needs_root();
    for program in Program::ALL {
        let waiting = Waiting::on(program);
        let session = only_child(waiting.server.process.pid());
        kill(session, Signal::SIGKILL).unwrap();
        let closed = waiting.server.closed();
        assert!(closed.ends_with("signal=SIGKILL"), "{program:?}: {closed}");
        eventually("all of them to be collected", || {
            children(waiting.server.process.pid())
                .is_empty()
                .then_some(())
        });
        waiting.assert_nothing_is_left();
    }
}

#[test]
fn a_program_and_its_group_end_when_their_server_is_asked_twice() {
    needs_root();
    for program in Program::ALL {
        let mut waiting = Waiting::on(program);
        waiting.server.process.signal(Signal::SIGTERM);
        waiting.server.process.log.wait_for("asked to end");
        waiting.server.process.signal(Signal::SIGTERM);
        assert_eq!(waiting.server.process.status().code(), Some(0));
        waiting.assert_nothing_is_left();
    }
}

#[test]
fn an_access_program_ends_with_the_session_that_inetd_started() {
    needs_root();
    let scratch = Scratch::new();
    let upstream = Forbidden::new();
    let arguments = Program::Access.arguments(&scratch, &upstream.name());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (_client, mut session) = hand_over(&mut launched_by(&[], &arguments));
    let group = Leftover::noted_in(&scratch.join("group"));
    session.kill().unwrap();
    end_of(&mut session);
    eventually("the program to end", || (!is_alive(group.0)).then_some(()));
    // Nobody knows of the others.
    let _ = nix::sys::signal::killpg(group.0, Signal::SIGKILL);
    upstream.assert_untouched();
}

#[test]
fn what_a_program_leaves_behind_that_has_ended_by_itself_goes_on() {
    needs_root();
    let scratch = Scratch::new();
    let noted = |name| scratch.join(name).display().to_string();
    // One in its group; one whose group and session were begun by a process that has ended.
    let body = format!(
        "sleep 1000 <&- >&- 2>&- & echo $! >{}\n\
         setsid sh -c 'sleep 1000 <&- >&- 2>&- & echo $! >{}'\necho served",
        noted("one"),
        noted("other"),
    );
    let handler = scratch.script("handler", &body);
    let server = Standalone::start(&[handler.to_str().unwrap()]);
    assert_eq!(read_all(server.connect()), b"served\n");
    server.closed();
    for name in ["one", "other"] {
        let left = Leftover::noted_in(&scratch.join(name));
        assert!(is_alive(left.0), "{name}");
    }
}
