//! Started as rinetd: by its name or by ours, with its file, its signals, its pid file; and what becomes
//! of the file in our own form.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::access_log::lines;
use crate::harness::clients::{connect, connect_from, is_refused};
use crate::harness::config_file::Conf;
use crate::harness::namespaces::{bare_dev, privately, run, system_log};
use crate::harness::peers::assert_echoes;
use crate::harness::processes::{is_alive, only_child};
use crate::harness::upstreams::echo;
use crate::harness::{
    Running, Said, Scratch, TCPPROXY, eventually, free_port, needs_root, patient, read_all,
};

/// rinetd.conf, `conf` in a directory of its own, and a server that has it.
struct Rinetd {
    process: Running,
    conf: Conf,
    port: u16,
}

/// A forwarding rule for a port of 127.0.0.1.
fn rule(port: u16) -> String {
    let upstream = echo();
    format!("127.0.0.1 {port} 127.0.0.1 {}\n", upstream.port())
}

impl Rinetd {
    /// Starts `tcpproxy --as rinetd -f -c conf ARGUMENTS` with a rule and further lines, and waits until
    /// it listens.
    fn start(lines: &str, arguments: &[&str]) -> Rinetd {
        let port = free_port();
        let conf = Conf::new(rule(port) + lines);
        let mut command = conf.command(&["--as", "rinetd", "-f", "-c", "conf"]);
        let process = Running::start(command.args(arguments).stdin(Stdio::null()));
        process.log.wait_for("listening on ");
        Rinetd {
            process,
            conf,
            port,
        }
    }
}

#[test]
fn a_link_of_that_name_is_rinetd_and_so_is_the_option() {
    let conf = Conf::new("127.0.0.1 80 host.example 80\n");
    let link = conf.scratch().join("rinetd");
    symlink(TCPPROXY, &link).unwrap();
    let path = conf.path();
    let path = path.to_str().unwrap();
    let listed =
        |command: &mut Command| Said::by(command.args(["-c", path, "--tcpproxy", "-z"])).ok();
    assert_eq!(listed(&mut Command::new(&link)), "127.0.0.1:80\n");
    let mut by_option = Command::new(TCPPROXY);
    assert_eq!(listed(by_option.args(["--as", "rinetd"])), "127.0.0.1:80\n");
    // Whatever the name is, the option counts; and without either it is our own program.
    let version = |command: &mut Command, argument| Said::by(command.arg(argument)).ok();
    assert!(version(&mut Command::new(&link), "-v").starts_with("rinetd 0.73 (tcpproxy "));
    assert!(version(&mut Command::new(TCPPROXY), "-V").starts_with("tcpproxy "));
    assert!(version(&mut Command::new(&link), "-h").starts_with("usage: rinetd "));
}

#[test]
fn wrong_arguments_are_64_and_a_wrong_file_is_78_at_its_place() {
    let conf = Conf::new("127.0.0.1 53/udp 127.0.0.1 53\nallow x\n");
    let says = |arguments: &[&str]| {
        let arguments = [&["--as", "rinetd"], arguments].concat();
        Said::by(&mut conf.command(&arguments))
    };
    for (arguments, complaint) in [
        (
            &["-x"][..],
            "tcpproxy: rinetd: there is no option 'x': write -c FILE",
        ),
        (&["-c"], "tcpproxy: rinetd: the option 'c' needs a value"),
        (&["conf"], "tcpproxy: rinetd: unexpected argument 'conf'"),
        (&["--tcpproxy", "-x"], "tcpproxy: unknown option -x"),
    ] {
        let said = says(arguments);
        let lines = said.refused(64);
        assert!(
            lines.len() == 1 && lines[0].starts_with(complaint),
            "{lines:?}"
        );
    }
    let udp = "tcpproxy: conf:1:11: '53/udp': UDP is not forwarded, only TCP";
    let said = says(&["-f", "-c", "conf"]);
    assert_eq!(
        said.refused(78),
        [format!("{udp} (and 1 more: --check shows them)")]
    );
    let said = says(&["-c", "conf", "--tcpproxy", "--check"]);
    let [first, second] = said.refused(78)[..] else {
        panic!("{said:?}")
    };
    assert_eq!(first, udp);
    assert!(second.starts_with("tcpproxy: conf:2:7: 'x' is not a pattern"));
    let none = says(&["-c", "none"]);
    assert_eq!(
        none.refused(78),
        ["tcpproxy: none:1:1: cannot be read: No such file or directory"]
    );
}

