//! SIGHUP: a server that takes up its configuration again, and loses nobody.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::Signal;

use crate::harness::clients::{connect, is_refused};
use crate::harness::peers::{assert_echoes, read_to_ending};
use crate::harness::processes::{children, descriptors, descriptors_of_server};
use crate::harness::reloading::Reloadable;
use crate::harness::upstreams::echo;
use crate::harness::{
    Running, Scratch, Standalone, field, free_port, needs_root, patient, read_all, wait_for_line,
};

/// A service on a port of 127.0.0.1.
fn service(port: u16, action: &str) -> String {
    format!("port {port}\ninterface 127.0.0.1\n{action}\n")
}

/// An upstream that sends this word to everybody.
fn greeter(word: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(word.as_bytes());
        }
    });
    name
}

/// What a client of this port is sent.
fn greeting(port: u16) -> String {
    String::from_utf8(read_all(connect(port))).unwrap()
}

/// The sockets that listen for a process, by inode; not a client's that it is about to close.
fn sockets(process: &Running) -> Vec<String> {
    let listening: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().filter_map(listener_in).collect::<Vec<_>>())
        .collect();
    descriptors(process.pid())
        .into_iter()
        .map(|(_, target)| target.to_string_lossy().into_owned())
        .filter(|target| listening.contains(target))
        .collect()
}

/// The socket of a line of proc_net_tcp(5), if it is in the state LISTEN (0A).
fn listener_in(line: &str) -> Option<String> {
    let mut fields = line.split_whitespace().skip(3);
    let state = fields.next()?;
    let inode = fields.nth(5)?;
    (state == "0A").then(|| format!("socket:[{inode}]"))
}

