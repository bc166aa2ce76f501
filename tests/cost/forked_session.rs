//! What a session under our own listener costs in system calls: counts, which hold on a busy
//! machine where times do not.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::peers::assert_echoes;
use crate::harness::processes::{children, descriptors, descriptors_of_server, only_child};
use crate::harness::upstreams::echo;
use crate::harness::{Running, Scratch, TCPPROXY, eventually, free_port, patient, read_all};

/// A server under strace(1), that says what its processes ask of the kernel.
struct Traced {
    strace: Running,
    server: Pid,
    trace: PathBuf,
    _scratch: Scratch,
}

impl Traced {
    fn start(arguments: &[&str]) -> Traced {
        let scratch = Scratch::new();
        let trace = scratch.join("trace");
        let mut command = Command::new("strace");
        command.arg("-ff").arg("-o").arg(&trace);
        command.arg(TCPPROXY).args(["--log", "stderr"]);
        command.args(arguments).stdin(Stdio::null());
        let strace = Running::start(&mut command);
        // strace(1) has other children at its start, to try what the kernel can do.
        let line = strace.log.wait_for("]: listening on ");
        let (_, rest) = line.split_once('[').unwrap();
        let number = rest.split_once(']').unwrap().0;
        let server = Pid::from_raw(number.parse().unwrap());
        Traced {
            strace,
            server,
            trace,
            _scratch: scratch,
        }
    }

    /// The address of the listener that was bound last.
    fn address(&self, listeners: usize) -> SocketAddr {
        let lines = self.strace.log.wait_for_count("listening on ", listeners);
        let line = lines.last().unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Has one client served, and returns once nothing is left of it.
    fn serve_one(&self, address: SocketAddr, number: usize) {
        let client = patient(TcpStream::connect(address).unwrap());
        (&client).write_all(b"x").unwrap();
        (&client).read_exact(&mut [0]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&client), b"");
        let closed = format!("session {number} closed: ");
        self.strace.log.wait_for(&closed);
        eventually("the child to be reaped", || {
            children(self.server).is_empty().then_some(())
        });
    }

    /// Ends the server, and returns the names of the calls of each of its processes.
    fn calls(mut self) -> Vec<(Pid, Vec<String>)> {
        kill(self.server, Signal::SIGTERM).unwrap();
        assert_eq!(self.strace.status().code(), Some(0));
        let files = fs::read_dir(self.trace.parent().unwrap()).unwrap();
        files.map(|file| calls_in(&file.unwrap().path())).collect()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // Without its tracer it would go on.
        if self.strace.child.try_wait().unwrap().is_none() {
            let _ = kill(self.server, Signal::SIGTERM);
        }
    }
}

/// The process that a trace is of, and the names of its calls.
fn calls_in(trace: &Path) -> (Pid, Vec<String>) {
    let number = trace.extension().unwrap().to_str().unwrap();
    let lines = fs::read_to_string(trace).unwrap();
    let calls = lines.lines().filter_map(|line| {
        let (name, _) = line.split_once('(')?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        name.chars().all(is_name).then(|| name.to_owned())
    });
    (Pid::from_raw(number.parse().unwrap()), calls.collect())
}

/// How often each is called.
fn counts(calls: &[String]) -> HashMap<&str, usize> {
    let mut counts = HashMap::new();
    for call in calls {
        *counts.entry(call.as_str()).or_default() += 1;
    }
    counts
}

/// The supervisor's calls for so many clients, one after the other, and the most of a session.
fn calls_for(clients: usize, arguments: &[&str], listeners: usize) -> (Vec<String>, Vec<String>) {
    let traced = Traced::start(arguments);
    let server = traced.server;
    let address = traced.address(listeners);
    (1..=clients).for_each(|number| traced.serve_one(address, number));
    let (supervisor, sessions): (Vec<_>, Vec<_>) = traced
        .calls()
        .into_iter()
        .partition(|(pid, _)| *pid == server);
    assert_eq!(sessions.len(), clients);
    let sessions = sessions.into_iter().map(|(_, calls)| calls);
    let most = sessions.max_by_key(Vec::len).unwrap();
    (supervisor.into_iter().next().unwrap().1, most)
}

/// Of the supervisor, for one client that comes when nothing else goes on. More would be a
/// regression, unless there is a reason to be written here.
const SUPERVISOR: [(&str, usize); 7] = [
    // Woken by the client, by its session's end, and by the time to look at all the children.
    ("epoll_wait", 3),
    // The client, and that there is no other.
    ("accept4", 2),
    // _Fork(3).
    ("clone", 1),
    // The client's socket is the session's.
    ("close", 1),
    // The signal that says which child has ended.
    ("read", 1),
    // That child; and that no other has ended with it.
    ("wait4", 2),
    // What std looks at before it closes a descriptor, in debug builds.
    ("fcntl", 1),
];

