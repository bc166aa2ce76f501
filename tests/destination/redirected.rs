//! `original-dst` behind rules that redirect (nftables' `redirect`): SO_ORIGINAL_DST.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::harness::config_file::Conf;
use crate::harness::forward_proxies::Scripted;
use crate::harness::gateway::{
    CLIENT, Ends, SERVER, TO_CLIENT, TO_SERVER, at, filter, on_gateway, seen, serve, start,
    wait_for_neighbours,
};
use crate::harness::peers::{assert_echoes, read_to_ending};
use crate::harness::super_server::SuperServer;
use crate::harness::{
    PATIENCE, Running, Scratch, TCPPROXY, eventually, field, free_port, patient, read_all,
};

/// The port that clients mean, and the one that they are sent to.
const MEANT: u16 = 80;
const OURS: u16 = 8080;

/// Runs a test on a gateway between a client and a service.
fn beside_a_service(test: impl FnOnce(Ends) + Send) {
    on_gateway(|ends| {
        serve(&ends.server, MEANT);
        wait_for_neighbours(&ends, MEANT);
        test(ends);
    });
}

/// Has the packet filter send connections to us that come from the client's machine.
fn redirect(ports: &str, to: u16) {
    filter(&format!(
        "table inet test {{ chain from_client {{ type nat hook prerouting priority dstnat;\n\
         iifname toclient tcp dport {{ {ports} }} redirect to :{to};\n}}\n}}"
    ));
}

/// Fails unless a client is told nothing, and the log that it was not redirected.
fn assert_not_redirected(proxy: &Running, client: impl Read, session: usize, why: &str) {
    let mut client = client;
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"");
    let closed = proxy.log.wait_for(&format!("session {session} closed: "));
    assert_eq!(field(&closed, "reason"), "connect-failed", "{closed}");
    assert_eq!(field(&closed, "server"), "original-dst", "{closed}");
    let said = proxy
        .log
        .wait_for(&format!("session {session}: original-dst: "));
    assert!(said.contains("the client was not redirected: "), "{said}");
    assert!(said.contains(why), "{said}");
}

#[test]
fn a_redirected_client_reaches_what_it_meant_in_both_families() {
    beside_a_service(|ends| {
        redirect("80", OURS);
        let proxy = start(OURS, &["original-dst"]);
        for (ip, family) in SERVER.into_iter().zip(0..) {
            let client = ends.client.connect(at(ip, MEANT));
            let (peer, own) = seen(&client);
            assert_eq!(peer.ip(), at(TO_SERVER[family], 0).ip());
            assert_eq!(own, at(ip, MEANT));
            assert_echoes(&client);
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_all(&client), b"");
            let session = format!("session {} ", family + 1);
            let opened = proxy.log.wait_for(&format!("{session}opened: "));
            let from = client.local_addr().unwrap();
            assert_eq!(field(&opened, "client"), from.to_string());
            let local = at(TO_CLIENT[family], OURS).to_string();
            assert_eq!(field(&opened, "local"), local);
            let closed = proxy.log.wait_for(&format!("{session}closed: "));
            assert_eq!(field(&closed, "server"), at(ip, MEANT).to_string());
            assert_eq!(field(&closed, "reason"), "client-closed");
        }
    });
}

#[test]
fn another_port_can_be_taken_at_the_address_that_was_meant() {
    beside_a_service(|ends| {
        redirect("81", OURS);
        let proxy = start(OURS, &["original-dst:80"]);
        for ip in SERVER {
            let client = ends.client.connect(at(ip, 81));
            assert_eq!(seen(&client).1, at(ip, MEANT));
            drop(client);
            let server = format!("server={}", at(ip, MEANT));
            proxy.log.wait_for(&server);
        }
    });
}

