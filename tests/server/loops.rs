//! Loops: connections that come back to the server they went out from, and clients that are gone
//! before anything is begun for them. Neither may go on by itself.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::harness::clients::connect;
use crate::harness::config_file::Configured;
use crate::harness::namespaces::{add_address, privately};
use crate::harness::peers::{read_to_ending, reset};
use crate::harness::processes::cpu_time;
use crate::harness::upstreams::{Forbidden, echo};
use crate::harness::{
    PATIENCE, Running, Scratch, Standalone, TCPPROXY, end_of, eventually, field, free_port,
    patient, read_all, share,
};

/// The most sessions that one client may come to: what it takes for a hop limit of 64, which is the
/// system's default, to be used up.
const MOST: usize = 64;

fn sessions(server: &Running, word: &str) -> usize {
    let lines = server.log.all();
    lines.iter().filter(|line| line.contains(word)).count()
}

#[test]
fn a_server_that_is_its_own_upstream_refuses_to_be() {
    let port = free_port();
    for (listens, reached, upstream) in [
        (format!("port {port}"), "127.0.0.1", "127.0.0.1".to_owned()),
        (
            format!("port {port}"),
            "127.0.0.2",
            format!("127.0.0.3:{port}"),
        ),
        (format!("port {port}"), "127.0.0.1", format!("[::1]:{port}")),
        (
            format!("port {port}"),
            "127.0.0.1",
            format!("localhost:{port}"),
        ),
        (
            format!("bind 127.0.0.1:{port}"),
            "127.0.0.1",
            format!("127.0.0.1:{port}"),
        ),
    ] {
        let server = Configured::start(&format!("{listens}\nserver {upstream}\n"), 1);
        let client = server.connect(reached, port);
        assert_eq!(read_to_ending(&client).0, b"");
        let closed = server.process.log.wait_for("session 1 closed: ");
        assert_eq!(field(&closed, "reason"), "connect-failed", "{closed}");
        let said = server.process.log.wait_for("very listener");
        assert!(said.contains(&upstream), "{said}");
        assert_eq!(sessions(&server.process, " opened: "), 1);
    }
}

#[test]
fn an_upstream_on_another_machine_is_not_oneself_though_any_address_can_be_bound() {
    privately(|| {
        fs::write("/proc/sys/net/ipv4/ip_nonlocal_bind", "1").unwrap();
        fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").unwrap();
        let port = free_port();
        // Nobody is there; what counts is that it is looked for.
        for upstream in ["192.0.2.1", "[2001:db8::1]"] {
            let text = format!("port {port}\nserver {upstream}:{port}\n");
            let server = Configured::start(&text, 1);
            let client = server.connect("127.0.0.1", port);
            assert_eq!(read_to_ending(&client).0, b"");
            let said = server.process.log.wait_for(&format!("{upstream}:{port}: "));
            assert!(said.contains("nreachable"), "{said}");
        }
        add_address("192.0.2.1/32");
        add_address("2001:db8::1/128");
        for upstream in ["192.0.2.1", "[2001:db8::1]"] {
            let text = format!("port {port}\nserver {upstream}:{port}\n");
            let server = Configured::start(&text, 1);
            let client = server.connect("127.0.0.1", port);
            assert_eq!(read_to_ending(&client).0, b"");
            server.process.log.wait_for("very listener");
        }
    });
}

#[test]
fn the_next_upstream_is_tried_instead_of_oneself() {
    let port = free_port();
    let other = echo();
    let text = format!("port {port}\nserver 127.0.0.1 {other}\n");
    let server = Configured::start(&text, 1);
    let mut client = server.connect("127.0.0.1", port);
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&client), b"hello");
}

#[test]
fn a_connection_that_was_handed_over_does_not_go_back_to_where_it_came_from() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = patient(TcpStream::connect(address).unwrap());
    let (accepted, _) = listener.accept().unwrap();
    let mut child = Command::new(TCPPROXY)
        .arg(address.to_string())
        .stdin(share(&accepted))
        .stdout(share(&accepted))
        .stderr(share(&accepted))
        .spawn()
        .unwrap();
    drop(accepted);
    assert_eq!(end_of(&mut child).code(), Some(69));
    assert_eq!(read_all(&client), b"");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "it has connected");
}

#[test]
fn a_client_of_a_unix_socket_does_not_go_back_there() {
    let scratch = Scratch::new();
    let path = scratch.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    let upstream = format!("unix:{}", path.display());
    let mut command = Command::new(TCPPROXY);
    command.args(["--log", "stderr", "--max-sessions", "9", &upstream]);
    let server = Running::start(command.stdin(OwnedFd::from(listener)));
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    let closed = server.log.wait_for("session 1 closed: ");
    assert_eq!(field(&closed, "reason"), "connect-failed", "{closed}");
    server.log.wait_for("very listener");
    assert_eq!(sessions(&server, " opened: "), 1);
}

/// How a client leaves a loop, or does not.
#[derive(Debug, Clone, Copy)]
enum Leaving {
    Reset,
    Close,
    Stay,
}

