//! The access control program: who passes, what a refused client still reads, and what is
//! written down.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddrV4, TcpListener};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{SockaddrIn, getpeername};

use crate::harness::peers::{Through, reset};
use crate::harness::processes::{
    Leftover, assert_nobody_is_left_of, borrow_descriptor, descriptors_of_kind,
};
use crate::harness::upstreams::{Forbidden, Upstream};
use crate::harness::{
    Engine, PATIENCE, Scratch, Standalone, end_of, eventually, field, hand_over, launched_by,
    needs_root, read_all, under_inetd,
};

/// An upstream that answers one request with "reply".
fn answering() -> Upstream<Vec<u8>> {
    Upstream::new(|mut stream| {
        let request = read_all(&stream);
        stream.write_all(b"reply").unwrap();
        request
    })
}

/// Sends a request through the proxy, and fails unless the reply comes back.
fn assert_forwarded(proxy: &Standalone, upstream: Upstream<Vec<u8>>) {
    let mut client = proxy.connect();
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(client), b"reply");
    assert_eq!(upstream.result(), b"request");
    assert_eq!(field(&proxy.closed(), "reason"), "client-closed");
}

/// `--acp` for a shell script in a file, which need not be executable.
fn shell(scratch: &Scratch, body: &str) -> String {
    let file = scratch.join("access-program");
    fs::write(&file, body).unwrap();
    format!("/bin/sh {}", file.display())
}

#[test]
fn exit_0_grants_and_its_output_comes_first() {
    needs_root();
    let upstream = answering();
    let proxy = Standalone::start(&["--acp", "/bin/sh -c 'exit 0'", &upstream.name()]);
    assert_forwarded(&proxy, upstream);

    let upstream = Upstream::new(|mut stream| stream.write_all(b"reply").unwrap());
    let proxy = Standalone::start(&["-a", "/bin/echo welcome", &upstream.name()]);
    assert_eq!(read_all(proxy.connect()), b"welcome\nreply");
    upstream.result();
}

#[test]
fn a_program_without_a_slash_is_searched_in_path() {
    needs_root();
    let upstream = answering();
    let proxy = Standalone::start(&["--acp", "true", &upstream.name()]);
    assert_forwarded(&proxy, upstream);
}

#[test]
fn every_other_end_denies_and_the_upstream_hears_of_nobody() {
    needs_root();
    for (ending, cause) in [
        ("exit 1", "exit status 1"),
        ("exit 2", "exit status 2"),
        ("exit 127", "exit status 127"),
        ("exit 255", "exit status 255"),
        ("kill -TERM $$", "ended by signal 15"),
        ("kill -KILL $$", "ended by signal 9"),
        ("kill -SEGV $$", "ended by signal 11"),
    ] {
        let upstream = Forbidden::new();
        let scratch = Scratch::new();
        let program = shell(&scratch, &format!("echo no; {ending}"));
        let proxy = Standalone::start(&["--acp", &program, &upstream.name()]);
        assert_eq!(read_all(proxy.connect()), b"no\n", "{ending}");
        let closed = proxy.closed();
        assert_eq!(field(&closed, "reason"), "denied-by-program", "{ending}");
        assert_eq!(field(&closed, "sent"), "0");
        assert_eq!(field(&closed, "received"), "0");
        let line = proxy.process.log.wait_for("denied: ");
        assert!(line.contains(cause), "{ending}: {line}");
        upstream.assert_untouched();
    }
}

