//! `--source client`: upstreams that see the client's own address, and what a process may do meanwhile.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::str;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::config_file::Conf;
use crate::harness::gateway::{
    CLIENT, Ends, SERVER, TO_CLIENT, TO_SERVER, at, filter, launched_by, on_gateway,
    receive_what_is_marked, seen, serve, start, wait_for_neighbours,
};
use crate::harness::peers::assert_echoes;
use crate::harness::processes::only_child;
use crate::harness::super_server::SuperServer;
use crate::harness::upstreams::{BlackHole, Forbidden};
use crate::harness::{
    PATIENCE, Running, Said, Scratch, TCPPROXY, end_of, eventually, field, free_port, hand_over,
    launched_by as launch, needs_root, patient, read_all, wait_for_line,
};

const MEANT: u16 = 80;
const OURS: u16 = 8080;

/// Runs a test on a gateway that takes the answers to its clients for itself, where a socket of its
/// own is meant; and gives it its clients' connections as they are, if they are for port 80.
fn answering_for_clients(test: impl FnOnce(Ends) + Send) {
    on_gateway(|ends| {
        serve(&ends.server, MEANT);
        wait_for_neighbours(&ends, MEANT);
        receive_what_is_marked();
        filter(
            "table inet test { chain take { type filter hook prerouting priority mangle;\n\
             meta l4proto tcp socket transparent 1 meta mark set 1 accept\n\
             iifname toclient tcp dport 80 tproxy to :8080 meta mark set 1 accept\n}\n\
             chain track { type nat hook postrouting priority srcnat;\n}\n}",
        );
        test(ends);
    });
}

const AS_NOBODY: [&str; 4] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
];
const WITH_NET_ADMIN: [&str; 2] = ["--inh-caps=+net_admin", "--ambient-caps=+net_admin"];

#[test]
fn an_upstream_sees_the_client_in_both_families() {
    answering_for_clients(|ends| {
        for (ip, family) in SERVER.into_iter().zip(0..) {
            let server = at(ip, MEANT).to_string();
            let proxy = start(OURS, &["--source", "client", &server]);
            let client = ends.client.connect(at(TO_CLIENT[family], OURS));
            let (peer, own) = seen(&client);
            assert_eq!(peer.ip(), at(CLIENT[family], 0).ip());
            assert_eq!(own, at(ip, MEANT));
            assert_echoes(&client);
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(&client), b"");
            let closed = proxy.log.wait_for("session 1 closed: ");
            assert_eq!(field(&closed, "reason"), "client-closed");
        }
    });
}

#[test]
fn neither_end_of_a_transparent_connection_sees_that_it_was_taken() {
    answering_for_clients(|ends| {
        let arguments = ["--transparent", "--source", "client:port", "original-dst"];
        let _proxy = start(OURS, &arguments);
        for ip in SERVER {
            let client = ends.client.connect(at(ip, MEANT));
            let own = client.local_addr().unwrap();
            assert_eq!(seen(&client), (own, at(ip, MEANT)));
            assert_echoes(&client);
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(&client), b"");
        }
    });
}

#[test]
fn the_clients_port_is_taken_if_it_is_free() {
    answering_for_clients(|ends| {
        let server = at(SERVER[0], MEANT).to_string();
        let proxy = start(OURS, &["--source", "client:port", &server]);
        let client = ends.client.connect(at(TO_CLIENT[0], OURS));
        assert_eq!(seen(&client).0, client.local_addr().unwrap());
        drop(client);
        proxy.log.wait_for("session 1 closed: ");
        // A client of the gateway itself has its port, until it is gone.
        let client = patient(TcpStream::connect(at(TO_SERVER[0], OURS)).unwrap());
        let own = client.local_addr().unwrap();
        let (peer, _) = seen(&client);
        assert_eq!(peer.ip(), own.ip());
        assert_ne!(peer.port(), own.port());
    });
}

