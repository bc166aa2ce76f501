//! How handlers end, and what becomes of the session then.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::peers::reset;
use crate::harness::{
    Scratch, Standalone, end_of, eventually, field, needs_root, read_all, under_inetd,
    wait_for_line,
};

#[test]
fn any_exit_status_is_handler_exited() {
    needs_root();
    let server = Standalone::start(&["/bin/sh", "-c", "read status; exit $status"]);
    for (count, status) in ["0", "1", "127", "255"].iter().enumerate() {
        let mut client = server.connect();
        client.write_all(format!("{status}\n").as_bytes()).unwrap();
        assert_eq!(read_all(client), b"");
        let closed = server.process.log.wait_for_count(" closed: ", count + 1);
        let closed = &closed[count];
        assert_eq!(field(closed, "reason"), "handler-exited", "{status}");
        assert_eq!(field(closed, "server"), "/bin/sh");
        assert_eq!(field(closed, "sent"), "0");
        assert_eq!(field(closed, "received"), "0");
    }
}

#[test]
fn a_handler_that_a_signal_ends_has_failed_and_the_log_names_the_signal() {
    needs_root();
    let server = Standalone::start(&["/bin/sh", "-c", "echo half; kill -$0 $$", "SEGV"]);
    assert_eq!(read_all(server.connect()), b"half\n");
    assert_eq!(field(&server.closed(), "reason"), "handler-failed");
    let line = server.process.log.wait_for("ended by signal");
    assert!(
        line.ends_with(&format!("signal {}", Signal::SIGSEGV as i32)),
        "{line}"
    );

    // The listener lives on.
    assert_eq!(read_all(server.connect()), b"half\n");

    let (client, mut child) = under_inetd(&["/bin/sh", "-c", "echo half; kill -KILL $$"]);
    assert_eq!(read_all(client), b"half\n");
    // It was the process that inetd knows.
    assert_eq!(end_of(&mut child).signal(), Some(Signal::SIGKILL as i32));
}

/// Handlers that cannot be started, and a word of why.
fn unstartable(scratch: &Scratch) -> Vec<(String, &'static str)> {
    let file = scratch.join("not-executable");
    fs::write(&file, "#!/bin/sh\necho started\n").unwrap();
    let orphan = scratch.join("no-interpreter");
    let script = "echo '#!/no/such/interpreter' >\"$0\" && chmod 755 \"$0\"";
    let mut write = Command::new("sh");
    assert!(
        write
            .args(["-c", script])
            .arg(&orphan)
            .status()
            .unwrap()
            .success()
    );
    [
        ("/no/such/handler".to_owned(), "No such file"),
        (file.display().to_string(), "denied"),
        (scratch.path().display().to_string(), "denied"),
        (orphan.display().to_string(), "No such file"),
        // Only root could reach it.
        ("/root/handler".to_owned(), "denied"),
        ("/etc/passwd/handler".to_owned(), "Not a directory"),
    ]
    .into()
}

#[test]
fn a_handler_that_cannot_be_started_costs_one_client_and_the_log_says_why() {
    needs_root();
    let scratch = Scratch::new();
    for (handler, why) in unstartable(&scratch) {
        let server = Standalone::start(&[&handler]);
        for count in 1..=2 {
            assert_eq!(read_all(server.connect()), b"", "{handler}");
            let closed = server.process.log.wait_for_count(" closed: ", count);
            assert_eq!(field(&closed[count - 1], "reason"), "handler-failed");
            let lines = server
                .process
                .log
                .wait_for_count(&format!("handler {handler}: "), count);
            assert!(lines[0].contains(why), "{}", lines[0]);
        }
    }
}

#[test]
fn a_handler_that_cannot_be_started_under_inetd_is_logged_and_not_shown() {
    needs_root();
    let scratch = Scratch::new();
    for (count, (handler, why)) in unstartable(&scratch).into_iter().enumerate() {
        let log = scratch.join(&format!("log-{count}"));
        let target = format!("file:{}", log.display());
        let (client, mut child) = under_inetd(&["--log", &target, &handler]);
        assert_eq!(read_all(client), b"", "{handler}");
        assert_eq!(end_of(&mut child).code(), Some(71), "{handler}");
        let closed = wait_for_line(&log, " closed: ");
        assert_eq!(field(&closed, "reason"), "handler-failed");
        let line = wait_for_line(&log, &format!("handler {handler}: "));
        assert!(line.contains(why), "{line}");
    }
}