#[test]
fn a_program_that_cannot_be_started_denies() {
    needs_root();
    let scratch = Scratch::new();
    let file = scratch.join("not-executable");
    fs::write(&file, "#!/bin/sh\nexit 0\n").unwrap();
    for program in [
        "/no/such/program",
        "no-such-program-in-path",
        file.to_str().unwrap(),
        "/tmp",
        "/root/program",
    ] {
        let upstream = Forbidden::new();
        let proxy = Standalone::start(&["--acp", program, &upstream.name()]);
        assert_eq!(read_all(proxy.connect()), b"", "{program}");
        assert_eq!(field(&proxy.closed(), "reason"), "denied-by-program");
        let line = proxy.process.log.wait_for("denied: ");
        assert!(
            line.contains(program) && line.contains("cannot be started"),
            "{line}"
        );
        upstream.assert_untouched();

        // A client's end is the only thing that it may learn under inetd.
        let (client, mut child) = under_inetd(&["--acp", program, &upstream.name()]);
        assert_eq!(read_all(client), b"", "{program}");
        assert_eq!(end_of(&mut child).code(), Some(0), "{program}");
        upstream.assert_untouched();
    }
}

#[test]
fn a_denial_under_inetd_is_the_programs_words_and_exit_status_0() {
    needs_root();
    let upstream = Forbidden::new();
    let scratch = Scratch::new();
    let program = shell(&scratch, "echo no; echo secret >&2; exit 1");
    let (client, mut child) = under_inetd(&["--acp", &program, &upstream.name()]);
    assert_eq!(read_all(client), b"no\n");
    assert_eq!(end_of(&mut child).code(), Some(0));
    upstream.assert_untouched();
}

#[test]
fn a_handler_is_not_started_for_a_denied_client() {
    needs_root();
    let scratch = Scratch::new();
    let started = scratch.join("started");
    let program = shell(&scratch, "exit 1");
    let handler = ["/usr/bin/touch", started.to_str().unwrap()];
    let proxy = Standalone::start(&[&["--acp", &program], &handler[..]].concat());
    assert_eq!(read_all(proxy.connect()), b"");
    assert_eq!(field(&proxy.closed(), "reason"), "denied-by-program");
    assert!(!started.exists());
}

#[test]
fn a_granted_client_loses_nothing_that_it_sent_meanwhile() {
    needs_root();
    let scratch = Scratch::new();
    // It tries to read; its standard input is empty, though its parent's was the client.
    let program = shell(&scratch, "sleep 0.3; wc -c");
    let (mut client, mut child) = under_inetd(&["--acp", &program, "/bin/cat"]);
    client.write_all(b"early").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(client), b"0\nearly");
    end_of(&mut child);
}

#[test]
fn the_program_runs_as_the_services_user_in_the_root_directory_without_input() {
    needs_root();
    let scratch = Scratch::new();
    let program = shell(
        &scratch,
        "pwd; readlink /proc/$$/fd/0\n\
         sed -nE '/^(Uid|Gid|Groups|SigBlk|SigIgn|CapEff):/p' /proc/self/status\n\
         ls /proc/$$/fd | tr '\\n' ' '; exit 1",
    );
    let launcher = ["setpriv", "--groups", "0,4,27"];
    let launcher = [&launcher, &["env", "--ignore-signal", "--block-signal"][..]].concat();
    let arguments = ["--acp", &program, "-u", "123", "-g", "456", "127.0.0.1:1"];
    let proxy = Standalone::launched_by(&launcher, &arguments);
    let text = String::from_utf8(read_all(proxy.connect())).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    // 10 is the shell's own, for its script.
    assert_eq!(
        words.join(" "),
        "/ /dev/null Uid: 123 123 123 123 Gid: 456 456 456 456 Groups: \
         SigBlk: 0000000000000000 SigIgn: 0000000000000000 CapEff: 0000000000000000 0 1 10 2"
    );
}

