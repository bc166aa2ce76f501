//! The log as its readers see it: syslog's socket, files and streams; and that it neither delays
//! nor ends a session.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Pid;

use crate::harness::namespaces::{bare_dev, privately, run, system_log};
use crate::harness::processes::{children, only_child};
use crate::harness::upstreams::Upstream;
use crate::harness::{
    Running, Scratch, Standalone, TCPPROXY, end_of, eventually, field, patient, read_all,
    socket_pair, under_inetd,
};

/// The next message that contains this text.
fn message(log: &UnixDatagram, text: &str) -> String {
    let mut buffer = [0; 4096];
    loop {
        let length = log
            .recv(&mut buffer)
            .unwrap_or_else(|error| panic!("no message with '{text}': {error}"));
        let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
        if message.contains(text) {
            return message;
        }
    }
}

/// An upstream that closes every connection at once.
fn closer() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || listener.incoming().for_each(drop));
    address
}

/// Starts a server that logs as it does by default, on a port that is free.
fn by_default(arguments: &[&str]) -> (Running, SocketAddr) {
    let place = format!("127.0.0.1:{}", crate::harness::free_port());
    let mut command = Command::new(TCPPROXY);
    command
        .args(["-b", &place])
        .args(arguments)
        .stdin(Stdio::null());
    let server = Running::start(&mut command);
    let address = place.parse().unwrap();
    eventually("the server to listen", || TcpStream::connect(address).ok());
    (server, address)
}

/// Fails unless a text is `Mmm dd hh:mm:ss`, as RFC 3164 has it.
fn assert_is_time(text: &str) {
    let parsed = Command::new("date").args(["-d", text]).output().unwrap();
    assert!(parsed.status.success() && text.len() == 15, "{text:?}");
    assert_eq!(text.as_bytes()[3], b' ');
}

/// The name and process id before a line, and the line.
fn untagged(line: &str) -> (&str, i32, &str) {
    let (tag, text) = line.split_once(": ").unwrap();
    let (name, pid) = tag.split_once('[').unwrap();
    (name, pid.strip_suffix(']').unwrap().parse().unwrap(), text)
}

#[test]
fn syslog_gets_lines_of_the_facility_daemon_with_name_and_process() {
    privately(|| {
        let scratch = Scratch::new();
        bare_dev(&scratch);
        let log = system_log();
        let upstream = closer().to_string();
        for (arguments, name) in [(&[][..], "tcpproxy"), (&["-l", "smtp-in"], "smtp-in")] {
            let arguments = [arguments, &[upstream.as_str()]].concat();
            let (server, address) = by_default(&arguments);
            for (text, priority) in [
                // notice and info, as syslog.h has them; daemon is 3.
                ("listening on ", 3 << 3 | 5),
                ("session 1 opened: ", 3 << 3 | 6),
                ("session 1 closed: ", 3 << 3 | 6),
            ] {
                let message = message(&log, text);
                let rest = message.strip_prefix(&format!("<{priority}>")).unwrap();
                assert_is_time(&rest[..15]);
                let (found, pid, line) = untagged(rest[15..].strip_prefix(' ').unwrap());
                assert_eq!(found, name);
                assert!(line.starts_with(text), "{message}");
                // The supervisor's own, or a session's.
                let is_supervisor = pid == server.pid().as_raw();
                assert_eq!(is_supervisor, text.starts_with("listening"), "{message}");
                assert!(!message.ends_with('\n'), "{message:?}");
            }
            assert_eq!(
                server.log.all(),
                [""; 0],
                "standard error is not a terminal"
            );
            drop(server);
            TcpStream::connect(address).unwrap_err();
        }
    });
}

#[test]
fn a_refused_client_is_worth_a_notice() {
    privately(|| {
        let scratch = Scratch::new();
        bare_dev(&scratch);
        let log = system_log();
        let (_server, _) = by_default(&["--deny", "ANY", "127.0.0.1:1"]);
        let closed = message(&log, " closed: ");
        assert!(closed.starts_with("<29>"), "{closed}");
        assert!(closed.ends_with(" reason=denied-by-rule"), "{closed}");
    });
}

