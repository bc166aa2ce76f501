//! Text from outside, made fit for a line: no client can forge one, or garble a terminal.

use std::fmt::Write;

/// Text from outside in a form that can be logged: what cannot be printed, and `\`, as escapes.
/// Printable Unicode stays; bytes that are not UTF-8 become `\xNN`.
pub(crate) fn escape(text: impl AsRef<[u8]>) -> String {
    let mut escaped = String::new();
    for chunk in text.as_ref().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\'' => escaped.push(c),
                '\0'..'\u{80}' if c.is_ascii_control() => hex(&mut escaped, c as u8),
                _ => escaped.extend(c.escape_debug()),
            }
        }
        for &byte in chunk.invalid() {
            hex(&mut escaped, byte);
        }
    }
    escaped
}

/// As [`escape`], and cut to a length that a message can bear.
pub(crate) fn brief(text: impl AsRef<[u8]>) -> String {
    const LONGEST: usize = 100;
    let text = text.as_ref();
    match text.len() > LONGEST {
        true => format!("{}...", escape(&text[..LONGEST])),
        false => escape(text),
    }
}

/// As [`escape`], and without blanks, so that it can be the value of a `key=value` pair.
pub(crate) fn escape_word(text: impl AsRef<[u8]>) -> String {
    escape(text).replace(' ', "\\x20")
}

fn hex(text: &mut String, byte: u8) {
    // Writing to a String cannot fail.
    let _ = write!(text, "\\x{byte:02x}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_forge_or_garble_a_line_is_escaped() {
        for (text, expected) in [
            (&b"plain text"[..], "plain text"),
            (b"a\nsession 1 closed:", "a\\x0asession 1 closed:"),
            (b"\x1b[31mred\x7f", "\\x1b[31mred\\x7f"),
            (
                b"back\\slash 'single' \"double\"",
                "back\\\\slash 'single' \"double\"",
            ),
            ("grün €".as_bytes(), "grün €"),
            ("\u{202e}evil\u{85}".as_bytes(), "\\u{202e}evil\\u{85}"),
            (b"\xff\xfe", "\\xff\\xfe"),
        ] {
            assert_eq!(escape(text), expected);
        }
        assert_eq!(escape_word("a b"), "a\\x20b");
    }
}