/// Connects again and again, with a name of its own each time, until told to stop. Every
/// connection has to succeed, and to be given its own name back, and nothing else.
fn load(port: u16, client: usize, stop: &AtomicBool, served: &AtomicUsize) {
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let mut stream = connect(port);
        let name = format!("client {client}, connection {number}");
        stream.write_all(name.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut back = String::new();
        stream.read_to_string(&mut back).unwrap();
        assert_eq!(back, name);
        served.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn fifty_reloads_under_load_refuse_and_break_no_connection() {
    let (stays, comes) = (free_port(), free_port());
    let forward = format!("server {}", echo());
    let plain = service(stays, &forward);
    // Something else each time: another listener, limits; and a wrong file before each.
    let right = [
        plain.clone(),
        format!("{plain}{}", service(comes, &forward)),
        format!("max-sessions 400\ntimeout 30\n{plain}"),
    ];
    let wrong = [format!("{plain}sever 127.0.0.1\n"), String::new()];
    let mut server = Reloadable::start(&plain, &[]);
    let before = descriptors_of_server(server.pid());
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let (stop, served) = (&stop, &served);
                scope.spawn(move || load(stays, client, stop, served))
            })
            .collect();
        for round in 0..50 {
            let goal = served.load(Ordering::Relaxed) + 5;
            for (file, is_wrong) in [
                (&wrong[round % wrong.len()], true),
                (&right[round % right.len()], false),
            ] {
                let lines = server.change(file);
                let refused = lines.iter().any(|line| line.contains("not reloaded: "));
                assert_eq!(refused, is_wrong, "{round}: {lines:#?}");
            }
            // Clients have come after this reload, and before the next one.
            crate::harness::eventually("clients to be served", || {
                let failed = clients.iter().any(|client| client.is_finished());
                assert!(!failed, "a client has failed in round {round}");
                (served.load(Ordering::Relaxed) >= goal).then_some(())
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(served.load(Ordering::Relaxed) >= 250);
    server.change(&plain);
    crate::harness::eventually("every session to end", || {
        children(server.pid()).is_empty().then_some(())
    });
    // As many, and of the same; a log that is opened anew has another number than the old one.
    let targets = |all: Vec<(i32, PathBuf)>| {
        let mut targets: Vec<PathBuf> = all.into_iter().map(|(_, target)| target).collect();
        targets.sort();
        targets
    };
    assert_eq!(targets(descriptors(server.pid())), targets(before));
}

#[test]
fn a_client_in_the_backlog_is_served_after_the_reload() {
    let port = free_port();
    let plain = service(port, &format!("server {}", echo()));
    let mut server = Reloadable::start(&format!("max-sessions 1\n{plain}"), &[]);
    let first = connect(port);
    assert_echoes(&first);
    let waiting = connect(port);
    server.change(&format!("max-sessions 2\n{plain}"));
    assert_echoes(&waiting);
    assert_echoes(&first);
}

#[test]
fn a_wrong_file_changes_nothing_and_is_reported_with_its_place() {
    let port = free_port();
    let right = service(port, &format!("server {}", greeter("right")));
    let mut server = Reloadable::start(&right, &[]);
    for wrong in [
        format!("timeout x\n{}", service(port, "server 127.0.0.1:1")),
        service(port, "sever 127.0.0.1:1"),
        service(port, ""),
        format!(
            "{}{}",
            service(port, "server a:1"),
            service(port, "server b:1")
        ),
        "include /nonexistent/file\n".to_owned(),
        String::from("uid no-such-user\n") + &right,
    ] {
        let lines = server.change(&wrong).join("\n");
        let place = format!("not reloaded: {}:", server.file().display());
        assert!(lines.contains(&place), "{wrong}: {lines}");
        assert!(
            lines.contains("the configuration stays as it was"),
            "{lines}"
        );
        assert_eq!(greeting(port), "right", "{wrong}");
    }
    fs::remove_file(server.file()).unwrap();
    let lines = server.hang_up().join("\n");
    assert!(lines.contains("not reloaded: "), "{lines}");
    assert_eq!(greeting(port), "right");
}

#[test]
fn listeners_are_added_removed_and_those_that_stay_keep_their_sockets() {
    let (one, two) = (free_port(), free_port());
    let hello = format!("server {}", greeter("hello"));
    let mut server = Reloadable::start(&service(one, &hello), &[]);
    let first = sockets(&server.process);
    assert_eq!(first.len(), 1);
    let both = format!("{}{}", service(two, &hello), service(one, &hello));
    server.change(&both);
    assert_eq!(
        (greeting(one), greeting(two)),
        ("hello".into(), "hello".into())
    );
    let now = sockets(&server.process);
    assert_eq!(now.len(), 2);
    assert!(now.contains(&first[0]), "{now:?} without {first:?}");
    // The first one goes, the second one stays.
    server.change(&service(two, &hello));
    assert!(is_refused(one));
    assert_eq!(greeting(two), "hello");
    let now = sockets(&server.process);
    assert_eq!(now.len(), 1);
    assert_ne!(now, first);
}

#[test]
fn an_interface_becomes_the_wildcard_and_back() {
    let port = free_port();
    let hello = format!("server {}", greeter("hello"));
    let wide = format!("port {port}\n{hello}\n");
    let mut server = Reloadable::start(&service(port, &hello), &[]);
    let at = |host: &str| TcpStream::connect((host, port)).map(patient);
    at("127.0.0.2").unwrap_err();
    for _ in 0..3 {
        server.change(&wide);
        for host in ["127.0.0.1", "127.0.0.2", "::1"] {
            assert_eq!(read_all(at(host).unwrap()), b"hello", "{host}");
        }
        server.change(&service(port, &hello));
        assert_eq!(greeting(port), "hello");
        at("127.0.0.2").unwrap_err();
        at("::1").unwrap_err();
    }
}

#[test]
fn a_changed_action_holds_for_new_sessions_and_the_old_ones_go_on() {
    let port = free_port();
    let forward = service(port, &format!("server {}", echo()));
    let mut server = Reloadable::start(&forward, &[]);
    let old = connect(port);
    assert_echoes(&old);
    let socket = sockets(&server.process);
    assert_eq!(socket.len(), 1);
    server.change(&service(port, "exec /bin/echo handled"));
    assert_eq!(greeting(port), "handled\n");
    server.change(&service(port, &format!("server {}", greeter("new"))));
    assert_eq!(greeting(port), "new");
    assert_echoes(&old);
    assert_eq!(sockets(&server.process), socket);
    drop(old);
    let closed = server.process.log.wait_for("session 1 closed: ");
    assert_eq!(field(&closed, "reason"), "client-closed");
}

#[test]
fn rules_limits_times_and_users_hold_for_new_sessions() {
    needs_root();
    let port = free_port();
    let ids = service(port, "exec /usr/bin/id -u");
    let forward = service(port, &format!("server {}", echo()));
    let mut server = Reloadable::start(&forward, &[]);
    let old = connect(port);
    assert_echoes(&old);
    server.change(&format!("uid 54321\ngid 54321\n{ids}"));
    assert_eq!(greeting(port), "54321\n");
    server.change(&format!("deny 127.0.0.0/8\n{forward}"));
    assert_eq!(greeting(port), "");
    let closed = server.process.log.wait_for("session 3 closed: ");
    assert_eq!(field(&closed, "reason"), "denied-by-rule");
    server.change(&format!("timeout 100ms\n{forward}"));
    assert_eq!(greeting(port), "");
    let closed = server.process.log.wait_for("session 4 closed: ");
    assert_eq!(field(&closed, "reason"), "idle-timeout");
    // One that is there already counts, although it came when nothing was limited.
    server.change(&format!("max-per-source 2\n{forward}"));
    let one = connect(port);
    assert_echoes(&one);
    assert_eq!(greeting(port), "");
    let closed = server.process.log.wait_for("session 6 closed: ");
    assert_eq!(field(&closed, "reason"), "too-many-from-client");
    assert_echoes(&old);
}

#[test]
fn a_new_listener_that_cannot_be_had_is_reported_and_the_rest_applies() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = taken.local_addr().unwrap().port();
    let (one, two) = (free_port(), free_port());
    let hello = format!("server {}", greeter("hello"));
    let mut server = Reloadable::start(&service(one, &hello), &[]);
    let all = [one, busy, two].map(|port| service(port, &hello)).concat();
    let lines = server.change(&all).join("\n");
    let complaint = format!("cannot listen on 127.0.0.1:{busy}: Address already in use");
    assert!(lines.contains(&complaint), "{lines}");
    assert_eq!(
        (greeting(one), greeting(two)),
        ("hello".into(), "hello".into())
    );
    // Had as soon as it can be.
    drop(taken);
    server.change(&all);
    assert_eq!(greeting(busy), "hello");
}

#[test]
fn a_reload_that_leaves_no_listener_can_be_put_right_by_the_next() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = taken.local_addr().unwrap().port();
    let port = free_port();
    let hello = format!("server {}", greeter("hello"));
    let mut server = Reloadable::start(&service(port, &hello), &[]);
    server.change(&service(busy, &hello));
    assert!(is_refused(port));
    server.process.signal(Signal::SIGUSR1);
    server.process.log.wait_for("sessions: live=0 ");
    server.change(&service(port, &hello));
    assert_eq!(greeting(port), "hello");
}

#[test]
fn another_name_for_the_pid_file_needs_a_restart_and_a_warning_says_so() {
    let port = free_port();
    let scratch = Scratch::new();
    let (old, new) = (scratch.join("old"), scratch.join("new"));
    let forward = service(port, &format!("server {}", echo()));
    let with = |path: &std::path::Path| format!("pidfile {}\n{forward}", path.display());
    let mut server = Reloadable::start(&with(&old), &[]);
    let lines = server.change(&with(&new)).join("\n");
    assert!(
        lines.contains("the pid file's name changes only with a restart"),
        "{lines}"
    );
    assert_eq!(
        fs::read_to_string(&old).unwrap(),
        format!("{}\n", server.pid())
    );
    assert!(!new.exists());
    assert_echoes(&connect(port));
}

#[test]
fn log_files_are_reopened_without_a_configuration_file() {
    let scratch = Scratch::new();
    let (log, access) = (scratch.join("log"), scratch.join("access"));
    let target = format!("file:{}", log.display());
    let proxy = Standalone::start(&[
        "--log",
        &target,
        "--access-log",
        access.to_str().unwrap(),
        &echo().to_string(),
    ]);
    assert_echoes(&proxy.connect());
    wait_for_line(&access, "session 1 closed: ");
    let moved = |path: &std::path::Path| path.with_extension("1");
    for path in [&log, &access] {
        fs::rename(path, moved(path)).unwrap();
    }
    let old = proxy.connect();
    assert_echoes(&old);
    proxy.process.signal(Signal::SIGHUP);
    wait_for_line(&log, "log files reopened");
    assert_echoes(&proxy.connect());
    wait_for_line(&access, "session 3 closed: ");
    wait_for_line(&log, "session 3 closed: ");
    // A session that was there before goes on where it was.
    drop(old);
    wait_for_line(&moved(&access), "session 2 closed: ");
    wait_for_line(&moved(&log), "session 2 closed: ");
    assert!(!fs::read_to_string(&access).unwrap().contains("session 2 "));
}

#[test]
fn a_log_that_cannot_be_opened_leaves_the_old_one() {
    let scratch = Scratch::new();
    let directory = scratch.join("logs");
    fs::create_dir(&directory).unwrap();
    let log = directory.join("log");
    let target = format!("file:{}", log.display());
    let proxy = Standalone::start(&["--log", &target, &echo().to_string()]);
    assert_echoes(&proxy.connect());
    let moved = scratch.join("moved");
    fs::rename(&directory, &moved).unwrap();
    proxy.process.signal(Signal::SIGHUP);
    wait_for_line(&moved.join("log"), "the log stays where it was: ");
    assert_echoes(&proxy.connect());
    wait_for_line(&moved.join("log"), "session 2 closed: ");
}

#[test]
fn a_file_of_defaults_is_read_again_beside_a_server_of_the_command_line() {
    let upstream = echo().to_string();
    let arguments = ["-b", "127.0.0.1:0", &upstream];
    let mut server = Reloadable::start("timeout 60\n", &arguments);
    let line = server.process.log.wait_for("listening on ");
    let port = line.rsplit(':').next().unwrap().parse().unwrap();
    let socket = sockets(&server.process);
    assert_eq!(socket.len(), 1);
    let old = connect(port);
    assert_echoes(&old);
    server.change("deny 127.0.0.1\n");
    assert_eq!(read_to_ending(&connect(port)).0, b"");
    server.change("deny 127.0.0.2\n");
    assert_echoes(&connect(port));
    assert_echoes(&old);
    assert_eq!(sockets(&server.process), socket);
}

#[test]
fn listeners_that_were_passed_stay_whatever_the_file_says() {
    use crate::harness::super_server::{activate, connect_to};
    let (one, two) = (free_port(), free_port());
    let scratch = Scratch::new();
    let file = scratch.join("tcpproxy.conf");
    let hello = format!("server {}", greeter("hello"));
    let other = format!("server {}", greeter("other"));
    fs::write(&file, format!("port {one}\n{hello}\nport {two}\n{hello}\n")).unwrap();
    let addresses = [one, two].map(|port| ([127, 0, 0, 1], port).into());
    let arguments = ["--log", "stderr", "-f", file.to_str().unwrap()];
    let server = Running::start(&mut activate(&[], &addresses, &arguments));
    let ask = |port: u16| read_all(connect_to(([127, 0, 0, 1], port).into()));
    assert_eq!((ask(one), ask(two)), (b"hello".to_vec(), b"hello".to_vec()));
    let before = sockets(&server);
    assert_eq!(before.len(), 2);
    // One service changes, one goes, and one has no listener.
    fs::write(&file, format!("port {one}\n{other}\nport 9\n{hello}\n")).unwrap();
    server.signal(Signal::SIGHUP);
    server.log.wait_for("]: reloaded");
    assert_eq!(ask(one), b"other");
    assert_eq!(ask(two), b"");
    server
        .log
        .wait_for(&format!("no service is configured for 127.0.0.1:{two}"));
    assert_eq!(sockets(&server), before);
}
