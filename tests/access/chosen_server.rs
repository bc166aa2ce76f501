//! Access programs that choose the upstream: what they may answer, when it counts, and what refuses.

use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::config_file::Conf;
use crate::harness::processes::Leftover;
use crate::harness::upstreams::{Forbidden, Upstream};
use crate::harness::{
    PATIENCE, Said, Scratch, Standalone, TCPPROXY, end_of, field, free_port, hand_over,
    launched_by, needs_root, patient, read_all, under_inetd,
};

/// An upstream that tells one client its name.
fn saying(name: &'static str) -> Upstream<()> {
    Upstream::new(move |mut stream| stream.write_all(name.as_bytes()).unwrap())
}

/// `--acp` for a shell script.
fn shell(scratch: &Scratch, body: &str) -> String {
    let file = scratch.join("chooses");
    fs::write(&file, body).unwrap();
    format!("/bin/sh {}", file.display())
}

#[test]
fn the_servers_that_it_names_take_the_place_of_the_services() {
    needs_root();
    let scratch = Scratch::new();
    let (own, chosen, seen) = (Forbidden::new(), saying("chosen"), scratch.join("seen"));
    // The first is tried first, and refuses; a program need not end its last line.
    let body = format!(
        "env | grep '^PROXY_ANSWER_FD\\|^PROXY_SERVER' | sort >{}\n\
         printf 'server 127.0.0.1:1\\nserver  {} 127.0.0.1:2' >&3",
        seen.display(),
        chosen.name()
    );
    let program = shell(&scratch, &body);
    let proxy = Standalone::start(&["--acp", &program, "--acp-server", &own.name()]);
    assert_eq!(read_all(proxy.connect()), b"chosen");
    chosen.result();
    let closed = proxy.closed();
    assert_eq!(field(&closed, "reason"), "server-closed");
    assert!(
        field(&closed, "server").starts_with("127.0.0.1:"),
        "{closed}"
    );
    assert_ne!(field(&closed, "server"), own.name());
    own.assert_untouched();
    let expected = format!("PROXY_ANSWER_FD=3\nPROXY_SERVER={}\n", own.name());
    assert_eq!(fs::read_to_string(seen).unwrap(), expected);
}

#[test]
fn one_that_names_none_leaves_the_services_own() {
    needs_root();
    for body in ["exit 0", ": >&3", "exec 3>&-"] {
        let scratch = Scratch::new();
        let own = saying("own");
        let program = shell(&scratch, body);
        let proxy = Standalone::start(&["--acp", &program, "--acp-server", &own.name()]);
        assert_eq!(read_all(proxy.connect()), b"own", "{body}");
        own.result();
        assert_eq!(field(&proxy.closed(), "reason"), "server-closed", "{body}");
    }
}

#[test]
fn an_answer_that_is_none_refuses_the_client_who_still_reads_why() {
    needs_root();
    for (body, complaint) in [
        (
            "echo hello >&3",
            "line 1 is 'hello': write server host[:port]",
        ),
        ("printf '\\n' >&3", "line 1 is ''"),
        ("printf 'server a\\nserver\\n' >&3", "line 2 is 'server'"),
        ("printf 'server a:0\\n' >&3", "port 0 is out of range"),
        (
            "printf 'server unix:relative\\n' >&3",
            "needs an absolute path",
        ),
        (
            "printf 'server /bin/sh\\n' >&3",
            "'/bin/sh' is not a server",
        ),
        ("printf 'server a\\r\\n' >&3", "is not a server"),
        ("printf 'server \\377\\n' >&3", "line 1 is 'server "),
        (
            "printf 'server %05000d\\n' 1 >&3",
            "it has more than 4096 bytes",
        ),
        // More than a pipe holds: it is to come to its end all the same.
        (
            "yes server a | head -c 1000000 >&3",
            "it has more than 4096 bytes",
        ),
    ] {
        let scratch = Scratch::new();
        let own = Forbidden::new();
        let program = shell(&scratch, &format!("echo not you; {body}\nexit 0"));
        let proxy = Standalone::start(&["--acp", &program, "--acp-server", &own.name()]);
        assert_eq!(read_all(proxy.connect()), b"not you\n", "{body}");
        let line = proxy.process.log.wait_for("denied: its answer: ");
        assert!(line.contains(complaint), "{body}: {line}");
        assert_eq!(
            field(&proxy.closed(), "reason"),
            "denied-by-program",
            "{body}"
        );
        own.assert_untouched();
    }
}