#[test]
fn a_proxy_on_the_way_is_asked_for_the_address_that_was_meant() {
    beside_a_service(|ends| {
        redirect("80", OURS);
        let asked = Scripted::new(|asked, _| {
            asked.connect();
            asked.say("HTTP/1.1 200 OK\r\n\r\nhello");
        });
        let proxy = start(OURS, &["--via", &asked.http(), "original-dst"]);
        for ip in SERVER {
            let client = ends.client.connect(at(ip, MEANT));
            assert_eq!(read_all(&client), b"hello");
            drop(client);
            let meant = at(ip, MEANT).to_string();
            let start = format!("CONNECT {meant} HTTP/1.1\r\n");
            let request = asked.requests().pop().unwrap();
            assert!(request.starts_with(&start), "{request}");
            proxy.log.wait_for(&format!("server={meant}"));
        }
        // Who was not redirected is none of the proxy's trouble.
        let client = ends.client.connect(at(TO_CLIENT[0], OURS));
        assert_not_redirected(&proxy, client, 3, "");
        assert_eq!(asked.requests().len(), 2);
    });
}

#[test]
fn upstreams_are_tried_in_the_order_given() {
    beside_a_service(|ends| {
        redirect("80", OURS);
        let nobody = format!("127.0.0.1:{}", free_port());
        let text = format!("port {OURS}\nserver {nobody} original-dst\n");
        let proxy = Conf::new(text).serve(1, &[]);
        let client = ends.client.connect(at(SERVER[0], MEANT));
        assert_eq!(seen(&client).1, at(SERVER[0], MEANT));
        let said = proxy
            .process
            .log
            .wait_for(&format!("session 1: {nobody}: "));
        assert!(said.contains("Connection refused"), "{said}");
        drop(client);
        let closed = proxy.process.log.wait_for("session 1 closed: ");
        assert_eq!(field(&closed, "server"), "198.51.100.9:80");
        // Who was not redirected is sent on to the next.
        let text = format!("port {OURS}\nserver original-dst {}:80\n", SERVER[0]);
        drop(proxy);
        let proxy = Conf::new(text).serve(1, &[]);
        let client = ends.client.connect(at(TO_CLIENT[0], OURS));
        assert_eq!(seen(&client).1, at(SERVER[0], MEANT));
        proxy
            .process
            .log
            .wait_for("original-dst: the client was not redirected: ");
    });
}

#[test]
fn who_was_not_redirected_is_not_connected_to_the_listener() {
    beside_a_service(|ends| {
        let proxy = start(OURS, &["original-dst"]);
        // No rule has to do with connections: none are tracked.
        let client = ends.client.connect(at(TO_CLIENT[0], OURS));
        assert_not_redirected(&proxy, client, 1, "connection tracking does not know");
        redirect("80, 8080", OURS);
        // Redirected from one address of the gateway to the other, but not from the listener.
        let meant = [TO_CLIENT, TO_SERVER].concat();
        for (ip, session) in meant.into_iter().zip(2..) {
            let client = ends.client.connect(at(ip, OURS));
            let why = format!(
                "it had connected to {}, which is the listener",
                at(ip, OURS)
            );
            assert_not_redirected(&proxy, client, session, &why);
        }
        // What is on another port of the gateway is not the listener.
        let gateways = TcpListener::bind((TO_SERVER[0], MEANT)).unwrap();
        let client = ends.client.connect(at(TO_SERVER[0], MEANT));
        let (upstream, _) = gateways.accept().unwrap();
        drop(upstream);
        assert_eq!(read_all(client), b"");
        let closed = proxy.log.wait_for("session 6 closed: ");
        assert_eq!(
            field(&closed, "server"),
            at(TO_SERVER[0], MEANT).to_string()
        );
    });
}

#[test]
fn a_client_of_a_unix_socket_was_not_redirected() {
    let scratch = Scratch::new();
    let path = scratch.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new(TCPPROXY);
    command.args(["--log", "stderr", "original-dst"]);
    let server = Running::start(command.stdin(OwnedFd::from(listener)));
    let client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_not_redirected(&server, client, 1, "it came over a unix socket");
}