#[test]
fn a_session_under_inetd_logs_to_syslog_and_not_to_its_client() {
    privately(|| {
        let scratch = Scratch::new();
        bare_dev(&scratch);
        let log = system_log();
        // What would go to the client's streams goes there, too.
        for targets in [&[][..], &["--log", "stderr"], &["--log", "stdout"]] {
            let upstream = Upstream::new(|mut stream| stream.write_all(b"data").unwrap());
            let name = upstream.name();
            let (client, mut child) = under_inetd(&[targets, &[&name]].concat());
            assert_eq!(read_all(&client), b"data");
            drop(client);
            assert_eq!(child.wait().unwrap().code(), Some(0));
            let id = child.id();
            let opened = message(&log, " opened: ");
            assert!(opened.contains(&format!("tcpproxy[{id}]: session {id} opened: ")));
            let closed = message(&log, " closed: ");
            assert_eq!(field(&closed, "received"), "4");
        }
        // Not even what is wrong with the command line.
        let (client, mut child) = under_inetd(&["--tiemout", "5", "h:1"]);
        assert_eq!(child.wait().unwrap().code(), Some(64));
        assert_eq!(read_all(client), b"");
        assert!(message(&log, "unknown option --tiemout").starts_with("<27>"));
    });
}

#[test]
fn without_a_system_log_lines_go_to_standard_error() {
    privately(|| {
        let scratch = Scratch::new();
        bare_dev(&scratch);
        let (server, address) = by_default(&[&closer().to_string()]);
        server.log.wait_for("session 1 closed: ");
        let line = server.log.wait_for("listening on ");
        let expected = format!("tcpproxy[{}]: listening on {address}", server.pid());
        assert_eq!(line, expected);
    });
}

#[test]
fn without_a_system_log_the_client_gets_nothing_but_data() {
    privately(|| {
        let scratch = Scratch::new();
        bare_dev(&scratch);
        let upstream = Upstream::new(|mut stream| stream.write_all(b"data").unwrap());
        let (client, mut child) = under_inetd(&[&upstream.name()]);
        assert_eq!(read_all(client), b"data");
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let (client, mut child) = under_inetd(&["--tiemout", "5", "h:1"]);
        assert_eq!(child.wait().unwrap().code(), Some(64));
        assert_eq!(read_all(client), b"");
    });
}

#[test]
fn a_full_syslog_socket_loses_lines_and_delays_nobody() {
    privately(|| {
        let scratch = Scratch::new();
        bare_dev(&scratch);
        let log = system_log();
        let filling = UnixDatagram::unbound().unwrap();
        filling.connect("/dev/log").unwrap();
        filling.set_nonblocking(true).unwrap();
        while filling.send(b"<30>full").is_ok() {}
        let (_server, address) = by_default(&[&closer().to_string()]);
        let start = Instant::now();
        for _ in 0..20 {
            let client = patient(TcpStream::connect(address).unwrap());
            assert_eq!(read_all(client), b"");
        }
        assert!(start.elapsed() < Duration::from_secs(3));
        // There is room again: later lines are there.
        log.set_nonblocking(true).unwrap();
        while log.recv(&mut [0; 4096]).is_ok() {}
        log.set_nonblocking(false).unwrap();
        let client = TcpStream::connect(address).unwrap();
        // Those of the last of the others may come first.
        message(
            &log,
            &format!(" opened: client={} ", client.local_addr().unwrap()),
        );
    });
}

#[test]
fn a_system_log_that_accepts_nobody_delays_nobody() {
    privately(|| {
        let scratch = Scratch::new();
        bare_dev(&scratch);
        let log = UnixListener::bind("/dev/log").unwrap();
        fs::set_permissions("/dev/log", fs::Permissions::from_mode(0o666)).unwrap();
        let address = UnixAddr::new("/dev/log").unwrap();
        let filling = || {
            let flags = SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
            connect(socket.as_raw_fd(), &address).map(|()| socket)
        };
        let waiting: Vec<OwnedFd> = std::iter::from_fn(|| filling().ok()).collect();
        assert_eq!(filling().unwrap_err(), Errno::EAGAIN);
        let serve = || {
            let upstream = Upstream::new(|mut stream| {
                stream.write_all(b"data").unwrap();
                read_all(stream)
            });
            let (mut client, mut child) = under_inetd(&[&upstream.name()]);
            client.write_all(b"data").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(client), b"data");
            assert_eq!(upstream.result(), b"data");
            assert_eq!(end_of(&mut child).code(), Some(0));
        };
        serve();
        // There is room again: later lines are there.
        waiting.iter().for_each(|_| drop(log.accept().unwrap()));
        serve();
        let lines = String::from_utf8(read_all(log.accept().unwrap().0)).unwrap();
        assert!(
            lines.contains(" opened: ") && lines.contains(" closed: "),
            "{lines}"
        );
    });
}