#[test]
fn an_answer_counts_only_with_exit_0() {
    needs_root();
    let (own, chosen) = (Forbidden::new(), Forbidden::new());
    for (ending, cause) in [
        ("exit 1", "exit status 1"),
        ("kill -9 $$", "ended by signal 9"),
    ] {
        let scratch = Scratch::new();
        let body = format!("echo server {} >&3; {ending}", chosen.name());
        let program = shell(&scratch, &body);
        let proxy = Standalone::start(&["--acp", &program, "--acp-server", &own.name()]);
        assert_eq!(read_all(proxy.connect()), b"", "{ending}");
        let line = proxy.process.log.wait_for("denied: ");
        assert!(line.contains(cause), "{line}");
    }
    own.assert_untouched();
    chosen.assert_untouched();
}

#[test]
fn a_descendant_that_keeps_the_answer_open_is_not_waited_for() {
    needs_root();
    let scratch = Scratch::new();
    let chosen = saying("chosen");
    let noted = scratch.join("pid");
    let body = format!(
        "sleep 1000 >/dev/null 2>&1 & echo $! >{}; echo server {} >&3",
        noted.display(),
        chosen.name()
    );
    let program = shell(&scratch, &body);
    let proxy = Standalone::start(&["--acp", &program, "--acp-server", "127.0.0.1:1"]);
    let begin = Instant::now();
    let client = proxy.connect();
    let _sleeping = Leftover::noted_in(&noted);
    assert_eq!(read_all(client), b"chosen");
    // Less than the program may take.
    assert!(begin.elapsed() < PATIENCE / 3);
    chosen.result();
}

#[test]
fn the_descriptor_is_there_only_where_an_answer_is_wanted_and_is_the_only_one() {
    needs_root();
    let scratch = Scratch::new();
    let seen = scratch.join("seen");
    let body = format!(
        "for fd in /proc/$$/fd/*; do [ -e $fd ] && echo \"${{fd##*/}} $(readlink $fd)\"; done \
         >{0}.all; grep -v \"$0\" {0}.all >{0}; env | grep -c ANSWER >>{0}; exit 1",
        seen.display()
    );
    let program = shell(&scratch, &body);
    for (option, number) in [(None, 0), (Some("--acp-server"), 1)] {
        let arguments: Vec<&str> = ["--acp", &program].into_iter().chain(option).collect();
        let arguments = [&arguments[..], &["127.0.0.1:1"]].concat();
        // What it inherits of that name is somebody else's.
        let launcher = ["env", "PROXY_ANSWER_FD=9"];
        let (client, mut child) = hand_over(&mut launched_by(&launcher, &arguments));
        read_all(client);
        end_of(&mut child);
        let seen = fs::read_to_string(&seen).unwrap();
        let mut lines: Vec<&str> = seen.lines().collect();
        assert_eq!(lines.pop(), Some(number.to_string().as_str()), "{seen}");
        let above = lines
            .iter()
            .filter(|line| line.split_once(' ').unwrap().0 > "2");
        let above: Vec<&&str> = above.collect();
        assert_eq!(above.len(), number, "{seen}");
        assert!(
            above.iter().all(|line| line.starts_with("3 pipe:")),
            "{seen}"
        );
    }
}

#[test]
fn the_prefix_is_that_of_the_other_variables() {
    needs_root();
    let scratch = Scratch::new();
    let chosen = saying("chosen");
    let body = format!(
        "[ $FTP_ANSWER_FD = 3 ] && echo server {} >&3",
        chosen.name()
    );
    let program = shell(&scratch, &body);
    let arguments = [
        "-v",
        "FTP_",
        "--acp",
        &program,
        "--acp-server",
        "127.0.0.1:1",
    ];
    let (client, mut child) = under_inetd(&arguments);
    assert_eq!(read_all(client), b"chosen");
    chosen.result();
    assert_eq!(end_of(&mut child).code(), Some(0));
}

#[test]
fn a_program_that_cannot_be_started_is_told_of_as_such() {
    needs_root();
    let arguments = ["--acp", "/no/such/program", "--acp-server", "127.0.0.1:1"];
    let proxy = Standalone::start(&arguments);
    assert_eq!(read_all(proxy.connect()), b"");
    let line = proxy.process.log.wait_for("denied: ");
    assert!(
        line.contains("it cannot be started: No such file"),
        "{line}"
    );
}

