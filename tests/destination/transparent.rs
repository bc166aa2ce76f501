//! `--transparent`: listeners that the packet filter gives connections which were made to others
//! (nftables' `tproxy`).

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpTransparent;

use crate::harness::config_file::Conf;
use crate::harness::gateway::{
    Ends, SERVER, TO_CLIENT, TO_SERVER, at, filter, launched_by, on_gateway,
    receive_what_is_marked, seen, serve, start, wait_for_neighbours,
};
use crate::harness::peers::assert_echoes;
use crate::harness::{Running, Said, TCPPROXY, field, needs_root, read_all};

const MEANT: u16 = 80;
const OURS: u16 = 8080;

/// Runs a test on a gateway that gives us its clients' connections as they are.
fn intercepting(test: impl FnOnce(Ends) + Send) {
    on_gateway(|ends| {
        serve(&ends.server, MEANT);
        wait_for_neighbours(&ends, MEANT);
        receive_what_is_marked();
        filter(
            "table inet test { chain from_client { type filter hook prerouting priority mangle;\n\
             iifname toclient tcp dport 80 tproxy to :8080 meta mark set 1 accept\n}\n}",
        );
        test(ends);
    });
}

fn assert_reaches_what_it_means(ends: &Ends, proxy: &Running) {
    for ip in SERVER {
        let client = ends.client.connect(at(ip, MEANT));
        assert_eq!(seen(&client).1, at(ip, MEANT));
        assert_echoes(&client);
        let from = client.local_addr().unwrap();
        drop(client);
        let opened = proxy.log.wait_for(&format!("opened: client={from} "));
        assert_eq!(field(&opened, "local"), at(ip, MEANT).to_string());
        let closed = proxy.log.wait_for(&format!("closed: client={from} "));
        assert_eq!(field(&closed, "server"), at(ip, MEANT).to_string());
    }
}

#[test]
fn a_transparent_client_reaches_what_it_meant_in_both_families() {
    intercepting(|ends| {
        let proxy = start(OURS, &["--transparent", "original-dst"]);
        assert_reaches_what_it_means(&ends, &proxy);
    });
}

#[test]
fn the_port_that_a_client_meant_is_the_one_of_an_upstream_without() {
    intercepting(|ends| {
        let _proxy = start(OURS, &["--transparent", SERVER[1]]);
        let client = ends.client.connect(at(SERVER[0], MEANT));
        assert_eq!(seen(&client).1, at(SERVER[1], MEANT));
    });
}

#[test]
fn without_the_option_nobody_is_given_to_a_listener() {
    intercepting(|ends| {
        let proxy = start(OURS, &["original-dst"]);
        // The rule finds nobody to give it to, and the packet goes on.
        let client = ends.client.connect(at(SERVER[0], MEANT));
        assert_eq!(seen(&client).0, client.local_addr().unwrap());
        assert!(!proxy.log.all().iter().any(|line| line.contains("opened")));
    });
}

#[test]
fn what_was_meant_for_the_gateway_itself_is_found_there() {
    intercepting(|ends| {
        let proxy = start(OURS, &["--transparent", "original-dst"]);
        let gateways = TcpListener::bind((TO_SERVER[0], MEANT)).unwrap();
        let client = ends.client.connect(at(TO_SERVER[0], MEANT));
        drop(gateways.accept().unwrap());
        assert_eq!(read_all(client), b"");
        let closed = proxy.log.wait_for("session 1 closed: ");
        assert_eq!(
            field(&closed, "server"),
            at(TO_SERVER[0], MEANT).to_string()
        );
        // But not the listener.
        for (ip, session) in TO_CLIENT.into_iter().zip(2..) {
            let client = ends.client.connect(at(ip, OURS));
            assert_eq!(read_all(client), b"");
            let said = proxy
                .log
                .wait_for(&format!("session {session}: original-dst: "));
            let why = format!(
                "it had connected to {}, which is the listener",
                at(ip, OURS)
            );
            assert!(said.contains(&why), "{said}");
        }
    });
}

