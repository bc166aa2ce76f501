//! Sockets that were handed over: by inetd and its kin on descriptor 0, by systemd from
//! descriptor 3 on (sd_listen_fds(3)).

use std::cell::OnceCell;
use std::env;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{AcceptConn, SockType as SocketType};
use nix::sys::socket::{SockType, SockaddrStorage, getpeername, getsockopt};
use nix::unistd::{dup2_stdin, dup2_stdout};

use super::{Client, INETD_WAIT_IDLE, Listener, Listeners, Origin, Source};
use crate::sys;
use crate::sys::streams::{FIRST_PASSED, Streams, null_device};
use crate::terms::endpoint::Endpoint;
use crate::terms::error::Error;
use crate::terms::value;

/// What systemd (or another service manager that speaks its protocol) has passed to this
/// process; `None` if nothing.
pub(super) fn from_service_manager(streams: Streams) -> Result<Option<Source>, Error> {
    let count = match (env::var("LISTEN_PID"), env::var("LISTEN_FDS")) {
        (Ok(pid), Ok(count)) if pid == process::id().to_string() => count,
        _ => return Ok(None),
    };
    let count = value::whole_number::<usize>(&count)
        .filter(|count| *count <= 1024)
        .ok_or_else(|| {
            Error::usage("LISTEN_FDS is not a number of descriptors, as sd_listen_fds(3) has it")
        })?;
    let mut listeners = Vec::new();
    for (fd, socket) in (FIRST_PASSED..).zip(sys::take_passed(count)) {
        let place = format!("descriptor {fd} (LISTEN_FDS)");
        let socket = socket.ok_or_else(|| {
            Error::usage(format!("{place} is not open: nothing was passed there"))
        })?;
        match examine(socket, &place)? {
            Found::Listener(listener) => listeners.push(listener),
            Found::Connection(..) | Found::Gone if count > 1 => {
                return Err(Error::usage(format!(
                    "{place} is a connection among {count} sockets: pass one connection, \
                     or listening sockets only"
                )));
            }
            Found::Connection(socket, address) => {
                return connection(socket, address, streams).map(Some);
            }
            Found::Gone => return Ok(Some(Source::Gone)),
            Found::OtherFile => {
                return Err(Error::usage(format!("{place} is not a socket")));
            }
        }
    }
    Ok(
        (!listeners.is_empty()).then_some(Source::Listeners(Listeners {
            sockets: listeners,
            own: false,
            until_idle: None,
        })),
    )
}

/// What inetd or one of its kin has put on descriptor 0; `None` if that is not a socket.
pub(super) fn from_standard_input(streams: Streams) -> Result<Option<Source>, Error> {
    let Some(socket) = sys::take_standard_input() else {
        return Ok(None);
    };
    match examine(socket, "descriptor 0")? {
        Found::Connection(socket, address) => connection(socket, address, streams).map(Some),
        Found::Gone => Ok(Some(Source::Gone)),
        Found::Listener(listener) => {
            let listener = move_above_standard_streams(listener, streams)?;
            Ok(Some(Source::Listeners(Listeners {
                sockets: vec![listener],
                own: false,
                until_idle: Some(INETD_WAIT_IDLE),
            })))
        }
        Found::OtherFile => Ok(None),
    }
}

/// inetd passes a listener on 0, 1 and 2. Sessions must not hold it, but need those descriptors
/// to be something: /dev/null takes its place.
fn move_above_standard_streams(listener: Listener, streams: Streams) -> Result<Listener, Error> {
    let system = |errno| Error::system("dup", errno);
    // A duplicate is 3 or above.
    let socket = listener.socket.try_clone();
    let socket = socket.map_err(|error| Error::io("dup", &error))?;
    let null = null_device()?;
    dup2_stdin(&null).map_err(system)?;
    if streams.stdout_is_client() {
        dup2_stdout(&null).map_err(system)?;
    }
    // Descriptor 0 is the null device's now, and stays open.
    std::mem::forget(listener.socket);
    Ok(Listener {
        socket,
        local: listener.local,
        planned: None,
    })
}

/// What a descriptor turned out to be.
enum Found {
    Connection(OwnedFd, Endpoint),
    Listener(Listener),
    /// A stream socket without a peer: the client reset the connection before we looked.
    Gone,
    OtherFile,
}

fn examine(fd: OwnedFd, place: &str) -> Result<Found, Error> {
    let kind = match getsockopt(&fd, SocketType) {
        Ok(kind) => kind,
        Err(_) => {
            // Descriptor 0 must stay open, or the next file would become it.
            std::mem::forget(fd);
            return Ok(Found::OtherFile);
        }
    };
    if kind != SockType::Stream {
        return Err(Error::usage(format!(
            "{place} is a socket, but not a stream: tcpproxy serves TCP and unix stream sockets"
        )));
    }
    let unsupported = || {
        Error::usage(format!(
            "{place} is a socket of another family than IPv4, IPv6 and unix"
        ))
    };
    match getpeername::<SockaddrStorage>(fd.as_raw_fd()) {
        Ok(peer) => {
            let address = Endpoint::from_address(&peer).ok_or_else(unsupported)?;
            Ok(Found::Connection(fd, address))
        }
        Err(Errno::ENOTCONN) if getsockopt(&fd, AcceptConn).unwrap_or(false) => {
            let local = Endpoint::local(fd.as_fd()).ok_or_else(unsupported)?;
            Ok(Found::Listener(Listener {
                socket: fd,
                local,
                planned: None,
            }))
        }
        Err(Errno::ENOTCONN) => Ok(Found::Gone),
        Err(errno) => Err(Error::system(format_args!("{place}: getpeername"), errno)),
    }
}

fn connection(socket: OwnedFd, address: Endpoint, streams: Streams) -> Result<Source, Error> {
    let local = Endpoint::local(socket.as_fd())
        .ok_or_else(|| Error::system("getsockname", Errno::EAFNOSUPPORT))?;
    Ok(Source::Connection(Client {
        socket,
        address,
        local,
        relayed: None,
        original: OnceCell::new(),
        listener: None,
        origin: Origin::Inherited {
            on_stderr: streams.stderr_is_client,
        },
    }))
}
