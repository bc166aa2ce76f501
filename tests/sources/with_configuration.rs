//! Connections that real super-servers hand over, and a configuration file that says what becomes
//! of each: one line for tcpproxy serves every port.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::config_file::Conf;
use crate::harness::super_server::{SuperServer, activate, connect_to, start_with_configuration};
use crate::harness::upstreams::echo;
use crate::harness::{
    Running, Scratch, TCPPROXY, end_of, eventually, field, free_port, needs_root, read_all,
    wait_for_line,
};

const INETDS: [SuperServer; 3] = [
    SuperServer::OpenbsdInetd,
    SuperServer::InetutilsInetd,
    SuperServer::Xinetd,
];

/// A super-server that starts `tcpproxy -f FILE` on several ports, always by the same line.
struct Several {
    _process: Running,
    scratch: Scratch,
}

impl Several {
    fn start(server: SuperServer, ports: &[u16], conf: &str) -> Several {
        let scratch = Scratch::new();
        let file = scratch.join("tcpproxy.conf");
        let log = scratch.join("log");
        fs::write(&file, format!("log file:{}\n{conf}", log.display())).unwrap();
        let file = file.display();
        let entry = |port: &u16| match server {
            SuperServer::Xinetd => format!(
                "service at{port}\n{{\ntype = UNLISTED\nsocket_type = stream\nprotocol = tcp\n\
                 flags = IPv4\nport = {port}\nwait = no\nuser = root\nserver = {TCPPROXY}\n\
                 server_args = -f {file}\ndisable = no\n}}\n"
            ),
            _ => format!("{port} stream tcp nowait root {TCPPROXY} tcpproxy -f {file}\n"),
        };
        let text: String = ports.iter().map(entry).collect();
        Several {
            _process: start_with_configuration(server, &scratch, &text),
            scratch,
        }
    }

    fn answer(&self, ip: &str, port: u16) -> String {
        let client = connect_to(SocketAddr::new(ip.parse().unwrap(), port));
        String::from_utf8(read_all(client)).unwrap()
    }

    fn log(&self) -> std::path::PathBuf {
        self.scratch.join("log")
    }
}

fn request(mut client: TcpStream) -> Vec<u8> {
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    read_all(client)
}

#[test]
fn one_line_serves_every_port_as_the_file_says() {
    needs_root();
    for server in INETDS {
        let [narrow, forwarded, refusing] = [(); 3].map(|()| free_port());
        let upstream = echo();
        let several = Several::start(
            server,
            &[narrow, forwarded, refusing],
            &format!(
                "setenv OWN_\nuid 1001\n\
                 port {narrow}\nexec /bin/echo any\n\
                 \x20 interface 127.0.0.1\n exec sh -c 'id -u; echo $OWN_PORT'\n uid 1002\n\
                 port {forwarded}\nserver {upstream}\nlogname echoing\n\
                 port {refusing}\nexec /bin/echo served\ndeny 127.0.0.0/8\n"
            ),
        );
        assert_eq!(
            several.answer("127.0.0.1", narrow),
            format!("1002\n{narrow}\n"),
            "{server:?}"
        );
        assert_eq!(several.answer("127.0.0.2", narrow), "any\n", "{server:?}");
        let client = connect_to(SocketAddr::from((Ipv4Addr::LOCALHOST, forwarded)));
        assert_eq!(request(client), b"hello", "{server:?}");
        assert_eq!(several.answer("127.0.0.1", refusing), "", "{server:?}");

        let file = several.log();
        let forwarded = wait_for_line(&file, &format!("local=127.0.0.1:{forwarded} "));
        assert!(forwarded.contains(" echoing["), "{forwarded}");
        assert_eq!(field(&forwarded, "user"), "1001:65534", "{server:?}");
        let closed = wait_for_line(&file, &format!("server={upstream} "));
        assert_eq!(field(&closed, "reason"), "client-closed", "{server:?}");
        wait_for_line(&file, "reason=denied-by-rule");
    }
}

#[test]
fn a_port_that_no_service_is_for_is_closed_and_logged_and_the_client_reads_nothing() {
    needs_root();
    for server in INETDS {
        let [known, unknown] = [(); 2].map(|()| free_port());
        let conf = format!(
            "port {known}\nexec /bin/echo known\n\
             port {unknown}\ninterface 127.0.0.2\nexec /bin/echo narrower\n"
        );
        let several = Several::start(server, &[known, unknown], &conf);
        assert_eq!(several.answer("127.0.0.1", unknown), "", "{server:?}");
        assert_eq!(
            several.answer("127.0.0.2", unknown),
            "narrower\n",
            "{server:?}"
        );
        assert_eq!(several.answer("127.0.0.1", known), "known\n", "{server:?}");
        let expected = format!("no service is configured for 127.0.0.1:{unknown}");
        wait_for_line(&several.log(), &expected);
        let closed = wait_for_line(&several.log(), " closed: client=127.0.0.1:");
        assert_eq!(field(&closed, "reason"), "internal-error", "{server:?}");
    }
}

