//! A server's reply lines.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::str;

use super::command::{as_six_numbers, six_numbers};

/// What a line is in the course of replies (RFC 959 §4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Text of a reply with this code, more of which is to come; or of none.
    Text(Option<u16>),
    /// The only or the last line of a reply.
    Last(u16),
}

/// Tells replies of one line, of several, and the text within these from each other.
#[derive(Debug, Default)]
pub(super) struct Replies {
    /// The code of the reply of which the last line is still to come.
    open: Option<u16>,
}

impl Replies {
    /// Whether the last line of a reply is still to come.
    pub(super) fn is_within_one(&self) -> bool {
        self.open.is_some()
    }

    pub(super) fn read(&mut self, text: &[u8]) -> Part {
        let begins = code(text);
        match (self.open, begins) {
            (Some(open), Some((code, b' '))) if code == open => {
                self.open = None;
                Part::Last(code)
            }
            (Some(open), _) => Part::Text(Some(open)),
            (None, Some((code, b'-'))) => {
                self.open = Some(code);
                Part::Text(self.open)
            }
            (None, Some((code, _))) => Part::Last(code),
            (None, None) => Part::Text(None),
        }
    }
}

/// The code that a line begins with, and whether a `-` stands behind it. Some servers have neither that
/// nor a blank where there is no text.
fn code(text: &[u8]) -> Option<(u16, u8)> {
    let (digits, behind) = text.split_at_checked(3)?;
    let code = str::from_utf8(digits).ok()?;
    let is_number = code.bytes().all(|byte| byte.is_ascii_digit());
    let behind = match behind.first() {
        Some(b'-') => b'-',
        None | Some(b' ' | b'\r' | b'\n') => b' ',
        Some(_) => return None,
    };
    is_number
        .then(|| code.parse().ok())
        .flatten()
        .map(|code| (code, behind))
}

/// The port in a 227. Where the six numbers stand, RFC 959 does not say: in parentheses, in others, behind
/// `=` or in the open (RFC 1123 §4.1.2.6).
pub(super) fn port_in_227(text: &[u8]) -> Option<u16> {
    let text = text.get(3..)?;
    let starts = text.iter().enumerate().filter(|&(at, byte)| {
        let is_first = at
            .checked_sub(1)
            .is_none_or(|before| !text[before].is_ascii_digit());
        byte.is_ascii_digit() && is_first
    });
    let mut found = starts.filter_map(|(at, _)| six_numbers(&text[at..]));
    let port = found.next().map(|(address, _)| address.port());
    port.filter(|&port| port != 0)
}

/// The port in a 229: `(|||PORT|)` with any character for `|`; the fields in front of it need not be
/// empty, nor the parentheses there.
pub(super) fn port_in_229(text: &[u8]) -> Option<u16> {
    let text = text.get(3..)?.trim_ascii();
    let from_last = |mark: u8| text.iter().rposition(|&byte| byte == mark);
    let fields = match from_last(b'(') {
        Some(at) => &text[at + 1..],
        None => text.rsplit(|&byte| byte == b' ').next()?,
    };
    let (&delimiter @ 33..=126, fields) = fields.split_first()? else {
        return None;
    };
    let port = fields.split(|&byte| byte == delimiter).nth(2)?;
    // The fourth delimiter has to be there.
    let length = fields.split(|&byte| byte == delimiter).count();
    let is_number = !port.is_empty() && port.iter().all(u8::is_ascii_digit);
    let port = str::from_utf8(port)
        .ok()
        .filter(|_| is_number && length > 3)?;
    port.parse().ok().filter(|&port| port != 0)
}

/// The reply to PASV that names where we listen.
pub(super) fn reply_to_pasv(address: Ipv4Addr, port: u16) -> String {
    let numbers = as_six_numbers(SocketAddrV4::new(address, port));
    format!("227 Entering Passive Mode ({numbers}).\r\n")
}

/// The same to EPSV.
pub(super) fn reply_to_epsv(port: u16) -> String {
    format!("229 Entering Extended Passive Mode (|||{port}|)\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_within_a_reply_are_text_whatever_they_look_like() {
        let mut replies = Replies::default();
        for (line, expected) in [
            (&b"220 ready\r\n"[..], Part::Last(220)),
            (b"220\r\n", Part::Last(220)),
            (b"211-Features:\r\n", Part::Text(Some(211))),
            (b" EPSV\r\n", Part::Text(Some(211))),
            (b"227 Entering (1,2,3,4,5,6)\r\n", Part::Text(Some(211))),
            (b"211-more\r\n", Part::Text(Some(211))),
            (b"211x\r\n", Part::Text(Some(211))),
            (b"211 End\r\n", Part::Last(211)),
            (b"no reply\r\n", Part::Text(None)),
            (b"22\r\n", Part::Text(None)),
            (b"2x0 no\r\n", Part::Text(None)),
            (b"150 here it comes\n", Part::Last(150)),
        ] {
            assert_eq!(replies.read(line), expected, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_227_is_read_in_every_form_that_servers_have() {
        for line in [
            "227 Entering Passive Mode (192,0,2,1,4,1).\r\n",
            "227 Entering Passive Mode (192,0,2,1,4,1)\r\n",
            "227 Entering Passive Mode. 192,0,2,1,4,1\r\n",
            "227 Entering Passive Mode 192,0,2,1,4,1\r\n",
            "227 =192,0,2,1,4,1\r\n",
            "227 [192,0,2,1,4,1]\r\n",
            "227 Passive mode OK (192, 0, 2, 1, 4, 1 )\r\n",
            "227 Data transfer 2 will passively listen to 192,0,2,1,4,1\r\n",
            "227 0,0,0,0,4,1\n",
            "227 (1,2),3 192,0,2,1,4,1",
        ] {
            assert_eq!(port_in_227(line.as_bytes()), Some(1025), "{line}");
        }
        for line in [
            "227",
            "227 Entering Passive Mode\r\n",
            "227 (192,0,2,1,4)\r\n",
            "227 (192,0,2,1,4,256)\r\n",
            "227 (192,0,2,1,0,0)\r\n",
        ] {
            assert_eq!(port_in_227(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn a_229_is_read_in_every_form_that_servers_have() {
        for line in [
            "229 Entering Extended Passive Mode (|||6446|)\r\n",
            "229 Extended Passive mode OK (|||6446|).\r\n",
            "229 (!!!6446!)",
            "229 ok (|1|192.0.2.1|6446|)\r\n",
            "229 ok (2) (|2|2001:db8::1|6446|)\r\n",
            "229 Entering |||6446|\r\n",
        ] {
            assert_eq!(port_in_229(line.as_bytes()), Some(6446), "{line}");
        }
        for line in [
            "229",
            "229 \r\n",
            "229 ok (|||6446)\r\n",
            "229 ok (|||0|)\r\n",
            "229 ok (|||65536|)\r\n",
            "229 ok (||||)\r\n",
            "229 ok ()\r\n",
            "229 ok (|||+1|)\r\n",
        ] {
            assert_eq!(port_in_229(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn what_names_our_listener_can_be_read_again() {
        let pasv = reply_to_pasv(Ipv4Addr::new(192, 0, 2, 1), 1025);
        assert_eq!(pasv, "227 Entering Passive Mode (192,0,2,1,4,1).\r\n");
        assert_eq!(port_in_227(pasv.as_bytes()), Some(1025));
        let epsv = reply_to_epsv(1025);
        assert_eq!(epsv, "229 Entering Extended Passive Mode (|||1025|)\r\n");
        assert_eq!(port_in_229(epsv.as_bytes()), Some(1025));
    }
}
