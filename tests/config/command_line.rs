//! The command line as a person meets it: what is wrong is said in one line that names the
//! option, and help, manual and parser know the same options.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::{Command, Output, Stdio};

use tcpproxy::Reason;
use tcpproxy::settings::{SETTINGS, Setting, Takes};

use crate::harness::{Running, Scratch, TCPPROXY};

/// Runs the program to its end, with nothing to serve.
fn output(arguments: &[impl AsRef<OsStr>]) -> Output {
    Command::new(TCPPROXY)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// The exit status and the one line of a command line that is refused.
fn refused(arguments: &[impl AsRef<OsStr> + std::fmt::Debug]) -> (i32, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = output(arguments);
    let text = String::from_utf8(stderr).unwrap_or_else(|_| panic!("{arguments:?}: not UTF-8"));
    assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    let line = text
        .strip_suffix('\n')
        .unwrap_or_else(|| panic!("{arguments:?}: {text:?}"));
    let line = line
        .strip_prefix("tcpproxy: ")
        .unwrap_or_else(|| panic!("{arguments:?}: {line}"));
    assert!(!line.contains(char::is_control), "{arguments:?}: {line:?}");
    assert!(stdout.is_empty(), "{arguments:?}");
    let status = status
        .code()
        .unwrap_or_else(|| panic!("{arguments:?}: {status}"));
    (status, line.to_owned())
}

/// How messages name an option.
fn spelling(setting: &Setting) -> String {
    match setting.short.first() {
        Some(short) => format!("-{short}/--{}", setting.name),
        None => format!("--{}", setting.name),
    }
}

/// Bad values of every option that takes one, and what the message says is wrong or right.
const BAD: &[(&str, &[(&str, &str)])] = &[
    (
        "acp",
        &[
            ("", "is empty: write a program"),
            ("  ", "is empty: write a program"),
            ("'' x", "is empty: write a program"),
            ("/bin/a 'b", "has a quote that is not closed"),
        ],
    ),
    (
        "bind",
        &[
            ("", "is not a port: write 1 to 65535"),
            (":", "is not a port: write 1 to 65535"),
            ("-1", "'-1' is not a port: write 1 to 65535"),
            ("65536", "65536 is out of range: write 1 to 65535"),
            (
                "99999999999999999999999",
                "99999999999999999999999 is out of range",
            ),
            ("127.0.0.1", "is not a port"),
            ("127.0.0.1:", "is not a port"),
            ("127.0.0.1:smpt", "'smpt' is not a port"),
            ("::1:25", "without brackets: write [v6]:port"),
            ("[::1:25", "IPv6 in brackets"),
            ("[::g]:25", "'::g' is not an IPv6 address"),
            ("a b:25", "is not an interface"),
        ],
    ),
    (
        "group",
        &[
            ("", "is empty"),
            ("-1", "-1 is not accepted: write 65535"),
            ("-7", "-7 is out of range"),
            ("4294967295", "is out of range: write at most 4294967294"),
            ("99999999999999999999", "is out of range"),
        ],
    ),
    (
        "log-name",
        &[
            ("", "is not a log name: write 1 to 48 printable characters"),
            ("a b", "'a b' is not a log name"),
            ("a\nb", "'a\\x0ab' is not a log name"),
            ("a]b", "is not a log name"),
            (
                "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
                "is not a log name",
            ),
        ],
    ),
    ("timeout", NOT_TIMES),
    (
        "user",
        &[
            ("", "is empty"),
            ("-1", "-1 is not accepted: write 65535"),
            ("-2", "-2 is not accepted: write 65534"),
            ("4294967295", "is out of range: write at most 4294967294"),
            ("99999999999999999999", "is out of range"),
        ],
    ),
    (
        "env-prefix",
        &[
            ("", "is not a prefix: write a letter or _"),
            ("1X", "'1X' is not a prefix"),
            ("A-B", "is not a prefix"),
            ("A=B", "is not a prefix"),
            ("É", "is not a prefix"),
        ],
    ),
    ("config", NOT_PATHS),
    (
        "as",
        &[
            ("", "'' is unknown: write rinetd"),
            ("rintd", "did you mean 'rinetd'?"),
        ],
    ),
    ("write", NOT_PATHS),
    ("state-dir", NOT_PATHS),
    ("access-log", NOT_PATHS),
    (
        "access-log-format",
        &[
            ("", "write tcpproxy, common, rinetd, rinetd-opened, json"),
            ("jsn", "did you mean 'json'?"),
            ("JSON", "'JSON' is unknown"),
        ],
    ),
    (
        "explain",
        &[
            ("", "'' is not an IP address"),
            ("localhost", "'localhost' is not an IP address"),
            ("127.0.0.1,", "is not a port"),
            ("127.0.0.1,host:25", "'host' is not an IP address"),
            ("127.0.0.1,70000", "70000 is out of range"),
        ],
    ),
    ("max-sessions", NOT_COUNTS),
    ("max-per-source", NOT_COUNTS),
    (
        "overflow",
        &[("", "write defer, drop"), ("dorp", "did you mean 'drop'?")],
    ),
    (
        "rate",
        &[
            ("", "is not a rate: write sessions/seconds"),
            ("10", "'10' is not a rate"),
            ("0/1", "'0/1' is not a rate"),
            ("1/0", "'1/0' is not a rate"),
            ("-1/1", "'-1/1' is not a rate"),
            ("1/1:0", "'1/1:0' is not a rate"),
            ("99999999999/1", "is not a rate"),
        ],
    ),
    ("half-close-timeout", NOT_TIMES),
    (
        "keepalive",
        &[
            ("500ms", "write 0 (never), or 1 to 32767"),
            ("off", "'off' is not a time"),
        ],
    ),
    ("max-duration", NOT_TIMES),
    ("connect-retry", NOT_TIMES),
    ("lifetime", NOT_TIMES),
    ("allow", NOT_RULES),
    (
        "allow-levels",
        &[("", "write any, each"), ("eahc", "did you mean 'each'?")],
    ),
    ("deny", NOT_RULES),
    ("accept-proxy", NOT_RULES),
    (
        "proxy-others",
        &[
            ("", "write refuse, serve"),
            ("sreve", "did you mean 'serve'?"),
        ],
    ),
    ("proxy-timeout", NOT_TIMES_ABOVE_0),
    (
        "send-proxy",
        &[
            ("", "write no, v1, v2"),
            ("v3", "write no, v1, v2"),
            ("yes", "write no, v1, v2"),
        ],
    ),
    (
        "helper",
        &[("", "write no, ftp"), ("fpt", "did you mean 'ftp'?")],
    ),
    (
        "ftp-address",
        &[
            ("", "is not an IPv4 address"),
            ("::1", "is not an IPv4 address"),
        ],
    ),
    (
        "http-force",
        &[
            ("", "is not a URL that requests can be sent to"),
            ("ftp://a/", "write http://HOST[:PORT]/PATH"),
            ("http:///path", "write http://HOST[:PORT]/PATH"),
            ("http://a/b c", "without blanks and #"),
            ("http://a/#b", "without blanks and #"),
        ],
    ),
    (
        "ftp-ports",
        &[
            ("", "write FIRST-LAST"),
            ("50000", "write FIRST-LAST"),
            ("50001-50000", "write FIRST-LAST"),
            ("1023-2000", "each of 1024 to 65535"),
            ("50000-65536", "each of 1024 to 65535"),
            ("50000-50001-50002", "write FIRST-LAST"),
        ],
    ),
    ("ftp-data-timeout", NOT_TIMES_ABOVE_0),
    ("connect-timeout", NOT_TIMES_ABOVE_0),
    ("acp-timeout", NOT_TIMES_ABOVE_0),
    (
        "log",
        &[
            ("", "write syslog, stderr, stdout or file:PATH"),
            ("file:", "needs a path"),
            ("sylsog", "did you mean 'syslog'?"),
            ("stder", "did you mean 'stderr'?"),
            ("/var/log/x", "write syslog, stderr, stdout or file:PATH"),
        ],
    ),
    (
        "log-level",
        &[
            ("", "write error, warning, notice, info, debug"),
            ("inof", "did you mean 'info'?"),
            ("INFO", "'INFO' is unknown"),
            ("-1", "write error, warning, notice, info, debug"),
            ("99999999999999999999", "write error, warning"),
        ],
    ),
    (
        "via",
        &[
            ("", "it is no URL: write http://[user:password@]host[:port]"),
            ("proxy:3128", "it is no URL"),
            (
                "https://proxy",
                "its scheme is none of http, socks5 and socks5h",
            ),
            ("http://", "its host or port is none"),
            ("http://proxy:0", "its host or port is none"),
            ("http://proxy/path", "its host or port is none"),
            ("http://user@proxy", "it has a user without a password"),
            ("http://a:%zz@proxy", "write %25 for %"),
            ("http://a:b%0ac@proxy", "has a control character"),
            ("http://a%3Ab:c@proxy", "the user has a colon"),
            ("http://user:***@proxy", "write the true one, or via-auth"),
            ("socks5://:b@proxy", "the user has 0 bytes"),
        ],
    ),
    ("via-auth", &[("", "is empty: write a path")]),
    (
        "source",
        &[
            ("", "is not an IP address"),
            ("localhost", "'localhost' is not an IP address"),
            ("127.0.0.1:25", "is not an IP address"),
            ("256.0.0.1", "is not an IP address"),
            ("-1", "is not an IP address"),
        ],
    ),
    (
        "buffer-size",
        &[
            ("", "is not a size: write bytes, or a number with k or m"),
            ("k", "is not a size"),
            ("0", "is out of range: write 256 to 67108864 bytes"),
            ("255", "is out of range"),
            ("65m", "is out of range"),
            ("-1", "is not a size"),
            ("1g", "is not a size"),
            ("18446744073709551616", "is out of range"),
            ("18446744073709551615m", "is out of range"),
        ],
    ),
    (
        "bandwidth",
        &[
            ("", "is not a size: write bytes, or a number with k or m"),
            ("1:", "'' is not a size"),
            ("1:2:3", "'2:3' is not a size"),
            ("-1", "'-1' is not a size"),
            ("4g", "is not a size"),
            ("4096m", "is out of range: write 0 to 4294967295 bytes"),
        ],
    ),
    (
        "delay",
        &[
            ("", "is not a time: write seconds"),
            (":1", "'' is not a time"),
            ("1:2:3", "'2:3' is not a time"),
            ("-1", "'-1' is not a time"),
            ("61m", "is out of range: write at most an hour"),
        ],
    ),
];

const NOT_PATHS: &[(&str, &str)] = &[("", "is empty"), ("a\nb", "has control characters")];

const NOT_COUNTS: &[(&str, &str)] = &[
    ("", "is not a count: write 0 (no limit) to 4194304"),
    ("-1", "'-1' is not a count"),
    ("1k", "'1k' is not a count"),
    ("4194305", "'4194305' is not a count"),
    ("99999999999999999999", "is not a count"),
];

const NOT_TIMES: &[(&str, &str)] = &[
    ("", "is not a time: write seconds"),
    ("-1", "'-1' is not a time"),
    ("abc", "'abc' is not a time"),
    ("1d", "is not a time"),
    ("1e3", "is not a time"),
    ("nan", "is not a time"),
    ("inf", "is not a time"),
    ("99999999999999999999", "is out of range: write at most"),
    (
        "9999999999999999999999999999999999999999999999999999999999999h",
        "is out of range",
    ),
];

const NOT_TIMES_ABOVE_0: &[(&str, &str)] = &[
    ("", "is not a time: write seconds"),
    ("0", "write a time above 0"),
    ("0ms", "write a time above 0"),
    ("-1", "'-1' is not a time"),
    ("soon", "'soon' is not a time"),
    ("99999999999999999999", "is out of range: write at most"),
];

const NOT_RULES: &[(&str, &str)] = &[
    ("", "is not a rule: write ANY, an address"),
    ("any", "is not a rule: write ANY"),
    ("localhost", "is not a rule"),
    ("256.0.0.1", "is not a rule"),
    ("10.0.0.0/33", "write a prefix of 0 to 32 bits"),
    ("10.0.0.0/-1", "write a prefix of 0 to 32 bits"),
    ("10.0.0.0/", "has a bad mask"),
    ("10.0.0.0/255.0.255.0", "has a bad mask"),
    ("10.0.0.0/99999999999999999999", "has a bad mask"),
    ("2001:db8::/129", "write a prefix of 0 to 128 bits"),
    ("2001:db8::/255.255.255.0", "has a bad mask"),
];

#[test]
fn bad_values_are_known_of_every_option_that_takes_one() {
    let taking: BTreeSet<&str> = SETTINGS
        .iter()
        .filter(|setting| setting.needs_value())
        .map(|setting| setting.name)
        .collect();
    let tried: BTreeSet<&str> = BAD.iter().map(|(name, _)| *name).collect();
    assert_eq!(taking, tried);
}

fn setting(name: &str) -> &'static Setting {
    SETTINGS
        .iter()
        .find(|setting| setting.name == name)
        .unwrap()
}