/// Closes every descriptor that can be the client, and lives on.
const LEAVE: &str = "echo $$; exec 0<&- 1>&- 2>&-; exec sleep 1000";

#[test]
fn a_handler_that_closes_its_output_ends_the_clients_stream_and_lives_on() {
    needs_root();
    let server = Standalone::start(&["/bin/sh", "-c", LEAVE]);
    let text = String::from_utf8(read_all(server.connect())).unwrap();
    let handler = Pid::from_raw(text.trim_end().parse().unwrap());
    kill(handler, None).expect("the handler lives");
    assert!(
        !server
            .process
            .log
            .all()
            .iter()
            .any(|l| l.contains(" closed: "))
    );

    // The end of the server is the end of its sessions, and of this one's handler.
    server.process.signal(Signal::SIGTERM);
    assert_eq!(field(&server.closed(), "reason"), "terminated");
    eventually("the handler's end", || kill(handler, None).err());

    let (client, mut child) = under_inetd(&["/bin/sh", "-c", LEAVE]);
    assert_eq!(read_all(client), format!("{}\n", child.id()).as_bytes());
    assert!(child.try_wait().unwrap().is_none(), "the handler lives");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    end_of(&mut child);
}

#[test]
fn the_idle_timeout_does_not_apply_to_handlers() {
    needs_root();
    let script = "echo waiting; sleep 1; read line; echo $line";
    let server = Standalone::start(&["-t", "100ms", "/bin/sh", "-c", script]);
    let client = server.connect();
    let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "waiting");
    (&client).write_all(b"still here\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "still here");
    assert_eq!(field(&server.closed(), "reason"), "handler-exited");
}

#[test]
fn a_client_that_leaves_does_not_end_the_handler() {
    needs_root();
    let scratch = Scratch::new();
    let done = scratch.join("done");
    let script = format!("cat >/dev/null; echo done >{}", done.display());
    let server = Standalone::start(&["/bin/sh", "-c", &script]);
    drop(server.connect());
    assert_eq!(wait_for_line(&done, "done"), "done");
    assert_eq!(field(&server.closed(), "reason"), "handler-exited");
}

#[test]
fn a_handlers_child_that_holds_the_client_does_not_hold_the_session() {
    needs_root();
    let server = Standalone::start(&["/bin/sh", "-c", "sleep 1000 & echo $!"]);
    let client = server.connect();
    let mut line = String::new();
    BufReader::new(&client).read_line(&mut line).unwrap();
    assert_eq!(field(&server.closed(), "reason"), "handler-exited");
    let child = Pid::from_raw(line.trim_end().parse().unwrap());
    // It still has the client's socket, which is its own affair.
    kill(child, Signal::SIGTERM).unwrap();
    assert_eq!(read_all(client), b"");
}

#[test]
fn a_handler_may_run_where_children_were_ignored() {
    needs_root();
    let launcher = ["env", "--ignore-signal=CHLD"];
    let server = Standalone::launched_by(&launcher, &["/bin/sh", "-c", "(exit 3); echo $?"]);
    assert_eq!(read_all(server.connect()), b"3\n");
    assert_eq!(field(&server.closed(), "reason"), "handler-exited");
}

#[test]
fn a_client_that_resets_leaves_the_rest_to_its_handler() {
    needs_root();
    let server = Standalone::start(&["/bin/cat"]);
    let mut client = server.connect();
    client.write_all(b"line\n").unwrap();
    let mut line = String::new();
    BufReader::new(&client).read_line(&mut line).unwrap();
    assert_eq!(line, "line\n");
    reset(client);
    assert_eq!(field(&server.closed(), "reason"), "handler-exited");
}
