//! Where connections come from, with a configuration file: the order of the sources, and what
//! `standalone` has to do with it.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use crate::harness::config_file::Conf;
use crate::harness::{
    Running, Said, end_of, free_port, hand_over, needs_root, patient, read_all, share, socket_pair,
    wait_until_free,
};

/// A configuration for a connection that was handed over, and the port of that.
struct Handed {
    conf: Conf,
    /// On which it would listen.
    own: u16,
    client: std::net::TcpStream,
    accepted: std::net::TcpStream,
}

impl Handed {
    fn new(standalone: &str) -> Handed {
        // Not one of the ports that the kernel gives to whoever asks: it is listened on again.
        let own = free_port();
        let listener = crate::harness::eventually("a port", || {
            TcpListener::bind(("127.0.0.1", free_port())).ok()
        });
        let port = listener.local_addr().unwrap().port();
        let client = patient(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
        let (accepted, _) = listener.accept().unwrap();
        drop(listener);
        wait_until_free(port);
        let conf = Conf::new(format!(
            "{standalone}\n\
             port {port}\nexec /bin/echo handed over\n\
             port {own}\nexec /bin/echo own\n"
        ));
        Handed {
            conf,
            own,
            client,
            accepted,
        }
    }

    /// tcpproxy, with the connection on descriptor 0.
    fn command(&self, arguments: &[&str]) -> Command {
        let arguments = [&["-f", "conf", "--log", "stderr"], arguments].concat();
        let mut command = self.conf.command(&arguments);
        command.stdin(share(&self.accepted)).stdout(Stdio::null());
        command
    }

    /// Whether the connection that was handed over is served.
    fn assert_served(self, arguments: &[&str]) {
        let mut process = Running::start(&mut self.command(arguments));
        drop(self.accepted);
        assert_eq!(read_all(&self.client), b"handed over\n", "{arguments:?}");
        assert_eq!(process.status().code(), Some(0), "{arguments:?}");
    }

    /// Whether it listens, and the connection is left alone.
    fn assert_listens(self, arguments: &[&str]) {
        let process = Running::start(&mut self.command(arguments));
        process.log.wait_for_count("listening on ", 2);
        let client = std::net::TcpStream::connect(("127.0.0.1", self.own)).unwrap();
        assert_eq!(read_all(patient(client)), b"own\n", "{arguments:?}");
        self.client.set_nonblocking(true).unwrap();
        let error = self.client.peek(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}

#[test]
fn a_connection_is_served_unless_listening_was_asked_for_outright() {
    needs_root();
    Handed::new("").assert_served(&[]);
    Handed::new("standalone no").assert_served(&[]);
    Handed::new("standalone yes").assert_listens(&[]);
    Handed::new("standalone").assert_listens(&[]);
    Handed::new("").assert_listens(&["-s"]);
    Handed::new("standalone no").assert_listens(&["-s"]);
}

#[test]
fn without_a_socket_it_listens_unless_that_was_forbidden() {
    needs_root();
    let (client, accepted) = socket_pair();
    drop((client, accepted));
    for standalone in ["", "standalone yes"] {
        let port = free_port();
        let text = format!("{standalone}\nport {port}\nexec /bin/echo own\n");
        let server = Conf::new(text).serve(1, &[]);
        assert_eq!(server.answer("127.0.0.1", port), "own\n", "{standalone}");
    }
    let conf = Conf::new("standalone no\nport 25\nexec /bin/echo own\n");
    let said = conf.says(&[]);
    let lines = said.refused(64);
    assert!(
        lines.len() == 1 && lines[0].contains("no connection to serve"),
        "{lines:?}"
    );
}

#[test]
fn a_file_without_services_has_nothing_to_listen_for() {
    let conf = Conf::new("timeout 7\n");
    assert_eq!(conf.says(&["--check"]).ok(), "ok\n");
    assert_eq!(conf.says(&["-z"]).ok(), "");
    let expected = "tcpproxy: the configuration has no service to listen for: \
                    write port, and server or exec";
    assert_eq!(conf.says(&["-s"]).refused(78), [expected]);
    for standalone in ["", "standalone yes\n"] {
        let said = Conf::new(format!("{standalone}timeout 7\n")).says(&[]);
        assert_eq!(said.refused(78), [expected], "{standalone}");
    }
}

#[test]
fn sockets_from_a_service_manager_come_before_the_one_on_descriptor_0() {
    needs_root();
    let (passed_client, passed) = socket_pair();
    let (client, accepted) = socket_pair();
    let ports = [&passed, &accepted].map(|socket| socket.local_addr().unwrap().port());
    let conf = Conf::new(format!(
        "port {}\nexec /bin/echo passed\nport {}\nexec /bin/echo descriptor 0\n",
        ports[0], ports[1]
    ));
    // The shell puts what it has on 1 where the service manager would.
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&1 1>&2";
    let mut command = Command::new("sh");
    command.args(["-c", script, crate::harness::TCPPROXY, "-f"]);
    command.arg(conf.path()).args(["--log", "stderr"]);
    command.stdin(share(&accepted)).stdout(share(&passed));
    let mut process = Running::start(&mut command);
    drop((command, passed, accepted));
    assert_eq!(read_all(passed_client), b"passed\n");
    assert_eq!(process.status().code(), Some(0));
    assert_eq!(read_all(client), b"", "it is closed with its last owner");
}

#[test]
fn listeners_that_were_handed_over_are_served_without_binding_what_the_file_says() {
    needs_root();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let (port, other) = (listener.local_addr().unwrap().port(), free_port());
    let conf = Conf::new(format!(
        "port {port}\nexec /bin/echo any\ninterface 127.0.0.1\nexec /bin/echo narrow\n\
         port {other}\nexec /bin/echo other\n"
    ));
    let mut command = conf.command(&["-f", "conf", "--log", "stderr"]);
    let shared = OwnedFd::from(listener.try_clone().unwrap());
    let process = Running::start(command.stdin(Stdio::from(shared)));
    let client = patient(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
    assert_eq!(read_all(client), b"narrow\n");
    process.log.wait_for(" closed: ");
    std::net::TcpStream::connect(("127.0.0.1", other)).unwrap_err();
}

#[test]
fn with_a_server_the_services_of_the_file_are_not_looked_for() {
    needs_root();
    let conf = Conf::new("standalone yes\nsetenv F_\nport 1\nexec /bin/echo theirs\n");
    let mut command = conf.command(&["-f", "conf", "/bin/sh", "-c", "env | grep -c '^F_'"]);
    let (client, mut child) = hand_over(&mut command);
    assert_eq!(read_all(client), b"7\n");
    assert_eq!(end_of(&mut child).code(), Some(0));
    // A listener of its own is bound with -b alone, and then whatever the file says.
    let said = Said::by(&mut conf.command(&["-f", "conf", "-s", "h:1"]));
    assert_eq!(said.refused(64).len(), 1);
    let no = Conf::new("standalone no\nport 1\nexec /bin/echo theirs\n");
    let server = no.serve(1, &["-b", "127.0.0.1:0", "/bin/echo", "ours"]);
    let address = server.listeners()[0];
    assert_eq!(server.answer("127.0.0.1", address.port()), "ours\n");
}
