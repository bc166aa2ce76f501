//! The example units under a real systemd, as they stand: in a network of their own, where the
//! mail server that they forward to is this machine.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Scratch, TCPPROXY, field, needs_root, tool};

/// What every script begins with. `ask PORT` sends a request, ends its side, and shows the reply.
const PRELUDE: &str = r#"
set -e
eventually() {
    for _ in $(seq 400); do
        if "$@"; then return; fi
        sleep 0.05
    done
    echo "waited in vain: $*" >&2
    exit 1
}
listens() { ss -Hltn "sport = :$1" | grep -q .; }
journal() { journalctl --no-pager --quiet -o cat "$@"; }
says() { test "$(journal | grep -c -- "$1")" -ge "$2"; }
gone() { test -z "$(systemctl list-units --all --no-legend "$1")"; }
ask() { printf request | timeout 20 nc -N 127.0.0.1 "$1"; }
start_mail_server() {
    # It counts the bytes of a request once that has ended.
    socat TCP-LISTEN:25,bind=192.0.2.25,fork,reuseaddr SYSTEM:'wc -c' &
    eventually listens 25
}
ip link set lo up
ip address add 192.0.2.25/32 dev lo
"#;

/// Boots a systemd that has the example units, runs a script beside it, and returns what that
/// says.
pub(crate) fn under_systemd(script: &str) -> String {
    needs_root();
    for name in ["nc", "socat", "ss", "systemctl"] {
        tool(name);
    }
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let units = Scratch::new();
    for entry in fs::read_dir(project.join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|e| e == "service" || e == "socket")
        {
            fs::copy(
                &path,
                units.join(path.file_name().unwrap().to_str().unwrap()),
            )
            .unwrap();
        }
    }
    let output = Command::new(project.join("tests/with-systemd"))
        .args(["-n", "-p", &format!("{TCPPROXY}:/usr/local/sbin/tcpproxy")])
        .arg(units.path())
        .args(["bash", "-c", &format!("{PRELUDE}{script}")])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}: {text}\n{errors}",
        output.status
    );
    text
}

/// The lines that contain a text.
pub(crate) fn lines<'a>(text: &'a str, part: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.contains(part)).collect()
}

/// The output of a script that has forwarded three requests, the last two at once, by way of
/// this unit. It must have succeeded without root.
fn assert_three_were_forwarded(text: &str) {
    assert_eq!(lines(text, "reply: "), ["reply: 7"; 3], "{text}");
    let opened = lines(text, " opened: ");
    let closed = lines(text, " closed: ");
    assert_eq!((opened.len(), closed.len()), (3, 3), "{text}");
    for line in opened {
        let (uid, gid) = field(line, "user").split_once(':').unwrap();
        assert!(uid != "0" && gid != "0", "{line}");
    }
    for line in closed {
        assert_eq!(field(line, "server"), "192.0.2.25:25");
        assert_eq!(field(line, "sent"), "7");
        assert_eq!(field(line, "received"), "2");
        assert_eq!(field(line, "reason"), "client-closed");
    }
    assert_eq!(lines(text, "failed unit"), Vec::<&str>::new(), "{text}");
}

/// Forwards three requests by way of a port, and shows what there is to see.
fn ask_three_times(start: &str, port: u16) -> String {
    format!(
        r#"
start_mail_server
{start}
eventually listens {port}
echo "reply: $(ask {port})"
echo "reply: $(ask {port})" & first=$!
echo "reply: $(ask {port})" & second=$!
wait $first; wait $second
eventually says ' closed: ' 3
journal
systemctl list-units --failed --no-legend | sed 's/^/failed unit /'
journal _UID=0 _COMM=tcpproxy | sed 's/^/by root: /'
"#
    )
}

