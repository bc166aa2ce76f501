//! What follows a head: how long it is, and where it ends (RFC 9112, sections 6 and 7).

use httparse::EMPTY_HEADER;

use super::section::Section;
use super::{MOST_FIELDS, Refusal};

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// After so many bytes, which may be none.
    Length(u64),
    Chunked,
}

/// What is left of a body.
#[derive(Debug)]
pub(super) enum Body {
    Length(u64),
    Chunked(Chunked),
}

/// The longest line with a chunk's size and its extensions, in bytes.
const LONGEST_LINE: usize = 4096;

/// What is left of a chunked body.
#[derive(Debug)]
pub(super) enum Chunked {
    /// The line with a chunk's size, so far.
    Size(Vec<u8>),
    Data(u64),
    /// The CRLF behind a chunk, and whether its CR has come.
    End(bool),
    Trailers(Section),
}

impl From<Framing> for Body {
    fn from(framing: Framing) -> Body {
        match framing {
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::Chunked(Chunked::Size(Vec::new())),
        }
    }
}

impl Body {
    /// Takes bytes up to its end at most, and gives those that are understood to `onward`. Returns how
    /// many, and whether it is complete.
    pub(super) fn take(
        &mut self,
        rest: &[u8],
        mut onward: impl FnMut(&[u8]),
    ) -> Result<(usize, bool), Refusal> {
        match self {
            Body::Length(left) => {
                let taken = some(left, rest, &mut onward);
                Ok((taken, *left == 0))
            }
            Body::Chunked(chunked) => {
                let mut taken = 0;
                while taken < rest.len() {
                    let (count, ended) = chunked.take(&rest[taken..], &mut onward)?;
                    taken += count;
                    if ended {
                        return Ok((taken, true));
                    }
                }
                Ok((taken, false))
            }
        }
    }
}

/// Takes as many bytes as are left to be taken. Returns how many.
fn some(left: &mut u64, rest: &[u8], onward: &mut impl FnMut(&[u8])) -> usize {
    let count = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
    onward(&rest[..count]);
    *left -= count as u64;
    count
}

impl Chunked {
    /// Takes what comes next, of which there is something.
    fn take(
        &mut self,
        rest: &[u8],
        onward: &mut impl FnMut(&[u8]),
    ) -> Result<(usize, bool), Refusal> {
        match self {
            Chunked::Size(line) => {
                let end = rest.iter().position(|&byte| byte == b'\n');
                let count = end.map_or(rest.len(), |end| end + 1);
                if line.len() + count > LONGEST_LINE {
                    return Err(Refusal::Bad("the line with a chunk's size is too long"));
                }
                line.extend_from_slice(&rest[..count]);
                if end.is_some() {
                    let size = size_in(line)?;
                    onward(line);
                    *self = match size {
                        0 => Chunked::Trailers(Section::trailers()),
                        size => Chunked::Data(size),
                    };
                } else if line.iter().any(|&byte| is_control(byte) && byte != b'\r') {
                    return Err(BAD_SIZE);
                }
                Ok((count, false))
            }
            Chunked::Data(left) => {
                let count = some(left, rest, onward);
                if *left == 0 {
                    *self = Chunked::End(false);
                }
                Ok((count, false))
            }
            Chunked::End(after_cr) => {
                match (*after_cr, rest[0]) {
                    (false, b'\r') => *after_cr = true,
                    (true, b'\n') => {
                        onward(b"\r\n");
                        *self = Chunked::Size(Vec::new());
                    }
                    _ => return Err(Refusal::Bad("a chunk does not end where its size says")),
                }
                Ok((1, false))
            }
            Chunked::Trailers(section) => {
                let (count, ended) = section.take(rest)?;
                if ended {
                    let bytes = section.take_all();
                    let mut fields = [EMPTY_HEADER; MOST_FIELDS];
                    httparse::parse_headers(&bytes, &mut fields)?;
                    onward(&bytes);
                }
                Ok((count, ended))
            }
        }
    }
}

const BAD_SIZE: Refusal = Refusal::Bad("a chunk's size is malformed");

/// More digits than sizes have (16 are 64 bits) that anybody could mean.
const MOST_DIGITS: usize = 15;

