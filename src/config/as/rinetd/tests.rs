//! What rinetd's file comes to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::conf::parse;
use crate::config::Config;
use crate::config::file::{self, Files};

/// Files of their names and contents.
struct InMemory(BTreeMap<&'static str, Vec<u8>>);

impl Files for InMemory {
    fn read(&self, path: &Path, _: usize) -> Result<Vec<u8>, String> {
        let found = self.0.get(path.to_str().unwrap_or_default());
        found.cloned().ok_or_else(|| "no such file".to_owned())
    }

    fn matching(&self, pattern: &str) -> Result<Vec<PathBuf>, String> {
        let start = pattern.trim_end_matches('*');
        let names = self.0.keys().filter(|name| name.starts_with(start));
        Ok(names.map(PathBuf::from).collect())
    }
}

fn read(text: impl AsRef<[u8]>) -> Result<Config, Vec<String>> {
    read_all([("/c", text)])
}

fn read_all<T: AsRef<[u8]>>(
    files: impl IntoIterator<Item = (&'static str, T)>,
) -> Result<Config, Vec<String>> {
    let files = files.into_iter();
    let files = files.map(|(name, text)| (name, text.as_ref().to_vec()));
    parse(Path::new("/c"), &InMemory(files.collect()))
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

/// What our own file would say, without what is not set, or as always.
fn converted(text: impl AsRef<[u8]>) -> String {
    let printed = file::print(&read(text).unwrap());
    let defaults = file::print(&read("1.1.1.1 1 1.1.1.1 1").unwrap());
    let is_said = |line: &&str| !defaults.lines().any(|usual| usual == *line);
    let said = printed.lines().filter(is_said).map(str::trim);
    said.collect::<Vec<_>>().join("\n")
}

#[test]
fn forwarding_rules_are_read_in_every_form() {
    for (rule, bind, server) in [
        ("0.0.0.0 80 192.168.1.2 80", "0.0.0.0:80", "192.168.1.2:80"),
        (
            "::1\t80 \t host.example\t81",
            "'[::1]:80'",
            "host.example:81",
        ),
        (
            "  [::] 80/tcp fe80::1 80/tcp # UDP",
            "'[::]:80'",
            "'[fe80::1]:80'",
        ),
        ("0 http 0 domain#x", "0.0.0.0:80", "0.0.0.0:53"),
        ("my-host.example. 8 a_b 9\r", "my-host.example.:8", "a_b:9"),
        ("127.0.0.1 8 unix:/a#b", "127.0.0.1:8", "unix:/a#b"),
        ("allow.example 8 deny 9", "allow.example:8", "deny:9"),
        (
            "original-dst 8 original-dst 9",
            "original-dst:8",
            "original-dst.:9",
        ),
        ("::ffff:127.0.0.1 8 ::1 9", "127.0.0.1:8", "[::1]:9"),
    ] {
        let expected = format!("bind {bind}\nserver {server}").replace('\'', "");
        assert_eq!(converted(rule), expected, "{rule}");
    }
}

#[test]
fn options_stand_in_brackets() {
    for (options, expected) in [
        ("[src=10.1.1.2]", "source 10.1.1.2"),
        ("[ src = [::1] , timeout = 5 ]", "source ::1"),
        ("[src=::1,src=::2]", "source ::2"),
        ("[timeout=72]#", ""),
        ("[dns-refresh=60,keepalive=on]", "keepalive 60"),
        ("[keepalive=off]", "keepalive 0"),
        ("[connect-timeout=5]", "connect-timeout 5"),
        ("[connect-timeout=0]", "connect-timeout 150"),
    ] {
        for blank in ["", " "] {
            let line = format!("1.1.1.1 1 1.1.1.1 80{blank}{options}");
            let said = converted(&line);
            let said = said.trim_start_matches("server 1.1.1.1:80").trim();
            assert_eq!(said, expected, "{line}");
        }
    }
}

#[test]
fn other_lines_hold_for_all_wherever_they_stand() {
    let text = "logfile /l\n1.1.1.1 1 1.1.1.1 1\nlogfile \"/l m\"\npidlogfile no\nlogcommon\n\
                buffersize 4096\nconnect-timeout 7\ndns-refresh 5\n";
    assert_eq!(
        converted(text),
        "pidfile ./no\naccess-log \"/l m\"\naccess-log-format common\nconnect-timeout 7\n\
         buffer-size 4096"
    );
}

#[test]
fn rules_of_clients_are_global_before_the_first_forwarding_rule_and_then_its_own() {
    let text = "allow 10.*\ndeny [2001:DB8::1]\n1.1.1.1 1 1.1.1.1 1\ndeny ::ffff:10.0.0.?\n\
                allow ::FFFF:*\n1.1.1.1 2 1.1.1.1 1\nallow *\n";
    let config = read(text).unwrap();
    let rules = |written: &crate::config::settings::Written| -> Vec<String> {
        let own = written.rules.own();
        own.map(|rule| format!("{rule} {}", rule.place())).collect()
    };
    assert_eq!(
        rules(&config.defaults),
        ["allow 10.* /c:1:7", "deny 2001:DB8::1 /c:2:6"]
    );
    let [one, other] = &config.services[..] else {
        panic!()
    };
    assert_eq!(
        rules(&one.written),
        ["deny 10.0.0.? /c:4:6", "allow 0.0.0.0/0 /c:5:7"]
    );
    assert_eq!(rules(&other.written), ["allow * /c:7:7"]);
    assert_eq!(other.place.to_string(), "/c:6:1");
}

#[test]
fn what_is_wrong_is_told_at_its_place() {
    for (text, told) in [
        (
            "1.1.1.1 53/udp 1.1.1.1 53",
            "1:9: '53/udp': UDP is not forwarded",
        ),
        (
            "1.1.1.1 53 1.1.1.1 53/udp",
            "1:20: '53/udp': UDP is not forwarded",
        ),
        (
            "\n 1.1.1.1 53/x 1.1.1.1 53",
            "2:10: '53/x' has a protocol that is none",
        ),
        ("1.1.1.1 0 1.1.1.1 1", "1:9: port 0 is out of range"),
        (
            "1.1.1.1 1 1.1.1.1",
            "1:18: connectport is missing: write bindaddress",
        ),
        ("1.1.1 1 1.1.1.1 1", "1:1: '1.1.1' is not an address"),
        (
            "1.1.1.256 1 1.1.1.1 1",
            "1:1: '1.1.1.256' is not an address",
        ),
        ("1.1.1.1 1 [::x] 1", "1:11: '[::x]' is not an address"),
        ("1.1.1.1 1 a.-b 1", "1:11: 'a.-b' is not an address"),
        ("1.1.1.1 1 1.1.1.1 1 1", "1:21: '1' is one word too many"),
        ("unix:/a 1.1.1.1 1", "1:1: unix: is where to connect"),
        (
            "1.1.1.1 1 unix:@a",
            "1:11: 'unix:@a' needs an absolute path",
        ),
        (
            "1.1.1.1 1 1.1.1.1 1 [src=a]",
            "1:26: src: 'a' is not an address",
        ),
        ("1.1.1.1 1 1.1.1.1 1 [src=]", "1:26: src needs a value"),
        ("1.1.1.1 1 1.1.1.1 1 []", "1:22: an option is missing here"),
        (
            "1.1.1.1 1 1.1.1.1 1 [timeout=5",
            "1:21: the bracket is not closed",
        ),
        (
            "1.1.1.1 1 1.1.1.1 1 [timeout=x]",
            "1:30: 'x' is not a number",
        ),
        (
            "1.1.1.1 1 1.1.1.1 1 [keepalive=1]",
            "1:32: keepalive: '1' is unknown: write on, off",
        ),
        (
            "1.1.1.1 1 1.1.1.1 1 [mode=0600]",
            "1:22: mode: is of a listener on a unix socket",
        ),
        (
            "1.1.1.1 1 1.1.1.1 1 [scr=::]",
            "1:22: the option 'scr' is unknown (did you mean 'src'?)",
        ),
        (
            "logfle /x",
            "1:1: 'logfle' is unknown (did you mean 'logfile'?)",
        ),
        ("logfile", "1:1: logfile needs the name of a file"),
        ("logfile \"/x", "1:10: a quote is opened"),
        ("logfile \"\"", "1:10: logfile: is empty"),
        ("pidfile /x y", "1:12: 'y' is one word too many"),
        ("statusfile /x", "1:1: statusfile: there is no status file"),
        (
            "listen-backlog 5",
            "1:1: listen-backlog: the backlog is 4096",
        ),
        ("buffersize", "1:1: buffersize needs a number"),
        ("buffersize 64k", "1:12: '64k' is not a number"),
        (
            "buffersize 9999999999",
            "1:12: buffersize: '9999999999' is out of range",
        ),
        ("allow", "1:1: allow needs an address"),
        ("deny 10.0.0", "1:6: deny: no address matches '10.0.0'"),
        ("deny 10.0.0.0/8", "1:14: '10.0.0.0/8' is not a pattern"),
        ("deny host", "1:6: 'host' is not a pattern"),
        ("include /none", "1:9: /none cannot be read: no such file"),
        ("include /c", "1:9: /c includes itself"),
        (
            "a 1 1.1.1.1 1\na 1 1.1.1.1 2",
            "2:1: a:1 is forwarded already: at /c:1:1",
        ),
    ] {
        let problems = read(text).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        let start = format!("/c:{told}");
        assert!(problems[0].starts_with(&start), "{text}: {problems:?}");
    }
}

#[test]
fn bytes_that_are_not_utf8_may_be_in_comments_alone() {
    let text = b"# caf\xe9\n1.1.1.1 1 1.1.1.1 1 # \xff\n";
    assert_eq!(read(text).unwrap().services.len(), 1);
    let problems = read(b"\nlogfile /caf\xe9 # x").unwrap_err();
    assert_eq!(problems, ["/c:2:13: is not UTF-8"]);
}

#[test]
fn every_problem_is_told_and_at_most_a_hundred() {
    let problems = read("x\n".repeat(1000)).unwrap_err();
    assert_eq!(problems.len(), 100);
    assert!(problems[99].ends_with("(further problems are not shown)"));
}

#[test]
fn included_files_are_read_in_their_place() {
    let config = read_all([
        ("/c", "allow 10.*\ninclude \"/d/*\"\nallow 10.2.*\n"),
        ("/d/1", "1.1.1.1 1 1.1.1.1 1\n"),
        ("/d/2", "1.1.1.1 2 1.1.1.1 1"),
    ]);
    let config = config.unwrap();
    let rules = config.services.iter();
    let rules: Vec<usize> = rules
        .map(|entry| entry.written.rules.own().count())
        .collect();
    assert_eq!(rules, [0, 1]);
    assert_eq!(config.defaults.rules.own().count(), 1);
}

#[test]
fn ten_thousand_rules_are_not_too_many() {
    let rules = |count: usize| -> String {
        let rule = |n: usize| format!("10.0.{}.{} 80 10.1.1.1 80\n", n / 256, n % 256);
        (0..count).map(rule).collect()
    };
    assert_eq!(read(rules(10_000)).unwrap().services.len(), 10_000);
    let problems = read(rules(10_001)).unwrap_err();
    assert_eq!(
        problems,
        ["/c:10001:1: there are more than 10000 forwarding rules"]
    );
}