#[test]
fn the_accepting_socket_unit_forwards_each_connection_in_a_unit_without_root() {
    let start = "systemctl start tcpproxy-forward.socket";
    let script = ask_three_times(start, 2525) + "eventually gone 'tcpproxy-forward@*'\n";
    let text = under_systemd(&script);
    assert_three_were_forwarded(&text);
    // The user is systemd's doing: not a line was written by root.
    assert_eq!(lines(&text, "by root: "), Vec::<&str>::new(), "{text}");
    // A process each, whose id is the session's number.
    for line in lines(&text, " opened: ") {
        let (process, session) = line.split_once("]: session ").unwrap();
        let session = session.split(' ').next().unwrap();
        assert!(process.ends_with(&format!("[{session}")), "{line}");
    }
}

#[test]
fn the_listening_socket_unit_forwards_every_connection_in_one_service_without_root() {
    let start = "systemctl start tcpproxy-listener.socket";
    let text = under_systemd(&ask_three_times(start, 2626));
    assert_three_were_forwarded(&text);
    assert_eq!(lines(&text, "by root: "), Vec::<&str>::new(), "{text}");
    for serial in 1..=3 {
        let opened = format!("session {serial} opened: ");
        assert_eq!(lines(&text, &opened).len(), 1, "{text}");
    }
}

#[test]
fn the_standalone_unit_starts_as_root_and_serves_as_somebody_else() {
    let start = "systemctl start tcpproxy-standalone.service";
    let stop = "systemctl stop tcpproxy-standalone.service
                systemctl show -p Result -p ExecMainStatus tcpproxy-standalone.service\n";
    let text = under_systemd(&(ask_three_times(start, 2525) + stop));
    assert_three_were_forwarded(&text);
    for line in lines(&text, " opened: ") {
        assert_eq!(field(line, "user"), "65535:65534");
    }
    // SIGTERM is an end in order.
    assert_eq!(lines(&text, "Result="), ["Result=success"]);
    assert_eq!(lines(&text, "ExecMainStatus="), ["ExecMainStatus=0"]);
}

#[test]
fn the_handler_s_unit_serves_as_a_user_of_its_own() {
    let text = under_systemd(
        "systemctl start tcpproxy-handler.service
         eventually listens 2513
         echo \"reply: $(timeout 20 nc -N 127.0.0.1 2513 </dev/null)\"
         eventually says ' closed: ' 1
         journal
         systemctl stop tcpproxy-handler.service
         systemctl show -p Result tcpproxy-handler.service\n",
    );
    let reply = lines(&text, "reply: ")[0].trim_start_matches("reply: ");
    let parsed = Command::new("date").args(["-d", reply]).output().unwrap();
    assert!(!reply.is_empty() && parsed.status.success(), "{text}");
    let opened = lines(&text, " opened: ");
    let (uid, _) = field(opened[0], "user").split_once(':').unwrap();
    // Where systemd has its dynamic users (systemd.exec(5), DynamicUser=).
    assert!(
        (61_184..=65_519).contains(&uid.parse::<u32>().unwrap()),
        "{text}"
    );
    let closed = lines(&text, " closed: ");
    assert_eq!(field(closed[0], "reason"), "handler-exited", "{text}");
    assert_eq!(lines(&text, "Result="), ["Result=success"]);
}

#[test]
fn an_upstream_that_refuses_leaves_no_failed_unit_and_no_broken_socket_behind() {
    let text = under_systemd(
        r#"
systemctl start tcpproxy-forward.socket tcpproxy-listener.socket
for port in 2525 2626; do
    for _ in 1 2 3; do echo "nothing: '$(ask $port 2>/dev/null || true)'"; done
done
eventually says 'reason=connect-refused' 6
eventually gone 'tcpproxy-forward@*'
systemctl list-units --failed --no-legend | sed 's/^/failed unit /'
start_mail_server
echo "reply: $(ask 2525)"
echo "reply: $(ask 2626)"
"#,
    );
    assert_eq!(lines(&text, "nothing: "), ["nothing: ''"; 6]);
    assert_eq!(lines(&text, "failed unit"), Vec::<&str>::new(), "{text}");
    assert_eq!(lines(&text, "reply: "), ["reply: 7"; 2], "{text}");
}

