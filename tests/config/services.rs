//! The services of a configuration file, as clients of each address and port meet them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::AcceptConn;

use crate::harness::clients::connect_from;
use crate::harness::config_file::{Conf, Configured};
use crate::harness::namespaces::{add_address, privately};
use crate::harness::peers::assert_echoes;
use crate::harness::processes::{borrow_descriptor, descriptors_of_kind};
use crate::harness::upstreams::{Upstream, echo};
use crate::harness::{Scratch, field, free_port, needs_root, read_all};

/// Where the sockets of a process listen, as the kernel has it.
fn listening(server: &Configured) -> Vec<SocketAddr> {
    let pid = server.process.pid();
    let sockets = descriptors_of_kind(pid, "socket").into_iter();
    let sockets = sockets.map(|number| borrow_descriptor(pid, number));
    let mut addresses: Vec<SocketAddr> = sockets
        .filter(|socket| getsockopt(&socket.as_fd(), AcceptConn).unwrap())
        .filter_map(|socket| TcpListener::from(socket).local_addr().ok())
        .collect();
    addresses.sort();
    addresses
}

fn addresses(texts: &[&str], port: u16) -> Vec<SocketAddr> {
    let ips = texts.iter().map(|text| text.parse().unwrap());
    ips.map(|ip| SocketAddr::new(ip, port)).collect()
}

#[test]
fn a_service_is_found_by_the_address_that_the_client_reached() {
    needs_root();
    let port = free_port();
    let server = Configured::start(
        &format!(
            "port {port}\n\
             interface 127.0.0.1\nexec /bin/echo one\n\
             interface 127.0.0.2\nexec /bin/echo two\n\
             interface ::1\nexec /bin/echo six\n"
        ),
        3,
    );
    for _ in 0..2 {
        for (ip, answer) in [("127.0.0.1", "one"), ("127.0.0.2", "two"), ("::1", "six")] {
            assert_eq!(server.answer(ip, port), format!("{answer}\n"), "{ip}");
        }
    }
    // There is no service for others, and nothing listens for them.
    TcpStream::connect(("127.0.0.3", port)).unwrap_err();
    assert_eq!(
        listening(&server),
        addresses(&["127.0.0.1", "127.0.0.2", "::1"], port)
    );
}

#[test]
fn where_a_port_has_a_service_of_its_own_one_socket_listens_for_all_of_its_interfaces() {
    needs_root();
    let port = free_port();
    let server = Configured::start(
        &format!(
            "port {port}\nexec /bin/echo any\n\
             interface 127.0.0.2\nexec /bin/echo two\n\
             interface ::1\nexec /bin/echo six\n"
        ),
        1,
    );
    for (ip, answer) in [
        ("127.0.0.1", "any"),
        ("127.0.0.2", "two"),
        ("127.0.0.3", "any"),
        ("::1", "six"),
    ] {
        assert_eq!(server.answer(ip, port), format!("{answer}\n"), "{ip}");
    }
    assert_eq!(listening(&server), addresses(&["::"], port));
}

#[test]
fn an_unspecified_address_is_for_its_family_and_a_narrower_one_wins() {
    needs_root();
    let port = free_port();
    let server = Configured::start(
        &format!(
            "port {port}\n\
             interface 0.0.0.0\nexec /bin/echo four\n\
             interface ::\nexec /bin/echo six\n"
        ),
        2,
    );
    assert_eq!(server.answer("127.0.0.1", port), "four\n");
    assert_eq!(server.answer("::1", port), "six\n");
    assert_eq!(listening(&server), addresses(&["0.0.0.0", "::"], port));
}

#[test]
fn a_host_name_and_an_interfaces_name_stand_for_all_of_their_addresses() {
    privately(|| {
        add_address("192.0.2.1/32");
        add_address("2001:db8::1/128");
        // A link-local address is none that a name stands for.
        add_address("fe80::77/64");
        let scratch = Scratch::new();
        let hosts = "127.0.0.2 two.example\n127.0.0.3 two.example\n";
        let _names = crate::harness::name_server::names(&scratch, hosts);
        let server = Configured::start(
            "port 7001\ninterface lo\nexec /bin/echo interface\n\
             port 7002\ninterface two.example\nexec /bin/echo host\n\
             port 7003\nexec /bin/echo any\ninterface lo\nexec /bin/echo narrower\n\
             interface two.example\nexec /bin/echo narrower still\n",
            4 + 2 + 1,
        );
        for ip in ["127.0.0.1", "192.0.2.1", "::1", "2001:db8::1"] {
            assert_eq!(server.answer(ip, 7001), "interface\n", "{ip}");
            assert_eq!(server.answer(ip, 7003), "narrower\n", "{ip}");
        }
        for ip in ["127.0.0.2", "127.0.0.3"] {
            assert_eq!(server.answer(ip, 7002), "host\n", "{ip}");
            assert_eq!(server.answer(ip, 7003), "narrower still\n", "{ip}");
        }
        assert_eq!(server.answer("127.0.0.4", 7003), "any\n");
        let mut expected = addresses(&["127.0.0.1", "192.0.2.1", "::1", "2001:db8::1"], 7001);
        expected.extend(addresses(&["127.0.0.2", "127.0.0.3"], 7002));
        expected.extend(addresses(&["::"], 7003));
        expected.sort();
        assert_eq!(listening(&server), expected);
    });
}

