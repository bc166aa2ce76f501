//! What an upstream is told of the client before the client's first byte.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{MsgFlags, send};

use super::Failed;
use crate::protocol::proxy::{self, Announced};
use crate::source::Client;
use crate::sys::vigil::Vigil;
use crate::terms::endpoint::Endpoint;

/// Whether upstreams are told who the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum SendProxy {
    #[default]
    No,
    /// By a PROXY header of version 1.
    Version1,
    /// By one of version 2.
    Version2,
}

impl SendProxy {
    /// The ways by name.
    pub(crate) const WORDS: &[(&str, SendProxy)] = &[
        ("no", SendProxy::No),
        ("v1", SendProxy::Version1),
        ("v2", SendProxy::Version2),
    ];

    /// Sends the header, whole and before anything else, to an upstream that has just been reached.
    pub(super) fn introduce(
        self,
        client: &Client,
        socket: OwnedFd,
        vigil: Vigil,
    ) -> Result<OwnedFd, Failed> {
        let header = match self {
            SendProxy::No => return Ok(socket),
            SendProxy::Version1 => proxy::version_1(&announcement(client)),
            SendProxy::Version2 => proxy::version_2(&announcement(client)),
        };
        send_all(&header, &socket, vigil)?;
        Ok(socket)
    }
}

/// What there is to say of a client: both ends of its own connection, if they have addresses.
fn announcement(client: &Client) -> Announced {
    let (Endpoint::Inet(source), Endpoint::Inet(destination)) =
        (client.address, client.destination())
    else {
        return Announced::Nothing;
    };
    // A zone means nothing on another machine.
    let plain = |address: SocketAddr| SocketAddr::new(address.ip(), address.port());
    Announced::Tcp {
        source: plain(source),
        destination: plain(destination),
    }
}

fn send_all(mut rest: &[u8], socket: &OwnedFd, mut vigil: Vigil) -> Result<(), Failed> {
    while !rest.is_empty() {
        match send(socket.as_raw_fd(), rest, MsgFlags::MSG_DONTWAIT) {
            Ok(count) => rest = &rest[count..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let set = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                vigil.wait(&set, None)?;
            }
            // It has ended the connection, perhaps with a word of its own before: the relay will
            // find that, and the end.
            Err(Errno::EPIPE) => return Ok(()),
            Err(errno) => return Err(Failed::at("send the PROXY header", errno)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::terms::reason::Reason;

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
        assert!(send_all(&sent, &own, vigil).is_ok());
        drop(own);
        assert_eq!(reader.join().unwrap()[held..], header);
    }

    #[test]
    fn an_upstream_that_does_not_take_it_in_time_was_not_reached() {
        let (own, _, _peer) = full();
        let vigil = Vigil::until(Some(Instant::now() + Duration::from_millis(50)));
        let failed = send_all(b"PROXY UNKNOWN\r\n", &own, vigil).unwrap_err();
        assert_eq!(failed.reason, Reason::ConnectTimeout);
    }

    #[test]
    fn one_that_has_ended_already_is_left_to_the_relay() {
        let (own, peer) = UnixStream::pair().unwrap();
        drop(peer);
        let own = OwnedFd::from(own);
        assert!(send_all(b"PROXY UNKNOWN\r\n", &own, Vigil::until(None)).is_ok());
    }
}
