//! Who serves: never root, and nobody at all where root cannot be given up.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::harness::upstreams::{Forbidden, Upstream};
use crate::harness::{
    Running, Standalone, TCPPROXY, end_of, field, hand_over, launched_by, needs_root, read_all,
    share, socket_pair, tool, under_inetd,
};

/// What tcpproxy says and exits with that is not meant to start.
fn refused(arguments: &[&str]) -> (i32, String) {
    refused_as(&mut Command::new(TCPPROXY), arguments)
}

fn refused_as(command: &mut Command, arguments: &[&str]) -> (i32, String) {
    command.args(["-b", "127.0.0.1:0"]).args(arguments);
    let mut running = Running::start(command.stdin(Stdio::null()));
    let status = running.status().code().unwrap();
    let text = running.log.wait_for("tcpproxy: ");
    assert_eq!(running.log.all(), [text.as_str()]);
    (status, text)
}

#[test]
fn uid_0_is_refused_however_it_is_written() {
    for user in ["0", "root", "00"] {
        let (status, text) = refused(&["-u", user, "/bin/echo"]);
        assert_eq!(status, 78, "{user}: {text}");
        assert!(text.contains("-u") && text.contains("root"), "{text}");

        let (client, mut child) = under_inetd(&["-u", user, "/bin/echo", "served"]);
        assert_eq!(read_all(client), b"", "{user}");
        assert_eq!(end_of(&mut child).code(), Some(78), "{user}");
    }
}

#[test]
fn unknown_users_and_groups_are_configuration_errors_that_name_them() {
    for option in ["-u", "-g"] {
        let (status, text) = refused(&[option, "no-such-name", "/bin/echo"]);
        assert_eq!(status, 78, "{text}");
        assert!(
            text.contains(option) && text.contains("no-such-name"),
            "{text}"
        );
    }
}

#[test]
fn minus_one_is_refused_with_what_to_write_instead() {
    for arguments in [["-u-1", "/bin/echo"], ["--user=-1", "/bin/echo"]] {
        let (status, text) = refused(&arguments);
        assert_eq!(status, 64, "{text}");
        assert!(text.contains("65535"), "{text}");
    }
}

#[test]
fn a_forwarding_session_has_given_root_up_for_good_while_its_supervisor_has_not() {
    needs_root();
    let upstream = Upstream::new(|mut stream| {
        stream.write_all(b"!").unwrap();
        read_all(&stream)
    });
    let launcher = [
        tool("setpriv").display().to_string(),
        "--groups=0,4,27".to_owned(),
    ];
    let launcher = [launcher[0].as_str(), &launcher[1]];
    let proxy = Standalone::launched_by(&launcher, &["-u", "123", "-g", "456", &upstream.name()]);
    let mut client = proxy.connect();
    client.read_exact(&mut [0]).unwrap();
    let pid = proxy.process.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", children.trim())).unwrap();
    let line = |name: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(name));
        found.unwrap().split_whitespace().collect::<Vec<_>>()
    };
    assert_eq!(line("Uid:"), ["123"; 4]);
    assert_eq!(line("Gid:"), ["456"; 4]);
    assert!(line("Groups:").is_empty());
    assert_eq!(line("CapEff:"), ["0000000000000000"]);
    assert_eq!(line("CapPrm:"), ["0000000000000000"]);
    let opened = proxy.process.log.wait_for(" opened: ");
    assert_eq!(field(&opened, "user"), "123:456");
    drop(client);
    upstream.result();
}

/// The bits that let a process become somebody else, taken away.
fn without(capabilities: &str) -> [String; 2] {
    [
        tool("setpriv").display().to_string(),
        format!("--bounding-set={capabilities}"),
    ]
}

/// Launchers under which root cannot be given up, for a different reason each.
fn powerless() -> Vec<Vec<String>> {
    let unshare = tool("unshare").display().to_string();
    let setpriv = tool("setpriv").display().to_string();
    vec![
        without("-setgid").into(),
        without("-setuid").into(),
        without("-setuid,-setgid").into(),
        // In a user namespace where no other id exists.
        vec![unshare, "--map-root-user".to_owned()],
        // As root by the real id alone, which has no power of its own.
        vec![setpriv.clone(), "--euid=4321".to_owned()],
        // Where the change of ids takes no capability away, and so leads back.
        vec![setpriv, "--securebits=+no_setuid_fixup".to_owned()],
    ]
}

