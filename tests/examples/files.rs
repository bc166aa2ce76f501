//! Every file in `examples/`, used as it says: by the programs it is for, with nothing changed but
//! places and ports. The units for systemd are in `systemd_units.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};

use crate::harness::config_file::Conf;
use crate::harness::namespaces::{privately, run};
use crate::harness::peers::assert_echoes;
use crate::harness::processes::children;
use crate::harness::super_server::{SuperServer, connect_to, start_with_configuration, unpacked};
use crate::harness::upstreams::echo;
use crate::harness::{
    Running, Said, Scratch, TCPPROXY, free_port, hand_over, launched_by, needs_root, patient,
    read_all,
};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name)
}

/// An example's text, with each of these replaced everywhere. Every one has to be there.
fn rewritten(name: &str, replacements: &[(&str, &str)]) -> String {
    let mut text = fs::read_to_string(example(name)).unwrap();
    for (theirs, ours) in replacements {
        assert!(text.contains(theirs), "{theirs} in {text}");
        text = text.replace(theirs, ours);
    }
    text
}

#[test]
fn every_example_is_used_by_a_test() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let files_in = |directory: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    // Not the harness: what it mentions is not thereby used.
    let subjects = files_in(&tests).into_iter();
    let subjects = subjects.filter(|directory| directory.join("main.rs").is_file());
    let sources: String = subjects
        .flat_map(|directory| files_in(&directory))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let all = fs::read_dir(example("")).unwrap();
    let unused: Vec<String> = all
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| {
            // Services that their sockets start need not be named; nor templates, by themselves.
            let stem = name.strip_suffix(".service").unwrap_or(name);
            let socket = format!("{stem}.socket");
            let mention = match example(&socket).exists() {
                true => &socket,
                false if stem.ends_with('@') => stem,
                false => name,
            };
            !sources.contains(mention)
        })
        .collect();
    assert_eq!(unused, Vec::<String>::new());
}

/// A super-server that may have started a tcpproxy that waits for more.
struct WithWaiting(Running);

impl Drop for WithWaiting {
    fn drop(&mut self) {
        for child in children(self.0.pid()) {
            // It may have ended just now.
            let _ = kill(child, Signal::SIGTERM);
        }
    }
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[test]
fn inetds_lines_serve_under_both_inetds() {
    needs_root();
    for server in [SuperServer::OpenbsdInetd, SuperServer::InetutilsInetd] {
        let [forwarded, date, waited] = [(); 3].map(|()| free_port());
        let upstream = echo().to_string();
        let text = rewritten(
            "inetd.conf",
            &[
                ("/usr/local/sbin/tcpproxy", TCPPROXY),
                ("192.0.2.25:25", &upstream),
                ("\n2525  ", &format!("\n{forwarded}  ")),
                ("\n7979  ", &format!("\n{date}  ")),
                ("\n2626  ", &format!("\n{waited}  ")),
            ],
        );
        let scratch = Scratch::new();
        let inetd = WithWaiting(start_with_configuration(server, &scratch, &text));
        for port in [forwarded, waited] {
            for _ in 0..2 {
                let client = connect_to(at(port));
                assert_echoes(&client);
                client.shutdown(Shutdown::Write).unwrap();
                assert_eq!(read_all(client), b"", "{server:?}");
            }
        }
        let answer = String::from_utf8(read_all(connect_to(at(date)))).unwrap();
        assert!(
            answer.contains(':') && answer.ends_with('\n'),
            "{server:?}: {answer}"
        );
        drop(inetd);
    }
}

#[test]
fn xinetds_service_forwards_under_xinetd() {
    needs_root();
    let port = free_port();
    let upstream = echo().to_string();
    let text = rewritten(
        "xinetd-tcpproxy",
        &[
            ("/usr/local/sbin/tcpproxy", TCPPROXY),
            ("192.0.2.25:25", &upstream),
            ("= 2525\n", &format!("= {port}\n")),
        ],
    );
    let scratch = Scratch::new();
    let _xinetd = start_with_configuration(SuperServer::Xinetd, &scratch, &text);
    for _ in 0..2 {
        assert_echoes(&connect_to(at(port)));
    }
}

#[test]
fn haproxys_clients_are_ours_and_the_servers() {
    let [front, one, two] = [(); 3].map(|()| free_port());
    let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let server = upstream.local_addr().unwrap().to_string();
    let text = rewritten(
        "tcpproxy-behind-haproxy.conf",
        &[
            ("port 2525\n", &format!("port {one}\n")),
            ("192.0.2.25:25", &server),
        ],
    );
    let scratch = Scratch::new();
    let (ours, theirs) = (scratch.join("tcpproxy.conf"), scratch.join("haproxy.cfg"));
    fs::write(&ours, text).unwrap();
    let mut command = Command::new(TCPPROXY);
    command.args(["--log", "stderr", "-f"]).arg(&ours);
    let proxy = Running::start(command.stdin(Stdio::null()));
    proxy.log.wait_for("listening on ");
    let text = rewritten(
        "haproxy-in-front.cfg",
        &[
            ("127.0.0.1:2500\n", &format!("127.0.0.1:{front}\n")),
            ("127.0.0.1:2525 ", &format!("127.0.0.1:{one} ")),
            ("127.0.0.1:2526 ", &format!("127.0.0.1:{two} ")),
        ],
    );
    fs::write(&theirs, text).unwrap();
    let mut command = Command::new(unpacked("haproxy/usr/sbin/haproxy"));
    command.arg("-db").arg("-f").arg(&theirs);
    let _haproxy = Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()));
    let client = connect_to(at(front));
    let own = client.local_addr().unwrap();
    let (announced, _) = upstream.accept().unwrap();
    let mut line = String::new();
    BufReader::new(patient(announced))
        .read_line(&mut line)
        .unwrap();
    let (from, to) = (own.port(), front);
    assert_eq!(
        line,
        format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {to}\r\n")
    );
    proxy
        .log
        .wait_for(&format!("opened: client={own} via=127.0.0.1:"));
}

