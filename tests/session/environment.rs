//! The environment of handlers and access control programs.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use crate::harness::upstreams::Forbidden;
use crate::harness::{
    Running, Scratch, Standalone, TCPPROXY, end_of, field, free_port, hand_over, launched_by,
    needs_root, patient, read_all, share, socket_pair,
};

/// A handler that shows its environment, a variable a line.
const SHOW: &str = "/usr/bin/env";

type Variables = BTreeMap<String, String>;

fn variables(text: &[u8]) -> Variables {
    let text = std::str::from_utf8(text).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// What must be found for this connection, but for `CLIENTNAME` and `SESSION`.
fn facts(prefix: &str, client: SocketAddr, local: SocketAddr, server: &str) -> Variables {
    [
        ("PORT", local.port().to_string()),
        ("INTERFACE", local.ip().to_string()),
        ("CLIENT", client.ip().to_string()),
        ("CLIENTPORT", client.port().to_string()),
        ("SERVER", server.to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (format!("{prefix}{name}"), value))
    .collect()
}

fn assert_contains(found: &Variables, expected: &Variables) {
    for (name, value) in expected {
        assert_eq!(found.get(name), Some(value), "{name} in {found:#?}");
    }
}

fn ends_of(stream: &TcpStream) -> (SocketAddr, SocketAddr) {
    (stream.local_addr().unwrap(), stream.peer_addr().unwrap())
}

#[test]
fn a_handler_under_inetd_knows_both_ends_and_its_process_id_as_session() {
    needs_root();
    let (stream, mut child) = crate::harness::under_inetd(&[SHOW]);
    let (client, local) = ends_of(&stream);
    let found = variables(&read_all(stream));
    end_of(&mut child);
    assert_contains(&found, &facts("PROXY_", client, local, SHOW));
    assert_eq!(found["PROXY_SESSION"], child.id().to_string());
}

#[test]
fn a_handler_under_a_listener_knows_its_serial_number() {
    needs_root();
    let server = Standalone::start(&[SHOW]);
    for serial in ["1", "2"] {
        let stream = server.connect();
        let (client, local) = ends_of(&stream);
        let found = variables(&read_all(stream));
        assert_contains(&found, &facts("PROXY_", client, local, SHOW));
        assert_eq!(found["PROXY_SESSION"], serial);
    }
}

#[test]
fn the_clients_name_is_the_one_in_the_log_or_else_its_address() {
    needs_root();
    let server = Standalone::start(&[SHOW]);
    let found = variables(&read_all(server.connect()));
    let opened = server.process.log.wait_for(" opened: ");
    let confirmed = match opened.contains(" name=") {
        true => field(&opened, "name"),
        false => "127.0.0.1",
    };
    assert_eq!(found["PROXY_CLIENTNAME"], confirmed);
}

#[test]
fn an_ipv4_client_of_an_ipv6_listener_is_shown_as_ipv4() {
    needs_root();
    let port = free_port().to_string();
    let bind = format!("[::]:{port}");
    let process = Running::start(
        Command::new(TCPPROXY)
            .args(["-b", &bind, "--log", "stderr", SHOW])
            .stdin(Stdio::null()),
    );
    process.log.wait_for("listening on ");
    for (ip, name) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")] {
        let stream = patient(TcpStream::connect(format!("{ip}:{port}")).unwrap());
        let found = variables(&read_all(stream));
        assert_eq!(found["PROXY_CLIENT"], name);
        assert_eq!(found["PROXY_INTERFACE"], name);
        assert_eq!(found["PROXY_PORT"], port);
    }
}

#[test]
fn a_unix_client_is_called_unix() {
    needs_root();
    let (client, server) = UnixStream::pair().unwrap();
    client
        .set_read_timeout(Some(crate::harness::PATIENCE))
        .unwrap();
    let mut child = Command::new(TCPPROXY)
        .arg(SHOW)
        .stdin(Stdio::from(OwnedFd::from(server)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let found = variables(&read_all(client));
    end_of(&mut child);
    assert_eq!(found["PROXY_CLIENT"], "unix");
}

#[test]
fn the_prefix_is_the_one_asked_for() {
    needs_root();
    let arguments = ["-v", "TCP_", SHOW];
    let launcher = ["env", "TCP_CLIENT=forged", "PROXY_CLIENT=of somebody else"];
    let (stream, mut child) = hand_over(&mut launched_by(&launcher, &arguments));
    let (client, local) = ends_of(&stream);
    let found = variables(&read_all(stream));
    end_of(&mut child);
    assert_contains(&found, &facts("TCP_", client, local, SHOW));
    // What others call PROXY_ is none of our business then.
    assert_eq!(found["PROXY_CLIENT"], "of somebody else");
    assert!(!found.contains_key("PROXY_PORT"));
}

#[test]
fn a_handler_inherits_what_else_there_is() {
    needs_root();
    let launcher = [
        "env",
        "PROXY_CLIENT=forged",
        "TZ=Antarctica/Troll",
        "EMPTY=",
    ];
    let (stream, mut child) = hand_over(&mut launched_by(&launcher, &[SHOW]));
    let found = variables(&read_all(stream));
    end_of(&mut child);
    assert_eq!(found["PROXY_CLIENT"], "127.0.0.1");
    assert_eq!(found["TZ"], "Antarctica/Troll");
    assert_eq!(found["EMPTY"], "");
}

#[test]
fn a_cleared_environment_has_the_prefixs_variables_and_a_path_alone() {
    needs_root();
    let launcher = [
        "env",
        "PATH=/evil:/bin:/usr/bin",
        "LD_LIBRARY_PATH=/evil",
        "X=y",
    ];
    for prefix in ["PROXY_", "P"] {
        let arguments = ["-y", "-v", prefix, SHOW];
        let (stream, mut child) = hand_over(&mut launched_by(&launcher, &arguments));
        let found = variables(&read_all(stream));
        end_of(&mut child);
        let ours = [
            "PORT",
            "INTERFACE",
            "CLIENT",
            "CLIENTNAME",
            "CLIENTPORT",
            "SESSION",
            "SERVER",
        ];
        let mut names: Vec<String> = ours.iter().map(|name| format!("{prefix}{name}")).collect();
        names.push("PATH".to_owned());
        names.sort();
        assert_eq!(found.keys().cloned().collect::<Vec<_>>(), names);
        assert!(found["PATH"].contains("/usr/bin") && !found["PATH"].contains("/evil"));
    }
}

#[test]
fn what_a_service_manager_told_us_is_not_passed_on() {
    needs_root();
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=connection NOTIFY_SOCKET=/n \
                  exec \"$0\" \"$@\" 3<&0 </dev/null";
    let asked = Scratch::new();
    let program = format!("/bin/sh -c 'env >{}'", asked.join("env").display());
    let (client, accepted) = socket_pair();
    let mut child = launched_by(&["sh", "-c", script], &["--acp", &program, SHOW])
        .stdin(share(&accepted))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(accepted);
    let handler = variables(&read_all(client));
    end_of(&mut child);
    let access_program = variables(&std::fs::read(asked.join("env")).unwrap());
    for found in [handler, access_program] {
        assert!(found.contains_key("PROXY_CLIENT"), "{found:#?}");
        for name in [
            "LISTEN_PID",
            "LISTEN_FDS",
            "LISTEN_FDNAMES",
            "NOTIFY_SOCKET",
        ] {
            assert!(!found.contains_key(name), "{name} in {found:#?}");
        }
    }
}

#[test]
fn an_access_program_knows_the_connection_and_what_the_client_wants() {
    needs_root();
    let upstream = Forbidden::new();
    let script = "/bin/sh -c 'env; exit 1'";
    let handler = ["/bin/echo", "a", "b c"];
    let cases: [(&[&str], String); 2] = [
        (&[&upstream.name()], upstream.name()),
        (&handler, "/bin/echo a b c".to_owned()),
    ];
    for (server, shown) in cases {
        let arguments = [&["--acp", script, "-v", "X_"], server].concat();
        let proxy = Standalone::start(&arguments);
        let stream = proxy.connect();
        let (client, local) = ends_of(&stream);
        let found = variables(&read_all(stream));
        assert_contains(&found, &facts("X_", client, local, &shown));
        assert_eq!(found["X_SESSION"], "1");
        assert!(found.contains_key("X_CLIENTNAME"));
    }
    upstream.assert_untouched();
}

#[test]
fn an_access_programs_environment_is_cleared_too() {
    needs_root();
    let script = "/bin/sh -c '/usr/bin/env -u PWD -u SHLVL -u _ -u OLDPWD; exit 1'";
    let launcher = ["env", "LD_LIBRARY_PATH=/evil"];
    let proxy = Standalone::launched_by(&launcher, &["-y", "--acp", script, "127.0.0.1:1"]);
    let found = variables(&read_all(proxy.connect()));
    let others: Vec<&String> = found.keys().filter(|n| !n.starts_with("PROXY_")).collect();
    assert_eq!(others, ["PATH"]);
}
