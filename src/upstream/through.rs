//! Asking a proxy for a connection to an upstream: what was a connection to the proxy then leads there,
//! and the upstream's first byte is the next that is read.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::Failed;
use super::exchange::{Then, read_answer, send_all};
use super::forward_proxy::{ForwardProxy, Protocol};
use crate::protocol::connect;
use crate::protocol::socks5::{self, Method, Reply};
use crate::sys;
use crate::sys::vigil::Vigil;
use crate::terms::credentials::Credentials;
use crate::terms::reason::Reason;

impl ForwardProxy {
    /// Has a connection to this proxy lead to a host, whose name it is given as it is.
    pub(super) fn lead(
        &self,
        socket: OwnedFd,
        host: &str,
        port: u16,
        vigil: Vigil,
    ) -> Result<OwnedFd, Failed> {
        let credentials = self.credentials.as_ref();
        let led = match self.protocol {
            Protocol::Connect => by_connect(&socket, host, port, credentials, vigil),
            Protocol::Socks5 => by_socks5(&socket, host, port, credentials, vigil),
        };
        match led {
            Ok(()) => Ok(socket),
            Err(failed) => {
                if failed.reason == Reason::ClientReset {
                    // The proxy may have reached the upstream, to which an end of input would look as if
                    // the client had had nothing to say. Fails only where there is no connection.
                    let _ = sys::abort_connection(socket.as_fd());
                }
                Err(failed)
            }
        }
    }
}

fn refused(why: impl Into<String>) -> Failed {
    Failed::new(Reason::ConnectFailed, why)
}

fn by_connect(
    socket: &OwnedFd,
    host: &str,
    port: u16,
    credentials: Option<&Credentials>,
    vigil: Vigil,
) -> Result<(), Failed> {
    let request = connect::request(host, port, credentials);
    send_all(
        "the request",
        &request,
        Then::Nothing,
        socket,
        vigil.clone(),
    )?;
    let status = read_answer(socket, vigil, connect::LONGEST, connect::read)?;
    if status.is_success() {
        return Ok(());
    }
    let hint = match (status.code, credentials) {
        (407, None) => WANTS_CREDENTIALS,
        (407, Some(_)) => REFUSES_CREDENTIALS,
        _ => "",
    };
    Err(refused(format!("it answered '{}'{hint}", status.line)))
}

const WANTS_CREDENTIALS: &str = ": it wants a user and a password (via-auth)";
const REFUSES_CREDENTIALS: &str = ": it does not take this user and password";

fn by_socks5(
    socket: &OwnedFd,
    host: &str,
    port: u16,
    credentials: Option<&Credentials>,
    vigil: Vigil,
) -> Result<(), Failed> {
    let Some(request) = socks5::request(host, port) else {
        let length = host.len();
        let why = format!("SOCKS5 has room for names of 255 bytes, and this has {length}");
        return Err(refused(why));
    };
    let greeting = socks5::greeting(credentials.is_some());
    send_all(
        "the greeting",
        greeting,
        Then::Nothing,
        socket,
        vigil.clone(),
    )?;
    let method = read_answer(socket, vigil.clone(), socks5::LONGEST, socks5::read_method)?;
    match (method, credentials.and_then(socks5::password)) {
        (Method::None, _) => {}
        (Method::Password, Some(message)) => {
            send_all(
                "user and password",
                &message,
                Then::Nothing,
                socket,
                vigil.clone(),
            )?;
            let read = socks5::read_acceptance;
            if !read_answer(socket, vigil.clone(), socks5::LONGEST, read)? {
                return Err(refused(format!("it said no{REFUSES_CREDENTIALS}")));
            }
        }
        (Method::Password, None) | (Method::Unacceptable, None) => {
            return Err(refused(format!("it said no{WANTS_CREDENTIALS}")));
        }
        (Method::Unacceptable, Some(_)) => {
            let why = "it said no: it wants something else than a user and a password";
            return Err(refused(why));
        }
    }
    send_all(
        "the request",
        &request,
        Then::Nothing,
        socket,
        vigil.clone(),
    )?;
    match read_answer(socket, vigil, socks5::LONGEST, socks5::read_reply)? {
        Reply::Connected => Ok(()),
        Reply::Failed(code) => {
            let why = format!("it answered {code}: {}", socks5::reason(code));
            Err(if code == socks5::UPSTREAM_REFUSED {
                // Said of the upstream: as if we had tried ourselves.
                Failed::saying(why, Errno::ECONNREFUSED)
            } else {
                refused(why)
            })
        }
    }
}