#[test]
fn a_denied_client_that_has_sent_data_still_reads_the_whole_message() {
    needs_root();
    const MESSAGE: usize = 200_000;
    let scratch = Scratch::new();
    let body = format!("head -c {MESSAGE} /dev/zero | tr '\\0' m; exit 1");
    let program = shell(&scratch, &body);
    let upstream = Forbidden::new();
    for sent in [1, 100_000, 20_000_000] {
        let proxy = Standalone::start(&["--acp", &program, &upstream.name()]);
        let client = proxy.connect();
        let mut sender = client.try_clone().unwrap();
        let sending = thread::spawn(move || {
            sender.write_all(&vec![b's'; sent]).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        // As slow as people are: all of it is on its way, or waits to be sent.
        thread::sleep(Duration::from_millis(100));
        let message = read_all(client);
        assert_eq!(message.len(), MESSAGE, "{sent} sent");
        assert!(message.iter().all(|&byte| byte == b'm'));
        sending.join().unwrap();
        upstream.assert_untouched();
    }
}

#[test]
fn a_denied_client_that_never_ends_its_side_is_closed_in_time() {
    needs_root();
    let proxy = Standalone::start(&["--acp", "/bin/sh -c 'echo no; exit 1'", "127.0.0.1:1"]);
    let client = proxy.connect();
    assert_eq!(read_all(&client), b"no\n");
    let closed = proxy.closed();
    let duration: f64 = field(&closed, "duration")
        .trim_end_matches('s')
        .parse()
        .unwrap();
    assert!(
        (1.9..PATIENCE.as_secs_f64()).contains(&duration),
        "{closed}"
    );
}

/// A denied client that talks on and on does not keep the session.
#[test]
fn a_denied_client_that_never_stops_sending_is_closed_in_time() {
    needs_root();
    let proxy = Standalone::start(&["--acp", "/bin/false", "127.0.0.1:1"]);
    let mut client = proxy.connect();
    let started = Instant::now();
    while client.write_all(&[0; 65536]).is_ok() {
        assert!(started.elapsed() < PATIENCE, "it still reads");
    }
    assert_eq!(field(&proxy.closed(), "reason"), "denied-by-program");
}

#[test]
fn a_program_that_hangs_is_ended_with_its_process_group() {
    needs_root();
    for (ending, shortest) in [("", 0.2), ("trap '' TERM; ", 1.2)] {
        let upstream = Forbidden::new();
        let scratch = Scratch::new();
        let noted = scratch.join("pid");
        let body = format!(
            "{ending}sleep 1000 & (trap '' TERM; sleep 1000) &\n\
             echo one moment; echo $$ >{}; wait; wait; sleep 1000",
            noted.display()
        );
        let program = shell(&scratch, &body);
        let arguments = [
            "--acp",
            &program,
            "--acp-timeout",
            "200ms",
            &upstream.name(),
        ];
        let proxy = Standalone::start(&arguments);
        let client = proxy.connect();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(client), b"one moment\n", "{ending}");
        let closed = proxy.closed();
        assert_eq!(field(&closed, "reason"), "denied-by-program", "{ending}");
        let duration: f64 = field(&closed, "duration")
            .trim_end_matches('s')
            .parse()
            .unwrap();
        assert!(
            (shortest..PATIENCE.as_secs_f64()).contains(&duration),
            "{closed}"
        );
        proxy.process.log.wait_for("denied: it took too long");
        let group = Leftover::noted_in(&noted);
        assert_nobody_is_left_of(group.0);
        upstream.assert_untouched();
    }
}

#[test]
fn the_verdict_is_its_exit_and_not_the_end_of_its_output() {
    needs_root();
    for (status, expected) in [("0", "hello\nreply"), ("1", "hello\n")] {
        let upstream = Upstream::new(|mut stream| stream.write_all(b"reply").unwrap());
        let scratch = Scratch::new();
        let noted = scratch.join("pid");
        let body = format!(
            "sleep 1000 & echo $! >{}\necho hello; exit {status}",
            noted.display()
        );
        let program = shell(&scratch, &body);
        let proxy = Standalone::start(&["--acp", &program, &upstream.name()]);
        let client = proxy.connect();
        let _left = Leftover::noted_in(&noted);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(client), expected.as_bytes());
        let closed = proxy.closed();
        let duration: f64 = field(&closed, "duration")
            .trim_end_matches('s')
            .parse()
            .unwrap();
        assert!(duration < 9.0, "its time-out is 10 s: {closed}");
    }
}

