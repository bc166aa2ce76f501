//! The options, where they are written and shown, and what is said of those that do not fit.

use crate::harness::config_file::Conf;
use crate::harness::{Said, launched_by};

#[test]
fn a_helper_is_printed_checked_and_explained() {
    let text = "port 8080\nserver proxy:3128\nhelper http-proxy\nhttp-force http://a.example/b\n";
    let conf = Conf::new(text);
    let printed = conf.says(&["-zz"]).ok();
    assert!(printed.contains("    helper http-proxy\n"), "{printed}");
    assert!(
        printed.contains("    http-force http://a.example/b\n"),
        "{printed}"
    );
    let again = Conf::new(&printed);
    assert_eq!(again.says(&["-zz"]).ok(), printed);
    assert_eq!(conf.says(&["--check"]).ok(), "ok\n");
    let explained = conf.says(&["--explain", "127.0.0.1"]).ok();
    assert!(explained.contains("helper: http-proxy\n"), "{explained}");
}

#[test]
fn what_does_not_fit_together_is_an_error_at_its_place() {
    for (text, expected) in [
        (
            "port 25\nexec /bin/cat\nhelper http-proxy\n",
            "conf:3:1: helper: http-proxy cannot go with a handler: leave that out, or write helper no",
        ),
        (
            "helper http-proxy\nport 25\nexec /bin/cat\n",
            "conf:2:1: helper: http-proxy cannot go with a handler: leave that out, or write helper no",
        ),
        (
            "delay 1\nport 25\nserver a\nhelper http-proxy\n",
            "conf:4:1: helper: http-proxy cannot go with delay: leave that out, or write helper no",
        ),
        (
            "port 25\nserver a\nhttp-force http://a/\n",
            "conf:3:1: http-force is of no use without helper http-proxy",
        ),
        (
            "port 25\nserver a\nhelper http-proxi\n",
            "conf:3:8: helper: 'http-proxi' is unknown (did you mean 'http-proxy'?)",
        ),
    ] {
        let said = Conf::new(text).says(&["--check"]);
        let lines = said.refused(78);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains(expected), "{lines:?}");
    }
    // A service may have none where the others do.
    let text = "helper http-proxy\nport 25\nexec /bin/cat\nhelper no\nport 80\nserver a\n";
    assert_eq!(Conf::new(text).says(&["--check"]).ok(), "ok\n");
}

#[test]
fn on_the_command_line_they_are_errors_of_usage() {
    for (arguments, expected) in [
        (
            &["--helper", "http-proxy", "/bin/cat"][..],
            "option --helper: http-proxy cannot go with a handler",
        ),
        (
            &["--http-force", "http://a/", "host"],
            "option --http-force: is of no use without --helper",
        ),
        (&["--helper", "gopher", "host"], "option --helper: 'gopher'"),
        (
            &["--helper", "http-proxy", "--http-force", "a", "host"],
            "option --http-force: 'a' is not a URL",
        ),
        (
            &[
                "--helper",
                "http-proxy",
                "--http-force",
                "http:///a",
                "host",
            ],
            "is not a URL",
        ),
        (
            &[
                "--helper",
                "http-proxy",
                "--http-force",
                "http://a/ b",
                "host",
            ],
            "is not a URL",
        ),
        (
            &[
                "--helper",
                "http-proxy",
                "--http-force",
                "http://a/#b",
                "host",
            ],
            "is not a URL",
        ),
    ] {
        let said = Said::by(launched_by(&[], arguments).args(["-b", "0", "--check"]));
        let lines = said.refused(64);
        assert!(lines[0].contains(expected), "{lines:?}");
    }
}