#[test]
fn a_system_log_that_is_restarted_goes_on_getting_lines() {
    privately(|| {
        let scratch = Scratch::new();
        bare_dev(&scratch);
        let log = system_log();
        let (_server, address) = by_default(&[&closer().to_string()]);
        message(&log, "session 1 closed: ");
        drop(log);
        // A process that another thread forks just now has a copy, until it is its program.
        eventually("nobody to read it", || {
            let client = UnixDatagram::unbound().unwrap();
            client.connect("/dev/log").is_err().then_some(())
        });
        let log = system_log();
        drop(TcpStream::connect(address).unwrap());
        message(&log, "session 2 opened: ");
        message(&log, "session 2 closed: ");
    });
}

#[test]
fn on_a_terminal_a_server_logs_there_too() {
    privately(|| {
        let scratch = Scratch::new();
        bare_dev(&scratch);
        let log = system_log();
        let place = format!("127.0.0.1:{}", crate::harness::free_port());
        let upstream = closer();
        // script(1) is a terminal to the program that it runs.
        let command = format!("exec {TCPPROXY} -b {place} {upstream}");
        let mut terminal = Command::new("script")
            .args(["-qec", &command, "/dev/null"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script is missing: run tests/setup");
        let shown = crate::harness::Lines::of(terminal.stdout.take().unwrap());
        shown.wait_for(&format!("listening on {place}"));
        message(&log, &format!("listening on {place}"));
        // It ends with its program, but not the other way round.
        let server = only_child(Pid::from_raw(terminal.id() as i32));
        kill(server, Signal::SIGTERM).unwrap();
        crate::harness::end_of(&mut terminal);
    });
}

/// The lines of a log file that is written to by a session under inetd.
fn lines_of_a_session(arguments: &[&str]) -> Vec<String> {
    let scratch = Scratch::new();
    let path = scratch.join("log");
    fs::write(&path, "here before\n").unwrap();
    let target = format!("file:{}", path.display());
    let (client, mut child) = under_inetd(&[&["--log", &target], arguments].concat());
    client.shutdown(Shutdown::Write).unwrap();
    read_all(client);
    child.wait().unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let mut lines = text.lines().map(str::to_owned);
    assert_eq!(lines.next().unwrap(), "here before");
    lines.collect()
}

#[test]
fn the_lines_of_a_session_are_as_documented() {
    let upstream = closer().to_string();
    let lines = lines_of_a_session(&[&upstream]);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    for (line, word, keys) in [
        (&lines[0], "opened", &["client", "local", "user"][..]),
        (
            &lines[1],
            "closed",
            &["client", "server", "sent", "received", "duration", "reason"],
        ),
    ] {
        // 2026-01-02T03:04:05.678+00:00 tcpproxy[123]: session 123 opened: client=…
        let (time, rest) = line.split_once(' ').unwrap();
        assert_eq!(time.len(), "2026-01-02T03:04:05.678+00:00".len(), "{line}");
        let parsed = Command::new("date").args(["-d", time]).output().unwrap();
        assert!(parsed.status.success(), "{line}");
        let (name, pid, text) = untagged(rest);
        assert_eq!(name, "tcpproxy");
        let pairs = text
            .strip_prefix(&format!("session {pid} {word}: "))
            .unwrap_or_else(|| panic!("{line}"));
        let found: Vec<&str> = pairs
            .split(' ')
            .map(|pair| pair.split_once('=').unwrap().0)
            .collect();
        assert_eq!(found, keys, "{line}");
        assert!(field(line, "client").starts_with("127.0.0.1:"), "{line}");
    }
    assert!(field(&lines[0], "local").starts_with("127.0.0.1:"));
    assert_eq!(field(&lines[1], "server"), upstream);
    let duration = field(&lines[1], "duration").strip_suffix('s').unwrap();
    assert_eq!(duration.split_once('.').unwrap().1.len(), 3, "{duration}");
}

#[test]
fn the_user_in_the_log_is_the_one_that_serves() {
    crate::harness::needs_root();
    let upstream = closer().to_string();
    let opened = &lines_of_a_session(&[&upstream])[0];
    assert_eq!(field(opened, "user"), "65535:65534");
    let opened = &lines_of_a_session(&["-u", "54321", "-g", "54322", &upstream])[0];
    assert_eq!(field(opened, "user"), "54321:54322");
}

#[test]
fn the_level_decides_what_is_logged() {
    let upstream = closer().to_string();
    let refused = format!("127.0.0.1:{}", crate::harness::free_port());
    for (level, ordinary, refusals) in [
        ("error", 0, 0),
        ("warning", 0, 0),
        // A refused connection is worth two notices: why, and the closed line.
        ("notice", 0, 2),
        ("info", 2, 3),
        // Whom it has connected to.
        ("debug", 3, 3),
    ] {
        let lines = lines_of_a_session(&["--log-level", level, &upstream]);
        assert_eq!(lines.len(), ordinary, "{level}: {lines:#?}");
        let lines = lines_of_a_session(&["--log-level", level, &refused]);
        assert_eq!(lines.len(), refusals, "{level}: {lines:#?}");
    }
}

#[test]
fn what_fails_is_logged_as_an_error() {
    let lines = lines_of_a_session(&["--log-level", "error", "/no/such/handler"]);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("/no/such/handler"), "{lines:#?}");
}

#[test]
fn several_targets_get_the_same_lines() {
    let scratch = Scratch::new();
    let path = scratch.join("log");
    let file = format!("file:{}", path.display());
    let upstream = closer().to_string();
    let (client, accepted) = socket_pair();
    let mut child = Command::new(TCPPROXY)
        .args(["--log", "stderr", "--log", &file, "--log", "stdout"])
        .args(["-l", "name", &upstream])
        .stdin(Stdio::from(OwnedFd::from(accepted)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    read_all(&client);
    drop(client);
    let (mut stdout, mut stderr) = (String::new(), String::new());
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut stdout)
        .unwrap();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    child.wait().unwrap();
    assert_eq!(stdout, stderr);
    let start = format!("name[{}]: session ", child.id());
    assert!(
        stderr.lines().all(|line| line.starts_with(&start)),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 2);
    let in_file: String = fs::read_to_string(&path)
        .unwrap()
        .lines()
        .map(|line| format!("{}\n", line.split_once(' ').unwrap().1))
        .collect();
    assert_eq!(in_file, stderr);
}

#[test]
fn a_log_file_may_be_roots_alone_and_sessions_write_to_it_even_so() {
    crate::harness::needs_root();
    let scratch = Scratch::new();
    let place = scratch.join("private");
    fs::create_dir(&place).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o700)).unwrap();
    let path = place.join("log");
    let target = format!("file:{}", path.display());
    let proxy = Standalone::start(&["--log", &target, &closer().to_string()]);
    read_all(proxy.connect());
    proxy.closed();
    // The file's turn comes after standard error's.
    eventually("the closed line", || {
        let text = fs::read_to_string(&path).unwrap();
        text.contains(" session 1 closed: ").then_some(())
    });
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o137, 0);
}

