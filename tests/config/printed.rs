//! `-zz`: the whole configuration, in a form that means the same when it is read again.

use std::thread;

use crate::harness::Said;
use crate::harness::config_file::Conf;

/// A generator of numbers that looks random and is the same every time (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn lines(&mut self, lines: &[&str]) -> String {
        let mut text = String::new();
        let mut names = Vec::new();
        for _ in 0..self.below(6) {
            let line = lines[self.below(lines.len())];
            let name = line.split(' ').next().unwrap();
            if !names.contains(&name) || matches!(name, "allow" | "deny" | "log") {
                names.push(name);
                text += &format!("{line}\n");
            }
        }
        text
    }
}

const OF_SERVICES: [&str; 42] = [
    "timeout 1500ms",
    "timeout 0",
    "half-close-timeout 3",
    "half-close-timeout 0",
    "keepalive 60",
    "keepalive 0",
    "max-duration 1h",
    "uid 77",
    "gid 0",
    "acp /bin/a \"b c\" 'd\"e' \"\\\\ \\n\" '#'",
    "acp-timeout 0.25",
    "logname x-y",
    "setenv A_",
    "writefile \"/tmp/a b#\"",
    "clear-env",
    "allow 10.0.0.0/8",
    "allow ANY",
    "allow 2001:db8::/32",
    "deny 2001:db8::7",
    "deny 10.*",
    "allow-levels each",
    "connect-timeout 1",
    "connect-retry 30",
    "max-per-source 3",
    "rate 10/1500ms:5",
    "accept-proxy 192.0.2.0/24",
    "accept-proxy ::1",
    "proxy-others serve",
    "proxy-timeout 500ms",
    "send-proxy v2",
    "helper no",
    "ftp-address 192.0.2.9",
    "ftp-ports 50000-50009",
    "ftp-data-timeout 90",
    "source ::1",
    "source client",
    "source client:port",
    "transparent",
    "buffer-size 1m",
    "acp-server no",
    "bandwidth 64k:0",
    "delay 1500ms:2",
];

const OF_THE_SERVER: [&str; 13] = [
    "daemon no",
    "standalone no",
    "max-sessions 0",
    "overflow drop",
    "log syslog",
    "log \"file:/a b\"",
    "log-level debug",
    "lifetime 9",
    "access-log '/x y'",
    "access-log-format json",
    "state-dir /s",
    "pidfile",
    "logname server",
];

const OPENINGS: [(&str, &str); 6] = [
    ("port 25", "server a b:26 unix:/c"),
    ("interface 127.0.0.1", ""),
    ("interface eth0", "exec /bin/x \"y z\" '' \"it's\""),
    (
        "port 26",
        "server ::1 [::2]:27 original-dst original-dst:80",
    ),
    ("bind [::1]:28", "server fe80::1%eth0\nserver \"unix:/a b\""),
    ("bind lo:29", "exec relative \"a\\\\b\" '\"'"),
];

