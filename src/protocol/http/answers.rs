//! Everything that a proxy says: followed, so that it is known which request it answers and how (RFC
//! 9112, section 6.3). Nothing is refused: what cannot be followed is one answer up to its end.

use std::collections::VecDeque;

use httparse::{EMPTY_HEADER, ParserConfig, Response, Status};

use super::MOST_FIELDS;
use super::body::{Body, Framing};
use super::request::Awaited;
use super::section::{Ends, Section};

/// A proxy's answers, followed as they come.
#[derive(Debug)]
pub(super) enum Answers {
    Head(Section),
    Body(Body),
    /// Up to the end of the connection, or of our understanding.
    Endless,
}

/// What is known of an answer when its head is complete.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    code: u16,
    /// `None` where it ends with the connection.
    framing: Option<Framing>,
}

/// What following has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Followed {
    On,
    /// The protocol that was asked for is spoken from here on.
    Switched,
}

/// 101 (RFC 9110, section 15.2.2).
const SWITCHING_PROTOCOLS: u16 = 101;

impl Default for Answers {
    fn default() -> Answers {
        Answers::Head(Section::head(Ends::Any))
    }
}

impl Answers {
    /// Follows what comes next. Requests that it answers are no longer awaited: from the front.
    pub(super) fn follow(&mut self, mut rest: &[u8], awaited: &mut VecDeque<Awaited>) -> Followed {
        while !rest.is_empty() {
            match self {
                Answers::Head(section) => {
                    let Ok((count, ended)) = section.take(rest) else {
                        *self = Answers::Endless;
                        return Followed::On;
                    };
                    rest = &rest[count..];
                    if ended {
                        let bytes = section.take_all();
                        if self.begin(&bytes, awaited) == Followed::Switched {
                            return Followed::Switched;
                        }
                    } else if section
                        .worth_a_look()
                        .is_some_and(|bytes| !may_be_answer(bytes))
                    {
                        *self = Answers::Endless;
                    }
                }
                Answers::Body(body) => match body.take(rest, |_| {}) {
                    Ok((count, ended)) => {
                        rest = &rest[count..];
                        if ended {
                            *self = Answers::default();
                        }
                    }
                    Err(_) => *self = Answers::Endless,
                },
                Answers::Endless => return Followed::On,
            }
        }
        Followed::On
    }

    /// Learns from an answer's head.
    fn begin(&mut self, bytes: &[u8], awaited: &mut VecDeque<Awaited>) -> Followed {
        *self = Answers::default();
        let Some(answer) = Answer::read(bytes) else {
            *self = Answers::Endless;
            return Followed::On;
        };
        let answers = awaited.front().copied();
        match (answer.code, answers) {
            (SWITCHING_PROTOCOLS, Some(Awaited::Upgrade)) => return Followed::Switched,
            // Nobody has asked for it.
            (SWITCHING_PROTOCOLS, _) => {
                *self = Answers::Endless;
                return Followed::On;
            }
            // Another one is to come.
            (100..200, _) => return Followed::On,
            _ => {}
        }
        awaited.pop_front();
        let has_no_body = matches!(answer.code, 204 | 304) || answers == Some(Awaited::Fields);
        *self = match answer.framing {
            _ if has_no_body => Answers::default(),
            Some(Framing::Length(0)) => Answers::default(),
            Some(framing) => Answers::Body(Body::from(framing)),
            None => Answers::Endless,
        };
        Followed::On
    }

    /// Whether one answer is over and no other has begun.
    pub(super) fn is_between(&self) -> bool {
        matches!(self, Answers::Head(section) if section.is_empty())
    }
}

/// Proxies are not as strict with servers as we with clients, nor are browsers.
fn config() -> ParserConfig {
    let mut config = ParserConfig::default();
    config
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_multiple_spaces_in_response_status_delimiters(true)
        .ignore_invalid_headers_in_responses(true);
    config
}

/// Whether this may be how an answer begins.
fn may_be_answer(bytes: &[u8]) -> bool {
    let mut fields = [EMPTY_HEADER; MOST_FIELDS];
    let mut response = Response::new(&mut fields);
    config().parse_response(&mut response, bytes).is_ok()
}

