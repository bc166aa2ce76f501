//! Directives: where each may stand, what each means beside its option, and whose word counts.

use std::collections::BTreeMap;

use tcpproxy::settings::{SETTINGS, Scope, Setting, Takes};

use crate::harness::Said;
use crate::harness::config_file::Conf;

/// Three values of a directive, as `-zz` writes them.
fn values(setting: &Setting) -> [&'static str; 3] {
    match setting.name {
        "acp" => ["/bin/a b", "/bin/c \"d e\"", "f"],
        "group" | "user" => ["77", "78", "79"],
        "log-name" => ["one", "two", "three"],
        "pidfile" | "write" | "state-dir" | "access-log" => ["/a", "/b", "\"/c d\""],
        "standalone" | "clear-env" | "daemon" | "transparent" | "acp-server" => {
            ["yes", "no", "yes"]
        }
        "timeout" | "acp-timeout" | "connect-timeout" | "connect-retry" | "half-close-timeout"
        | "keepalive" | "max-duration" | "lifetime" | "max-sessions" | "max-per-source"
        | "proxy-timeout" | "ftp-data-timeout" => ["7", "8", "9"],
        "env-prefix" => ["A_", "B_", "C_"],
        "allow" | "deny" | "accept-proxy" => ["192.0.2.1", "192.0.2.0/24", "2001:db8::*"],
        "allow-levels" => ["each", "any", "each"],
        "proxy-others" => ["serve", "refuse", "serve"],
        "send-proxy" => ["v1", "v2", "no"],
        "helper" => ["ftp", "no", "http-proxy"],
        "http-force" => ["http://a/", "https://b/c?d", "http://c"],
        "ftp-address" => ["192.0.2.1", "192.0.2.2", "192.0.2.3"],
        "ftp-ports" => ["50000-50009", "1024-65535", "2000-2000"],
        "overflow" => ["drop", "defer", "drop"],
        "rate" => ["1/2ms:3", "4/5ms:6", "7/8ms:9"],
        "access-log-format" => ["json", "rinetd", "common"],
        "log" => ["syslog", "file:/a", "stderr"],
        "log-level" => ["debug", "error", "notice"],
        "via" => ["http://a:1", "socks5://b:2", "no"],
        // Files whose first line is of that form, wherever there are users.
        "via-auth" => ["/etc/passwd", "/etc/group", "\"/c d\""],
        "source" => ["127.0.0.1", "::1", "127.0.0.2"],
        "buffer-size" => ["4096", "8192", "65536"],
        "bandwidth" => ["100", "1000:0", "0:7"],
        "delay" => ["1", "20ms:3", "500ms"],
        other => panic!("no values for {other}: write some here"),
    }
}

/// What has to be said before it, for a directive to mean something.
fn goes_with(setting: &Setting) -> &'static str {
    match setting.name {
        "via-auth" => "via http://a:1\n",
        "http-force" => "helper http-proxy\n",
        _ => "",
    }
}

fn directives() -> impl Iterator<Item = &'static Setting> {
    let wanted = |setting: &&Setting| setting.scope != Scope::CommandLine;
    SETTINGS.iter().filter(wanted)
}

fn names(setting: &Setting) -> impl Iterator<Item = &'static str> {
    [Some(setting.name), setting.directive]
        .into_iter()
        .flatten()
}

/// What `-zz` has to say of a setting, in each scope: the defaults first, then the services by
/// their places.
fn shown(text: &str, setting: &Setting) -> BTreeMap<String, Vec<String>> {
    let mut scope = String::new();
    let mut shown: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if let Some(place) = line.strip_prefix("bind ") {
            scope = place.to_owned();
        } else if let Some(value) = line.strip_prefix(&format!("{} ", setting.name)) {
            shown
                .entry(scope.clone())
                .or_default()
                .push(value.to_owned());
        }
    }
    shown
}

