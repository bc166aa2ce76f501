//! HTTP's CONNECT: a proxy is asked for a connection to a host and, once it has said yes, is that
//! connection (RFC 9110, section 9.3.6; the form of heads is RFC 9112's).
//!
//! Of an answer nothing is wanted but its status and where its head ends: fields that would say how long
//! a body is mean nothing in the one that says yes, and what follows any other is not read. So [`read`]
//! knows lines, and no fields. As with a PROXY header, all that has come belongs to an answer as long as
//! it is incomplete.

use crate::terms::credentials::Credentials;
use crate::terms::escape::brief;
use crate::terms::progress::Progress;

/// The longest answer that is read, in bytes: its head, and those of interim answers before it.
pub const LONGEST: usize = 16 << 10;

/// What an answer begins with, up to the minor version.
const START: &[u8] = b"HTTP/1.";

/// What a proxy has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// 100 to 999.
    pub code: u16,
    /// The whole first line, fit for a log.
    pub line: String,
}

impl Status {
    /// Whether what follows is the connection that was asked for.
    pub fn is_success(&self) -> bool {
        matches!(self.code, 200..300)
    }
}

/// The request for a connection to a port of a host: a name, or an address of either family.
pub fn request(host: &str, port: u16, credentials: Option<&Credentials>) -> Vec<u8> {
    let authority = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let mut text = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
    if let Some(credentials) = credentials {
        let pair = [credentials.user(), b":", credentials.password()].concat();
        // RFC 7617, section 2.
        text += &format!("Proxy-Authorization: Basic {}\r\n", base64(&pair));
    }
    text += "\r\n";
    text.into_bytes()
}

/// Reads the answer that these bytes begin with, or are the beginning of. Of one that says yes the head
/// is read to its end, of any other the first line.
pub fn read(bytes: &[u8]) -> Progress<Status> {
    let within = &bytes[..bytes.len().min(LONGEST)];
    match read_within(within) {
        Ok(Some((says, length))) => Progress::Complete { says, length },
        Ok(None) if within.len() < LONGEST => Progress::Incomplete,
        Ok(None) => Progress::Wrong(format!(
            "its answer has more than {LONGEST} bytes: {}",
            beginning(within)
        )),
        Err(why) => Progress::Wrong(why),
    }
}

fn read_within(bytes: &[u8]) -> Result<Option<(Status, usize)>, String> {
    let mut start = 0;
    loop {
        let head = &bytes[start..];
        let common = head.len().min(START.len());
        if head[..common] != START[..common] {
            return Err(format!("its answer is no HTTP/1: {}", beginning(head)));
        }
        let mut lines = Lines { rest: head };
        let Some(line) = lines.next() else {
            return Ok(None);
        };
        let status = status(line).ok_or_else(|| {
            let line = brief(line);
            format!("its answer does not begin with a status: '{line}'")
        })?;
        let is_interim = matches!(status.code, 100 | 102..200);
        if !is_interim && !status.is_success() {
            let length = bytes.len() - lines.rest.len();
            return Ok(Some((status, length)));
        }
        loop {
            match lines.next() {
                None => return Ok(None),
                Some(b"") => break,
                Some(line) if is_field(line) => {}
                Some(line) => {
                    let (first, line) = (&status.line, brief(line));
                    return Err(format!("its answer, '{first}', has no field in '{line}'"));
                }
            }
        }
        start = bytes.len() - lines.rest.len();
        if status.is_success() {
            return Ok(Some((status, start)));
        }
    }
}

/// Lines that have come to their end, without it: CR and LF, or LF alone (RFC 9112, section 2.2).
struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.rest.iter().position(|&byte| byte == b'\n')?;
        let line = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

/// A status line: `HTTP/1.`, a digit, a blank, three digits, and perhaps a blank and a reason.
fn status(line: &[u8]) -> Option<Status> {
    let [minor, b' ', code @ ..] = line.strip_prefix(START)? else {
        return None;
    };
    let (code, reason) = code.split_at_checked(3)?;
    let is_line = minor.is_ascii_digit()
        && matches!(code[0], b'1'..=b'9')
        && code.iter().all(u8::is_ascii_digit)
        && matches!(reason, [] | [b' ', ..])
        && is_text(reason);
    is_line.then(|| Status {
        code: code
            .iter()
            .fold(0, |number, digit| number * 10 + u16::from(digit - b'0')),
        line: brief(line),
    })
}

/// Whether a line is one of a field, or continues one (RFC 9112, section 5.2).
fn is_field(line: &[u8]) -> bool {
    let name = line.iter().position(|&byte| byte == b':');
    let is_named = name.is_some_and(|end| end > 0 && line[..end].iter().all(u8::is_ascii_graphic));
    (is_named || matches!(line.first(), Some(b' ' | b'\t'))) && is_text(line)
}

/// Without control characters but tabs.
fn is_text(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .all(|byte| *byte == b'\t' || !byte.is_ascii_control())
}