impl Answer {
    /// `None` where it cannot be read.
    fn read(bytes: &[u8]) -> Option<Answer> {
        let mut fields = [EMPTY_HEADER; MOST_FIELDS];
        let mut response = Response::new(&mut fields);
        let parsed = config().parse_response(&mut response, bytes).ok()?;
        let (Status::Complete(_), Some(code)) = (parsed, response.code) else {
            return None;
        };
        let values = |name: &'static str| {
            let fields = response.headers.iter();
            let named = fields.filter(move |field| field.name.eq_ignore_ascii_case(name));
            named.map(|field| field.value.trim_ascii())
        };
        let framing = match values("transfer-encoding").next_back() {
            Some(codings) => {
                let last = codings
                    .rsplit(|&byte| byte == b',')
                    .next()
                    .unwrap_or(codings);
                let is_chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
                is_chunked.then_some(Framing::Chunked)
            }
            None => length(values("content-length")),
        };
        Some(Answer { code, framing })
    }
}

/// The length that all of these fields agree on.
fn length<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Option<Framing> {
    let first = values.next()?;
    if values.any(|value| value != first) {
        return None;
    }
    let text = str::from_utf8(first).ok()?;
    let is_number = text.bytes().all(|b| b.is_ascii_digit());
    let length = text.parse().ok().filter(|_| is_number);
    length.map(Framing::Length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is still awaited, in what state, after this in pieces of this size.
    fn followed(awaited: &[Awaited], text: &str, piece: usize) -> (usize, &'static str) {
        let mut answers = Answers::default();
        let mut awaited = awaited.iter().copied().collect();
        for piece in text.as_bytes().chunks(piece) {
            if answers.follow(piece, &mut awaited) == Followed::Switched {
                return (awaited.len(), "switched");
            }
        }
        let state = match answers {
            Answers::Endless => "endless",
            _ if answers.is_between() => "between",
            Answers::Head(_) => "head",
            Answers::Body(_) => "body",
        };
        (awaited.len(), state)
    }

    #[test]
    fn answers_are_counted_by_the_requests_that_they_are_for() {
        use Awaited::{Fields, Message, Upgrade};
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip , Chunked\r\n\r\n\
                       3;x\r\nabc\r\n0\r\nA: b\r\n\r\n";
        let early = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n";
        let bare = "HTTP/1.0 404 Not Found\nContent-Length: 3\nA : b\n c\n\nabc";
        let unchanged = "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n";
        let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nHTTP/1.1 ";
        let endless = "HTTP/1.0 200 OK\r\n\r\nanything";
        let all = format!("{ok}{head}{chunked}{early}{ok}{bare}{unchanged}");
        let six = [Message, Fields, Upgrade, Message, Message, Message];
        let cases = [
            (&six[..], all.clone(), (0, "between")),
            (
                &[Message, Upgrade],
                format!("{ok}{switch}"),
                (1, "switched"),
            ),
            (
                &[Message, Upgrade],
                format!("{early}{ok}{early}"),
                (1, "between"),
            ),
            (&[Message, Upgrade], switch.to_owned(), (2, "endless")),
            (
                &[Message, Upgrade],
                format!("{endless}{ok}"),
                (1, "endless"),
            ),
            (
                &[Message],
                "<html>an answer of HTTP/0.9".to_owned(),
                (1, "endless"),
            ),
            (&[Message], format!("{ok}HTTP/1.1 2"), (0, "head")),
            (&[Message], ok[..40].to_owned(), (0, "body")),
            (&[], ok.to_owned(), (0, "between")),
        ];
        for (awaited, text, expected) in cases {
            for piece in [1, 2, 3, 11, 10_000] {
                assert_eq!(followed(awaited, &text, piece), expected, "{text}");
            }
        }
    }

    #[test]
    fn an_answer_whose_length_is_in_doubt_ends_with_the_connection() {
        for fields in [
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Content-Length: +1\r\n",
            "Content-Length:\r\n",
            "Transfer-Encoding: gzip\r\n",
        ] {
            let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\nabcdefgh");
            assert_eq!(
                followed(&[Awaited::Message], &text, 9),
                (0, "endless"),
                "{fields}"
            );
        }
    }
}