#[test]
fn systemd_finds_nothing_wrong_with_the_example_units() {
    let text = under_systemd(
        "cd /etc/systemd/system
         for unit in *.service *.socket; do
             case $unit in *@.service) unit=${unit%.service}test.service ;; esac
             systemd-analyze verify --man=no \"$unit\" 2>&1 | sed 's/^/complaint: /'
             echo \"verified: $unit\"
         done\n",
    );
    assert_eq!(lines(&text, "complaint: "), Vec::<&str>::new(), "{text}");
    assert!(lines(&text, "verified: ").len() >= 5, "{text}");
}

#[test]
fn the_unit_with_a_configuration_file_is_ready_reloads_and_refuses_a_file_that_is_wrong() {
    let text = under_systemd(
        r#"
unit=tcpproxy.service
shows() { systemctl show -p "$1" "$unit"; }
start_mail_server
echo 'access-log /var/log/tcpproxy/access.log
access-log-format json
port 2525
server 192.0.2.25:25' >/etc/tcpproxy.conf
systemctl start $unit
# It is ready: nothing is waited for.
echo "reply: $(ask 2525)"
shows MainPID

echo 'port 2626
server 192.0.2.25:25' >>/etc/tcpproxy.conf
systemctl reload $unit
eventually listens 2626
echo "reply: $(ask 2626)"
shows MainPID

echo 'sever 192.0.2.25:25' >>/etc/tcpproxy.conf
systemctl reload $unit 2>/dev/null || echo 'reload: failed'
shows ActiveState
echo "reply: $(ask 2525)"
eventually says ' closed: ' 3
journal
eventually sh -c "systemctl show -p StatusText $unit | grep -qx 'StatusText=0 live, 3 in total'"
sed 's/^/access log: /' /var/log/tcpproxy/access.log

systemctl stop $unit
shows Result
shows ExecMainStatus

systemctl start $unit 2>/dev/null || echo 'start: failed'
eventually sh -c "systemctl show -p ActiveState $unit | grep -q failed"
echo "wrong file: $(shows ExecMainStatus), $(shows NRestarts)"
"#,
    );
    assert_three_were_forwarded(&text);
    let pids = lines(&text, "MainPID=");
    assert!(
        pids.len() == 2 && pids[0] == pids[1] && pids[0] != "MainPID=0",
        "{text}"
    );
    assert_eq!(lines(&text, "reload: "), ["reload: failed"], "{text}");
    assert_eq!(
        lines(&text, "ActiveState="),
        ["ActiveState=active"],
        "{text}"
    );
    let problem = "tcpproxy: /etc/tcpproxy.conf:7:1: unknown directive 'sever'";
    assert!(!lines(&text, problem).is_empty(), "{text}");
    assert_eq!(lines(&text, "Result="), ["Result=success"], "{text}");
    assert_eq!(lines(&text, "start: "), ["start: failed"], "{text}");
    let wrong = ["wrong file: ExecMainStatus=78, NRestarts=0"];
    assert_eq!(lines(&text, "wrong file: "), wrong, "{text}");
    assert_eq!(lines(&text, "access log: ").len(), 3, "{text}");
}