#[test]
fn the_supervisor_makes_ten_calls_for_a_session() {
    let upstream = echo().to_string();
    let arguments = ["-b", "127.0.0.1:0", "--timeout", "0", &upstream];
    let (few, _) = calls_for(2, &arguments, 1);
    let (many, _) = calls_for(12, &arguments, 1);
    let (few, many) = (counts(&few), counts(&many));
    for (call, count) in &many {
        let before = few.get(call).copied().unwrap_or(0);
        let allowed = SUPERVISOR.iter().find(|(name, _)| name == call);
        let allowed = allowed.map_or(0, |(_, count)| *count) * 10;
        let gained = count.saturating_sub(before);
        // A wake-up or two in ten sessions may be the clock's.
        assert!(gained <= allowed + 3, "{call}: {gained} for ten sessions");
    }
}

/// A configuration with a service on each of these ports.
fn with_ports(scratch: &Scratch, ports: &[u16]) -> String {
    let upstream = echo();
    let services = ports
        .iter()
        .map(|port| format!("port {port}\n  interface 127.0.0.1\n  server {upstream}\n"));
    let text = services.fold(String::from("standalone yes\n"), |all, one| all + &one);
    let file = scratch.join("conf");
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_session_makes_no_call_more_where_there_are_200_listeners() {
    let scratch = Scratch::new();
    let calls = |count: usize| {
        let ports: Vec<u16> = (0..count).map(|_| free_port()).collect();
        let file = with_ports(&scratch, &ports);
        calls_for(2, &["-f", &file], count)
    };
    let ((few, one), (many, of_many)) = (calls(1), calls(200));
    // One range, or a few where the server was started with descriptors in between.
    assert!(counts(&of_many)["close_range"] <= 4, "{of_many:?}");
    // The relay may poll once more or less, as the bytes come.
    assert!(of_many.len() <= one.len() + 4, "{one:?} and {of_many:?}");
    // Behind the last listener there is only what clients cause.
    let after_listening = |calls: &[String]| {
        let last = calls.iter().rposition(|call| call == "listen").unwrap();
        let calls = calls[last..].iter();
        calls
            .filter(|call| !["epoll_ctl", "fcntl", "setsockopt"].contains(&call.as_str()))
            .count()
    };
    // But for the listeners being closed at the end.
    let (few, many) = (after_listening(&few), after_listening(&many));
    assert!(many <= few + 199 + 6, "{few} and {many} calls");
}

/// Of a session that forwards a byte and back, in words as it is served. Without root a few less.
const SESSION: usize = 72;

#[test]
fn a_session_makes_a_bounded_number_of_calls() {
    let upstream = echo().to_string();
    let arguments = ["-b", "127.0.0.1:0", &upstream];
    let (_, session) = calls_for(4, &arguments, 1);
    assert!(session.len() <= SESSION, "{}: {session:?}", session.len());
    let counts = counts(&session);
    // Its descriptors are closed by its end; only what it must not hold is closed by hand.
    assert!(counts["close_range"] <= 3, "{session:?}");
    // The local zone was found out by the supervisor.
    assert_eq!(
        counts.get("stat").or(counts.get("newfstatat")),
        None,
        "{session:?}"
    );
}

#[test]
fn a_session_holds_nothing_of_the_server_but_its_log() {
    let scratch = Scratch::new();
    let pidfile = scratch.join("pid");
    let ports = [free_port(), free_port(), free_port()];
    let file = with_ports(&scratch, &ports);
    let mut command = Command::new(TCPPROXY);
    command.args(["-f", &file, "--log", "stderr"]);
    command.arg(format!("--pidfile={}", pidfile.display()));
    command.stdin(Stdio::null());
    let server = Running::start(&mut command);
    server.log.wait_for_count("listening on ", ports.len());
    let client = patient(TcpStream::connect((Ipv4Addr::LOCALHOST, ports[1])).unwrap());
    assert_echoes(&client);
    let of_server = descriptors_of_server(server.pid());
    let of_session = descriptors(only_child(server.pid()));
    // Three listeners, the signals, the set that is waited for, the pid file.
    let is_own = |target: &Path| {
        let is = |start| target.to_string_lossy().starts_with(start);
        is("socket:") || is("anon_inode:") || target == pidfile
    };
    let own = of_server.iter().filter(|(_, target)| is_own(target));
    let own: Vec<_> = own.map(|(_, target)| target).collect();
    assert_eq!(own.len(), ports.len() + 3, "{own:?}");
    for target in own {
        assert!(
            of_session.iter().all(|(_, held)| held != target),
            "{of_session:?}"
        );
    }
}
