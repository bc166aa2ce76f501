//! Everything that a client says: one request behind the other.

use super::Refusal;
use super::body::{Body, Framing};
use super::request::{Awaited, Request};
use super::section::{Ends, Section};

/// A client's requests, read as they come.
#[derive(Debug)]
pub struct Requests(State);

#[derive(Debug)]
enum State {
    Head(Section),
    Body(Body),
    /// It is no HTTP any more.
    Opaque,
}

impl Default for Requests {
    fn default() -> Requests {
        Requests(State::next())
    }
}

impl State {
    fn next() -> State {
        State::Head(Section::head(Ends::Crlf))
    }
}

impl Requests {
    /// Reads on, up to the end of the next head or body at most. What of it is in a body, and understood,
    /// is added to `onward`. Returns how much was taken; and a request whose head is complete, which is for
    /// the caller to pass on, or not, before it has more read.
    pub fn read(
        &mut self,
        bytes: &[u8],
        onward: &mut Vec<u8>,
    ) -> Result<(usize, Option<Request>), Refusal> {
        let mut taken = 0;
        while taken < bytes.len() {
            let rest = &bytes[taken..];
            match &mut self.0 {
                State::Head(section) => {
                    let (count, ended) = section.take(rest).or_else(|refusal| {
                        // What is no head is no head that is too large.
                        Request::look(section.so_far()).and(Err(refusal))
                    })?;
                    taken += count;
                    if ended {
                        let request = Request::read(section.take_all())?;
                        self.0 = State::behind(&request);
                        return Ok((taken, Some(request)));
                    }
                    if let Some(bytes) = section.worth_a_look() {
                        Request::look(bytes)?;
                    }
                }
                State::Body(body) => {
                    let (count, ended) =
                        body.take(rest, |bytes| onward.extend_from_slice(bytes))?;
                    taken += count;
                    if ended {
                        self.0 = State::next();
                        return Ok((taken, None));
                    }
                }
                State::Opaque => {
                    onward.extend_from_slice(rest);
                    taken = bytes.len();
                }
            }
        }
        Ok((taken, None))
    }

    /// Whether a request's head has begun, and is not complete.
    pub(super) fn is_in_head(&self) -> bool {
        matches!(&self.0, State::Head(section) if !section.is_empty())
    }

    /// Whether a request has been passed on in part.
    pub(super) fn is_in_body(&self) -> bool {
        matches!(self.0, State::Body(_))
    }

    /// Learns that the client speaks another protocol from here on.
    pub(super) fn switch(&mut self) {
        self.0 = State::Opaque;
    }

    /// Whether it does.
    pub(super) fn is_opaque(&self) -> bool {
        matches!(self.0, State::Opaque)
    }
}

impl State {
    /// What comes behind a request's head.
    fn behind(request: &Request) -> State {
        match (request.awaits, request.framing) {
            (Awaited::Tunnel, _) => State::Opaque,
            (_, Framing::Length(0)) => State::next(),
            (_, framing) => State::Body(Body::from(framing)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes on, with every head marked, of what comes in pieces of this size.
    fn passed(text: &[u8], piece: usize) -> Result<String, Refusal> {
        let mut requests = Requests::default();
        let mut onward = Vec::new();
        for piece in text.chunks(piece) {
            let mut rest = piece;
            while !rest.is_empty() {
                let (taken, request) = requests.read(rest, &mut onward)?;
                rest = &rest[taken..];
                if let Some(request) = request {
                    onward.push(b'|');
                    request.write(&mut onward);
                }
            }
        }
        Ok(String::from_utf8(onward).unwrap())
    }

    #[test]
    fn requests_are_told_apart_however_they_are_cut() {
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let post = "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n\r\n\r\nGE";
        let chunked = "PUT /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n\
                       4;x\r\nGET \r\n0\r\nTrailer: d\r\n\r\n";
        let connect = "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n";
        let opaque = "\x16\x03\x01 GET\n\r\r";
        let text = format!("\r\n{get}{post}\r\n\r\n{chunked}{get}{connect}{opaque}");
        let expected = format!("|{get}|{post}|{chunked}|{get}|{connect}{opaque}");
        for piece in (1..20).chain([text.len()]) {
            assert_eq!(passed(text.as_bytes(), piece).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_no_http_is_refused_at_its_first_bytes() {
        let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
        let zeros = [0; 100_000];
        for bytes in [
            &zeros[..],
            hello,
            b"\0",
            b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n",
            b"\r\n\n",
            b"GET\n",
        ] {
            assert!(
                passed(bytes, bytes.len()).is_err(),
                "{}",
                bytes.escape_ascii()
            );
        }
    }

    #[test]
    fn heads_have_an_end() {
        let start = "GET / HTTP/1.1\r\nHost: a\r\nA: ";
        let head =
            |length: usize| format!("{start}{}\r\n\r\n", "a".repeat(length - start.len() - 4));
        for piece in [1, 100_000] {
            assert!(passed(head(65_536).as_bytes(), piece).is_ok());
            let refused = passed(head(65_537).as_bytes(), piece);
            assert!(matches!(refused, Err(Refusal::TooLarge(_))));
            let lines = "\r\n".repeat(40_000);
            assert!(matches!(
                passed(lines.as_bytes(), piece),
                Err(Refusal::TooLarge(_))
            ));
        }
        let many = format!("GET / HTTP/1.0\r\n{}\r\n", "A: b\r\n".repeat(257));
        assert!(matches!(
            passed(many.as_bytes(), 7),
            Err(Refusal::TooLarge(_))
        ));
        let many = format!("GET / HTTP/1.0\r\n{}\r\n", "A: b\r\n".repeat(256));
        assert!(passed(many.as_bytes(), 7).is_ok());
    }
}
