//! Access logs: their lines, and sessions that leave one.

use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::path::Path;

use super::{eventually, read_all};

/// The complete lines of a file, when there are so many.
pub fn lines(file: &Path, count: usize) -> Vec<String> {
    eventually(&format!("{count} lines in {}", file.display()), || {
        let text = fs::read_to_string(file).ok()?;
        let complete = text.ends_with('\n') && text.lines().count() >= count;
        complete.then(|| text.lines().map(str::to_owned).collect())
    })
}

/// Sends five bytes and the end, and reads the rest.
pub fn request(mut client: TcpStream) -> Vec<u8> {
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    read_all(client)
}

/// The members of a flat JSON object, in order: names, and values as they are written. Fails
/// where it is none (RFC 8259, without nesting).
pub fn members(json: &str) -> Vec<(String, String)> {
    fn string<'a>(text: &'a str, whole: &str) -> (String, &'a str) {
        let rest = text
            .strip_prefix('"')
            .unwrap_or_else(|| panic!("no string: {whole}"));
        let (mut value, mut characters) = (String::new(), rest.char_indices());
        while let Some((at, c)) = characters.next() {
            match c {
                '"' => return (value, &rest[at + 1..]),
                '\\' => match characters.next().unwrap().1 {
                    c @ ('"' | '\\' | '/') => value.push(c),
                    'u' => {
                        let hex: String = characters.by_ref().take(4).map(|(_, c)| c).collect();
                        let code = u32::from_str_radix(&hex, 16).unwrap();
                        value.push(char::from_u32(code).unwrap());
                    }
                    c => panic!("\\{c} in {whole}"),
                },
                c => {
                    assert!(!c.is_control(), "{whole}");
                    value.push(c);
                }
            }
        }
        panic!("no end of a string: {whole}")
    }
    let inner = json
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'));
    let mut rest = inner.unwrap_or_else(|| panic!("no object: {json}"));
    let mut members = Vec::new();
    loop {
        let (name, after) = string(rest, json);
        let after = after
            .strip_prefix(':')
            .unwrap_or_else(|| panic!("no colon: {json}"));
        let (value, after) = match after.starts_with('"') {
            true => string(after, json),
            false => {
                let end = after.find(',').unwrap_or(after.len());
                after[..end]
                    .parse::<f64>()
                    .unwrap_or_else(|_| panic!("no number: {json}"));
                (after[..end].to_owned(), &after[end..])
            }
        };
        members.push((name, value));
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None => {
                assert_eq!(after, "", "{json}");
                return members;
            }
        }
    }
}