#[test]
fn lines_of_many_sessions_at_once_do_not_mix() {
    let scratch = Scratch::new();
    let path = scratch.join("log");
    let target = format!("file:{}", path.display());
    let proxy = Standalone::start(&["--log", &target, &closer().to_string()]);
    let clients: Vec<TcpStream> = (0..300).map(|_| proxy.connect()).collect();
    for client in &clients {
        read_all(client);
    }
    drop(clients);
    proxy.process.log.wait_for_count(" closed: ", 300);
    // The file's turn comes after standard error's.
    let text = eventually("every line", || {
        let text = fs::read_to_string(&path).unwrap();
        (text.matches(" closed: ").count() == 300).then_some(text)
    });
    assert_eq!(text.lines().count(), 601);
    for line in text.lines() {
        let (_, rest) = line.split_once(' ').unwrap();
        let (name, _, text) = untagged(rest);
        assert_eq!(name, "tcpproxy", "{line}");
        assert_eq!(
            text.matches("session ").count(),
            usize::from(!text.starts_with("listening"))
        );
    }
}

#[test]
fn a_log_that_cannot_be_written_does_not_end_a_session() {
    let upstream = Upstream::new(|mut stream| stream.write_all(b"data").unwrap());
    let (client, mut child) = under_inetd(&["--log", "file:/dev/full", &upstream.name()]);
    assert_eq!(read_all(&client), b"data");
    drop(client);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // And one that has reached the largest size that a file may have.
    let scratch = Scratch::new();
    let upstream = Upstream::new(|mut stream| stream.write_all(b"data").unwrap());
    let path = scratch.join("log");
    let script = format!(
        "ulimit -f 0; exec {TCPPROXY} --log file:{} {}",
        path.display(),
        upstream.name()
    );
    let (client, accepted) = socket_pair();
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::from(OwnedFd::from(accepted)))
        .spawn()
        .unwrap();
    assert_eq!(read_all(&client), b"data");
    drop(client);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
}

#[test]
fn what_a_client_sends_never_gets_into_the_log() {
    let scratch = Scratch::new();
    let path = scratch.join("sink");
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let proxy = Standalone::start(&[&format!("unix:{}", path.display())]);
    let mut client = proxy.connect();
    let forged = b"\nsession 99 closed: client=1.2.3.4:5 reason=forged\n";
    client.write_all(forged).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(listener.accept().unwrap().0), forged);
    proxy.closed();
    let lines = proxy.process.log.all();
    assert!(
        lines.iter().all(|line| !line.contains("forged")),
        "{lines:#?}"
    );
}