#[test]
fn where_root_cannot_be_given_up_nothing_is_served() {
    needs_root();
    for launcher in powerless() {
        let launcher: Vec<&str> = launcher.iter().map(String::as_str).collect();
        let upstream = Forbidden::new();
        let name = upstream.name();
        for action in [&[name.as_str()][..], &["/bin/echo", "served"]] {
            let arguments = [&["--acp", "/bin/echo asked"], action].concat();
            let (mut client, mut child) = hand_over(&mut launched_by(&launcher, &arguments));
            // It may have been closed already, or be reset for what it has sent.
            let _ = client.write_all(b"request");
            let mut reply = Vec::new();
            let _ = client.read_to_end(&mut reply);
            assert_eq!(end_of(&mut child).code(), Some(77), "{launcher:?}");
            assert_eq!(reply, b"", "{launcher:?}");

            let proxy = Standalone::launched_by(&launcher, &arguments);
            for count in 1..=2 {
                assert_eq!(read_all(proxy.connect()), b"", "{launcher:?}");
                let closed = proxy.process.log.wait_for_count(" closed: ", count);
                assert_eq!(field(&closed[count - 1], "reason"), "internal-error");
            }
            let line = proxy.process.log.wait_for("cannot serve as 65535:65534");
            assert!(line.starts_with("tcpproxy["), "{line}");
        }
        upstream.assert_untouched();
    }
}

/// tcpproxy with a connection, started by a user that is not root. Returns what the client reads,
/// and the log.
fn as_somebody(options: &[&str]) -> (String, Vec<String>) {
    let (client, accepted) = socket_pair();
    let mut command = Command::new(TCPPROXY);
    command.args(["--log", "stderr"]).args(options);
    command.args(["/bin/sed", "-nE", "/^(Uid|Gid):/p", "/proc/self/status"]);
    command.stdin(share(&accepted)).stdout(Stdio::null());
    let mut running = Running::start(command.uid(4321).gid(8765));
    drop((command, accepted));
    let text = String::from_utf8(read_all(client)).unwrap();
    running.status();
    running.log.wait_for(" opened: ");
    let words: Vec<&str> = text.split_whitespace().collect();
    (words.join(" "), running.log.all())
}

#[test]
fn not_started_as_root_ids_stay_and_others_that_were_asked_for_are_warned_about() {
    needs_root();
    let same = "Uid: 4321 4321 4321 4321 Gid: 8765 8765 8765 8765";
    for (options, warned) in [
        (&[][..], false),
        (&["-u", "4321", "-g", "8765"], false),
        // The other one was not asked for.
        (&["-u", "4321"], false),
        (&["-g", "8765"], false),
        (&["-u", "123", "-g", "8765"], true),
        (&["-u", "4321", "-g", "456"], true),
        (&["-u", "daemon"], true),
    ] {
        let (ids, log) = as_somebody(options);
        assert_eq!(ids, same, "{options:?}");
        let warnings: Vec<&String> = log
            .iter()
            .filter(|l| l.contains("not started as root"))
            .collect();
        assert_eq!(warnings.len(), usize::from(warned), "{options:?}: {log:#?}");
        assert!(
            warnings.iter().all(|line| line.contains("4321:8765")),
            "{log:#?}"
        );
        let opened = log.iter().find(|line| line.contains(" opened: ")).unwrap();
        assert_eq!(field(opened, "user"), "4321:8765");
    }
}

#[test]
fn uid_0_is_refused_even_where_it_would_have_no_effect() {
    needs_root();
    let (status, text) = refused_as(
        Command::new(TCPPROXY).uid(4321).gid(8765),
        &["-u", "0", "/bin/echo"],
    );
    assert_eq!(status, 78, "{text}");
}

/// A real id that is not root's is no protection: the saved one leads back.
#[test]
fn a_saved_uid_of_root_counts_as_root() {
    needs_root();
    let setpriv = tool("setpriv").display().to_string();
    let handler = [
        "/bin/sed",
        "-nE",
        "/^(Uid|Gid|Groups):/p",
        "/proc/self/status",
    ];
    for launcher in [
        &[setpriv.as_str(), "--ruid=4321"][..],
        &[&setpriv, "--rgid=8765", "--keep-groups"],
    ] {
        let (client, mut child) = hand_over(&mut launched_by(launcher, &handler));
        let text = String::from_utf8(read_all(client)).unwrap();
        end_of(&mut child);
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(
            words.join(" "),
            "Uid: 65535 65535 65535 65535 Gid: 65534 65534 65534 65534 Groups:",
            "{launcher:?}"
        );
    }
}