#[test]
fn an_unmatched_connection_ends_the_process_with_the_status_of_a_configuration_error() {
    let conf = Conf::new("port 1\nserver h:1\n");
    let (client, mut child) = crate::harness::hand_over(&mut conf.command(&["-f", "conf"]));
    assert_eq!(read_all(client), b"");
    assert_eq!(end_of(&mut child).code(), Some(78));
}

#[test]
fn a_file_that_is_wrong_or_missing_costs_the_client_nothing_but_the_connection() {
    for text in ["sever\n", "port 25\n", "\u{1}\n"] {
        let conf = Conf::new(text);
        let arguments = ["-f", "conf", "--log", "file:log"];
        let (mut client, mut child) = crate::harness::hand_over(&mut conf.command(&arguments));
        client.write_all(b"hello").unwrap();
        assert_eq!(end_of(&mut child).code(), Some(78), "{text}");
        let (bytes, _) = crate::harness::peers::read_to_ending(&client);
        assert_eq!(bytes, b"", "{text}");
    }
}

#[test]
fn a_unix_connection_matches_no_service_of_a_file() {
    let (client, accepted) = UnixStream::pair().unwrap();
    let conf = Conf::new("port 25\nserver h:1\n");
    let mut command = conf.command(&["-f", "conf", "--log", "stderr"]);
    command.stdin(Stdio::from(OwnedFd::from(accepted)));
    let mut process = Running::start(command.stdout(Stdio::null()));
    drop(command);
    assert_eq!(process.status().code(), Some(78));
    assert_eq!(read_all(client), b"");
    process.log.wait_for("no service is configured for unix");
    let closed = process.log.wait_for(" closed: ");
    assert_eq!(field(&closed, "client"), "unix");
}

#[test]
fn sockets_of_systemd_find_their_services_connections_and_listeners_alike() {
    needs_root();
    for accept in [&[][..], &["--accept"], &["--inetd", "--accept"]] {
        let addresses = [(); 2].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
        // With --accept it takes one address only.
        let count = if accept.is_empty() { 2 } else { 1 };
        let conf = Conf::new(format!(
            "log file:log\n\
             port {}\nexec /bin/echo first\n\
             port {}\nexec /bin/echo second\n",
            addresses[0].port(),
            addresses[1].port()
        ));
        let mut command = activate(accept, &addresses[..count], &["-f", "conf"]);
        command.current_dir(conf.scratch().path());
        let server = Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()));
        for round in 0..2 {
            for (address, answer) in addresses[..count].iter().zip(["first\n", "second\n"]) {
                let answered = read_all(connect_to(*address));
                assert_eq!(answered, answer.as_bytes(), "{accept:?} {round}");
            }
        }
        drop(server);
    }
}

#[test]
fn a_listener_without_a_service_closes_its_clients_and_serves_on() {
    needs_root();
    let [first, second] = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let [known, unknown] = [&first, &second].map(|socket| socket.local_addr().unwrap());
    let conf = Conf::new(format!("port {}\nexec /bin/echo known\n", known.port()));
    let script = "LISTEN_PID=$$ LISTEN_FDS=2 exec \"$0\" \"$@\" 3<&0 4<&1 </dev/null 1>&2";
    let mut command = Command::new("sh");
    command.args(["-c", script, TCPPROXY, "--log", "stderr", "-f"]);
    command.arg(conf.path());
    command.stdin(Stdio::from(OwnedFd::from(first)));
    command.stdout(Stdio::from(OwnedFd::from(second)));
    let server = Running::start(&mut command);
    drop(command);
    for _ in 0..2 {
        assert_eq!(read_all(connect_to(unknown)), b"");
        assert_eq!(read_all(connect_to(known)), b"known\n");
    }
    let expected = format!("no service is configured for {unknown}");
    server.log.wait_for(&expected);
}

#[test]
fn inetd_that_waits_hands_its_listener_to_the_service_of_the_file() {
    needs_root();
    for server in [SuperServer::OpenbsdInetd, SuperServer::InetutilsInetd] {
        let port = free_port();
        let scratch = Scratch::new();
        let file = scratch.join("tcpproxy.conf");
        fs::write(&file, format!("port {port}\nexec /bin/echo waited for\n")).unwrap();
        let text = format!(
            "{port} stream tcp wait root {TCPPROXY} tcpproxy --log file:{} -f {}\n",
            scratch.join("log").display(),
            file.display()
        );
        let inetd = start_with_configuration(server, &scratch, &text);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        for serial in 1..=2 {
            assert_eq!(read_all(connect_to(address)), b"waited for\n", "{server:?}");
            wait_for_line(&scratch.join("log"), &format!("session {serial} closed: "));
        }
        end_children_of(&inetd);
    }
}

/// What inetd has started with `wait` goes on without it, so it is ended first.
fn end_children_of(inetd: &Running) {
    for child in crate::harness::processes::children(inetd.pid()) {
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGTERM).unwrap();
        eventually("its end", || {
            let there = Path::new(&format!("/proc/{child}")).exists();
            (!there || !crate::harness::processes::is_alive(child)).then_some(())
        });
    }
}