/// What holds in a scope of that: of the rules, those of the defaults too, which come first and are
/// shown once.
fn holding(shown: &BTreeMap<String, Vec<String>>, setting: &Setting, place: &str) -> Vec<String> {
    let outer = match setting.name {
        "allow" | "deny" => Some(""),
        _ => None,
    };
    let scopes = outer.into_iter().chain([place]);
    let values = scopes.filter_map(|scope| shown.get(scope));
    values.flatten().cloned().collect()
}

/// The option that says the same as a directive.
fn option(setting: &Setting, value: &str) -> Vec<String> {
    let name = setting.name;
    match setting.takes {
        Takes::Switch if value == "yes" => vec![format!("--{name}")],
        Takes::Switch => vec![],
        _ => {
            let unquoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
            vec![format!("--{name}={}", unquoted.unwrap_or(value))]
        }
    }
}

fn says(conf: &Conf, options: &[String], more: &[&str]) -> Said {
    let options = options.iter().map(String::as_str);
    conf.says(&options.chain(more.iter().copied()).collect::<Vec<_>>())
}

#[test]
fn a_directive_is_accepted_where_it_belongs_and_nowhere_else() {
    for setting in directives() {
        let [value, ..] = values(setting);
        for name in names(setting) {
            let line = format!("{name} {value}");
            let scopes = [
                ("1:1", format!("{line}\nport 25\nserver a\n")),
                ("2:1", format!("port 25\n{line}\nserver a\n")),
                ("3:1", format!("port 25\ninterface ::1\n{line}\nserver a\n")),
                ("2:1", format!("bind [::1]:25\n{line}\nserver a\n")),
            ];
            for (number, (at, text)) in scopes.into_iter().enumerate() {
                let text = format!("{}{text}", goes_with(setting));
                let said = Conf::new(&text).says(&["--check"]);
                if number == 0 || setting.scope == Scope::Service {
                    assert_eq!(said.ok(), "ok\n", "{text}");
                    continue;
                }
                let expected = format!("tcpproxy: conf:{at}: {name} belongs before the first port");
                assert_eq!(said.refused(78), [expected], "{text}");
            }
        }
    }
}

#[test]
fn what_makes_up_a_service_stands_in_one_and_options_for_people_stand_nowhere() {
    for (text, complaint) in [
        (
            "server a\n",
            "1:1: server belongs into a port: write port first",
        ),
        (
            "exec /a\n",
            "1:1: exec belongs into a port: write port first",
        ),
        (
            "interface ::1\n",
            "1:1: interface belongs into a port: write port first",
        ),
        (
            "port 25\n",
            "1:1: has neither server nor exec: write one of them",
        ),
        (
            "port 25\nserver\n",
            "2:1: server needs a value: write host[:port]",
        ),
        ("port\n", "1:1: port needs a value"),
        (
            "bind 0\nserver a\n",
            "1:1: port 0 is out of range: write 1 to 65535",
        ),
        (
            "port 25 26\nserver a\n",
            "1:1: '26' is one word too many: port takes a value",
        ),
        ("timeout\n", "1:1: timeout needs a value"),
        (
            "timeout 1 2\n",
            "1:11: '2' is one word too many: timeout takes a value",
        ),
        (
            "clear-env yes no\n",
            "1:15: 'no' is one word too many: clear-env takes yes or no",
        ),
        ("clear-env ''\n", "1:11: clear-env takes yes or no"),
        (
            "Timeout 1\n",
            "1:1: unknown directive 'Timeout' (did you mean 'timeout'?)",
        ),
    ] {
        let said = Conf::new(text).says(&["--check"]);
        let expected = format!("tcpproxy: conf:{complaint}");
        assert_eq!(said.refused(78)[0], expected, "{text}");
    }
    for setting in SETTINGS {
        if setting.scope == Scope::CommandLine && setting.name != "bind" {
            let said = Conf::new(setting.name).says(&["--check"]);
            let expected = format!("unknown directive '{}'", setting.name);
            assert!(said.refused(78)[0].contains(&expected), "{}", setting.name);
        }
    }
}