#[test]
fn it_serves_for_as_long_as_nothing_is_said_and_not_as_root() {
    needs_root();
    let server = Rinetd::start("", &["--tcpproxy", "--log-level", "info"]);
    let client = connect(server.port);
    let opened = server.process.log.wait_for(" opened: ");
    assert!(opened.contains("rinetd["), "{opened}");
    assert!(opened.ends_with("user=65535:65534"), "{opened}");
    let status = fs::read_to_string(format!("/proc/{}/status", only_child(server.process.pid())));
    assert!(
        status
            .unwrap()
            .contains("\nUid:\t65535\t65535\t65535\t65535\n")
    );
    assert_echoes(&client);
    let explained = server
        .conf
        .command(&["--as", "rinetd", "-c", "conf", "--tcpproxy", "-zz"]);
    let printed = Said::by(&mut { explained }).ok();
    for line in [
        "    timeout 0\n",
        "max-sessions 0\n",
        "log-name rinetd\n",
        "standalone yes\n",
    ] {
        assert!(printed.contains(line), "{printed}");
    }
}

#[test]
fn in_the_foreground_it_tells_standard_error_whom_it_refuses_and_nothing_of_others() {
    let server = Rinetd::start("deny 127.0.0.2\n", &[]);
    assert_echoes(&connect(server.port));
    let at = ([127, 0, 0, 1], server.port).into();
    assert_eq!(read_all(connect_from("127.0.0.2", at)), b"");
    let log = &server.process.log;
    log.wait_for("denied by rule: deny 127.0.0.2 (conf:2:6)");
    log.wait_for("reason=denied-by-rule");
    assert!(
        !log.all()
            .iter()
            .any(|line| line.contains("client=127.0.0.1"))
    );
}

#[test]
fn hanging_up_reads_the_file_again_and_a_wrong_one_changes_nothing() {
    let server = Rinetd::start("logfile log\npidlogfile pid\n", &[]);
    let own = format!("{}\n", server.process.pid());
    eventually("its pid file", || {
        let pid = fs::read_to_string(server.conf.scratch().join("pid")).ok()?;
        (pid == own).then_some(())
    });
    let stays = connect(server.port);
    assert_echoes(&stays);
    let log = server.conf.scratch().join("log");
    lines(&log, 1);
    let other = free_port();
    fs::write(server.conf.path(), "nonsense\n").unwrap();
    server.process.signal(Signal::SIGHUP);
    server.process.log.wait_for("not reloaded: conf:1:");
    assert_echoes(&connect(server.port));
    fs::write(
        server.conf.path(),
        rule(other) + "logfile log.2\npidlogfile pid\n",
    )
    .unwrap();
    server.process.signal(Signal::SIGHUP);
    server.process.log.wait_for("]: reloaded");
    assert_echoes(&connect(other));
    assert!(is_refused(server.port));
    // The session that was there goes on, and knows where it came from.
    assert_echoes(&stays);
    drop(stays);
    let of_the_first = |line: &&String| {
        line.contains(&format!("\t{}\t", server.port)) && line.ends_with("\tdone-remote-closed")
    };
    eventually("its last line", || {
        let lines = lines(&log, 1);
        (lines.iter().filter(of_the_first).count() == 2).then_some(())
    });
    lines(&server.conf.scratch().join("log.2"), 2);
}

#[test]
fn our_own_form_of_the_file_is_right_and_serves_alike() {
    let upstream = echo().port();
    let (one, other) = (free_port(), free_port());
    let text = format!(
        "allow 127.0.0.*\nlogfile log\n127.0.0.1 {one} localhost {upstream} [src=127.0.0.1]\n\
         deny 127.0.0.2\n127.0.0.1 {other} 127.0.0.1 {upstream} [keepalive=on]\nallow 127.0.0.2\n"
    );
    let conf = Conf::new(text);
    let printed = |arguments: &[&str]| Said::by(&mut conf.command(arguments)).ok();
    let ours = printed(&["--as", "rinetd", "-f", "-c", "conf", "--tcpproxy", "-zz"]);
    let ours = Conf::new(ours);
    assert_eq!(ours.says(&["--check"]).ok(), "ok\n");
    let again = ours.says(&["-zz"]).ok();
    assert_eq!(again, fs::read_to_string(ours.path()).unwrap());
    let outcome = |mut command: Command| -> Vec<String> {
        let process = Running::start(command.stdin(Stdio::null()));
        process.log.wait_for_count("listening on ", 2);
        let mut outcome = Vec::new();
        for (from, port) in [
            ("127.0.0.1", one),
            ("127.0.0.2", one),
            ("127.0.0.1", other),
            ("127.0.0.2", other),
            ("127.0.1.1", other),
        ] {
            let client = connect_from(from, ([127, 0, 0, 1], port).into());
            // Who is refused may be so before it has said anything.
            let _ = (&client).write_all(b"x");
            let _ = client.shutdown(std::net::Shutdown::Write);
            let served = std::io::read_to_string(client).is_ok_and(|answer| answer == "x");
            outcome.push(format!("{from} {port} {served}"));
        }
        outcome
    };
    let as_rinetd = outcome(conf.command(&["--as", "rinetd", "-f", "-c", "conf"]));
    assert_eq!(outcome(ours.command(&["-f", "conf"])), as_rinetd);
    let served = as_rinetd.iter().map(|line| line.ends_with("true"));
    assert_eq!(
        served.collect::<Vec<_>>(),
        [true, false, false, true, false]
    );
    let logs: [PathBuf; 2] = [&conf, &ours].map(|conf| conf.scratch().join("log"));
    let [theirs, ours] = logs.map(|log| {
        let lines = lines(&log, 7).into_iter();
        let timeless = lines.map(|line| line.split_once('\t').unwrap().1.to_owned());
        // Sessions end in any order.
        let mut timeless: Vec<String> = timeless.collect();
        timeless.sort();
        timeless
    });
    assert_eq!(theirs, ours);
}