/// Sends a client into a loop of these servers, and sees it die out.
fn assert_dies_out(servers: &[&Running], port: u16, leaving: Leaving) {
    let mut client = connect(port);
    client.write_all(b"hello").unwrap();
    // There is no telling when a loop has begun, other than by what comes of it.
    eventually("a loop", || {
        (sessions(servers[0], " opened: ") > 1).then_some(())
    });
    let stays = match leaving {
        Leaving::Reset => {
            reset(client);
            None
        }
        Leaving::Close => {
            drop(client);
            None
        }
        Leaving::Stay => Some(client),
    };
    let all = |word| {
        servers
            .iter()
            .map(|server| sessions(server, word))
            .sum::<usize>()
    };
    let over = eventually("every session to end", || {
        let opened = all(" opened: ");
        // The next one may be waiting to be accepted.
        thread::sleep(Duration::from_millis(300));
        (opened == all(" closed: ") && opened == all(" opened: ")).then_some(opened)
    });
    assert!(over <= MOST, "{leaving:?}: {over} sessions");
    if let Some(client) = stays {
        read_to_ending(&client);
    }
    // No new generation: longer than the sessions' idle timeout nothing stirs.
    let used: Duration = servers.iter().map(|server| cpu_time(server.pid())).sum();
    thread::sleep(Duration::from_millis(1_500));
    assert_eq!(all(" opened: "), over, "{leaving:?}");
    let since: Duration = servers.iter().map(|server| cpu_time(server.pid())).sum();
    assert!(since - used < Duration::from_millis(100), "{leaving:?}");
}

#[test]
fn two_services_of_one_server_that_lead_to_each_other_end_their_loop() {
    for leaving in [Leaving::Reset, Leaving::Close, Leaving::Stay] {
        let (a, b) = (free_port(), free_port());
        let server = Configured::start(
            &format!("timeout 1\nport {a}\nserver 127.0.0.1:{b}\nport {b}\nserver 127.0.0.1:{a}\n"),
            2,
        );
        assert_dies_out(&[&server.process], a, leaving);
    }
}

#[test]
fn two_servers_that_lead_to_each_other_end_their_loop() {
    for leaving in [Leaving::Reset, Leaving::Close, Leaving::Stay] {
        for ip in ["127.0.0.1", "[::1]"] {
            let (a, b) = (free_port(), free_port());
            let to = |here, there| {
                Configured::start(&format!("timeout 1\nport {here}\nserver {ip}:{there}\n"), 1)
            };
            let (one, other) = (to(a, b), to(b, a));
            assert_dies_out(&[&one.process, &other.process], a, leaving);
        }
    }
}

#[test]
fn a_loop_over_several_addresses_of_a_machine_ends_as_well() {
    privately(|| {
        for ip in ["192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"] {
            let length = if ip.contains(':') { 128 } else { 32 };
            add_address(&format!("{ip}/{length}"));
        }
        for (source, ip) in [("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "[2001:db8::1]")] {
            let (a, b) = (free_port(), free_port());
            let to = |here, there| {
                let text = "timeout 1\nmax-sessions 100\n";
                let text = format!("{text}source {source}\nport {here}\nserver {ip}:{there}\n");
                Configured::start(&text, 1)
            };
            let (one, other) = (to(a, b), to(b, a));
            assert_dies_out(&[&one.process, &other.process], a, Leaving::Stay);
        }
    });
}

#[test]
fn clients_that_have_gone_while_they_waited_cause_no_connection() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = upstream.local_addr().unwrap().to_string();
    let proxy = Standalone::start(&["--max-sessions", "1", &name]);
    let first = proxy.connect();
    let (held, _) = upstream.accept().unwrap();
    for said in 0..50 {
        let mut waiting = proxy.connect();
        if said % 2 == 0 {
            waiting.write_all(b"hello").unwrap();
        }
        reset(waiting);
    }
    drop(first);
    drop(held);
    let closed = proxy.process.log.wait_for_count("reason=client-reset", 50);
    assert!(
        closed.iter().all(|line| field(line, "server") == "-"),
        "{closed:#?}"
    );
    upstream.set_nonblocking(true).unwrap();
    assert!(upstream.accept().is_err(), "somebody was connected for");
}

#[test]
fn a_client_that_goes_while_it_is_asked_about_causes_no_connection() {
    let scratch = Scratch::new();
    let (asked, answer) = (scratch.join("asked"), scratch.join("answer"));
    let program = scratch.script(
        "acp",
        &format!(
            "touch '{}'; while [ ! -e '{}' ]; do sleep 0.01; done",
            asked.display(),
            answer.display()
        ),
    );
    let upstream = Forbidden::new();
    let acp = program.to_str().unwrap();
    let user = nix::unistd::geteuid();
    if user.is_root() {
        // The program serves as somebody who must be able to note that it was asked.
        nix::unistd::chown(scratch.path(), Some(65_535.into()), None).unwrap();
    }
    let proxy = Standalone::start(&["--acp", acp, &upstream.name()]);
    let client = proxy.connect();
    eventually("the program to be asked", || asked.exists().then_some(()));
    reset(client);
    fs::write(&answer, "").unwrap();
    assert_eq!(field(&proxy.closed(), "reason"), "client-reset");
    upstream.assert_untouched();
}