#[test]
fn an_interface_inherits_its_ports_action_or_replaces_it_by_either_kind() {
    needs_root();
    let (first, second) = (free_port(), free_port());
    let upstream = echo();
    let server = Configured::start(
        &format!(
            "port {first}\nserver {upstream}\n\
             interface 127.0.0.2\nexec /bin/echo handler\n\
             interface 127.0.0.3\nmax-duration 1h\n\
             port {second}\nexec /bin/echo handler\n\
             interface 127.0.0.2\nserver {upstream}\n"
        ),
        2,
    );
    for (ip, port) in [
        ("127.0.0.1", first),
        ("127.0.0.3", first),
        ("127.0.0.2", second),
    ] {
        assert_echoes(&server.connect(ip, port));
    }
    for (ip, port) in [("127.0.0.2", first), ("127.0.0.1", second)] {
        assert_eq!(server.answer(ip, port), "handler\n");
    }
}

#[test]
fn upstreams_are_tried_in_order_whether_on_one_line_or_on_several() {
    let upstream = echo();
    for servers in [
        "server 127.0.0.1:1 {}",
        "server 127.0.0.1:1\nserver unix:/none {}\nserver 127.0.0.1:1",
    ] {
        let port = free_port();
        let servers = servers.replace("{}", &upstream.to_string());
        let server = Configured::start(&format!("port {port}\n{servers}\n"), 1);
        let client = server.connect("127.0.0.1", port);
        assert_echoes(&client);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&client), b"");
        let closed = server.process.log.wait_for(" closed: ");
        assert_eq!(field(&closed, "server"), upstream.to_string());
    }
}

#[test]
fn an_upstream_without_a_port_is_asked_on_the_clients() {
    let upstream = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap();
    let port = upstream.local_addr().unwrap().port();
    let conf = format!("port {port}\ninterface 127.0.0.1\nserver 127.0.0.2\n");
    let server = Configured::start(&conf, 1);
    let client = server.connect("127.0.0.1", port);
    let (mut accepted, _) = upstream.accept().unwrap();
    accepted.write_all(b"here").unwrap();
    drop(accepted);
    assert_eq!(read_all(client), b"here");
    let closed = server.process.log.wait_for(" closed: ");
    assert_eq!(field(&closed, "server"), format!("127.0.0.2:{port}"));
}

#[test]
fn ids_names_prefixes_and_environments_are_each_services_own() {
    needs_root();
    let [defaults, own, narrow] = [(); 3].map(|()| free_port());
    let show = "exec sh -c 'id -u; id -g; id -G; env | grep E=12[7]; echo HOME=$HOME'";
    let text = format!(
        "uid 1001\nsetenv D_\nlogname by-default\n\
         port {defaults}\n{show}\n\
         port {own}\n{show}\nuid 1002\ngid 1003\nsetenv OWN_\nlogname of-its-own\nclear-env\n\
         port {narrow}\n{show}\ngid 1004\n interface 127.0.0.1\n uid 1005\n setenv N_\n"
    );
    let conf = Conf::new(text);
    let mut command = conf.command(&["-f", "conf", "--log", "stderr"]);
    command
        .env("HOME", "/there")
        .stdin(std::process::Stdio::null());
    let process = crate::harness::Running::start(&mut command);
    process.log.wait_for_count("listening on ", 3);
    let server = Configured { process, conf };
    for (port, expected, ids, name) in [
        (
            defaults,
            "1001\n65534\n65534\nD_INTERFACE=127.0.0.1\nHOME=/there\n",
            "1001:65534",
            "by-default",
        ),
        (
            own,
            "1002\n1003\n1003\nOWN_INTERFACE=127.0.0.1\nHOME=\n",
            "1002:1003",
            "of-its-own",
        ),
        (
            narrow,
            "1005\n1004\n1004\nN_INTERFACE=127.0.0.1\nHOME=/there\n",
            "1005:1004",
            "by-default",
        ),
    ] {
        assert_eq!(server.answer("127.0.0.1", port), expected);
        let opened = server
            .process
            .log
            .wait_for(&format!("local=127.0.0.1:{port} "));
        assert_eq!(field(&opened, "user"), ids);
        assert!(opened.starts_with(&format!("{name}[")), "{opened}");
    }
    let own_lines = server.process.log.all();
    let server_lines = own_lines
        .iter()
        .filter(|line| line.contains("listening on"));
    assert!(
        server_lines
            .clone()
            .all(|line| line.starts_with("by-default["))
    );
    let closed = server.process.log.wait_for_count(" closed: ", 3);
    let of_own = closed.iter().filter(|line| line.starts_with("of-its-own["));
    assert_eq!(of_own.count(), 1, "{closed:#?}");
}