#[test]
fn sigchld_ignored_by_whoever_started_us_changes_no_verdict() {
    needs_root();
    let launcher = ["env", "--ignore-signal=CHLD"];
    for (program, reply) in [("/bin/true", &b"served\n"[..]), ("/bin/false", b"")] {
        let arguments = ["--acp", program, "/bin/echo", "served"];
        let (client, mut child) = hand_over(&mut launched_by(&launcher, &arguments));
        assert_eq!(read_all(client), reply, "{program}");
        end_of(&mut child);
        let proxy = Standalone::launched_by(&launcher, &arguments);
        assert_eq!(read_all(proxy.connect()), reply, "{program}");
    }
}

#[test]
fn the_end_of_the_server_ends_the_program_and_denies() {
    needs_root();
    let upstream = Forbidden::new();
    let scratch = Scratch::new();
    let noted = scratch.join("pid");
    let program = shell(
        &scratch,
        &format!("echo $$ >{}; sleep 1000", noted.display()),
    );
    let proxy = Standalone::start(&["--acp", &program, &upstream.name()]);
    let client = proxy.connect();
    client.shutdown(Shutdown::Write).unwrap();
    let group = Leftover::noted_in(&noted);
    proxy.process.signal(Signal::SIGTERM);
    assert_eq!(field(&proxy.closed(), "reason"), "terminated");
    assert_eq!(read_all(client), b"");
    assert_nobody_is_left_of(group.0);
    upstream.assert_untouched();
}

#[test]
fn a_client_that_resets_while_the_program_is_asked_is_taken_at_its_word_afterwards() {
    needs_root();
    for (status, reason) in [(0, "client-reset"), (1, "denied-by-program")] {
        let scratch = Scratch::new();
        let (asked, gone) = (scratch.join("asked"), scratch.join("gone"));
        let program = shell(
            &scratch,
            &format!(
                "echo >{}; until [ -e {} ]; do sleep 0.01; done; exit {status}",
                asked.display(),
                gone.display()
            ),
        );
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let name = upstream.local_addr().unwrap().to_string();
        let proxy = Standalone::start(&["-a", &program, &name]);
        let mut client = proxy.connect();
        client.write_all(b"request").unwrap();
        eventually("the program to be asked", || asked.exists().then_some(()));
        reset(client);
        fs::write(&gone, "").unwrap();
        let closed = proxy.closed();
        assert_eq!(field(&closed, "reason"), reason, "{closed}");
        assert_eq!(field(&closed, "received"), "0", "{closed}");
    }
}

/// The program's output is the client's socket, and so is that of whatever it leaves behind, which can
/// have the socket block: the flag belongs to all who hold it.
#[test]
fn a_socket_that_is_made_to_block_meanwhile_delays_no_end() {
    needs_root();
    let arguments = ["--acp", "/bin/true", "-t", "2"];
    for end in ["idle-timeout", "terminated"] {
        let through = Through::start(Engine::Adaptive, &arguments);
        let session = through.session();
        let mut sending = through.upstream.try_clone().unwrap();
        let sender = thread::spawn(move || while sending.write(&[0; 65_536]).is_ok() {});
        // Enough for a pipe, which needs a socket that does not block.
        let mut some = vec![0; 16 << 20];
        (&through.client).read_exact(&mut some).unwrap();
        let socket = descriptors_of_kind(session, "socket")
            .into_iter()
            .map(|number| borrow_descriptor(session, number))
            .find(|socket| {
                let peer = getpeername::<SockaddrIn>(socket.as_raw_fd());
                peer.is_ok_and(|peer| {
                    SocketAddrV4::from(peer).to_string()
                        == through.client.local_addr().unwrap().to_string()
                })
            })
            .unwrap();
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_RDWR)).unwrap();
        // The client reads no more: sooner or later a write finds too little room.
        (&through.client).read_exact(&mut some).unwrap();
        let started = Instant::now();
        if end == "terminated" {
            kill(session, Signal::SIGTERM).unwrap();
        }
        assert_eq!(field(&through.proxy.closed(), "reason"), end);
        assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
        sender.join().unwrap();
    }
}
