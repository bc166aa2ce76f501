//! A request's head (RFC 9112, sections 3 and 5).

use std::ops::Range;

use httparse::{EMPTY_HEADER, Status};

use super::body::Framing;
use super::{Host, MOST_FIELDS, Refusal};

/// A request's head, which was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    bytes: Vec<u8>,
    target: Range<usize>,
    form: Form,
    host: Option<Host>,
    referer: Option<Range<usize>>,
    pub(super) framing: Framing,
    pub(super) awaits: Awaited,
}

/// What a target looks like (RFC 9112, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A path alone, as an origin server is told it.
    Origin,
    /// A whole URL, as a proxy is told it.
    Absolute,
    /// A host and a port, to which a CONNECT is to lead.
    Authority,
    /// `*`: the server itself.
    Asterisk,
}

/// What a request is, as far as its answer depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// HEAD: its answer has no body, whatever its fields say.
    Fields,
    /// It asks for another protocol, which may be what follows it.
    Upgrade,
    /// What follows it is not HTTP.
    Tunnel,
    Message,
}

impl Request {
    /// Looks at the beginning of what may be a head: whether it can still become one.
    pub(super) fn look(bytes: &[u8]) -> Result<(), Refusal> {
        let mut fields = [EMPTY_HEADER; MOST_FIELDS];
        httparse::Request::new(&mut fields).parse(bytes)?;
        Ok(())
    }

    /// Reads a head, up to its empty line.
    pub(super) fn read(bytes: Vec<u8>) -> Result<Request, Refusal> {
        let mut fields = [EMPTY_HEADER; MOST_FIELDS];
        let mut head = httparse::Request::new(&mut fields);
        let status = head.parse(&bytes)?;
        let (Status::Complete(_), Some(method), Some(target), Some(version)) =
            (status, head.method, head.path, head.version)
        else {
            return Err(Refusal::Bad("the head is not complete"));
        };
        let form = Form::of(method, target)?;
        // One blank is between them, or it would not have been parsed.
        let start = method.len() + 1;
        let mut read = Fields::default();
        for field in &*head.headers {
            read.take(field.name, field.value, &bytes)?;
        }
        let (framing, host) = read.conclude(version)?;
        let awaits = match (method, read.upgrade) {
            ("CONNECT", _) => Awaited::Tunnel,
            (_, true) => Awaited::Upgrade,
            ("HEAD", false) => Awaited::Fields,
            (_, false) => Awaited::Message,
        };
        Ok(Request {
            target: start..start + target.len(),
            form,
            host,
            referer: read.referer.filter(|_| !read.several_referers),
            framing,
            awaits,
            bytes,
        })
    }

    /// What its target looks like.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Whom its Host field names, if it has one that names somebody.
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// Its target.
    pub fn target(&self) -> &[u8] {
        &self.bytes[self.target.clone()]
    }

    /// The page that led to it, if it says so.
    pub fn referer(&self) -> Option<&[u8]> {
        Some(&self.bytes[self.referer.clone()?])
    }

    /// The head with something before its target, and with the rest as it is.
    pub fn write_prefixed(&self, prefix: &str, onward: &mut Vec<u8>) {
        onward.extend_from_slice(&self.bytes[..self.target.start]);
        onward.extend_from_slice(prefix.as_bytes());
        onward.extend_from_slice(&self.bytes[self.target.start..]);
    }

    /// The head with another target.
    pub fn write_with_target(&self, target: &str, onward: &mut Vec<u8>) {
        onward.extend_from_slice(&self.bytes[..self.target.start]);
        onward.extend_from_slice(target.as_bytes());
        onward.extend_from_slice(&self.bytes[self.target.end..]);
    }

    /// The head as it is.
    pub fn write(&self, onward: &mut Vec<u8>) {
        onward.extend_from_slice(&self.bytes);
    }
}

impl Form {
    fn of(method: &str, target: &str) -> Result<Form, Refusal> {
        let is_authority = |target: &str| {
            let port = target.rsplit_once(':').map(|(_, port)| port);
            port.is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()))
        };
        let form = if method == "CONNECT" {
            is_authority(target).then_some(Form::Authority)
        } else if target.starts_with('/') {
            Some(Form::Origin)
        } else if target == "*" {
            Some(Form::Asterisk)
        } else {
            has_scheme(target).then_some(Form::Absolute)
        };
        form.ok_or(Refusal::Bad("the target is malformed"))
    }
}

/// Whether this begins as an absolute URI does (RFC 3986, section 3.1). Names that stand for no host
/// (`urn:…`) are the proxy's to judge.
fn has_scheme(target: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
    target.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.bytes().all(fits)
    })
}

/// What the fields say that concerns us.
#[derive(Default)]
struct Fields {
    /// The inner `None` is an empty one.
    host: Option<Option<Host>>,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    referer: Option<Range<usize>>,
    several_referers: bool,
}

