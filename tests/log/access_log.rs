//! The access log: a line for each session that has ended, in the format that was asked for.

use std::fs;
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::thread;

use nix::sys::signal::Signal;

use crate::harness::access_log::{lines, members, request};
use crate::harness::clients::connect_from;
use crate::harness::super_server::SuperServer;
use crate::harness::upstreams::echo;
use crate::harness::{
    Scratch, Standalone, end_of, eventually, field, needs_root, read_all, under_inetd,
};

#[test]
fn lines_of_many_processes_are_each_whole() {
    let scratch = Scratch::new();
    let file = scratch.join("access.log");
    let log = [
        "--access-log",
        file.to_str().unwrap(),
        "--access-log-format",
        "json",
    ];
    let upstream = echo().to_string();
    // Two servers, too.
    let proxies = [(); 2].map(|()| Standalone::start(&[&log, &[upstream.as_str()][..]].concat()));
    let clients: Vec<TcpStream> = (0..50).map(|n| proxies[n % 2].connect()).collect();
    for client in &clients {
        crate::harness::peers::assert_echoes(client);
    }
    // All at once.
    for client in &clients {
        client.shutdown(Shutdown::Write).unwrap();
    }
    for client in clients {
        assert_eq!(read_all(client), b"");
    }
    let lines = lines(&file, 50);
    assert_eq!(lines.len(), 50);
    let mut ports: Vec<String> = lines
        .iter()
        .map(|line| {
            let members = members(line);
            assert_eq!(members.last().unwrap().1, "client-closed", "{line}");
            members
                .into_iter()
                .find(|(name, _)| name == "client_port")
                .unwrap()
                .1
        })
        .collect();
    ports.sort();
    ports.dedup();
    assert_eq!(ports.len(), 50, "each session has one line");
}

#[test]
fn it_is_opened_anew_at_sighup_and_older_sessions_write_to_the_old_file() {
    let scratch = Scratch::new();
    let (file, old) = (scratch.join("access.log"), scratch.join("access.log.1"));
    let upstream = echo().to_string();
    let proxy = Standalone::start(&["--access-log", file.to_str().unwrap(), &upstream]);
    let before = proxy.connect();
    crate::harness::peers::assert_echoes(&before);
    fs::rename(&file, &old).unwrap();
    proxy.process.signal(Signal::SIGHUP);
    eventually("the new file", || file.exists().then_some(()));
    assert_eq!(request(proxy.connect()), b"hello");
    let new = lines(&file, 1);
    assert!(
        new.len() == 1 && new[0].contains("session 2 closed: "),
        "{new:?}"
    );
    drop(before);
    let old = lines(&old, 1);
    assert!(
        old.len() == 1 && old[0].contains("session 1 closed: "),
        "{old:?}"
    );
    assert_eq!(lines(&file, 1).len(), 1);
}

#[test]
fn it_is_opened_before_ids_change_and_appended_to() {
    needs_root();
    let scratch = Scratch::new();
    let directory = scratch.join("root's");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
    let file = directory.join("access.log");
    for count in 1..=2 {
        let log = ["--access-log", file.to_str().unwrap()];
        let proxy = Standalone::start(&[&log[..], &["/bin/cat"]].concat());
        assert_eq!(request(proxy.connect()), b"hello");
        let opened = proxy.process.log.wait_for(" opened: ");
        assert_eq!(field(&opened, "user"), "65535:65534");
        assert_eq!(lines(&file, count).len(), count);
    }
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!(metadata.uid(), 0);
    assert_eq!(
        metadata.mode() & 0o7777 & !0o640,
        0,
        "{:o}",
        metadata.mode()
    );
}

#[test]
fn an_access_log_that_cannot_be_opened_prevents_the_start() {
    let scratch = Scratch::new();
    let file = scratch.join("none/access.log");
    let mut command = crate::harness::launched_by(&[], &["-b", "127.0.0.1:0", "--log", "stderr"]);
    command.args(["--access-log", file.to_str().unwrap(), "h:1"]);
    let said = crate::harness::Said::by(&mut command);
    let lines = said.refused(71);
    let expected = format!("access log {}: No such file or directory", file.display());
    assert!(
        lines.len() == 1 && lines[0].contains(&expected),
        "{lines:?}"
    );
}

#[test]
fn under_inetd_sessions_share_it_and_a_handler_leaves_no_line() {
    needs_root();
    let scratch = Scratch::new();
    let file = scratch.join("access.log");
    let log = ["--access-log", file.to_str().unwrap()];
    let upstream = echo().to_string();
    for server in SuperServer::WITH_CLIENT_ON_STDERR {
        let _ = fs::remove_file(&file);
        let activated = server.start("127.0.0.1", &[&log[..], &[&upstream]].concat());
        let clients: Vec<_> = (0..10)
            .map(|_| {
                let client = activated.connect();
                thread::spawn(move || request(client))
            })
            .collect();
        for client in clients {
            assert_eq!(client.join().unwrap(), b"hello", "{server:?}");
        }
        let lines = lines(&file, 10);
        assert_eq!(lines.len(), 10, "{server:?}");
        assert!(
            lines
                .iter()
                .all(|line| line.ends_with(" reason=client-closed")),
            "{lines:#?}"
        );
        assert_eq!(fs::metadata(&file).unwrap().uid(), 0, "{server:?}");
    }
    fs::remove_file(&file).unwrap();
    let (client, mut child) = under_inetd(&[&log[..], &["/bin/cat"]].concat());
    assert_eq!(request(client), b"hello");
    end_of(&mut child);
    assert_eq!(fs::read_to_string(&file).unwrap(), "");
}

#[test]
fn the_level_of_the_log_does_not_matter_to_it() {
    let scratch = Scratch::new();
    let file = scratch.join("access.log");
    let conf = crate::harness::config_file::Conf::new(format!(
        "log-level notice\naccess-log {}\nport {}\nserver {}\ndeny 127.0.0.2\n",
        file.display(),
        crate::harness::free_port(),
        echo()
    ));
    let server = conf.serve(1, &[]);
    let port = server.listeners()[0].port();
    assert_eq!(request(server.connect("127.0.0.1", port)), b"hello");
    lines(&file, 1);
    assert_eq!(
        read_all(connect_from("127.0.0.2", ([127, 0, 0, 1], port).into())),
        b""
    );
    let reasons: Vec<String> = lines(&file, 2)
        .iter()
        .map(|line| field(line, "reason").to_owned())
        .collect();
    assert_eq!(reasons, ["client-closed", "denied-by-rule"]);
    server.process.log.wait_for("denied-by-rule");
    let log = server.process.log.all();
    assert!(
        !log.iter().any(|line| line.contains("client-closed")),
        "{log:#?}"
    );
}