/// The size that a line begins with. Extensions are for the proxy, if they are text.
fn size_in(line: &[u8]) -> Result<u64, Refusal> {
    let line = line.strip_suffix(b"\r\n").ok_or(BAD_SIZE)?;
    let is_digit = |byte: &u8| byte.is_ascii_hexdigit();
    let end = line.iter().position(|byte| !is_digit(byte));
    let (digits, extensions) = line.split_at(end.unwrap_or(line.len()));
    if digits.is_empty() || digits.len() > MOST_DIGITS {
        return Err(BAD_SIZE);
    }
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let first = extensions.iter().find(|byte| !blank(byte));
    // Blanks without an extension behind them are part of the size to some readers, and not to others.
    let is_extension = extensions.is_empty() || first == Some(&b';');
    if !is_extension || extensions.iter().any(|&byte| is_control(byte)) {
        return Err(BAD_SIZE);
    }
    let value = |size: u64, digit: &u8| size << 4 | u64::from(hex(*digit));
    Ok(digits.iter().fold(0, value))
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        // Its lower-case letter comes as far behind 'a' as its value behind ten.
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// Whether a byte can be in no line (RFC 9110, section 5.5).
fn is_control(byte: u8) -> bool {
    byte.is_ascii_control() && byte != b'\t'
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes on of a chunked body that comes in pieces of this size, and what follows it.
    fn read(text: &[u8], piece: usize) -> Result<(Vec<u8>, Option<usize>), Refusal> {
        let mut body = Body::from(Framing::Chunked);
        let mut onward = Vec::new();
        let mut taken = 0;
        while taken < text.len() {
            let rest = &text[taken..(taken + piece).min(text.len())];
            let (count, ended) = body.take(rest, |bytes| onward.extend_from_slice(bytes))?;
            taken += count;
            if ended {
                return Ok((onward, Some(taken)));
            }
        }
        Ok((onward, None))
    }

    #[test]
    fn chunks_extensions_and_trailers_go_on_as_they_are_in_any_pieces() {
        for text in [
            &b"0\r\n\r\n"[..],
            b"5\r\nhello\r\n0\r\n\r\n",
            b"00A;name=\"value; x\"\r\n0123456789\r\n000\r\n\r\n",
            b"1 ;a\r\n\n\r\n1\t; b = c\r\n\r\r\n0;last\r\nDigest: x\r\nB: \r\n\r\n",
            b"fF\r\n0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
              0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
              0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
              0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\r\n0\r\n\r\n",
        ] {
            for piece in [1, 2, 3, 7, 1000] {
                let followed = [text, b"GET"].concat();
                let (onward, end) = read(&followed, piece).unwrap();
                assert_eq!(
                    onward.escape_ascii().to_string(),
                    text.escape_ascii().to_string()
                );
                assert_eq!(end, Some(text.len()));
            }
        }
    }

    #[test]
    fn a_size_that_could_be_another_to_somebody_is_refused() {
        let long = [b"1;", &[b'a'; LONGEST_LINE][..], b"\r\n"].concat();
        for line in [
            &b"\r\n"[..],
            b" 5\r\n",
            b"5 \r\n",
            b"5\n",
            b"5\r\r\n",
            b"5;a\rb\r\n",
            b"5;a\0\r\n",
            b"0x5\r\n",
            b"+5\r\n",
            b"-5\r\n",
            b"5,5\r\n",
            b"g\r\n",
            b"5 5\r\n",
            b"1000000000000000\r\n",
            b"\x805\r\n",
            &long,
        ] {
            for piece in [1, 5000] {
                let text = [line, b"hello\r\n0\r\n\r\n"].concat();
                assert!(read(&text, piece).is_err(), "{}", line.escape_ascii());
            }
        }
    }

    #[test]
    fn what_does_not_end_where_it_should_is_refused() {
        for text in [
            &b"5\r\nhello0\r\n\r\n"[..],
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhello\r0\r\n\r\n",
            b"5\r\nhelloo\r\n0\r\n\r\n",
            b"0\r\nno field\r\n\r\n",
            b"0\r\nA: b\n\r\n",
            b"0\r\nA : b\r\n\r\n",
            b"0\r\n a: b\r\n\r\n",
            b"0\r\nA: b\r\n folded\r\n\r\n",
            b"0\r\nA: \0\r\n\r\n",
        ] {
            for piece in [1, 1000] {
                assert!(read(text, piece).is_err(), "{}", text.escape_ascii());
            }
        }
    }
}