#[test]
fn an_ftp_servers_files_are_got_through_it() {
    needs_root();
    let (port, server_port, first) = (free_port(), free_port(), free_port());
    let text = rewritten(
        "ftp.conf",
        &[
            ("port 21\n", &format!("port {port}\ninterface 127.0.0.1\n")),
            ("192.0.2.21:21", &format!("127.0.0.1:{server_port}")),
            ("50000-50999", &format!("{first}-{}", first + 9)),
        ],
    );
    let scratch = Scratch::new();
    let directory = scratch.join("private");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(directory.join("file"), "got\n").unwrap();
    let place = directory.display();
    let theirs = format!(
        "ServerName test\nUseIPv6 off\nDefaultAddress 127.0.0.1\nPort {server_port}\nUseReverseDNS off\n\
         ScoreboardFile {place}/scoreboard\nPidFile {place}/pid\nDelayTable none\nDelayEngine off\n\
         WtmpLog off\nTransferLog none\nSystemLog none\nRequireValidShell off\nAuthOrder mod_auth_file.c\n\
         AuthUserFile {place}/users\nUser nobody\nGroup nogroup\n"
    );
    let (theirs_at, users_at) = (directory.join("proftpd.conf"), directory.join("users"));
    fs::write(&theirs_at, theirs).unwrap();
    // Of "x".
    let hash = "$1$salt$9GHNWvCB1UrDZjPi7uags0";
    fs::write(
        &users_at,
        format!("ftp:{hash}:65534:65534::{place}:/bin/false\n"),
    )
    .unwrap();
    fs::set_permissions(&users_at, fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = Command::new(unpacked("proftpd-core/usr/sbin/proftpd"));
    command.arg("-n").arg("-c").arg(&theirs_at);
    let _server = Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()));
    drop(connect_to(at(server_port)));
    let ours = scratch.join("tcpproxy.conf");
    fs::write(&ours, text).unwrap();
    let mut command = Command::new(TCPPROXY);
    command.args(["--log", "stderr", "-f"]).arg(&ours);
    let proxy = Running::start(command.stdin(Stdio::null()));
    proxy.log.wait_for("listening on ");
    let url = format!("ftp://127.0.0.1:{port}/file");
    let got =
        Said::by(Command::new("curl").args(["-q", "-sS", "--max-time", "20", "-u", "ftp:x", &url]));
    assert_eq!(got.ok(), "got\n");
    proxy.log.wait_for(" data: mode=passive");
}