#[test]
fn a_redirected_client_is_seen_from_another_port() {
    on_gateway(|ends| {
        serve(&ends.server, MEANT);
        wait_for_neighbours(&ends, MEANT);
        receive_what_is_marked();
        filter(
            "table inet test { chain take { type filter hook prerouting priority mangle;\n\
             meta l4proto tcp socket transparent 1 meta mark set 1 accept\n}\n\
             chain redirect_them { type nat hook prerouting priority dstnat;\n\
             iifname toclient tcp dport 80 redirect to :8080\n}\n}",
        );
        let arguments = ["--source", "client:port", "original-dst"];
        let _proxy = start(OURS, &arguments);
        for (ip, family) in SERVER.into_iter().zip(0..) {
            let client = ends.client.connect(at(ip, MEANT));
            let (peer, own) = seen(&client);
            assert_eq!(peer.ip(), at(CLIENT[family], 0).ip());
            assert_eq!(own, at(ip, MEANT));
            assert_echoes(&client);
        }
    });
}

#[test]
fn the_client_that_a_proxy_announces_is_the_one_that_is_seen() {
    answering_for_clients(|ends| {
        let server = at(SERVER[0], MEANT).to_string();
        let arguments = ["--source", "client:port", "--accept-proxy", "ANY", &server];
        for launcher in [&[][..], &[&AS_NOBODY[..], &WITH_NET_ADMIN].concat()] {
            let _proxy = launched_by(launcher, OURS, &arguments);
            let mut client = ends.client.connect(at(TO_CLIENT[0], OURS));
            // Somebody from whom no packet comes, and to whom answers go by way of the gateway.
            let header = b"PROXY TCP4 203.0.113.7 198.51.100.1 4444 80\r\n";
            client.write_all(header).unwrap();
            assert_eq!(seen(&client).0, at("203.0.113.7", 4444));
            assert_echoes(&client);
        }
    });
}

#[test]
fn addresses_of_another_family_are_passed_over() {
    answering_for_clients(|ends| {
        let text = format!(
            "port {OURS}\nsource client\nserver {} {}\n",
            at(SERVER[1], MEANT),
            at(SERVER[0], MEANT)
        );
        let proxy = Conf::new(text).serve(1, &[]);
        let client = ends.client.connect(at(TO_CLIENT[0], OURS));
        assert_eq!(seen(&client).0.ip(), at(CLIENT[0], 0).ip());
        let said = proxy.process.log.wait_for("session 1: ");
        assert!(
            said.ends_with("it has no address of the client's family"),
            "{said}"
        );
        let client = ends.client.connect(at(TO_CLIENT[1], OURS));
        assert_eq!(seen(&client).0.ip(), at(CLIENT[1], 0).ip());
    });
}

#[test]
fn a_client_of_a_unix_socket_has_no_address_to_be_seen_with() {
    let scratch = Scratch::new();
    let path = scratch.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut command = Command::new(TCPPROXY);
    command.args(["--log", "stderr", "--source", "client", "127.0.0.1:9"]);
    let server = Running::start(command.stdin(OwnedFd::from(listener)));
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    let said = server.log.wait_for("session 1: 127.0.0.1:9: ");
    assert!(
        said.ends_with("the client came over a unix socket, and has no address to connect from"),
        "{said}"
    );
    let closed = server.log.wait_for("session 1 closed: ");
    assert_eq!(field(&closed, "reason"), "connect-failed");
}

#[test]
fn what_cannot_be_reached_says_from_where() {
    answering_for_clients(|ends| {
        let server = at(SERVER[0], 81).to_string();
        let proxy = start(OURS, &["--source", "client", &server]);
        let client = ends.client.connect(at(TO_CLIENT[0], OURS));
        assert_eq!(read_all(client), b"");
        let said = proxy.log.wait_for("session 1: ");
        let line = format!("connect to {server} from {}: Connection refused", CLIENT[0]);
        assert!(said.ends_with(&line), "{said}");
    });
}

