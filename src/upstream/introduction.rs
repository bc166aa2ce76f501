//! What an upstream is told of the client before the client's first byte.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use super::Failed;
use super::exchange::{Then, send_all};
use crate::protocol::proxy::{self, Announced};
use crate::source::Client;
use crate::sys;
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
        // The relay sends what waits there in a moment: a segment less, and the upstream is woken once. The
        // kernel waits for 200 ms at most (tcp(7), TCP_CORK).
        let then = match sys::bytes_waiting(client.socket.as_fd()) {
            Ok(1..) => Then::More,
            Ok(0) | Err(_) => Then::Nothing,
        };
        send_all("the PROXY header", &header, then, &socket, vigil)?;
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
