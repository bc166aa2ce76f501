//! FTP's control connection (RFC 959), as far as it speaks of other connections: PORT and PASV, EPRT and
//! EPSV (RFC 2428), and AUTH (RFC 2228), behind which nothing can be read any more.
//!
//! `command` and `reply` read and write single lines; [`Dialogue`] knows which reply belongs to which
//! command, says what is to become of each line, and what is to be listened for. Whoever holds the
//! connection cuts it into lines ([`first_line`]) and does the listening.

mod command;
mod dialogue;
mod reply;

pub use dialogue::{Active, Dialogue, Ends, Heard, NO_DATA_CONNECTION, Passive, Told};

/// The longest line, with its end: as long as the longest path of Linux, and as vsftpd takes.
pub const LONGEST_LINE: usize = 4096;

/// What bytes begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstLine {
    /// A line of so many bytes, its LF included. There need be no CR before that.
    Whole(usize),
    /// The beginning of a line, or nothing.
    Part,
    /// A line that is longer than any may be.
    TooLong,
}

/// Looks for the first line. Any LF ends one, whatever stands before it: so do the simplest servers, and
/// none that sees fewer lines than we is to be told more by what we pass on.
pub fn first_line(bytes: &[u8]) -> FirstLine {
    let within = &bytes[..bytes.len().min(LONGEST_LINE)];
    match within.iter().position(|&byte| byte == b'\n') {
        Some(at) => FirstLine::Whole(at + 1),
        None if bytes.len() >= LONGEST_LINE => FirstLine::TooLong,
        None => FirstLine::Part,
    }
}

/// Telnet's "interpret as command" (RFC 854).
const IAC: u8 = 0xff;

/// A line without the commands to Telnet that may stand anywhere in it (RFC 959 §4.1.3: ABOR comes
/// behind two), and those commands.
fn without_telnet(line: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut text, mut telnet) = (Vec::with_capacity(line.len()), Vec::new());
    let mut rest = line;
    while let Some((&first, behind)) = rest.split_first() {
        let length = match (first, behind.first()) {
            // A byte of the text that is written twice.
            (IAC, Some(&IAC)) => {
                text.push(IAC);
                rest = &behind[1..];
                continue;
            }
            // WILL, WON'T, DO and DON'T have an option behind them; the line's end is none.
            (IAC, Some(0xfb..=0xfe)) if behind.get(1).is_some_and(|&option| option != b'\n') => 3,
            (IAC, Some(&command)) if command != b'\n' => 2,
            _ => {
                text.push(first);
                rest = behind;
                continue;
            }
        };
        telnet.extend_from_slice(&rest[..length]);
        rest = &rest[length..];
    }
    (text, telnet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_with_the_first_lf_and_may_have_4096_bytes() {
        assert_eq!(first_line(b""), FirstLine::Part);
        assert_eq!(first_line(b"NOOP\r"), FirstLine::Part);
        assert_eq!(first_line(b"NOOP\r\nQUIT\r\n"), FirstLine::Whole(6));
        assert_eq!(first_line(b"\nQUIT"), FirstLine::Whole(1));
        assert_eq!(first_line(&[b'a'; 4095]), FirstLine::Part);
        assert_eq!(first_line(&[b'a'; 4096]), FirstLine::TooLong);
        let mut longest = [b'a'; 4096];
        longest[4095] = b'\n';
        assert_eq!(first_line(&longest), FirstLine::Whole(4096));
    }

    #[test]
    fn commands_to_telnet_are_told_from_the_text() {
        for (line, text, telnet) in [
            (
                &b"\xff\xf4\xff\xf2ABOR\r\n"[..],
                &b"ABOR\r\n"[..],
                &b"\xff\xf4\xff\xf2"[..],
            ),
            (b"PO\xff\xfb\x01RT 1\n", b"PORT 1\n", b"\xff\xfb\x01"),
            (b"STOR a\xff\xffb\n", b"STOR a\xffb\n", b""),
            (b"NOOP\xff\n", b"NOOP\xff\n", b""),
            (b"NOOP\xff\xfd\n", b"NOOP\n", b"\xff\xfd"),
            (b"\xff", b"\xff", b""),
        ] {
            assert_eq!(without_telnet(line), (text.to_vec(), telnet.to_vec()));
        }
    }
}