/// What a client reads to the end that sends nothing more.
fn greeting(client: TcpStream) -> String {
    client.shutdown(Shutdown::Write).unwrap();
    String::from_utf8(read_all(client)).unwrap()
}

/// An upstream that says its name to everybody.
fn saying(name: &'static str, listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(name.as_bytes()).unwrap();
        }
    });
}

#[test]
fn the_kernels_settings_for_many_connections_are_known_to_it_and_taken() {
    let file = example("sysctl-many.conf");
    let text = fs::read_to_string(&file).unwrap();
    let settings: Vec<(&str, &str)> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(" = ").unwrap())
        .collect();
    let place = |key: &str| Path::new("/proc/sys").join(key.replace('.', "/"));
    for (key, _) in &settings {
        assert!(place(key).exists(), "{key}");
    }
    let (of_the_network, of_the_machine): (Vec<_>, Vec<_>) = settings
        .into_iter()
        .partition(|(key, _)| key.starts_with("net."));
    assert_eq!((of_the_network.len(), of_the_machine.len()), (3, 2));
    // Those of the whole machine are left as they are.
    privately(|| {
        let load = format!("--load={}", file.display());
        run("sysctl", &["--pattern", "^net\\.", &load]);
        for (key, value) in of_the_network {
            let taken = fs::read_to_string(place(key)).unwrap();
            let taken: Vec<&str> = taken.split_whitespace().collect();
            assert_eq!(taken.join(" "), value, "{key}");
        }
    });
}

#[test]
fn the_sample_configuration_is_right_as_it_stands() {
    let file = example("tcpproxy.conf");
    let says = |arguments: &[&str]| {
        let mut command = Command::new(TCPPROXY);
        Said::by(command.arg("-f").arg(&file).args(arguments))
    };
    assert_eq!(says(&["--check"]).ok(), "ok\n");
    assert_eq!(
        says(&["-z"]).ok(),
        "127.0.0.1:2525\n127.0.0.1:8080\n127.0.0.2:8080\n127.0.0.1:5433\n127.0.0.1:7979\n"
    );
    let text = says(&["--explain", "127.0.0.5"]).ok();
    assert_eq!(text.matches("rules: admitted").count(), 5, "{text}");
    let refused = says(&["--explain", "192.0.2.1,2525"]);
    assert_eq!(refused.status, 1);
    assert!(refused.out.contains("no allow rule matches"), "{refused:?}");
}

#[test]
fn the_sample_configuration_serves_each_of_its_services() {
    needs_root();
    let [mail, web, database, date] = [(); 4].map(|()| free_port());
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let [mail_server, second, other] = [listen(), listen(), listen()];
    let named = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
    let socket_directory = Scratch::new();
    let socket = socket_directory.join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
    let text = rewritten(
        "tcpproxy.conf",
        &[
            ("127.0.0.1:25\n", &format!("{}\n", named(&mail_server))),
            ("127.0.0.1:8000", "127.0.0.1:1"),
            ("127.0.0.1:8001", &named(&second)),
            ("127.0.0.1:8002", &named(&other)),
            ("/run/postgresql/.s.PGSQL.5432", socket.to_str().unwrap()),
            ("\nport 2525\n", &format!("\nport {mail}\n")),
            ("\nport 8080\n", &format!("\nport {web}\n")),
            ("\nport 5433\n", &format!("\nport {database}\n")),
            ("\nport 7979\n", &format!("\nport {date}\n")),
        ],
    );
    saying("mail", mail_server);
    saying("second", second);
    saying("other", other);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(b"database").unwrap();
        }
    });
    let further = free_port();
    let further_service = format!("bind 127.0.0.1:{further}\nexec /bin/echo further\n");
    let conf = Conf::new(text).with("tcpproxy.d/one.conf", further_service);
    let server = conf.serve(6, &[]);
    for (ip, port, expected) in [
        ("127.0.0.1", mail, "mail"),
        ("127.0.0.1", web, "second"),
        ("127.0.0.2", web, "other"),
        ("127.0.0.1", database, "database"),
        ("127.0.0.1", further, "further\n"),
    ] {
        assert_eq!(greeting(server.connect(ip, port)), expected);
    }
    assert!(greeting(server.connect("127.0.0.1", date)).contains(':'));
}

