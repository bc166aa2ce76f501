//! Who the client is, where a proxy has to say so. Its header is read by a process without rights that
//! serves this one session; a process that still needs its rights, to count, has a child read it.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::errno::Errno;

use crate::config::service::Service;
use crate::log::{Ended, Journal};
use crate::protocol::proxy::{self, Announced};
use crate::source::{Client, NoHeader, read_header};
use crate::sys::errand;
use crate::sys::user::{self, Capabilities};
use crate::sys::vigil::{Cut, Vigil};
use crate::terms::error::{Error, Status, describe};
use crate::terms::escape::brief;
use crate::terms::progress::Progress;

/// Reads the header in this process, which has no rights any more.
pub(super) fn read(
    client: &Client,
    service: &Service,
    ends_at: Option<Instant>,
) -> Result<Announced, NoHeader> {
    read_header(client.socket.as_fd(), ends_at, service.proxy_timeout)
}

/// Has a child read it that gives up the rights which this process still needs.
pub(super) fn read_without_rights(
    client: &Client,
    service: &Service,
    ends_at: Option<Instant>,
) -> Result<Announced, NoHeader> {
    let reader = |mut tell: File| {
        // What is wrong with the ids is said by the parent, which will have the same trouble.
        let capabilities = match service.capabilities() {
            Capabilities::AsStarted => Capabilities::AsStarted,
            Capabilities::None | Capabilities::NetAdmin => Capabilities::None,
        };
        if user::switch_to(service.ids, capabilities).is_err() {
            return Status::NotPermitted as i32;
        }
        errand::end_with_parent();
        let said = encode(&read(client, service, ends_at));
        // A parent that is gone needs no answer.
        let _ = tell.write_all(&said);
        Status::Done as i32
    };
    // The child keeps to the times; more than they is none of its parent's patience.
    let answer = errand::answer_of(reader, &mut Vigil::until(None));
    decode(&answer.map_err(NoHeader::Cut)?)
}

/// What a reader tells its parent: what a header says is told by a header.
fn encode(read: &Result<Announced, NoHeader>) -> Vec<u8> {
    match read {
        Ok(announced) => [b"H", &proxy::version_2(announced)[..]].concat(),
        Err(NoHeader::Nothing) => b"N".to_vec(),
        Err(NoHeader::Wrong(why)) => [b"W", why.as_bytes()].concat(),
        Err(NoHeader::Cut(Cut::ClientGone)) => b"G".to_vec(),
        Err(NoHeader::Cut(Cut::TimeOver)) => b"O".to_vec(),
        Err(NoHeader::Cut(Cut::Terminated)) => b"T".to_vec(),
        Err(NoHeader::Cut(Cut::System(errno))) => {
            [b"S", &(*errno as i32).to_ne_bytes()[..]].concat()
        }
    }
}

/// What a reader has told. It has read a client's bytes, and is believed no more than they are.
fn decode(said: &[u8]) -> Result<Announced, NoHeader> {
    let failed = |errno| NoHeader::Cut(Cut::System(errno));
    Err(match said {
        [b'H', header @ ..] => match proxy::read(header) {
            Progress::Complete { says, .. } => return Ok(says),
            Progress::Incomplete | Progress::Wrong(_) => failed(Errno::EPROTO),
        },
        b"N" => NoHeader::Nothing,
        [b'W', why @ ..] => NoHeader::Wrong(brief(why)),
        b"G" => NoHeader::Cut(Cut::ClientGone),
        b"O" => NoHeader::Cut(Cut::TimeOver),
        b"T" => NoHeader::Cut(Cut::Terminated),
        [b'S', errno @ ..] => {
            let number = errno.try_into().map_or(0, i32::from_ne_bytes);
            failed(Errno::from_raw(number))
        }
        // It has ended before it had anything to tell.
        _ => failed(Errno::EPROTO),
    })
}

/// How the session of a proxy ends that has announced nobody. That one has looked whether we are
/// there is nobody's news.
pub(super) fn refuse(no_header: &NoHeader, journal: &Journal) -> Ended {
    match no_header {
        NoHeader::Wrong(why) => journal.refusal(format_args!("bad PROXY header: {why}")),
        NoHeader::Cut(Cut::System(errno)) => {
            let line = format!("PROXY header: {}", describe(*errno));
            journal.error(&Error::new(Status::System, line));
        }
        NoHeader::Nothing | NoHeader::Cut(_) => {}
    }
    Ended::before_action(no_header.reason())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reader_tells_is_what_its_parent_hears() {
        let tcp = Announced::Tcp {
            source: "[2001:db8::1]:1".parse().unwrap(),
            destination: "[::1]:2".parse().unwrap(),
        };
        for announced in [Announced::Nothing, Announced::Unix, tcp] {
            assert_eq!(decode(&encode(&Ok(announced))).unwrap(), announced);
        }
        for cut in [
            Cut::ClientGone,
            Cut::TimeOver,
            Cut::Terminated,
            Cut::System(Errno::ENOMEM),
        ] {
            let heard = decode(&encode(&Err(NoHeader::Cut(cut))));
            assert!(matches!(heard, Err(NoHeader::Cut(heard)) if heard == cut));
        }
        let heard = decode(&encode(&Err(NoHeader::Wrong("a\nb".to_owned()))));
        assert!(matches!(heard, Err(NoHeader::Wrong(why)) if why == "a\\x0ab"));
        let heard = decode(&encode(&Err(NoHeader::Nothing)));
        assert!(matches!(heard, Err(NoHeader::Nothing)));
        for nothing in [&b""[..], b"H", b"HPROXY", b"x", b"S", b"NN"] {
            let heard = decode(nothing);
            assert!(matches!(heard, Err(NoHeader::Cut(Cut::System(_)))));
        }
    }
}