#[test]
fn a_loop_of_connections_that_seem_to_be_the_clients_ends() {
    const MOST: usize = 65;
    on_gateway(|ends| {
        serve(&ends.server, MEANT);
        wait_for_neighbours(&ends, MEANT);
        receive_what_is_marked();
        filter(
            "table inet test { chain own { type nat hook output priority -100;\n\
             tcp dport 80 redirect to :8080\n}\n}",
        );
        let arguments = ["--timeout", "2", "--source", "client", "original-dst"];
        let proxy = start(OURS, &arguments);
        let client = patient(TcpStream::connect(at(SERVER[0], MEANT)).unwrap());
        assert_eq!(read_all(&client), b"");
        proxy.log.wait_for("it goes round in a loop");
        let lines = proxy.log.all();
        let opened = lines
            .iter()
            .filter(|line| line.contains(" opened: "))
            .count();
        assert!(opened > 1 && opened <= MOST, "{opened} sessions");
    });
}

/// The capability sets of a process, by their names in proc_pid_status(5).
fn capabilities(pid: Pid) -> Vec<(String, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    sets(&status)
}

fn sets(status: &str) -> Vec<(String, u64)> {
    let lines = status.lines().filter_map(|line| line.strip_prefix("Cap"));
    let pairs = lines.map(|line| line.split_once(":\t").unwrap());
    pairs
        .map(|(name, bits)| (name.to_owned(), u64::from_str_radix(bits, 16).unwrap()))
        .collect()
}

fn none(sets: &[&str]) -> Vec<(String, u64)> {
    sets.iter().map(|name| ((*name).to_owned(), 0)).collect()
}

const ALL: [&str; 5] = ["Inh", "Prm", "Eff", "Bnd", "Amb"];
const NET_ADMIN: u64 = 1 << 12;

/// Without the bounding set where the process was not root's, and may not change it.
fn changeable(sets: Vec<(String, u64)>, is_root: bool) -> Vec<(String, u64)> {
    let sets = sets.into_iter();
    sets.filter(|(name, _)| is_root || name != "Bnd").collect()
}

#[test]
fn a_session_has_one_capability_until_it_is_connected_and_its_program_none() {
    answering_for_clients(|ends| {
        let scratch = Scratch::new();
        let program = scratch.script("access", "grep ^Cap /proc/$$/status; echo end");
        let as_nobody = [&AS_NOBODY[..], &WITH_NET_ADMIN].concat();
        for (launcher, port) in [(&[][..], 81), (&as_nobody, 82)] {
            let mut server = ends.server.here(|| BlackHole::at((SERVER[0], port)));
            let name = server.address().to_string();
            let access = program.to_str().unwrap();
            let arguments = ["--source", "client", "-a", access, &name];
            let proxy = launched_by(launcher, OURS, &arguments);
            let mut client = ends.client.connect(at(TO_CLIENT[0], OURS));
            let mut said = Vec::new();
            while !said.ends_with(b"end\n") {
                let mut byte = [0];
                client.read_exact(&mut byte).unwrap();
                said.push(byte[0]);
            }
            let is_root = launcher.is_empty();
            let nothing = changeable(none(&ALL), is_root);
            let said = changeable(sets(str::from_utf8(&said).unwrap()), is_root);
            assert_eq!(said, nothing, "the program's, {launcher:?}");
            // It waits for the server.
            let session = only_child(proxy.pid());
            let has_one = || {
                let sets = changeable(capabilities(session), is_root);
                let expected = |name: &str| match name {
                    "Prm" | "Eff" => NET_ADMIN,
                    _ => 0,
                };
                let fits = |(name, bits): &(String, u64)| *bits == expected(name);
                sets.iter().all(fits).then_some(())
            };
            eventually("the session to have one capability", has_one);
            let mut upstream = server.open();
            assert_eq!(upstream.peer_addr().unwrap().ip(), at(CLIENT[0], 0).ip());
            upstream.write_all(b"!").unwrap();
            client.read_exact(&mut [0]).unwrap();
            let sets = changeable(capabilities(session), is_root);
            assert_eq!(sets, nothing, "the session's, {launcher:?}");
        }
    });
}