#[test]
fn programs_and_the_upstream_are_told_what_the_client_meant() {
    beside_a_service(|ends| {
        redirect("80", OURS);
        let program = "echo $PROXY_INTERFACE $PROXY_PORT $PROXY_SERVER";
        let scratch = Scratch::new();
        let program = scratch.script("access", program);
        let program = program.to_str().unwrap();
        let arguments = ["-a", program, "--send-proxy", "v1", "original-dst"];
        let proxy = start(OURS, &arguments);
        for (ip, family) in SERVER.into_iter().zip(0..) {
            let client = ends.client.connect(at(ip, MEANT));
            let from = client.local_addr().unwrap().port();
            let mut lines = BufReader::new(&client).lines().map(Result::unwrap);
            let meant = at(ip, MEANT);
            assert_eq!(lines.next().unwrap(), format!("{ip} {MEANT} {meant}"));
            lines.next().unwrap();
            // The service sends back what it is sent.
            let kind = ["TCP4", "TCP6"][family];
            let header = format!("PROXY {kind} {} {ip} {from} {MEANT}", CLIENT[family]);
            assert_eq!(lines.next().unwrap(), header);
            let opened = proxy
                .log
                .wait_for(&format!("client={}", at(CLIENT[family], from)));
            assert_eq!(
                field(&opened, "local"),
                at(TO_CLIENT[family], OURS).to_string()
            );
        }
    });
}

#[test]
fn what_was_meant_counts_more_than_what_a_proxy_has_announced() {
    beside_a_service(|ends| {
        redirect("80", OURS);
        let scratch = Scratch::new();
        let program = scratch.script("access", "echo $PROXY_CLIENT $PROXY_INTERFACE $PROXY_PORT");
        let arguments = [
            "--accept-proxy",
            "ANY",
            "--send-proxy",
            "v1",
            "original-dst",
        ];
        let arguments = [&["-a", program.to_str().unwrap()], &arguments[..]].concat();
        let proxy = start(OURS, &arguments);
        let mut client = ends.client.connect(at(SERVER[0], MEANT));
        let header = b"PROXY TCP4 203.0.113.7 203.0.113.8 4444 25\r\n";
        client.write_all(header).unwrap();
        let mut lines = BufReader::new(&client).lines().map(Result::unwrap);
        let meant = format!("203.0.113.7 {} {MEANT}", SERVER[0]);
        assert_eq!(lines.next().unwrap(), meant);
        lines.next().unwrap();
        let header = format!("PROXY TCP4 203.0.113.7 {} 4444 {MEANT}", SERVER[0]);
        assert_eq!(lines.next().unwrap(), header);
        let opened = proxy.log.wait_for(" opened: client=203.0.113.7:4444 ");
        assert_eq!(field(&opened, "local"), "203.0.113.8:25");
    });
}

#[test]
fn elsewhere_programs_are_told_what_the_client_has_reached() {
    beside_a_service(|ends| {
        redirect("80", OURS);
        let handler = ["/bin/sh", "-c", "echo $PROXY_INTERFACE $PROXY_PORT"];
        let _proxy = start(OURS, &handler);
        let client = ends.client.connect(at(SERVER[0], MEANT));
        let said = String::from_utf8(read_all(client)).unwrap();
        assert_eq!(said, format!("{} {OURS}\n", TO_CLIENT[0]));
    });
}

#[test]
fn a_redirected_connection_may_be_handed_over() {
    for server in [
        SuperServer::OpenbsdInetd,
        SuperServer::Xinetd,
        SuperServer::ActivateConnection,
        SuperServer::ActivateListener,
    ] {
        for family in [0, 1] {
            beside_a_service(|ends| {
                let activated = server.start(TO_CLIENT[family], &["original-dst"]);
                let ours = activated.address;
                redirect("80", ours.port());
                // Once it listens.
                let direct = eventually("a listener", || {
                    ends.client.here(|| TcpStream::connect(ours).ok())
                });
                assert_eq!(read_all(patient(direct)), b"");
                let why = format!("it had connected to {ours}, which is the listener");
                activated.log(&why);
                let client = ends.client.connect(at(SERVER[family], MEANT));
                assert_eq!(seen(&client).1, at(SERVER[family], MEANT), "{server:?}");
                drop(client);
                activated.log(&format!("server={}", at(SERVER[family], MEANT)));
            });
        }
    }
}