#[test]
fn a_service_is_found_by_the_listeners_port_and_the_address_that_was_meant() {
    intercepting(|ends| {
        let text = format!(
            "port 80\nexec /bin/echo another\n\
             port {OURS}\ntransparent\nserver original-dst\n\
             interface {}\nexec /bin/echo narrower\n",
            SERVER[1]
        );
        let proxy = Conf::new(text).serve(2, &[]);
        let client = ends.client.connect(at(SERVER[0], MEANT));
        assert_eq!(seen(&client).1, at(SERVER[0], MEANT));
        let client = ends.client.connect(at(SERVER[1], MEANT));
        assert_eq!(read_all(client), b"narrower\n");
        drop(proxy);
    });
}

#[test]
fn a_listener_on_one_address_is_given_clients_as_well() {
    on_gateway(|ends| {
        serve(&ends.server, MEANT);
        wait_for_neighbours(&ends, MEANT);
        receive_what_is_marked();
        filter(
            "table inet test { chain from_client { type filter hook prerouting priority mangle;\n\
             iifname toclient tcp dport 80 tproxy ip to 127.0.0.1:8080 meta mark set 1 accept\n\
             iifname toclient tcp dport 80 tproxy ip6 to [::1]:8080 meta mark set 1 accept\n}\n}",
        );
        let text = "transparent\nbind 127.0.0.1:8080\nserver original-dst\n\
                    bind [::1]:8080\nserver original-dst\n";
        let proxy = Conf::new(text).serve(2, &[]);
        assert_reaches_what_it_means(&ends, &proxy.process);
    });
}

#[test]
fn a_listener_that_was_handed_over_may_be_transparent() {
    intercepting(|ends| {
        let listener = TcpListener::bind(("::", OURS)).unwrap();
        setsockopt(&listener, IpTransparent, &true).unwrap();
        let mut command = Command::new(TCPPROXY);
        command.args(["--log", "stderr", "original-dst"]);
        let proxy = Running::start(command.stdin(OwnedFd::from(listener)));
        assert_reaches_what_it_means(&ends, &proxy);
    });
}

#[test]
fn a_listener_becomes_transparent_when_the_file_says_so() {
    intercepting(|ends| {
        let text = format!("port {OURS}\nserver original-dst\n");
        let proxy = Conf::new(&text).serve(1, &[]);
        std::fs::write(proxy.conf.path(), format!("{text}transparent yes\n")).unwrap();
        proxy.process.signal(Signal::SIGHUP);
        proxy.process.log.wait_for(": reloaded");
        assert_reaches_what_it_means(&ends, &proxy.process);
    });
}

const AS_NOBODY: [&str; 4] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
];

#[test]
fn who_may_not_listen_so_says_what_is_missing() {
    needs_root();
    let arguments = [
        "--log",
        "stderr",
        "-b",
        "127.0.0.1:0",
        "--transparent",
        "host",
    ];
    let mut command = Command::new(AS_NOBODY[0]);
    command.args(&AS_NOBODY[1..]).arg(TCPPROXY).args(arguments);
    let said = Said::by(command.stdin(Stdio::null()));
    let lines = said.refused(77);
    assert!(
        lines[0].ends_with(
            "cannot listen on 127.0.0.1:0: Operation not permitted: transparent needs CAP_NET_ADMIN"
        ),
        "{lines:?}"
    );
}

#[test]
fn the_capability_alone_will_do() {
    intercepting(|ends| {
        let caps = ["--inh-caps=+net_admin", "--ambient-caps=+net_admin"];
        let launcher = [&AS_NOBODY[..], &caps].concat();
        let proxy = launched_by(&launcher, OURS, &["--transparent", "original-dst"]);
        assert_reaches_what_it_means(&ends, &proxy);
    });
}
