//! The answer of an access program that may choose its client's upstreams: lines `server H[:P] ...`, and
//! nothing else.

use std::str;

use crate::terms::escape::brief;

/// The longest answer that is read, in bytes.
pub const LONGEST: usize = 4096;

/// The servers that an answer names, in order; none where it is empty. Whether each could be one is for
/// others to say. Fails with a sentence that says what is wrong, and where.
pub fn servers(answer: &[u8]) -> Result<Vec<&str>, String> {
    if answer.len() > LONGEST {
        return Err(format!("it has more than {LONGEST} bytes"));
    }
    if answer.is_empty() {
        return Ok(Vec::new());
    }
    let lines = answer.strip_suffix(b"\n").unwrap_or(answer);
    let mut servers = Vec::new();
    for (line, number) in lines.split(|&byte| byte == b'\n').zip(1..) {
        let wrong = |shown: &[u8]| {
            let shown = brief(shown);
            format!("line {number} is '{shown}': write server host[:port] ...")
        };
        let text = str::from_utf8(line).map_err(|_| wrong(line))?;
        let mut words = text.split([' ', '\t']).filter(|word| !word.is_empty());
        let named = servers.len();
        if words.next() == Some("server") {
            servers.extend(words);
        }
        if servers.len() == named {
            return Err(wrong(line));
        }
    }
    Ok(servers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_those_of_all_lines_in_order() {
        for (answer, expected) in [
            ("", &[][..]),
            ("server a", &["a"]),
            ("server a\n", &["a"]),
            (
                "  server\ta:25   [::1]:26 \nserver unix:/c\n",
                &["a:25", "[::1]:26", "unix:/c"],
            ),
            // Not for this to judge.
            ("server a\r\nserver :", &["a\r", ":"]),
        ] {
            assert_eq!(servers(answer.as_bytes()).unwrap(), expected, "{answer:?}");
        }
    }

    #[test]
    fn whatever_else_there_is_is_wrong_and_said_to_be() {
        for (answer, complaint) in [
            (&b"\n"[..], "line 1 is ''"),
            (b"server", "line 1 is 'server'"),
            (b"server a\n\n", "line 2 is ''"),
            (b"server a\nserver \t\n", "line 2 is 'server "),
            (b"Server a", "line 1 is 'Server a'"),
            (b"servera", "line 1 is 'servera'"),
            (b"a:25", "line 1 is 'a:25'"),
            (b"# server a", "line 1 is '# server a'"),
            (b"server \xff", "line 1 is 'server "),
        ] {
            let wrong = servers(answer).unwrap_err();
            assert!(wrong.contains(complaint), "{wrong}");
            assert!(wrong.ends_with(": write server host[:port] ..."), "{wrong}");
            assert!(!wrong.contains(char::is_control), "{wrong:?}");
        }
    }

    #[test]
    fn an_answer_has_so_many_bytes_and_no_more() {
        let mut answer = b"server ".to_vec();
        answer.resize(LONGEST, b'a');
        assert_eq!(servers(&answer).unwrap()[0].len(), LONGEST - 7);
        answer.push(b'\n');
        assert_eq!(servers(&answer).unwrap_err(), "it has more than 4096 bytes");
    }
}