/// A copy of an access program where everybody may read it.
fn installed(scratch: &Scratch, name: &str) -> String {
    let path = scratch.join(name);
    run(
        "install",
        &[
            "-m",
            "755",
            example(name).to_str().unwrap(),
            path.to_str().unwrap(),
        ],
    );
    path.to_str().unwrap().to_owned()
}

/// A `date` that says what is in the file `now`, and a PATH on which it comes first.
fn clock(scratch: &Scratch) -> String {
    let now = scratch.join("now");
    scratch.script("date", &format!("cat {}", now.display()));
    let path = std::env::var("PATH").unwrap();
    format!("PATH={}:{path}", scratch.path().display())
}

/// What a client reads from a handler behind this access program.
fn asked(launcher: &[&str], program: &str) -> String {
    let arguments = ["--acp", program, "/bin/echo", "served"];
    let (client, mut child) = hand_over(&mut launched_by(launcher, &arguments));
    let answer = read_all(client);
    crate::harness::end_of(&mut child);
    String::from_utf8(answer).unwrap()
}

#[test]
fn office_hours_let_clients_in_at_their_times() {
    needs_root();
    let scratch = Scratch::new();
    let path = clock(&scratch);
    let program = installed(&scratch, "acp-office-hours");
    for (now, hours, open) in [
        ("3 12:00", "1-5 08:00 18:00", true),
        ("3 08:00", "1-5 08:00 18:00", true),
        ("3 07:59", "1-5 08:00 18:00", false),
        ("3 18:00", "1-5 08:00 18:00", false),
        ("6 12:00", "1-5 08:00 18:00", false),
        ("6 12:00", "1-5,6 08:00 18:00", true),
        ("5 23:00", "5 22:00 06:00", true),
        ("6 05:59", "5 22:00 06:00", true),
        ("6 06:00", "5 22:00 06:00", false),
        ("5 05:00", "5 22:00 06:00", false),
        ("3 12:00", "0 08:00 18:00", false),
        ("3 12:00", "1-5 8:00 18:00", false),
    ] {
        fs::write(scratch.join("now"), now).unwrap();
        let program = format!("{program} -m 'closed now' {hours}");
        let expected = if open { "served\n" } else { "closed now\r\n" };
        assert_eq!(
            asked(&["env", &path], &program),
            expected,
            "{now} in {hours}"
        );
    }
}

#[test]
fn an_address_list_lets_in_those_that_are_on_it() {
    needs_root();
    let scratch = Scratch::new();
    let program = installed(&scratch, "acp-address-list");
    let list = scratch.join("clients");
    let program = format!("{program} -m 'not you' {}", list.display());
    for (text, admitted) in [
        ("127.0.0.1\n", true),
        ("# nobody\n", false),
        ("10.*\n127.0.0.?   # here\r\n", true),
        ("!127.0.0.1\n127.*\n", false),
        ("127.*\n!127.0.0.1\n", true),
        ("!127.0.0.2\n*", true),
        ("localhost\n127.0.0.1\n", false),
    ] {
        fs::write(&list, text).unwrap();
        let expected = if admitted { "served\n" } else { "not you\r\n" };
        assert_eq!(asked(&[], &program), expected, "{text}");
    }
    fs::remove_file(&list).unwrap();
    assert_eq!(
        asked(&[], &program),
        "not you\r\n",
        "a list that is missing"
    );
}

