//! What a handler finds when it starts, as it says itself.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use crate::harness::{
    Running, Scratch, Standalone, TCPPROXY, end_of, field, hand_over, launched_by, needs_root,
    patient, read_all, share, socket_pair,
};

/// Who starts a handler's tcpproxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Inetd,
    Listener,
}

impl Way {
    const ALL: [Way; 2] = [Way::Inetd, Way::Listener];

    /// What a client reads from a handler.
    fn ask(self, launcher: &[&str], arguments: &[&str]) -> String {
        let bytes = match self {
            Way::Inetd => {
                let (client, mut child) = hand_over(&mut launched_by(launcher, arguments));
                let bytes = read_all(client);
                end_of(&mut child);
                bytes
            }
            Way::Listener => read_all(Standalone::launched_by(launcher, arguments).connect()),
        };
        String::from_utf8(bytes).unwrap()
    }
}

/// A handler that shows its descriptors and what they are; the directory that it reads for that
/// is left out.
const SHOW_DESCRIPTORS: &[&str] = &["/bin/ls", "-l", "/proc/self/fd"];

fn descriptors(listing: &str) -> BTreeMap<String, String> {
    let entries = listing.lines().filter_map(|line| line.split_once(" -> "));
    entries
        .map(|(left, target)| (left.split(' ').next_back().unwrap(), target))
        .filter(|(_, target)| !target.starts_with("/proc/"))
        .map(|(fd, target)| (fd.to_owned(), target.to_owned()))
        .collect()
}

#[test]
fn a_handler_has_the_client_on_0_and_1_and_nothing_above_2() {
    needs_root();
    let scratch = Scratch::new();
    let log = format!("file:{}", scratch.join("log").display());
    // Descriptors that whoever started us forgot to close, and some of our own.
    let launcher = ["sh", "-c", "exec 5</etc/passwd 9>&2; exec \"$0\" \"$@\""];
    for way in Way::ALL {
        let arguments = [&["--log", &log], SHOW_DESCRIPTORS].concat();
        let listing = way.ask(&launcher, &arguments);
        let found = descriptors(&listing);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["0", "1", "2"], "{way:?}");
        assert!(found["0"].starts_with("socket:["), "{way:?}: {listing}");
        assert_eq!(found["0"], found["1"], "{way:?}");
        match way {
            // As inherited, which was the client.
            Way::Inetd => assert_eq!(found["2"], found["0"]),
            // The server's, which is a pipe of this test.
            Way::Listener => assert!(found["2"].starts_with("pipe:["), "{listing}"),
        }
    }
}

#[test]
fn standard_error_that_is_not_the_client_is_the_handlers_too() {
    needs_root();
    let handler = ["/bin/sh", "-c", "echo to the client; echo to the log >&2"];
    let (client, accepted) = socket_pair();
    let server = Running::start(
        Command::new(TCPPROXY)
            .args(handler)
            .stdin(share(&accepted))
            .stdout(Stdio::null()),
    );
    drop(accepted);
    assert_eq!(read_all(client), b"to the client\n");
    server.log.wait_for("to the log");

    let server = Standalone::start(&handler);
    assert_eq!(read_all(server.connect()), b"to the client\n");
    server.process.log.wait_for("to the log");
}

#[test]
fn a_connection_on_descriptor_3_becomes_0_and_1_of_a_handler() {
    needs_root();
    let (client, accepted) = socket_pair();
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0 </dev/null";
    let mut command = launched_by(&["sh", "-c", script], SHOW_DESCRIPTORS);
    let mut child = command
        .stdin(share(&accepted))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop((command, accepted));
    let listing = String::from_utf8(read_all(client)).unwrap();
    end_of(&mut child);
    let found = descriptors(&listing);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["0", "1", "2"]);
    assert!(found["0"].starts_with("socket:["), "{listing}");
    assert_eq!(found["0"], found["1"]);
    assert_eq!(found["2"], "/dev/null");
}

#[test]
fn a_handler_does_not_hold_the_listener_that_inetd_passed() {
    needs_root();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let passed = || Stdio::from(OwnedFd::from(listener.try_clone().unwrap()));
    let mut command = launched_by(&[], SHOW_DESCRIPTORS);
    command.stdin(passed()).stdout(passed());
    let child = command.stderr(passed()).spawn().unwrap();
    let log = crate::harness::Lines::default();
    let _server = Running { child, log };
    let client = patient(TcpStream::connect(address).unwrap());
    let listing = String::from_utf8(read_all(client)).unwrap();
    let found = descriptors(&listing);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["0", "1", "2"]);
    assert!(found["0"].starts_with("socket:["), "{listing}");
    assert_eq!(found["0"], found["1"]);
    assert_eq!(found["2"], "/dev/null");
}

#[test]
fn every_signal_is_at_its_default_and_none_is_blocked() {
    needs_root();
    let handler = [
        "/bin/sed",
        "-nE",
        "/^Sig(Blk|Ign|Cgt)/p",
        "/proc/self/status",
    ];
    let launchers: [&[&str]; 2] = [
        &["env"],
        // As a careless parent may leave them.
        &["env", "--ignore-signal", "--block-signal"],
    ];
    for way in Way::ALL {
        for launcher in launchers {
            let text = way.ask(launcher, &handler);
            let values: Vec<&str> = text.split_whitespace().collect();
            let none = "0000000000000000";
            assert_eq!(
                values,
                ["SigBlk:", none, "SigIgn:", none, "SigCgt:", none],
                "{way:?} {launcher:?}"
            );
        }
    }
}

