//! Options and directives: what the one accepts the other accepts, with the same meaning.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tcpproxy::settings::{SETTINGS, Scope, Setting, Takes};

use crate::harness::config_file::Conf;

fn directives() -> impl Iterator<Item = &'static Setting> {
    let wanted = |setting: &&Setting| setting.scope != Scope::CommandLine;
    SETTINGS.iter().filter(wanted)
}

/// Texts that are values of some setting or other, or of none.
const TEXTS: &[&str] = &[
    "",
    " ",
    "0",
    "1",
    "-1",
    "1.5",
    "10m",
    "500ms",
    "64k",
    "007",
    "1e3",
    "x",
    "yes",
    "no",
    "ANY",
    "127.0.0.1",
    "127.1",
    "10.0.0.0/8",
    "10.0.0.0/33",
    "10.*",
    "::1",
    "[::1]",
    "fe80::1%lo",
    "defer",
    "json",
    "client",
    "client:port",
    "client:80",
    "syslog",
    "file:",
    "file:/x",
    "/x",
    "x y",
    "'x y' z",
    "'x",
    "a\\b",
    "X_",
    "root",
    "nobody",
    "no-such-user",
    "70000",
    "10/60",
    "10/1m:5",
    "0/1",
    "info",
    "inof",
    "99999999999999999999",
    "é",
    "5 ",
    "a\tb",
    "a\nb",
    "#x",
    "\"",
];

/// A text as one word of the file.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", escaped.replace('\n', "\\n").replace('\t', "\\t"))
}

#[test]
fn what_an_option_accepts_its_directive_accepts_and_means_the_same() {
    let rest = "port 25\nserver a\n";
    let base = Conf::new(rest);
    let accepted = AtomicUsize::new(0);
    let compare = |setting: &Setting, text: &str| {
        let name = setting.name;
        let by_option = base.says(&[&format!("--{name}={text}"), "-zz"]);
        let conf = Conf::new(format!("{name} {}\n{rest}", quoted(text)));
        let by_directive = conf.says(&["-zz"]);
        if by_option.status == 0 {
            accepted.fetch_add(1, Ordering::Relaxed);
            assert_eq!(by_directive.ok(), by_option.out, "{name} {text:?}");
            return;
        }
        let complaint = by_option
            .err
            .split_once(&format!("{}: ", setting.spelling()));
        let (_, complaint) = complaint.unwrap_or_else(|| panic!("{by_option:?}"));
        let line = by_directive.refused(78)[0];
        let of_directive = line.split_once(name).map_or("", |(_, rest)| rest);
        let of_directive = of_directive.trim_start_matches([':', ' ']);
        assert_eq!(of_directive, complaint.trim_end(), "{name} {text:?}");
    };
    let with_values = directives().filter(|setting| setting.takes != Takes::Switch);
    let settings: Vec<&Setting> = with_values.collect();
    thread::scope(|scope| {
        for part in settings.chunks(settings.len().div_ceil(4)) {
            scope.spawn(|| {
                for (setting, text) in part.iter().flat_map(|s| TEXTS.iter().map(move |t| (s, t))) {
                    // Where the value may be missing, an empty word is none on the command line.
                    if !(matches!(setting.takes, Takes::Perhaps(_)) && text.is_empty()) {
                        compare(setting, text);
                    }
                }
            });
        }
    });
    let accepted = accepted.into_inner();
    assert!(accepted > 100, "{accepted}");
}

#[test]
fn a_switch_is_on_by_yes_or_by_nothing_as_by_its_option_and_off_by_no() {
    let rest = "port 25\nserver a\n";
    for setting in directives().filter(|setting| setting.takes == Takes::Switch) {
        let name = setting.name;
        let by_option = Conf::new(rest).says(&[&format!("--{name}"), "-zz"]).ok();
        for line in [name.to_owned(), format!("{name} yes")] {
            let text = format!("{line}\n{rest}");
            assert_eq!(Conf::new(text).says(&["-zz"]).ok(), by_option, "{line}");
        }
        let off = Conf::new(format!("{name} no\n{rest}")).says(&["-zz"]).ok();
        assert!(off.contains(&format!("{name} no\n")), "{off}");
        assert!(!off.contains(&format!("{name} yes\n")), "{off}");
        for word in ["on", "off", "Yes", "1", "true"] {
            let said = Conf::new(format!("{name} {word}\n{rest}")).says(&["-zz"]);
            assert!(
                said.refused(78)[0].contains(&format!("{name}: '{word}'")),
                "{said:?}"
            );
        }
    }
}

#[test]
fn the_pid_file_of_the_option_is_that_of_the_directive() {
    let rest = "port 25\nserver a\n";
    let zz = |text: &str, options: &[&str]| {
        let options = [options, &["-zz"]].concat();
        Conf::new(format!("{text}{rest}")).says(&options).ok()
    };
    let default = zz("pidfile\n", &[]);
    assert!(
        default.contains("\npidfile /var/run/tcpproxy.pid\n"),
        "{default}"
    );
    assert_eq!(zz("pidfile yes\n", &[]), default);
    assert_eq!(zz("", &["-p"]), default);
    assert_eq!(zz("", &["--pidfile"]), default);
    assert_eq!(zz("pidfile /p\n", &[]), zz("", &["-p", "-p", "/p"]));
    assert_eq!(zz("pidfile no\n", &[]), zz("", &[]));
    // The command line's word counts.
    assert_eq!(zz("pidfile /p\n", &["-p"]), default);
}