#[test]
fn inner_scopes_replace_what_outer_ones_say_and_add_rules_to_theirs() {
    for setting in directives().filter(|setting| setting.scope == Scope::Service) {
        let name = setting.name;
        let [first, second, third] = values(setting);
        let conf = Conf::new(format!(
            "{}{name} {first}\n\
             port 1\nserver a\n\
             port 2\nserver a\n{name} {second}\n\
             interface 127.0.0.1\n\
             interface 127.0.0.2\n{name} {third}\n\
             bind 127.0.0.3:3\nserver a\n{name} {third}\n",
            goes_with(setting)
        ));
        let shown = shown(&conf.says(&["-zz"]).ok(), setting);
        let expected: [(&str, &[&str]); 5] = match name {
            "allow" | "deny" | "accept-proxy" => [
                ("*:1", &[first]),
                ("*:2", &[first, second]),
                ("127.0.0.1:2", &[first, second]),
                ("127.0.0.2:2", &[first, second, third]),
                ("127.0.0.3:3", &[first, third]),
            ],
            _ => [
                ("*:1", &[first]),
                ("*:2", &[second]),
                ("127.0.0.1:2", &[second]),
                ("127.0.0.2:2", &[third]),
                ("127.0.0.3:3", &[third]),
            ],
        };
        for (place, expected) in expected {
            assert_eq!(
                holding(&shown, setting, place),
                expected,
                "{name} at {place}"
            );
        }
    }
}

#[test]
fn options_override_the_defaults_of_the_file_but_not_what_a_service_says() {
    for setting in directives() {
        let name = setting.name;
        let [first, second, third] = values(setting);
        let in_service = match setting.scope {
            Scope::Service => format!("{name} {second}\n"),
            Scope::Server | Scope::CommandLine => String::new(),
        };
        let conf = Conf::new(format!(
            "{}{name} {first}\nport 1\nserver a\nport 2\nserver a\n{in_service}",
            goes_with(setting)
        ));
        let options = option(setting, third);
        let shown = shown(&says(&conf, &options, &["-zz"]).ok(), setting);
        match (setting.scope, name) {
            (Scope::Service, "allow" | "deny" | "accept-proxy") => {
                assert_eq!(holding(&shown, setting, "*:1"), [first, third], "{name}");
                let expected = [first, third, second];
                assert_eq!(holding(&shown, setting, "*:2"), expected, "{name}");
            }
            (Scope::Service, _) => {
                assert_eq!(shown["*:1"], [third], "{name}");
                assert_eq!(shown["*:2"], [second], "{name}");
            }
            // The targets of the log do not add up.
            (Scope::Server | Scope::CommandLine, _) => assert_eq!(shown[""], [third], "{name}"),
        }
    }
}

#[test]
fn with_a_server_on_the_command_line_the_file_has_defaults_only() {
    let conf = Conf::new("timeout 7\nallow 127.0.0.1\nport 25\nserver a\ntimeout 8\ndeny ANY\n");
    assert_eq!(conf.says(&["-z", "-b", "::1.2.3.4:26", "b"]).status, 64);
    assert_eq!(
        conf.says(&["-z", "-b", "[::1]:26", "-b", "27", "b"]).ok(),
        "[::1]:26\n*:27\n"
    );
    let text = conf.says(&["-zz", "-b", "[::1]:26", "b"]).ok();
    assert!(text.contains("\nbind [::1]:26\n    server b\n"), "{text}");
    assert!(
        text.contains("\n    timeout 7\n") && !text.contains("timeout 8"),
        "{text}"
    );
    assert!(
        !text.contains(":25") && !text.contains("deny ANY"),
        "{text}"
    );
    assert!(conf.says(&["--explain", "127.0.0.1", "b"]).status == 0);
    assert!(conf.says(&["--explain", "127.0.0.2", "b"]).status == 1);
    // All of it has to be right nevertheless.
    let wrong = Conf::new("port 25\nsever a\nport 26\n");
    assert_eq!(
        wrong.says(&["-b", "26", "--check", "b"]).refused(78).len(),
        2
    );
}
