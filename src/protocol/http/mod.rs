//! HTTP/1 as a client, a proxy and whoever stands between them speak it (RFC 9110, RFC 9112), as far as
//! requests are to be told apart, given another target, and answered in the proxy's place.
//!
//! `section` finds where a head ends, `request` reads a request's, `host` its Host field, `body` what
//! follows. `requests` is all that a client says, `answers` all that a proxy says, and `dialogue` which
//! answer belongs to which request.
//!
//! Requests are read strictly: what two readers could take for two things is refused (RFC 9112, section
//! 11.2), and only what was understood goes on, so that a proxy finds the very requests that we have
//! found. Answers go on whatever they are: they are only followed.

mod answers;
mod body;
mod dialogue;
mod host;
mod request;
mod requests;
mod section;

use std::fmt;

pub use dialogue::{Dialogue, Turn};
pub use host::{Authority, Host, Name};
pub use request::{Form, Request};
pub use requests::Requests;

/// The longest head, and the longest trailer section, in bytes.
pub const LONGEST_HEAD: usize = 64 << 10;

/// How many fields a head or a trailer section may have.
const MOST_FIELDS: usize = 256;

/// Why a request is refused, and with which status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// 400: it is no request, or one that could be read in two ways.
    Bad(&'static str),
    /// 431: there is more of it than anybody needs.
    TooLarge(&'static str),
}

impl Refusal {
    /// What a client is told, before its connection is closed.
    pub fn answer(&self) -> String {
        let (status, why) = match self {
            Refusal::Bad(why) => ("400 Bad Request", why),
            Refusal::TooLarge(why) => ("431 Request Header Fields Too Large", why),
        };
        format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: text/plain\r\n\
             Content-Length: {}\r\n\r\n{why}\n",
            why.len() + 1
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (status, why) = match self {
            Refusal::Bad(why) => (400, why),
            Refusal::TooLarge(why) => (431, why),
        };
        write!(f, "{why} ({status})")
    }
}

impl From<httparse::Error> for Refusal {
    fn from(error: httparse::Error) -> Refusal {
        match error {
            httparse::Error::TooManyHeaders => Refusal::TooLarge("the head has too many fields"),
            httparse::Error::Version => Refusal::Bad("the request is not of HTTP/1"),
            httparse::Error::HeaderName | httparse::Error::HeaderValue => {
                Refusal::Bad("a field is malformed")
            }
            httparse::Error::NewLine => Refusal::Bad("a line does not end in CRLF"),
            httparse::Error::Status | httparse::Error::Token => {
                Refusal::Bad("this is no HTTP request")
            }
        }
    }
}