#[test]
fn time_limits_are_each_services_own() {
    let [short, never, ended] = [(); 3].map(|()| free_port());
    let upstream = echo();
    let server = Configured::start(
        &format!(
            "timeout 200ms\n\
             port {short}\nserver {upstream}\n\
             port {never}\nserver {upstream}\ntimeout 0\n\
             port {ended}\nserver {upstream}\ntimeout 0\nmax-duration 300ms\n"
        ),
        3,
    );
    let patient_one = server.connect("127.0.0.1", never);
    for (port, reason) in [(short, "idle-timeout"), (ended, "max-duration")] {
        let client = server.connect("127.0.0.1", port);
        let from = client.local_addr().unwrap();
        assert_echoes(&client);
        assert_eq!(read_all(&client), b"", "{port}");
        let closed = server
            .process
            .log
            .wait_for(&format!("closed: client={from} "));
        assert_eq!(field(&closed, "reason"), reason);
    }
    // It has been silent for longer than either.
    assert_echoes(&patient_one);
}

#[test]
fn rules_programs_and_transcripts_are_each_services_own() {
    needs_root();
    let [refusing, asking, recorded] = [(); 3].map(|()| free_port());
    let conf = Conf::new("");
    let program = conf.scratch().script("ask", "echo no, $1; exit 1");
    let base = conf.scratch().join("transcript");
    let upstream = Upstream::new(|stream| read_all(&stream));
    let text = format!(
        "deny 127.0.0.9\n\
         port {refusing}\nexec /bin/echo served\ndeny 127.0.0.1\n\
         port {asking}\nexec /bin/echo served\nacp {} never\n\
         port {recorded}\nserver {}\nwritefile {}\n",
        program.display(),
        upstream.name(),
        base.display(),
    );
    let server = conf.with("conf", text).serve(3, &[]);
    assert_eq!(server.answer("127.0.0.1", refusing), "");
    assert_eq!(server.answer("127.0.0.1", asking), "no, never\n");
    let mut client = server.connect("127.0.0.1", recorded);
    client.write_all(b"recorded").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    client.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(upstream.result(), b"recorded");
    for (session, reason) in [
        (1, "denied-by-rule"),
        (2, "denied-by-program"),
        (3, "client-closed"),
    ] {
        let closed = server
            .process
            .log
            .wait_for(&format!("session {session} closed: "));
        assert_eq!(field(&closed, "reason"), reason);
    }
    let files = std::fs::read_dir(server.conf.scratch().path()).unwrap();
    let transcripts: Vec<_> = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains("transcript."))
        .collect();
    assert_eq!(transcripts.len(), 1, "{transcripts:?}");
    let text = std::fs::read_to_string(&transcripts[0]).unwrap();
    assert!(text.contains(" 8\nrecorded\n"), "{text}");
}

#[test]
fn rules_of_the_command_line_follow_the_files_defaults_and_its_log_replaces_the_files() {
    needs_root();
    let port = free_port();
    let conf = Conf::new("");
    let theirs = conf.scratch().join("theirs");
    let text = format!(
        "log file:{}\nallow 127.0.0.1\nport {port}\nexec /bin/echo served\n",
        theirs.display()
    );
    let conf = conf.with("conf", text);
    let server = conf.serve(1, &["--allow", "127.0.0.2", "--deny", "127.0.0.3"]);
    let from = |ip: &str| connect_from(ip, ([127, 0, 0, 1], port).into());
    for (ip, answer) in [
        ("127.0.0.1", "served\n"),
        ("127.0.0.2", "served\n"),
        ("127.0.0.3", ""),
        ("127.0.0.4", ""),
    ] {
        assert_eq!(read_all(from(ip)), answer.as_bytes(), "{ip}");
    }
    let line = server.process.log.wait_for("deny 127.0.0.3");
    assert!(line.contains("the command line"), "{line}");
    server.process.log.wait_for_count(" closed: ", 4);
    assert!(!theirs.exists(), "the file's log is not written to");
}