#[test]
fn one_that_was_handed_over_does_not_go_to_the_same_port_of_the_gateway() {
    beside_a_service(|ends| {
        // What listens may be for all addresses: nobody can ask it.
        let activated = SuperServer::ActivateConnection.start(TO_CLIENT[0], &["original-dst"]);
        let port = activated.address.port();
        redirect(&port.to_string(), port);
        let client = eventually("a listener", || {
            let to = at(TO_SERVER[0], port);
            ends.client.here(|| TcpStream::connect(to).ok())
        });
        assert_eq!(read_all(patient(client)), b"");
        activated.log("which is the listener");
    });
}

/// Has the packet filter send us also what leaves the gateway itself.
fn redirect_own(unless: &str) {
    filter(&format!(
        "table inet own {{ chain own {{ type nat hook output priority -100;\n\
         {unless} tcp dport {MEANT} redirect to :{OURS};\n}}\n}}"
    ));
}

#[test]
fn connections_of_the_gateway_itself_are_redirected_but_for_ours() {
    beside_a_service(|_| {
        redirect_own("meta skuid != 65535");
        let proxy = start(OURS, &["original-dst"]);
        for (ip, session) in SERVER.into_iter().zip(1..) {
            let client = patient(TcpStream::connect(at(ip, MEANT)).unwrap());
            assert_eq!(seen(&client).1, at(ip, MEANT));
            drop(client);
            let closed = proxy.log.wait_for(&format!("session {session} closed: "));
            assert_eq!(field(&closed, "server"), at(ip, MEANT).to_string());
        }
    });
}

#[test]
fn a_loop_of_rules_that_redirect_our_own_connections_ends() {
    // With the usual hop limit, and one more for the first of a client on another machine.
    const MOST: usize = 65;
    beside_a_service(|ends| {
        redirect("80", OURS);
        redirect_own("");
        for ip in SERVER {
            let proxy = start(OURS, &["--timeout", "2", "original-dst"]);
            let mut client = ends.client.connect(at(ip, MEANT));
            // It may have been closed by now.
            let _ = client.write_all(b"hello");
            assert_eq!(read_to_ending(&client).0, b"");
            let count = |word: &str| {
                let lines = proxy.log.all();
                lines.iter().filter(|line| line.contains(word)).count()
            };
            let over = eventually("every session to end", || {
                let opened = count(" opened: ");
                // The next one may be waiting to be accepted.
                thread::sleep(Duration::from_millis(300));
                (opened == count(" closed: ") && opened == count(" opened: ")).then_some(opened)
            });
            assert!(over > 1 && over <= MOST, "{over} sessions");
            proxy.log.wait_for("it goes round in a loop");
        }
    });
}

#[test]
fn a_loop_through_a_super_server_ends_as_well() {
    const MOST: usize = 65;
    beside_a_service(|ends| {
        let arguments = ["--timeout", "2", "original-dst"];
        let text = format!("{OURS} stream tcp nowait.1000 root {TCPPROXY} tcpproxy");
        let scratch = Scratch::new();
        let log = scratch.join("log");
        let text = format!(
            "{text} --log file:{} {}\n",
            log.display(),
            arguments.join(" ")
        );
        let server = SuperServer::OpenbsdInetd;
        let _inetd =
            crate::harness::super_server::start_with_configuration(server, &scratch, &text);
        redirect("80", OURS);
        redirect_own("");
        let client = eventually("a listener", || {
            let to = at(SERVER[0], MEANT);
            ends.client.here(|| TcpStream::connect(to).ok())
        });
        assert_eq!(read_to_ending(&patient(client)).0, b"");
        crate::harness::wait_for_line(&log, "it goes round in a loop");
        let opened = fs::read_to_string(&log)
            .unwrap()
            .matches(" opened: ")
            .count();
        assert!(opened > 1 && opened <= MOST, "{opened} sessions");
    });
}
