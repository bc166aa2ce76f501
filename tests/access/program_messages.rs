//! What an access control program says to its standard error: logged, and harmless.

use std::fs;

use crate::harness::{Scratch, Standalone, field, needs_root, read_all, wait_for_line};

/// What is logged of a program's words, in the form `session 1: access program P: WORDS`, once
/// the session is over.
fn logged(body: &str) -> Vec<String> {
    let scratch = Scratch::new();
    let file = scratch.join("access-program");
    fs::write(&file, body).unwrap();
    let program = format!("/bin/sh {}", file.display());
    // On a busy machine, ten megabytes may take it longer than 10 s.
    // A pipe's lines may be cut; a file has all of them.
    let log = scratch.join("log");
    let target = format!("file:{}", log.display());
    let options = ["--log", &target, "--acp-timeout", "20", "--acp", &program];
    let proxy = Standalone::start(&[&options[..], &["/bin/echo", "served"]].concat());
    assert_eq!(read_all(proxy.connect()), b"served\n");
    // Not by the first line that says "closed": the program may have said so.
    let closed = wait_for_line(&log, "]: session 1 closed: ");
    assert_eq!(field(&closed, "reason"), "handler-exited");
    let words = "]: session 1: access program /bin/sh: ";
    let text = fs::read_to_string(&log).unwrap();
    text.lines()
        .filter_map(|line| line.split_once(words))
        .map(|(_, said)| said.to_owned())
        .collect()
}

#[test]
fn each_line_of_standard_error_is_a_line_of_the_log() {
    needs_root();
    let said = logged("echo one >&2; echo >&2; printf 'no end of line' >&2");
    assert_eq!(said, ["one", "", "no end of line"]);
}

#[test]
fn nothing_that_it_says_can_garble_or_forge_a_line() {
    needs_root();
    let said = logged(
        r"printf 'a\033[31mred\r\177\0tab\t\\\n' >&2
          printf 'tcpproxy[1]: session 9 closed: reason=client-closed\n' >&2
          printf '\377\302\205\342\200\256\n' >&2",
    );
    assert_eq!(
        said,
        [
            r"a\x1b[31mred\x0d\x7f\x00tab\x09\\",
            "tcpproxy[1]: session 9 closed: reason=client-closed",
            r"\xff\u{85}\u{202e}",
        ]
    );
}

#[test]
fn a_line_is_cut_at_1024_bytes_before_it_is_escaped() {
    needs_root();
    let long = |byte: &str, count: usize| {
        format!("head -c {count} /dev/zero | tr '\\0' '{byte}' >&2; echo >&2\n")
    };
    let body = [
        long("x", 1023),
        long("y", 1024),
        long("z", 1025),
        long("\\001", 3000),
        "echo after >&2\n".to_owned(),
    ];
    assert_eq!(
        logged(&body.concat()),
        [
            "x".repeat(1023),
            "y".repeat(1024),
            "z".repeat(1024),
            "\\x01".repeat(1024),
            "after".to_owned()
        ]
    );
}

#[test]
fn sixty_four_lines_are_logged_and_then_that_there_were_more() {
    needs_root();
    let numbers = |last| (1..=last).map(|number| number.to_string());
    let expected: Vec<String> = numbers(64).collect();
    assert_eq!(logged("seq 1 64 >&2"), expected);
    let expected: Vec<String> = numbers(64)
        .chain(["further lines are dropped".to_owned()])
        .collect();
    assert_eq!(logged("seq 1 65 >&2"), expected);
    assert_eq!(logged("seq 1 5000 >&2"), expected);
}

#[test]
fn ten_megabytes_of_complaints_delay_nobody() {
    needs_root();
    let lines = "head -c 10000000 /dev/zero | tr '\\0' '\\n' >&2";
    assert_eq!(logged(lines).len(), 65);
    let one_line = "head -c 10000000 /dev/zero | tr '\\0' x >&2";
    assert_eq!(logged(one_line), ["x".repeat(1024)]);
    let both = format!("{lines}; {one_line}; {lines}");
    assert_eq!(logged(&both).len(), 65);
}