#[test]
fn a_service_whose_program_names_servers_needs_none_of_its_own() {
    needs_root();
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let (scratch, port) = (Scratch::new(), free_port());
    let answer = scratch.join("answer");
    let program = shell(&scratch, &format!("cat {} >&3", answer.display()));
    let text = format!("acp {program}\nacp-server yes\nport {port}\ninterface 127.0.0.1\n");
    let server = Conf::new(text).serve(1, &[]);
    // The same port by default.
    fs::write(
        &answer,
        format!("server {}", upstream.local_addr().unwrap()),
    )
    .unwrap();
    let client = server.connect("127.0.0.1", port);
    let mut accepted = patient(upstream.accept().unwrap().0);
    accepted.write_all(b"chosen").unwrap();
    drop(accepted);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(client), b"chosen");
    fs::write(&answer, "").unwrap();
    assert_eq!(server.answer("127.0.0.1", port), "");
    let denied = "denied: its answer: it names no server, and the service has none";
    server.process.log.wait_for(denied);
    fs::write(&answer, "server 127.0.0.1").unwrap();
    assert_eq!(server.answer("127.0.0.1", port), "");
    let itself = format!("127.0.0.1:{port}: it is the very listener");
    server.process.log.wait_for(&itself);
}

#[test]
fn a_configuration_says_what_the_program_may_choose_and_what_cannot_be() {
    let head = "acp /bin/true\nacp-server\n";
    let conf = Conf::new(format!("{head}port 25\nport 26\nserver a b:7\n"));
    assert_eq!(conf.says(&["--check"]).ok(), "ok\n");
    let printed = conf.says(&["-zz"]).ok();
    assert!(
        printed.contains("\nbind *:25\n    acp /bin/true\n"),
        "{printed}"
    );
    assert_eq!(Conf::new(&printed).says(&["-zz"]).ok(), printed);
    let explained = conf.says(&["--explain", "192.0.2.1"]).ok();
    assert!(
        explained.contains("upstream: the program names it\n"),
        "{explained}"
    );
    let either = "upstream: a:26 b:7, unless the program names another\n";
    assert!(explained.contains(either), "{explained}");
    let both = "acp-server and exec exclude each other";
    for (text, expected) in [
        // At its own place, or where the handler stands.
        (
            format!("port 25\nexec /bin/cat\nacp-server\n{head}"),
            "conf:3:1: acp-server and exec",
        ),
        (
            format!("{head}port 25\n exec /bin/cat\n"),
            "conf:4:2: acp-server and exec",
        ),
        (
            format!("{head}port 25\nacp-server no\nport 26\n"),
            "conf:3:1: has neither server nor exec",
        ),
        (
            "acp-server\nport 25\n".to_owned(),
            "conf:2:1: has no server, and no access program",
        ),
    ] {
        let said = Conf::new(&text).says(&["--check"]);
        assert!(said.refused(78)[0].contains(expected), "{text}: {said:?}");
    }
    let off = Conf::new(format!("{head}port 25\nexec /bin/cat\nacp-server no\n"));
    assert_eq!(off.says(&["--check"]).ok(), "ok\n");
    let on_the_line = Conf::new("port 25\nexec /bin/cat\n").says(&["--acp-server", "--check"]);
    assert!(on_the_line.refused(78)[0].contains(both), "{on_the_line:?}");
    let arguments = ["-a", "true", "--acp-server", "/bin/cat"];
    let said = Said::by(Command::new(TCPPROXY).args(arguments));
    let expected = format!("tcpproxy: option --acp-server: {both}");
    assert!(said.refused(64)[0].starts_with(&expected), "{said:?}");
}

#[test]
fn its_time_is_as_limited_as_any_programs() {
    needs_root();
    let scratch = Scratch::new();
    let program = shell(&scratch, "echo server 127.0.0.1:1 >&3; sleep 1000");
    let arguments = ["--acp", &program, "--acp-timeout", "300ms", "--acp-server"];
    let own = Forbidden::new();
    let proxy = Standalone::start(&[&arguments[..], &[&own.name()]].concat());
    let begin = Instant::now();
    assert_eq!(read_all(proxy.connect()), b"");
    assert!(begin.elapsed() >= Duration::from_millis(300));
    proxy.process.log.wait_for("denied: it took too long");
    own.assert_untouched();
}

#[test]
fn a_server_that_the_services_way_does_not_lead_to_refuses() {
    needs_root();
    let (scratch, own) = (Scratch::new(), Forbidden::new());
    let program = shell(&scratch, "echo server unix:/run/some.sock >&3");
    let proxy = Standalone::start(&[
        "--acp",
        &program,
        "--acp-server",
        "--via",
        "http://127.0.0.1:1",
        &own.name(),
    ]);
    assert_eq!(read_all(proxy.connect()), b"");
    assert_eq!(field(&proxy.closed(), "reason"), "denied-by-program");
    let why = "server unix:/run/some.sock: a unix-domain socket cannot be reached through a proxy";
    proxy.process.log.wait_for(why);
    own.assert_untouched();
}