#[test]
fn a_bad_value_is_refused_in_one_line_that_names_the_option_and_what_would_be_right() {
    let mut wrong = Vec::new();
    for (name, values) in BAD {
        for (value, expected) in *values {
            let long = format!("--{name}");
            let mut forms = vec![
                vec![long.clone(), (*value).to_owned()],
                vec![format!("{long}={value}")],
            ];
            for short in setting(name).short {
                forms.push(vec![format!("-{short}"), (*value).to_owned()]);
                if !value.is_empty() {
                    forms.push(vec![format!("-{short}{value}")]);
                }
            }
            for mut form in forms {
                form.push("127.0.0.1:1".to_owned());
                let (status, line) = refused(&form);
                let named = line.starts_with(&format!("option {}: ", spelling(setting(name))));
                if status != 64 || !named || !line.contains(expected) {
                    wrong.push(format!("{form:?}: {status}: {line}\n  not: {expected}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_value_that_is_not_utf8_is_refused_in_one_line_that_names_the_option() {
    for setting in SETTINGS.iter().filter(|setting| setting.needs_value()) {
        let value = OsString::from_vec(b"a\xff\x1b[31m\n".to_vec());
        let mut joined = OsString::from(format!("--{}=", setting.name));
        joined.push(&value);
        let apart = vec![OsString::from(format!("--{}", setting.name)), value.clone()];
        for mut form in [apart, vec![joined]] {
            form.push("127.0.0.1:1".into());
            let (status, line) = refused(&form);
            assert_eq!(status, 64, "{form:?}: {line}");
            assert!(line.contains(setting.name), "{form:?}: {line}");
            assert!(line.contains("UTF-8"), "{form:?}: {line}");
            assert!(line.contains("a\\xff\\x1b"), "{form:?}: {line}");
        }
    }
}

#[test]
fn an_option_without_its_value_is_refused() {
    for setting in SETTINGS.iter().filter(|setting| setting.needs_value()) {
        let shorts = setting.short.iter().map(|short| format!("-{short}"));
        for form in [format!("--{}", setting.name)].into_iter().chain(shorts) {
            assert_eq!(
                refused(&["127.0.0.1:1", &form]),
                (64, format!("option {}: needs a value", spelling(setting)))
            );
        }
    }
}

#[test]
fn a_value_for_an_option_that_takes_none_is_refused() {
    let takes_none = |setting: &&Setting| matches!(setting.takes, Takes::Switch | Takes::Nothing);
    for setting in SETTINGS.iter().filter(takes_none) {
        assert_eq!(
            refused(&[format!("--{}=yes", setting.name), "h:1".to_owned()]),
            (64, format!("option {}: takes no value", spelling(setting)))
        );
    }
}

#[test]
fn a_misspelt_option_is_refused_with_the_nearest_one() {
    for setting in SETTINGS {
        let mut letters: Vec<char> = setting.name.chars().collect();
        let middle = letters.len() / 2;
        letters.swap(middle - 1, middle);
        let misspelt: String = letters.into_iter().collect();
        if misspelt == setting.name {
            continue;
        }
        assert_eq!(
            refused(&[format!("--{misspelt}"), "h:1".to_owned()]),
            (
                64,
                format!(
                    "unknown option --{misspelt} (did you mean --{}?)",
                    setting.name
                )
            )
        );
    }
    assert_eq!(
        refused(&["--xyzzyxyzzy", "h:1"]),
        (
            64,
            "unknown option --xyzzyxyzzy (tcpproxy --help lists them)".to_owned()
        )
    );
    let (status, line) = refused(&["-x", "h:1"]);
    assert_eq!(status, 64);
    assert!(line.starts_with("unknown option -x "), "{line}");
    for form in [&b"--\xff\x1b"[..], b"-\xff"] {
        let (status, line) = refused(&[OsStr::from_bytes(form), OsStr::new("h:1")]);
        assert_eq!(status, 64, "{line}");
        assert!(line.contains("\\xff"), "{line}");
    }
}

#[test]
fn an_option_that_is_given_twice_is_refused_where_it_would_mean_nothing() {
    for (option, value) in [
        ("--acp", "/bin/true"),
        ("--group", "5"),
        ("--log-name", "n"),
        ("--timeout", "5"),
        ("--user", "5"),
        ("--env-prefix", "P"),
        ("--write", "f"),
        ("--connect-timeout", "5"),
        ("--acp-timeout", "5"),
        ("--log-level", "info"),
        ("--source", "127.0.0.1"),
        ("--buffer-size", "64k"),
    ] {
        let (status, line) = refused(&[option, value, option, value, "h:1"]);
        assert_eq!(status, 64);
        assert!(line.ends_with(": is given twice"), "{line}");
        assert!(line.contains(option), "{line}");
    }
}

#[test]
fn a_bad_server_is_refused_in_one_line_that_says_what_one_is() {
    for (server, expected) in [
        ("", "is not a server: write host[:port]"),
        (":25", "is not a server"),
        ("a b:25", "is not a server"),
        ("host:", "is not a port"),
        ("host:0", "port 0 is out of range: write 1 to 65535"),
        ("host:65536", "port 65536 is out of range"),
        ("host:-1", "'-1' is not a port"),
        ("host:99999999999999999999", "is out of range"),
        ("host:smpt", "'smpt' is not a port"),
        ("[::1", "write [v6]:port"),
        ("[::1]25", "write [v6]:port"),
        ("[host]:25", "write [v6]:port"),
        ("unix:", "needs an absolute path"),
        ("unix:relative", "needs an absolute path"),
    ] {
        let (status, line) = refused(&[server]);
        assert_eq!(status, 64, "{line}");
        assert!(line.starts_with("server: "), "{line}");
        assert!(line.contains(expected), "{line}");
    }
    let long = format!("unix:/{}", "x".repeat(200));
    let (status, line) = refused(&[long]);
    assert_eq!(status, 64, "{line}");
    assert!(line.contains("too long"), "{line}");
    let (status, line) = refused(&["h:1", "surplus"]);
    assert_eq!(status, 64, "{line}");
    assert!(line.contains("unexpected argument 'surplus'"), "{line}");
}

#[test]
fn nothing_to_serve_is_an_error_that_says_how_to_start() {
    let (status, line) = refused(&[] as &[&str]);
    assert_eq!(status, 64, "{line}");
    assert!(line.contains("no server given"), "{line}");
    let (status, line) = refused(&["127.0.0.1:1"]);
    assert_eq!(status, 64, "{line}");
    assert!(line.contains("inetd"), "{line}");
    assert!(line.contains("-b [interface:]port"), "{line}");
    let (status, line) = refused(&["-s", "127.0.0.1:1"]);
    assert_eq!(status, 64, "{line}");
    assert!(line.contains("-s/--standalone"), "{line}");
}

#[test]
fn root_and_unknown_accounts_are_configuration_errors_that_name_the_option() {
    for (option, value, expected) in [
        ("-u", "0", "option -u/--user: tcpproxy never serves as root"),
        (
            "--user=root",
            "",
            "option -u/--user: tcpproxy never serves as root",
        ),
        (
            "-u",
            "no-such-user",
            "option -u/--user: there is no user 'no-such-user'",
        ),
        (
            "-g",
            "no-such-group",
            "option -g/--group: there is no group 'no-such-group'",
        ),
        (
            "--group",
            "x\x1by",
            "option -g/--group: there is no group 'x\\x1by'",
        ),
    ] {
        let words: Vec<&str> = [option, value, "127.0.0.1:1"]
            .into_iter()
            .filter(|word| !word.is_empty())
            .collect();
        let (status, line) = refused(&words);
        assert_eq!(status, 78, "{line}");
        assert!(line.starts_with(expected), "{line}");
    }
}

#[test]
fn a_huge_argument_is_refused_in_one_line() {
    let huge = "9".repeat(100_000);
    for setting in SETTINGS.iter().filter(|setting| setting.needs_value()) {
        // A program, a file and a user may well have such a name, until they are looked for.
        if ["acp", "write", "config", "access-log", "state-dir"].contains(&setting.name) {
            continue;
        }
        let (status, line) = refused(&[&format!("--{}", setting.name), &huge, "h:1"]);
        assert_eq!(status, 64, "{}", setting.name);
        assert!(line.starts_with(&format!("option {}: ", spelling(setting))));
    }
}

#[test]
fn a_log_file_that_cannot_be_opened_is_an_error_of_the_system() {
    let (status, line) = refused(&["--log", "file:/no/such/directory/log", "127.0.0.1:1"]);
    assert_eq!(status, 71, "{line}");
    assert!(line.contains("/no/such/directory/log"), "{line}");
    assert!(line.contains("No such file or directory"), "{line}");
}

#[test]
fn gid_0_is_allowed() {
    let mut command = Command::new(TCPPROXY);
    command
        .args([
            "-g",
            "0",
            "-b",
            "127.0.0.1:0",
            "--log",
            "stderr",
            "127.0.0.1:1",
        ])
        .stdin(Stdio::null());
    Running::start(&mut command).log.wait_for("listening on ");
}

#[test]
fn help_shows_every_option_once() {
    for option in ["-h", "--help"] {
        let Output {
            status,
            stdout,
            stderr,
        } = output(&[option]);
        assert_eq!(status.code(), Some(0));
        assert!(stderr.is_empty());
        let text = String::from_utf8(stdout).unwrap();
        for setting in SETTINGS {
            let long = match setting.takes {
                Takes::Switch | Takes::Nothing => format!("--{} ", setting.name),
                Takes::Value(value) | Takes::Command(value) => {
                    format!("--{} {value} ", setting.name)
                }
                Takes::Perhaps(value) => format!("--{}[={value}] ", setting.name),
            };
            let short: String = setting
                .short
                .iter()
                .map(|short| format!("-{short}, "))
                .collect();
            let start = format!("{short}{long}");
            let of_this = |line: &&str| line.trim_start().starts_with(&start);
            let lines: Vec<&str> = text.lines().filter(of_this).collect();
            assert_eq!(lines.len(), 1, "{start} in {text}");
            let help = setting.help.lines().next().unwrap();
            assert!(lines[0].contains(help), "{}", lines[0]);
        }
        assert_eq!(
            text.lines().filter(|line| line.contains(" --")).count(),
            SETTINGS.len(),
            "options that the parser does not know: {text}"
        );
    }
}

#[test]
fn help_and_version_need_nothing_else() {
    for arguments in [&["-V"][..], &["--version"], &["-V", "-b", "0", "h:1"]] {
        let Output {
            status,
            stdout,
            stderr,
        } = output(arguments);
        assert_eq!(status.code(), Some(0));
        let expected = format!("tcpproxy {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(String::from_utf8(stdout).unwrap(), expected);
        assert!(stderr.is_empty());
    }
}

#[test]
fn every_option_of_the_help_is_known_to_the_parser() {
    // What the parser does not know, it says so; what it knows, it asks for the value of.
    for setting in SETTINGS {
        let shorts = setting.short.iter().map(|short| format!("-{short}"));
        for form in [format!("--{}", setting.name)].into_iter().chain(shorts) {
            let said = output(&[&form]);
            let text = String::from_utf8(said.stderr).unwrap();
            assert!(!text.contains("unknown option"), "{form}: {text}");
        }
    }
}

/// The manual page.
fn manual() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/man/tcpproxy.1");
    fs::read_to_string(path).unwrap()
}

/// The options that the manual page has items for, as `-t` and `--timeout`.
fn options_of_manual() -> Vec<String> {
    let mut options = Vec::new();
    for line in manual().lines() {
        let Some(item) = line.strip_prefix(".It Fl ") else {
            continue;
        };
        for part in item.split(" , ") {
            let name = part.strip_prefix("Fl ").unwrap_or(part);
            options.push(format!("-{}", name.split(' ').next().unwrap()));
        }
    }
    options
}

#[test]
fn the_manual_has_an_item_for_every_option_and_for_no_other() {
    let mut expected: Vec<String> = SETTINGS
        .iter()
        .flat_map(|setting| {
            let shorts = setting.short.iter().map(|short| format!("-{short}"));
            shorts.chain([format!("--{}", setting.name)])
        })
        .collect();
    let mut found = options_of_manual();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn the_manual_has_every_option_once_under_its_subject() {
    let manual = manual();
    let (_, rest) = manual.split_once("\nBy subject:\n").unwrap();
    let (by_subject, _) = rest.split_once("\nIn alphabetical order:\n").unwrap();
    let mut found: Vec<&str> = by_subject
        .lines()
        .filter_map(|line| line.strip_prefix(".Fl "))
        .flat_map(|options| options.split(" , "))
        .collect();
    // By its short name, which is the first of them, or by its long one.
    let mut expected: Vec<String> = SETTINGS
        .iter()
        .map(|setting| match setting.short.first() {
            Some(short) => short.to_string(),
            None => format!("-{}", setting.name),
        })
        .collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn the_manual_has_every_reason_and_every_exit_status() {
    let manual = manual();
    let items: Vec<&str> = manual
        .lines()
        .filter_map(|line| line.strip_prefix(".It "))
        .map(|item| item.strip_prefix("Li ").unwrap_or(item))
        .collect();
    for reason in Reason::ALL {
        let count = items.iter().filter(|item| **item == reason.word()).count();
        assert_eq!(count, 1, "{reason}");
    }
    for status in ["0", "64", "69", "71", "77", "78"] {
        let count = items.iter().filter(|item| **item == status).count();
        assert_eq!(count, 1, "exit status {status}");
    }
}

#[test]
fn a_usage_error_is_said_whatever_the_log_is() {
    let scratch = Scratch::new();
    let log = scratch.join("log");
    let target = format!("file:{}", log.display());
    let (status, line) = refused(&["--log", &target, "--timeout", "x", "h:1"]);
    assert_eq!(status, 64, "{line}");
    assert!(!log.exists(), "a log file for a command line that is wrong");
    let (status, line) = refused(&["--log", &target, "127.0.0.1:1"]);
    assert_eq!(status, 64, "{line}");
    let logged = fs::read_to_string(log).unwrap();
    assert!(logged.contains("no connection to serve"), "{logged}");
}