#[test]
fn routes_choose_a_clients_server_by_its_address() {
    needs_root();
    let scratch = Scratch::new();
    let program = installed(&scratch, "acp-route");
    let routes = scratch.join("routes");
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let [one, other] = [listen(), listen()];
    let [to_one, to_other] = [&one, &other].map(|server| server.local_addr().unwrap().to_string());
    saying("one", one);
    saying("other", other);
    let [fallback, routed] = [(); 2].map(|()| free_port());
    let text = rewritten(
        "tcpproxy-routed.conf",
        &[
            ("/usr/local/lib/tcpproxy/acp-route", &program),
            ("/etc/tcpproxy.routes", routes.to_str().unwrap()),
            ("192.0.2.25:25", &to_other),
            ("port 2525\n", &format!("port {fallback}\n")),
            ("port 2526\n", &format!("port {routed}\n")),
        ],
    );
    let conf = Conf::new(text);
    let explained = conf.says(&["--explain", "192.0.2.7"]).ok();
    assert!(
        explained.contains("upstream: the program names it"),
        "{explained}"
    );
    let server = conf.serve(2, &[]);
    let refused = "";
    for (text, with_fallback, without) in [
        (format!("127.0.0.1 {to_one}\n"), "one", "one"),
        (
            format!("# routes\n\n10.* {to_other}\n127.0.0.?\t{to_one}  # here\r\n"),
            "one",
            "one",
        ),
        (format!("* 127.0.0.1:1 {to_one}"), "one", "one"),
        (
            "127.0.0.1 refuse # not this one\n".to_owned(),
            refused,
            refused,
        ),
        ("10.* 127.0.0.1:1\n".to_owned(), "other", refused),
        ("127.0.0.1\n".to_owned(), refused, refused),
        ("127.0.0.1 # nobody\n".to_owned(), refused, refused),
        ("localhost 127.0.0.1:1\n".to_owned(), refused, refused),
        ("127.0.0.1 host:port:\n".to_owned(), refused, refused),
    ] {
        fs::write(&routes, &text).unwrap();
        let answers = [fallback, routed].map(|port| server.answer("127.0.0.1", port));
        assert_eq!(answers, [with_fallback, without], "{text}");
    }
    fs::remove_file(&routes).unwrap();
    assert_eq!(
        server.answer("127.0.0.1", fallback),
        refused,
        "without routes"
    );
}

#[test]
fn a_client_that_comes_too_often_is_let_in_again_as_time_passes() {
    needs_root();
    let scratch = Scratch::new();
    let path = clock(&scratch);
    let program = installed(&scratch, "acp-per-client-rate");
    let state = scratch.join("state");
    fs::create_dir(&state).unwrap();
    let program = format!("{program} -m slowly {} 2 60", state.display());
    let at = |now: u64| {
        fs::write(scratch.join("now"), now.to_string()).unwrap();
        asked(&["env", &path], &program)
    };
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(
        at(1_000_000),
        "slowly\r\n",
        "the directory is somebody else's"
    );
    chown(&state, Some(65535), Some(65534)).unwrap();
    for (now, admitted) in [
        (1_000_000, true),
        (1_000_000, true),
        (1_000_000, false),
        (1_000_029, false),
        // Every 30 seconds one more.
        (1_000_030, true),
        (1_000_031, false),
        (1_000_060, true),
        (1_000_500, true),
        (1_000_500, true),
        (1_000_500, false),
    ] {
        let expected = if admitted { "served\n" } else { "slowly\r\n" };
        assert_eq!(at(now), expected, "{now}");
    }
    assert!(state.join("client-127.0.0.1").is_file());
}

#[test]
fn trying_it_shows_a_handler_and_a_forwarder_at_work() {
    // Builds what `tests/run` has built before.
    let output = Command::new(example("try-it"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert_eq!(errors, "");
    assert!(
        text.contains("    Hello, world. This is a handler"),
        "{text}"
    );
    assert!(
        text.contains("Who connected to me: 127.0.0.1, to port "),
        "{text}"
    );
    for reason in ["reason=server-closed", "reason=handler-exited"] {
        assert_eq!(text.matches(reason).count(), 1, "{text}");
    }
    // Nothing that it has started is left.
    let started: BTreeSet<&str> = text
        .split("process ")
        .skip(1)
        .filter_map(|rest| rest.split(',').next())
        .collect();
    assert_eq!(started.len(), 1, "{text}");
    for process in started {
        assert!(!Path::new("/proc").join(process).exists(), "{process}");
    }
}