#[test]
fn the_socket_blocks_whoever_started_us_with_it() {
    needs_root();
    let (client, accepted) = socket_pair();
    accepted.set_nonblocking(true).unwrap();
    let mut child = Command::new(TCPPROXY)
        .args(["/bin/grep", "-h", "flags", "/proc/self/fdinfo/0"])
        .stdin(share(&accepted))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    drop(accepted);
    let text = String::from_utf8(read_all(client)).unwrap();
    end_of(&mut child);
    let flags = i32::from_str_radix(text.split_whitespace().next_back().unwrap(), 8).unwrap();
    assert_eq!(flags & nix::libc::O_NONBLOCK, 0, "{text}");
}

#[test]
fn the_working_directory_is_kept() {
    needs_root();
    let scratch = Scratch::new();
    scratch.script("handler", "pwd");
    let directory = scratch.path().to_str().unwrap();
    for way in Way::ALL {
        // So a path that begins with a dot starts there.
        let text = way.ask(&["env", "-C", directory], &["./handler"]);
        assert_eq!(text.trim_end(), directory, "{way:?}");
    }
}

#[test]
fn arguments_arrive_as_they_were_written() {
    needs_root();
    let printf = "/usr/bin/printf";
    let (client, mut child) = hand_over(
        Command::new(TCPPROXY)
            .args([printf, "[%s]", "a b", "", "-t", "--help"])
            .arg(OsStr::from_bytes(b"\xff\xfe\n")),
    );
    let bytes = read_all(client);
    end_of(&mut child);
    assert_eq!(bytes, b"[a b][][-t][--help][\xff\xfe\n]");
    for way in Way::ALL {
        let one_word = format!("{printf} [%s] 'a  b' \"c'd\" e\\ f $HOME *");
        assert_eq!(way.ask(&[], &[&one_word]), "[a  b][c'd][e f][$HOME][*]");
    }
}

#[test]
fn under_inetd_the_handler_takes_the_place_of_the_process() {
    needs_root();
    let (client, mut child) = crate::harness::under_inetd(&["/bin/sh", "-c", "echo $$; exit 7"]);
    let text = String::from_utf8(read_all(client)).unwrap();
    assert_eq!(text.trim_end(), child.id().to_string());
    assert_eq!(end_of(&mut child).code(), Some(7));
}

#[test]
fn under_a_listener_each_handler_is_a_process_of_its_own() {
    needs_root();
    let server = Standalone::start(&["/bin/sh", "-c", "echo $$; read line; echo $line"]);
    let clients: Vec<TcpStream> = (0..3).map(|_| server.connect()).collect();
    let mut said: Vec<String> = clients
        .into_iter()
        .zip(["a", "b", "c"])
        .map(|(mut client, word)| {
            client.write_all(format!("{word}\n").as_bytes()).unwrap();
            String::from_utf8(read_all(client)).unwrap()
        })
        .collect();
    for (text, word) in said.iter().zip(["a", "b", "c"]) {
        assert_eq!(text.lines().nth(1), Some(word));
    }
    said.sort();
    said.dedup_by_key(|text| text.lines().next().unwrap().to_owned());
    assert_eq!(said.len(), 3, "{said:?}");
    let closed = server.process.log.wait_for_count(" closed: ", 3);
    assert!(
        closed
            .iter()
            .all(|l| field(l, "reason") == "handler-exited")
    );
}

#[test]
fn a_handler_reads_what_the_client_sent_before_it_started() {
    needs_root();
    for way in Way::ALL {
        let (mut client, _server) = match way {
            Way::Inetd => {
                let (client, child) = crate::harness::under_inetd(&["/bin/cat"]);
                let log = crate::harness::Lines::default();
                (client, (Some(Running { child, log }), None))
            }
            Way::Listener => {
                let server = Standalone::start(&["/bin/cat"]);
                (server.connect(), (None, Some(server)))
            }
        };
        client.write_all(b"echo").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(client), b"echo", "{way:?}");
    }
}

/// The lines of /proc/self/status that say who a process is.
fn ids_of(text: &str) -> BTreeMap<&str, Vec<&str>> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, values)| (key, values.split_whitespace().collect()))
        .collect()
}

#[test]
fn a_handler_runs_as_the_user_and_group_asked_for_and_as_no_other() {
    needs_root();
    let show = [
        "/bin/grep",
        "-E",
        "^(Uid|Gid|Groups|Cap...):",
        "/proc/self/status",
    ];
    let daemon = fs::read_to_string("/etc/passwd").unwrap();
    let daemon = daemon.lines().find(|l| l.starts_with("daemon:")).unwrap();
    let daemon: Vec<&str> = daemon.split(':').collect();
    let cases: [(&[&str], &str, &str); 6] = [
        (&[], "65535", "65534"),
        (&["-u", "123", "-g", "456"], "123", "456"),
        (&["-u", "daemon", "-g", "daemon"], daemon[2], daemon[3]),
        (&["-u", "daemon"], daemon[2], "65534"),
        (&["-g", "0"], "65535", "0"),
        (&["-g", "root"], "65535", "0"),
    ];
    // Groups that whoever started us is in.
    let launcher = ["setpriv", "--groups", "0,4,27"];
    for way in Way::ALL {
        for (options, uid, gid) in cases {
            let text = way.ask(&launcher, &[options, &show].concat());
            let ids = ids_of(&text);
            assert_eq!(ids["Uid"], [uid; 4], "{way:?} {options:?}");
            assert_eq!(ids["Gid"], [gid; 4], "{way:?} {options:?}");
            assert!(ids["Groups"].is_empty(), "{way:?} {options:?}: {text}");
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(ids[set], ["0000000000000000"], "{way:?} {set}");
            }
        }
    }
}