#[test]
fn what_rinetd_uv_adds_is_understood() {
    let conf = Conf::new("include rules.d/*.conf\nbuffersize 4096\npidfile pid\ndns-refresh 60\n");
    let socket = conf.scratch().join("upstream");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&socket, everybody).unwrap();
    let port = free_port();
    let rule = format!(
        "127.0.0.1 {port} unix:{} [connect-timeout=5,dns-refresh=0]\n",
        socket.display()
    );
    let conf = conf.with("rules.d/a.conf", rule);
    let mut command = conf.command(&["--as", "rinetd", "-f", "-c", "conf"]);
    let process = Running::start(command.stdin(Stdio::null()));
    process.log.wait_for("listening on ");
    let client = patient(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
    let (mut upstream, _) = listener.accept().unwrap();
    upstream.write_all(b"over the socket").unwrap();
    drop(upstream);
    assert_eq!(read_all(client), b"over the socket");
    eventually("its pid file", || {
        conf.scratch().join("pid").exists().then_some(())
    });
}

/// A server in the background, which is ended with the test.
struct Background(Pid);

impl Background {
    /// The one whose number is in this pid file.
    fn of(pid_file: &Path) -> Background {
        let number = fs::read_to_string(pid_file).unwrap();
        Background(Pid::from_raw(number.trim().parse().unwrap()))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself, and the test have failed for it.
        let _ = kill(self.0, Signal::SIGTERM);
        eventually("its end", || (!is_alive(self.0)).then_some(()));
    }
}

#[test]
fn without_f_it_goes_to_the_background_when_it_listens() {
    privately(|| {
        run("mount", &["-t", "tmpfs", "none", "/run"]);
        let scratch = Scratch::new();
        bare_dev(&scratch);
        let system_log = system_log();
        let port = free_port();
        let conf = Conf::new(rule(port) + "logfile log\ndeny 127.0.0.2\n");
        let start = ["--as", "rinetd", "-c", "conf"];
        assert_eq!(Said::by(&mut conf.command(&start)).ok(), "");
        let server = Background::of(Path::new("/var/run/rinetd.pid"));
        assert_echoes(&connect(port));
        lines(&conf.scratch().join("log"), 1);
        let at = ([127, 0, 0, 1], port).into();
        assert_eq!(read_all(connect_from("127.0.0.2", at)), b"");
        let mut line = [0; 1000];
        let told = std::iter::repeat_with(|| {
            let length = system_log.recv(&mut line).unwrap();
            String::from_utf8_lossy(&line[..length]).into_owned()
        });
        let mut refused = told.skip_while(|line| !line.contains("denied by rule"));
        let refused = refused.next().unwrap();
        assert!(refused.contains("rinetd["), "{refused}");
        // A second one is told at once that it cannot be.
        let second = Said::by(&mut conf.command(&start));
        assert!(second.refused(71)[0].contains("Address already in use"));
        let other = free_port();
        fs::write(conf.path(), rule(other)).unwrap();
        kill(server.0, Signal::SIGHUP).unwrap();
        eventually("the other listener", || {
            TcpStream::connect(("127.0.0.1", other)).ok()
        });
        drop(server);
        assert!(!Path::new("/var/run/rinetd.pid").exists());
        assert!(is_refused(other));
    });
}

#[test]
fn the_file_names_the_pid_file_of_one_in_the_background() {
    let port = free_port();
    let conf = Conf::new(rule(port) + "pidlogfile pid\n");
    assert_eq!(
        Said::by(&mut conf.command(&["--as", "rinetd", "-c", "conf"])).ok(),
        ""
    );
    let server = Background::of(&conf.scratch().join("pid"));
    assert_echoes(&connect(port));
    drop(server);
    let printed = |arguments: &[&str]| {
        let arguments = [arguments, &["-c", "conf", "--tcpproxy", "-zz"]].concat();
        Said::by(&mut conf.command(&arguments)).ok()
    };
    assert!(printed(&["--as", "rinetd"]).contains("\ndaemon yes\n"));
    let foreground = printed(&["--as", "rinetd", "-f"]);
    assert!(foreground.contains("\ndaemon no\n") && foreground.contains("\nlog stderr\n"));
}