impl Fields {
    /// Learns from one field, whose value lies within `head`.
    fn take(&mut self, name: &str, value: &[u8], head: &[u8]) -> Result<(), Refusal> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("host") {
            if self.host.replace(Host::parse(value)?).is_some() {
                return Err(Refusal::Bad("there is more than one Host field"));
            }
        } else if is("content-length") {
            // Even equal ones: RFC 9112, section 6.3, has us refuse them or make them one.
            if self.length.replace(length(value)?).is_some() {
                return Err(Refusal::Bad("there is more than one Content-Length"));
            }
        } else if is("transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::Bad("a Transfer-Encoding other than chunked"));
            }
            self.chunked = true;
        } else if is("upgrade") {
            self.upgrade = true;
        } else if is("referer") {
            self.several_referers |= self.referer.is_some();
            let start = value.as_ptr().addr() - head.as_ptr().addr();
            self.referer = Some(start..start + value.len());
        }
        Ok(())
    }

    fn conclude(&mut self, minor_version: u8) -> Result<(Framing, Option<Host>), Refusal> {
        let framing = match (self.chunked, self.length) {
            (true, Some(_)) => {
                return Err(Refusal::Bad("both Content-Length and Transfer-Encoding"));
            }
            // HTTP/1.0 does not know it (RFC 9112, section 6.1).
            (true, None) if minor_version == 0 => {
                return Err(Refusal::Bad("a Transfer-Encoding in HTTP/1.0"));
            }
            (true, None) => Framing::Chunked,
            (false, length) => Framing::Length(length.unwrap_or(0)),
        };
        let host = match self.host.take() {
            None if minor_version != 0 => return Err(Refusal::Bad("there is no Host field")),
            host => host.flatten(),
        };
        Ok((framing, host))
    }
}

/// The most digits of a length: none has as many as could overflow.
const MOST_DIGITS: usize = 18;

fn length(value: &[u8]) -> Result<u64, Refusal> {
    let digits = str::from_utf8(value).ok();
    let digits = digits.filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    digits
        .filter(|text| text.len() <= MOST_DIGITS)
        .and_then(|text| text.parse().ok())
        .ok_or(Refusal::Bad("the Content-Length is malformed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &str) -> Result<Request, Refusal> {
        Request::read(head.as_bytes().to_vec())
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut onward = Vec::new();
        write(&mut onward);
        String::from_utf8(onward).unwrap()
    }

    #[test]
    fn a_target_is_given_a_beginning_or_replaced_and_nothing_else_changes() {
        let head = "GET /a?b=/c HTTP/1.1\r\nhOST:  a.example:81 \r\nX:\r\n\r\n";
        let request = read(head).unwrap();
        assert_eq!(
            (request.form(), request.target()),
            (Form::Origin, &b"/a?b=/c"[..])
        );
        assert_eq!(
            written(|onward| request.write_prefixed("http://b", onward)),
            "GET http://b/a?b=/c HTTP/1.1\r\nhOST:  a.example:81 \r\nX:\r\n\r\n"
        );
        assert_eq!(
            written(|onward| request.write_with_target("http://c/", onward)),
            "GET http://c/ HTTP/1.1\r\nhOST:  a.example:81 \r\nX:\r\n\r\n"
        );
        assert_eq!(written(|onward| request.write(onward)), head);
    }

    #[test]
    fn targets_have_one_of_four_forms() {
        for (line, form) in [
            ("GET /", Form::Origin),
            ("GET //a/b", Form::Origin),
            ("POST http://a/b", Form::Absolute),
            ("GET ftp://a/", Form::Absolute),
            ("GET urn:a", Form::Absolute),
            ("OPTIONS *", Form::Asterisk),
            ("CONNECT a.example:443", Form::Authority),
            ("CONNECT [::1]:443", Form::Authority),
        ] {
            let request = read(&format!("{line} HTTP/1.0\r\n\r\n")).unwrap();
            assert_eq!(request.form(), form, "{line}");
        }
        for line in [
            "GET a",
            "GET ?a",
            "GET 1:2",
            "GET *a",
            "CONNECT /",
            "CONNECT http://a/",
        ] {
            let read = read(&format!("{line} HTTP/1.0\r\n\r\n"));
            assert_eq!(read, Err(Refusal::Bad("the target is malformed")), "{line}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for fields in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 0x1\r\n",
            "Content-Length: 1 1\r\n",
            "Content-Length:\r\n",
            "Content-Length: 1000000000000000000\r\n",
            "Content-Length : 1\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
            "Transfer-Encoding:\r\n",
            "Host: a.example\r\n",
            " Folded: a\r\n",
            "A: b\r\n folded\r\n",
            "A: b\r\n\tfolded\r\n",
            "A\t: b\r\n",
            "A b: c\r\n",
            ": b\r\n",
            "no colon\r\n",
            "A: \0\r\n",
            "A: b\rc\r\n",
            "A: \x7f\r\n",
        ] {
            let head = format!("POST / HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n");
            assert!(read(&head).is_err(), "{fields:?}");
        }
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET /\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
            " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "GET / http/1.1\r\nHost: a\r\n\r\n",
            "G=T / HTTP/1.1\r\nHost: a\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
        ] {
            assert!(read(head).is_err(), "{head:?}");
        }
    }

    #[test]
    fn what_its_answer_depends_on_is_known() {
        let awaits = |line: &str| read(&format!("{line}\r\n\r\n")).unwrap().awaits;
        assert_eq!(awaits("GET / HTTP/1.0"), Awaited::Message);
        assert_eq!(awaits("HEAD / HTTP/1.0"), Awaited::Fields);
        assert_eq!(awaits("CONNECT a:1 HTTP/1.0"), Awaited::Tunnel);
        let upgrade = "GET / HTTP/1.1\r\nHost:\r\nconnection: upgrade\r\nUPGRADE: websocket";
        assert_eq!(awaits(upgrade), Awaited::Upgrade);
    }

    #[test]
    fn a_referer_counts_if_it_is_the_only_one() {
        let referer = |fields: &str| {
            let request = read(&format!("GET / HTTP/1.0\r\n{fields}\r\n")).unwrap();
            let text = request.referer().map(|text| text.to_vec());
            text.map(|text| String::from_utf8(text).unwrap())
        };
        assert_eq!(referer(""), None);
        assert_eq!(referer("referer:  http://a/b \r\n").unwrap(), "http://a/b");
        assert_eq!(referer("Referer: a\r\nReferer: b\r\n"), None);
    }
}
