//! What is said to whoever was connected to, and what it answers, before the client has the word.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{MsgFlags, send};

use super::Failed;
use crate::sys::peeking::{Unread, read_ahead};
use crate::sys::vigil::Vigil;
use crate::terms::progress::Progress;
use crate::terms::reason::Reason;

/// Whether what is sent is all there is for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It is to be sent at once.
    Nothing,
    /// More follows at once, and may go in the same segment (send(2), `MSG_MORE`).
    More,
}

/// Sends all of something, however long that takes.
pub(super) fn send_all(
    what: &str,
    mut rest: &[u8],
    then: Then,
    socket: &OwnedFd,
    mut vigil: Vigil,
) -> Result<(), Failed> {
    let flags = match then {
        Then::Nothing => MsgFlags::MSG_DONTWAIT,
        // Nix has no name for it.
        Then::More => MsgFlags::MSG_DONTWAIT | MsgFlags::from_bits_retain(libc::MSG_MORE),
    };
    while !rest.is_empty() {
        match send(socket.as_raw_fd(), rest, flags) {
            Ok(count) => rest = &rest[count..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let set = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                vigil.wait(&set, None)?;
            }
            // It has ended the connection, perhaps with a word of its own before: who reads from it
            // next will find that, and the end.
            Err(Errno::EPIPE) => return Ok(()),
            Err(errno) => return Err(Failed::at(&format!("send {what}"), errno)),
        }
    }
    Ok(())
}

/// Reads an answer to its last byte and not one further, so that who is given the socket next finds the
/// upstream's own bytes whole. `read` knows the answer; it knows it within `longest` bytes.
pub(super) fn read_answer<T>(
    socket: &OwnedFd,
    vigil: Vigil,
    longest: usize,
    read: impl Fn(&[u8]) -> Progress<T>,
) -> Result<T, Failed> {
    read_ahead(socket.as_fd(), vigil, longest, read).map_err(|unread| match unread {
        Unread::Ended(count) => {
            let why = format!("it ended the connection after {count} bytes of its answer");
            Failed::new(Reason::ConnectFailed, why)
        }
        Unread::Wrong(why) => Failed::new(Reason::ConnectFailed, why),
        Unread::Cut(cut, _) => Failed::from(cut),
        Unread::Failed(errno) => Failed::at("read its answer", errno),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::protocol::proxy::{self, Announced};

    /// A socket that takes nothing until its peer reads; how much it holds; and its peer.
    fn full() -> (OwnedFd, usize, UnixStream) {
        let (mut own, peer) = UnixStream::pair().unwrap();
        own.set_nonblocking(true).unwrap();
        let mut held = 0;
        // The last of it in single bytes, so that it is full to the brim.
        for piece in [&[0; 4096][..], &[0]] {
            while let Ok(count) = own.write(piece) {
                held += count;
            }
        }
        (own.into(), held, peer)
    }

    #[test]
    fn what_is_not_taken_at_once_is_sent_later_and_whole() {
        let (own, held, mut peer) = full();
        let header = proxy::version_2(&Announced::Unix);
        let sent = header.clone();
        let reader = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            all
        });
        let vigil = Vigil::until(Some(Instant::now() + Duration::from_secs(20)));
        assert!(send_all("it", &sent, Then::Nothing, &own, vigil).is_ok());
        drop(own);
        assert_eq!(reader.join().unwrap()[held..], header);
    }

    #[test]
    fn an_upstream_that_does_not_take_it_in_time_was_not_reached() {
        let (own, _, _peer) = full();
        let vigil = Vigil::until(Some(Instant::now() + Duration::from_millis(50)));
        let failed = send_all("it", b"PROXY UNKNOWN\r\n", Then::Nothing, &own, vigil).unwrap_err();
        assert_eq!(failed.reason, Reason::ConnectTimeout);
    }

    #[test]
    fn one_that_has_ended_already_is_left_to_who_reads_next() {
        let (own, peer) = UnixStream::pair().unwrap();
        drop(peer);
        let own = OwnedFd::from(own);
        assert!(
            send_all(
                "it",
                b"PROXY UNKNOWN\r\n",
                Then::Nothing,
                &own,
                Vigil::until(None)
            )
            .is_ok()
        );
    }
}