#[test]
fn the_unit_for_many_connections_holds_a_thousand_at_once_and_logs_each_of_them() {
    // Twice the sessions that a server has without --max-sessions.
    let text = under_systemd(
        r#"
unit=tcpproxy-many.service
status_is() { test "$(systemctl show -P StatusText $unit)" = "$1"; }
socat TCP-LISTEN:25,bind=192.0.2.25,fork,reuseaddr,backlog=1024 PIPE &
eventually listens 25
systemctl start $unit

ulimit -n 4096
clients=()
for number in $(seq 1000); do
    exec {client}<>/dev/tcp/127.0.0.1/2525
    echo "$number" >&$client
    clients+=($client)
done
answered=0
for client in "${clients[@]}"; do
    read -r -t 20 -u $client number
    answered=$((answered + 1))
    test "$number" = $answered
done
echo "answered: $answered"
eventually status_is '1000 live, 1000 in total'

for client in "${clients[@]:0:500}"; do exec {client}>&-; done
eventually status_is '500 live, 1000 in total'
mv /var/log/tcpproxy/access.log /var/log/tcpproxy/first
systemctl reload $unit
eventually test -e /var/log/tcpproxy/access.log
systemctl stop $unit
systemctl show -p Result -p ExecMainStatus $unit
eventually says ': asked to end, with 500 live' 1
journal | grep ': session ' | sed 's/^/journal: /'
cat /var/log/tcpproxy/*
"#,
    );
    assert_eq!(lines(&text, "answered: "), ["answered: 1000"], "{text}");
    assert_eq!(lines(&text, "journal: "), Vec::<&str>::new());
    let closed = lines(&text, " closed: ");
    assert_eq!(closed.len(), 1000, "{text}");
    for reason in ["client-closed", "terminated"] {
        let ended = closed.iter().filter(|line| field(line, "reason") == reason);
        assert_eq!(ended.count(), 500, "{reason}");
    }
    assert_eq!(lines(&text, "Result="), ["Result=success"]);
    assert_eq!(lines(&text, "ExecMainStatus="), ["ExecMainStatus=0"]);
}

#[test]
fn the_unit_in_the_place_of_rinetds_reads_its_file_and_reloads_it() {
    let text = under_systemd(
        r#"
unit=tcpproxy-rinetd.service
start_mail_server
echo 'logfile /var/log/rinetd.log
0.0.0.0 2525 192.0.2.25 25' >/etc/rinetd.conf
systemctl start $unit
# It is ready: nothing is waited for.
echo "reply: $(ask 2525)"
echo 'deny 127.0.0.1
0.0.0.0 2626 192.0.2.25 25' >>/etc/rinetd.conf
systemctl reload $unit
eventually listens 2626
echo "reply: $(ask 2626)"
echo "nothing: '$(ask 2525 2>/dev/null || true)'"
eventually grep -q denied /var/log/rinetd.log
sed 's/^/log: /' /var/log/rinetd.log
journal
systemctl stop $unit
systemctl show -p Result -p ExecMainStatus $unit

echo 'nonsense' >>/etc/rinetd.conf
systemctl start $unit 2>/dev/null || echo 'start: failed'
eventually sh -c "systemctl show -p ActiveState $unit | grep -q failed"
echo "wrong file: $(systemctl show -p ExecMainStatus -p NRestarts $unit | tr '\n' ' ')"
"#,
    );
    assert_eq!(lines(&text, "reply: "), ["reply: 7"; 2], "{text}");
    assert_eq!(lines(&text, "nothing: "), ["nothing: ''"], "{text}");
    let words = lines(&text, "log: ").into_iter();
    let mut words: Vec<&str> = words.filter_map(|line| line.rsplit('\t').next()).collect();
    words.sort_unstable();
    let [done, opened] = ["done-remote-closed", "opened"];
    assert_eq!(words, ["denied", done, done, opened, opened], "{text}");
    let refused = lines(
        &text,
        "denied by rule: deny 127.0.0.1 (/etc/rinetd.conf:3:6)",
    );
    assert_eq!(refused.len(), 1, "{text}");
    assert_eq!(lines(&text, "Result="), ["Result=success"], "{text}");
    assert_eq!(lines(&text, "start: "), ["start: failed"], "{text}");
    let wrong = lines(&text, "wrong file: ")[0];
    assert!(wrong.contains("ExecMainStatus=78"), "{text}");
    assert!(wrong.contains("NRestarts=0"), "{text}");
}