/// What `--explain` says, but for the places of rules, which are others in another file.
fn explained(conf: &Conf, client: &str) -> (i32, String) {
    let Said { status, out, err } = conf.says(&["--explain", client]);
    assert_eq!(err, "");
    let lines = out
        .lines()
        .map(|line| line.split(" (conf:").next().unwrap());
    (status, lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn what_is_printed_is_printed_again_and_explained_alike() {
    let cases = |seed| {
        let mut numbers = Numbers(seed);
        for _ in 0..60 {
            let mut text = numbers.lines(&OF_THE_SERVER);
            // Its name is a directive of both kinds.
            text = text.replace("logname server\n", "") + &numbers.lines(&OF_SERVICES);
            for (opening, server) in OPENINGS {
                text += &format!("{opening}\n{server}\n{}", numbers.lines(&OF_SERVICES));
            }
            let conf = Conf::new(&text);
            let printed = conf.says(&["-zz"]).ok();
            let again = Conf::new(&printed);
            assert_eq!(again.says(&["-zz"]).ok(), printed, "{text}");
            assert_eq!(again.says(&["-z"]).ok(), conf.says(&["-z"]).ok(), "{text}");
            for client in ["10.0.0.1", "2001:db8::7", "unix", "192.0.2.1,127.0.0.1:25"] {
                assert_eq!(
                    explained(&again, client),
                    explained(&conf, client),
                    "{text}"
                );
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| cases(0x9e37_79b9_7f4a_7c15));
        scope.spawn(|| cases(0x1234_5678_9abc_def1));
    });
}

#[test]
fn every_default_is_printed_in_full() {
    let text = Conf::new("port 25\nserver a\n").says(&["-zz"]).ok();
    assert_eq!(
        text,
        "log-name tcpproxy\n\
         # pidfile is not set\n\
         # standalone is not set\n\
         lifetime 0\n\
         max-sessions 500\n\
         overflow defer\n\
         # state-dir is not set\n\
         # access-log is not set\n\
         access-log-format tcpproxy\n\
         # log is not set\n\
         log-level info\n\
         daemon no\n\
         \n\
         bind *:25\n\
         \x20   server a\n\
         \x20   # acp is not set\n\
         \x20   group 65534\n\
         \x20   log-name tcpproxy\n\
         \x20   timeout 60\n\
         \x20   user 65535\n\
         \x20   env-prefix PROXY_\n\
         \x20   # write is not set\n\
         \x20   clear-env no\n\
         \x20   # allow is not set\n\
         \x20   # deny is not set\n\
         \x20   allow-levels any\n\
         \x20   connect-timeout 10\n\
         \x20   connect-retry 0\n\
         \x20   half-close-timeout 60\n\
         \x20   # keepalive is not set\n\
         \x20   max-duration 0\n\
         \x20   acp-timeout 10\n\
         \x20   max-per-source 0\n\
         \x20   # rate is not set\n\
         \x20   # accept-proxy is not set\n\
         \x20   proxy-others refuse\n\
         \x20   proxy-timeout 5\n\
         \x20   send-proxy no\n\
         \x20   helper no\n\
         \x20   # ftp-address is not set\n\
         \x20   # ftp-ports is not set\n\
         \x20   ftp-data-timeout 60\n\
         \x20   # http-force is not set\n\
         \x20   transparent no\n\
         \x20   via no\n\
         \x20   # via-auth is not set\n\
         \x20   # source is not set\n\
         \x20   buffer-size 1048576\n\
         \x20   acp-server no\n\
         \x20   bandwidth 0\n\
         \x20   delay 0\n"
    );
}

#[test]
fn the_rules_of_the_defaults_are_printed_once_and_stay_theirs() {
    let conf = Conf::new(
        "allow-levels each\nallow 10.0.0.0/8\ndeny 10.6.6.6\n\
         port 25\nserver a\nallow 10.1.0.0/16\n\
         port 26\nserver a\n",
    );
    let text = conf.says(&["-zz", "--deny", "10.7.7.7"]).ok();
    let (defaults, services) = text.split_once("\nbind ").unwrap();
    assert!(
        defaults.contains("allow 10.0.0.0/8\ndeny 10.6.6.6\ndeny 10.7.7.7\n"),
        "{text}"
    );
    let (first, second) = services.split_once("\nbind ").unwrap();
    assert!(first.contains("    allow 10.1.0.0/16\n"), "{text}");
    for service in [first, second] {
        assert!(service.contains("    allow-levels each\n"), "{text}");
        assert!(
            !service.contains("deny") && !service.contains("10.0.0.0"),
            "{text}"
        );
    }
    assert!(!second.contains("allow "), "{text}");
    let again = Conf::new(&text);
    for (client, admitted) in [("10.1.0.1", true), ("10.2.0.1", false), ("10.6.6.6", false)] {
        let asked = format!("{client},25");
        assert_eq!(
            explained(&again, &asked).0,
            i32::from(!admitted),
            "{client}"
        );
    }
}

#[test]
fn a_server_that_is_named_on_the_command_line_is_printed_too() {
    let conf = Conf::new("timeout 7\n");
    let listening = conf
        .says(&["-zz", "-b", "[::1]:25", "-b", "26", "h:1"])
        .ok();
    let again = Conf::new(&listening);
    assert_eq!(again.says(&["-z"]).ok(), "[::1]:25\n*:26\n");
    assert_eq!(again.says(&["-zz"]).ok(), listening);
    // One that is handed over has no place in a file but a comment.
    let handed = conf.says(&["-zz", "--deny", "ANY", "/bin/x", "y z"]).ok();
    assert!(
        handed.contains("timeout 7\n") && handed.contains("deny ANY\n"),
        "{handed}"
    );
    let comment = "# for the connection that is handed over: exec /bin/x \"y z\"\n";
    assert!(handed.ends_with(comment), "{handed}");
    assert_eq!(Conf::new(&handed).says(&["--check"]).ok(), "ok\n");
}