/// The first line of what has come, fit for a log.
fn beginning(bytes: &[u8]) -> String {
    let mut lines = bytes.split(|&byte| byte == b'\n');
    let line = lines.next().unwrap_or_default();
    format!("'{}'", brief(line.strip_suffix(b"\r").unwrap_or(line)))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| {
            bits << 8 | u32::from(three.get(at).copied().unwrap_or(0))
        });
        for at in 0..4 {
            let six = bits >> (18 - 6 * at) & 63;
            text.push(if at <= three.len() {
                char::from(ALPHABET[six as usize])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(text: &str) -> (u16, usize) {
        match read(text.as_bytes()) {
            Progress::Complete { says, length } => (says.code, length),
            other => panic!("{other:?} of {text:?}"),
        }
    }

    fn wrong(bytes: &[u8]) -> String {
        match read(bytes) {
            Progress::Wrong(why) => why,
            other => panic!("{other:?} of {bytes:?}"),
        }
    }

    #[test]
    fn a_request_names_the_host_as_it_is_and_the_credentials_in_base64() {
        let text = |host, credentials: Option<&Credentials>| {
            String::from_utf8(request(host, 25, credentials)).unwrap()
        };
        assert_eq!(
            text("mail.example", None),
            "CONNECT mail.example:25 HTTP/1.1\r\nHost: mail.example:25\r\n\r\n"
        );
        assert!(text("::1", None).starts_with("CONNECT [::1]:25 HTTP/1.1\r\nHost: [::1]:25\r\n"));
        // The example of RFC 7617, section 2.
        let credentials = Credentials::new("Aladdin", "open sesame").unwrap();
        let authorization = "\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n";
        assert!(text("a", Some(&credentials)).ends_with(authorization));
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        // RFC 4648, section 10.
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn the_head_of_a_yes_is_read_and_not_a_byte_behind_it() {
        for head in [
            "HTTP/1.1 200 Connection established\r\n\r\n",
            "HTTP/1.0 200\r\n\r\n",
            "HTTP/1.0 204 \n\n",
            "HTTP/1.9 299 x\r\nVia: 1.1 squid\r\nContent-Length: 10\n folded\r\nA:\r\n\r\n",
        ] {
            for behind in ["", "\r\n", "HTTP/1.1 500 x\r\n\r\n"] {
                let (code, length) = complete(&format!("{head}{behind}"));
                assert_eq!((code / 100, length), (2, head.len()), "{head:?}");
            }
            for end in 0..head.len() {
                assert_eq!(
                    read(&head.as_bytes()[..end]),
                    Progress::Incomplete,
                    "{head:?}"
                );
            }
        }
    }

    #[test]
    fn interim_answers_are_read_over() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
        let all = format!("{interim}HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(complete(&format!("{all}data")), (200, all.len()));
        for end in 0..all.len() {
            assert_eq!(read(&all.as_bytes()[..end]), Progress::Incomplete);
        }
        assert_eq!(complete(&format!("{interim}HTTP/1.1 502 Bad\r\n")).0, 502);
    }

    #[test]
    fn any_other_answer_is_known_by_its_first_line() {
        for (line, code) in [
            ("HTTP/1.1 407 Proxy Authentication Required", 407),
            ("HTTP/1.0 503", 503),
            ("HTTP/1.1 302 Found", 302),
            // What was not asked for (RFC 9110, section 15.2.2) is no interim answer.
            ("HTTP/1.1 101 Switching Protocols", 101),
            ("HTTP/1.1 999 ", 999),
        ] {
            let text = format!("{line}\r\n");
            assert_eq!(
                complete(&format!("{text}Server: x\r\n")),
                (code, text.len())
            );
            match read(text.as_bytes()) {
                Progress::Complete { says, .. } => assert_eq!(says.line, line),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_answer_is_told_with_its_first_line_escaped_and_cut() {
        for (bytes, first) in [
            (&b"SSH-2.0-OpenSSH_9.2\r\n"[..], "'SSH-2.0-OpenSSH_9.2'"),
            (b"x", "'x'"),
            (b"\0\x1b[31m\nfoo", "'\\x00\\x1b[31m'"),
            (b"HTTP/2 200\r\n", "'HTTP/2 200'"),
            (b"HTTP/1.1  200\r\n", "'HTTP/1.1  200'"),
            (b"HTTP/1.1 20\r\n", "'HTTP/1.1 20'"),
            (b"HTTP/1.1 2000\r\n", "'HTTP/1.1 2000'"),
            (b"HTTP/1.1 099 x\r\n", "'HTTP/1.1 099 x'"),
            (b"HTTP/1.x 200 x\r\n", "'HTTP/1.x 200 x'"),
            (b"HTTP/1.1 200 a\rb\r\n", "'HTTP/1.1 200 a\\x0db'"),
            (b"HTTP/1.1 200 OK\r\nno field\r\n", "'HTTP/1.1 200 OK'"),
            (b"HTTP/1.1 200 OK\r\n: x\r\n", "'HTTP/1.1 200 OK'"),
            (b"HTTP/1.1 200 OK\r\na b: x\r\n", "'HTTP/1.1 200 OK'"),
            (b"HTTP/1.1 200 OK\r\na: \0\r\n", "'HTTP/1.1 200 OK'"),
            (b"HTTP/1.1 100 x\r\n\r\n220 hello\r\n", "'220 hello'"),
        ] {
            let why = wrong(bytes);
            assert!(why.contains(first), "{why}");
        }
        let long = wrong(&[b'x'; 5000]);
        assert!(long.len() < 200, "{long}");
    }

    #[test]
    fn an_answer_has_16_kib_at_most() {
        let start = "HTTP/1.1 200 OK\r\nX: ";
        let fill = "x".repeat(LONGEST - start.len() - 4);
        let longest = format!("{start}{fill}\r\n\r\n");
        assert_eq!(complete(&format!("{longest}data")), (200, LONGEST));
        let longer = format!("{start}{fill}x\r\n\r\n");
        assert_eq!(
            read(&longer.as_bytes()[..LONGEST - 1]),
            Progress::Incomplete
        );
        for end in [LONGEST, longer.len()] {
            let why = wrong(&longer.as_bytes()[..end]);
            assert!(
                why.contains("more than 16384 bytes: 'HTTP/1.1 200 OK'"),
                "{why}"
            );
        }
        // Interim answers included.
        let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(1000);
        assert!(wrong(interim.as_bytes()).contains("more than 16384 bytes"));
    }
}
