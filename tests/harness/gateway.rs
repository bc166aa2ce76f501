//! A network of three machines: a client's and a server's, which know each other by way of a gateway
//! alone, where the test itself is, and what it starts.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use super::namespaces::{privately, run};
use super::{PATIENCE, Running, TCPPROXY, eventually, patient};

/// The machines' addresses, of either family.
pub const CLIENT: [&str; 2] = ["192.0.2.7", "2001:db8:1::7"];
pub const SERVER: [&str; 2] = ["198.51.100.9", "2001:db8:2::9"];
/// The gateway's towards the client and towards the server.
pub const TO_CLIENT: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
pub const TO_SERVER: [&str; 2] = ["198.51.100.1", "2001:db8:2::1"];

/// A machine other than the gateway.
pub struct Machine {
    network: File,
}

impl Machine {
    fn new() -> Machine {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip", &["link", "set", "lo", "up"]);
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let network = thread::scope(|scope| scope.spawn(make).join().unwrap());
        Machine { network }
    }

    /// Does something on this machine. Sockets that are made stay there; so do processes.
    pub fn here<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let there = || {
            setns(&self.network, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(there).join().unwrap())
    }

    /// Connects from this machine.
    pub fn connect(&self, to: SocketAddr) -> TcpStream {
        self.here(|| patient(TcpStream::connect_timeout(&to, PATIENCE).unwrap()))
    }

    /// A path by which ip(8) finds the network.
    fn path(&self) -> String {
        format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.network.as_raw_fd()
        )
    }

    /// Joins this machine to the one that the caller is on, by an interface called `name` there.
    fn join(&self, name: &str, own: [&str; 2], gateway: [&str; 2]) {
        let peer = ["peer", "name", "up0", "netns", &self.path()].map(str::to_owned);
        let peer = peer.each_ref().map(String::as_str);
        run(
            "ip",
            &[&["link", "add", name, "type", "veth"], &peer[..]].concat(),
        );
        give(name, gateway);
        self.here(|| {
            give("up0", own);
            for address in gateway {
                run("ip", &["route", "add", "default", "via", address]);
            }
        });
    }
}

/// Gives an interface addresses of both families, and brings it up.
fn give(name: &str, [v4, v6]: [&str; 2]) {
    run("ip", &["addr", "add", &format!("{v4}/24"), "dev", name]);
    let v6 = format!("{v6}/64");
    run("ip", &["addr", "add", &v6, "dev", name, "nodad"]);
    run("ip", &["link", "set", name, "up"]);
}

/// The two machines that a gateway stands between.
pub struct Ends {
    pub client: Machine,
    pub server: Machine,
}

/// Runs a test on a gateway, in namespaces of its own.
pub fn on_gateway(test: impl FnOnce(Ends) + Send) {
    privately(|| {
        let ends = Ends {
            client: Machine::new(),
            server: Machine::new(),
        };
        ends.client.join("toclient", CLIENT, TO_CLIENT);
        ends.server.join("toserver", SERVER, TO_SERVER);
        for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{family}"), "1").unwrap();
        }
        test(ends);
    });
}

/// Loads rules into the packet filter of the gateway.
pub fn filter(rules: &str) {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("nft: {error}: run tests/setup"));
    nft.stdin
        .take()
        .unwrap()
        .write_all(rules.as_bytes())
        .unwrap();
    assert!(nft.wait().unwrap().success(), "{rules}");
}

/// Has the gateway's own processes receive what is marked with 1, whoever it is addressed to.
pub fn receive_what_is_marked() {
    for (family, everything) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
        run(
            "ip",
            &[family, "rule", "add", "fwmark", "1", "lookup", "100"],
        );
        let route = [
            "route", "add", "local", everything, "dev", "lo", "table", "100",
        ];
        run("ip", &[&[family], &route[..]].concat());
    }
}

/// A service on a machine: says whom it sees and as whom, and sends back what it receives.
pub fn serve(machine: &Machine, port: u16) {
    let listener = machine.here(|| TcpListener::bind(("::", port)).unwrap());
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = patient(client.unwrap());
            thread::spawn(move || {
                let ends = [client.peer_addr(), client.local_addr()];
                let [peer, own] = ends.map(|end| plain(end.unwrap()));
                // One that resets is none of the service's business.
                let _ = writeln!(&client, "{peer} {own}");
                let _ = std::io::copy(&mut &client, &mut &client);
            });
        }
    });
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whom the service at the other end of a connection sees, and as whom.
pub fn seen(mut client: &TcpStream) -> (SocketAddr, SocketAddr) {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        client.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    let (peer, own) = line.trim_end().split_once(' ').unwrap();
    (peer.parse().unwrap(), own.parse().unwrap())
}

/// An address of this text with a port.
pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port)
}

/// tcpproxy on the gateway, which listens on a port of all addresses.
pub fn start(port: u16, arguments: &[&str]) -> Running {
    launched_by(&[], port, arguments)
}

/// The same, by a command that starts what follows it.
pub fn launched_by(launcher: &[&str], port: u16, arguments: &[&str]) -> Running {
    let port = port.to_string();
    let ours = [TCPPROXY, "--log", "stderr", "-b", &port];
    let words = [launcher, &ours, arguments].concat();
    let mut command = Command::new(words[0]);
    let process = Running::start(command.args(&words[1..]).stdin(Stdio::null()));
    process.log.wait_for("listening on ");
    process
}

/// Waits until the machines have found each other: the first packets wait for interfaces that have
/// only just come up.
pub fn wait_for_neighbours(ends: &Ends, port: u16) {
    for ip in SERVER {
        eventually("a route to the server", || {
            ends.client.here(|| TcpStream::connect(at(ip, port)).ok())
        });
    }
}