#[test]
fn sessions_of_a_transparent_listener_have_no_capability() {
    answering_for_clients(|ends| {
        let launcher = [&AS_NOBODY[..], &WITH_NET_ADMIN].concat();
        let proxy = launched_by(&launcher, OURS, &["--transparent", "original-dst"]);
        let client = ends.client.connect(at(SERVER[0], MEANT));
        seen(&client);
        let sets = capabilities(only_child(proxy.pid()));
        assert_eq!(changeable(sets, false), changeable(none(&ALL), false));
    });
}

/// Ways to start without the capability: as another user, and as a root that has been restricted.
const WITHOUT: [&[&str]; 2] = [&AS_NOBODY, &["setpriv", "--bounding-set=-net_admin"]];

#[test]
fn a_server_that_lacks_the_capability_does_not_start() {
    needs_root();
    let ours = [TCPPROXY, "--log", "stderr", "--source", "client"];
    for launcher in WITHOUT {
        let words = [launcher, &ours, &["-b", "127.0.0.1:0", "host"]].concat();
        let said = Said::by(Command::new(words[0]).args(&words[1..]));
        let line = said.refused(77)[0];
        assert!(
            line.contains(" needs CAP_NET_ADMIN: start as root, or "),
            "{line}"
        );
        let words = [launcher, &ours, &["--check", "host"]].concat();
        let said = Said::by(Command::new(words[0]).args(&words[1..]));
        assert_eq!(said.ok(), "ok\n");
    }
    let conf = Conf::new("port 8081\nserver host\nport 8082\nsource client\nserver host\n");
    let mut command = Command::new(AS_NOBODY[0]);
    command.args(&AS_NOBODY[1..]).arg(TCPPROXY).arg("-f");
    let said = Said::by(command.arg(conf.path()).args(["--log", "stderr"]));
    let line = said.refused(77)[0];
    assert!(line.contains(": *:8082: "), "{line}");
}

#[test]
fn a_reload_that_asks_for_what_a_server_may_not_do_changes_nothing() {
    needs_root();
    let text = format!("bind 127.0.0.1:{}\nserver host\n", free_port());
    let conf = Conf::new(&text);
    let mut command = Command::new(AS_NOBODY[0]);
    command.args(&AS_NOBODY[1..]).arg(TCPPROXY).arg("-f");
    command.arg(conf.path()).args(["--log", "stderr"]);
    let server = Running::start(&mut command);
    server.log.wait_for("listening on ");
    fs::write(conf.path(), format!("{text}source client\n")).unwrap();
    server.signal(Signal::SIGHUP);
    let said = server.log.wait_for("not reloaded: ");
    assert!(said.contains(" needs CAP_NET_ADMIN: "), "{said}");
}

#[test]
fn a_connection_that_was_handed_over_without_the_capability_is_not_served() {
    needs_root();
    let scratch = Scratch::new();
    std::os::unix::fs::chown(scratch.path(), Some(65_534), None).unwrap();
    let upstream = Forbidden::new();
    for (launcher, log) in WITHOUT.into_iter().zip(["user", "root"]) {
        let log = scratch.join(log);
        let log_option = format!("file:{}", log.display());
        let arguments = ["--log", &log_option, "--source", "client", &upstream.name()];
        let (client, mut child) = hand_over(&mut launch(launcher, &arguments));
        assert_eq!(end_of(&mut child).code(), Some(77), "{launcher:?}");
        assert_eq!(read_all(client), b"");
        wait_for_line(&log, " needs CAP_NET_ADMIN: ");
        upstream.assert_untouched();
    }
}

#[test]
fn a_connection_that_was_handed_over_is_seen_as_the_clients() {
    answering_for_clients(|ends| {
        let server = at(SERVER[0], MEANT).to_string();
        for super_server in [SuperServer::OpenbsdInetd, SuperServer::ActivateListener] {
            let arguments = ["--source", "client:port", &server];
            let activated = super_server.start(TO_CLIENT[0], &arguments);
            let to = activated.address;
            let client = eventually("a listener", || {
                ends.client.here(|| TcpStream::connect(to).ok())
            });
            let client = patient(client);
            assert_eq!(seen(&client).0, client.local_addr().unwrap());
            assert_echoes(&client);
        }
    });
}