#[test]
fn a_name_with_blanks_stays_one_word() {
    let server = "unix:/no/such place/session 99 closed: reason=forged";
    let lines = lines_of_a_session(&[server]);
    let closed = lines.last().unwrap();
    assert_eq!(
        field(closed, "server"),
        "unix:/no/such\\x20place/session\\x2099\\x20closed:\\x20reason=forged"
    );
    assert_eq!(field(closed, "reason"), "connect-failed");
}

#[test]
fn a_path_with_control_characters_is_escaped() {
    let lines = lines_of_a_session(&["unix:/no/\nsession 99 closed: \x1b[31m"]);
    assert!(
        lines.iter().all(|line| !line.contains('\x1b')),
        "{lines:#?}"
    );
    let forged = lines.iter().any(|line| line.starts_with("session 99"));
    assert!(!forged, "{lines:#?}");
}

#[test]
fn a_file_on_standard_error_is_appended_to_wherever_it_stands() {
    let scratch = Scratch::new();
    let path = scratch.join("log");
    // As `2>log` of a shell opens it, and not as `2>>log` does.
    let mut file = fs::File::create(&path).unwrap();
    let place = format!("127.0.0.1:{}", crate::harness::free_port());
    let mut command = Command::new(TCPPROXY);
    command.args(["-b", &place, "--log", "stderr", "/bin/sh", "-c"]);
    command.arg("read line; echo from a handler >&2; echo done");
    command
        .stdin(Stdio::null())
        .stderr(file.try_clone().unwrap());
    let log = crate::harness::Lines::default();
    let child = command.spawn().unwrap();
    let mut server = Running { child, log };
    let listening = crate::harness::wait_for_line(&path, "listening on ");
    let client = || {
        let client = patient(TcpStream::connect(&place).unwrap());
        (&client).write_all(b"go\n").unwrap();
        assert_eq!(read_all(client), b"done\n");
    };
    client();
    // What any handler can do: the place is that of everybody who has the file from us.
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(0)).unwrap();
    client();
    server.signal(Signal::SIGTERM);
    server.status();
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().next(), Some(listening.as_str()), "{text}");
    for line in ["from a handler", " opened: ", " closed: "] {
        assert_eq!(text.matches(line).count(), 2, "{line}: {text}");
    }
}

#[test]
fn a_line_that_a_full_disk_has_torn_is_not_glued_to_the_next() {
    privately(|| {
        let scratch = Scratch::new();
        let disk = scratch.join("disk");
        fs::create_dir(&disk).unwrap();
        let place = disk.to_str().unwrap();
        // Of 16 pages.
        run("mount", &["-t", "tmpfs", "-o", "size=64k", "none", place]);
        let (log, access_log, filling) =
            (disk.join("log"), disk.join("access"), disk.join("filling"));
        let target = format!("file:{}", log.display());
        let options = [
            "--log",
            &target,
            "--access-log",
            access_log.to_str().unwrap(),
        ];
        let server = Standalone::start(&[&options[..], &[&closer().to_string()]].concat());
        let serve = || assert_eq!(read_all(server.connect()), b"");
        let fill = || {
            let mut file = fs::File::create(&filling).unwrap();
            while file.write(&[0; 4096]).is_ok_and(|count| count > 0) {}
        };
        let size = || fs::metadata(&log).unwrap().len() + fs::metadata(&access_log).unwrap().len();
        // A line ends within a page more often than with one. Whatever a session says, and the server
        // itself, is written by another process than the next line.
        for _ in 0..4 {
            serve();
            fill();
            // Until neither takes any more: pages are there whole.
            let mut before = 0;
            while size() != before {
                before = size();
                (0..40).for_each(|_| serve());
                eventually("the sessions to end", || {
                    children(server.process.pid()).is_empty().then_some(())
                });
            }
            fs::remove_file(&filling).unwrap();
            serve();
        }
        drop(server);
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.lines().count() > 100, "{text}");
        assert!(text.ends_with('\n'));
        for line in text.lines().filter(|line| !line.is_empty()) {
            assert_eq!(line.matches(" tcpproxy[").count().max(1), 1, "{line}");
        }
        let text = fs::read_to_string(&access_log).unwrap();
        for line in text.lines() {
            assert_eq!(line.matches(" closed: ").count().max(1), 1, "{line}");
        }
    });
}
