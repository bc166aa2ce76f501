//! What a service manager is told of the server's state (sd_notify(3)).

use std::env;
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;

use nix::time::{ClockId, clock_gettime};

/// The way to the service manager, if there is one that wants to know.
pub(super) struct Notifier(Option<UnixDatagram>);

impl Notifier {
    /// Takes the way from `NOTIFY_SOCKET`.
    pub(super) fn from_environment() -> Notifier {
        let connect = || {
            let name = env::var_os("NOTIFY_SOCKET")?;
            let address = match name.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
                _ => SocketAddr::from_pathname(&name),
            };
            let socket = UnixDatagram::unbound().ok()?;
            // A service manager that is busy must not hold us up.
            socket.set_nonblocking(true).ok()?;
            socket.connect_addr(&address.ok()?).ok()?;
            Some(socket)
        };
        Notifier(connect())
    }

    /// The descriptor, which is for nobody else.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.0.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// This is the server's process from now on, and not the one that was started.
    pub(super) fn take_over(&self) {
        self.tell(&format!("MAINPID={}", process::id()));
    }

    /// Every listener is bound, and the configuration is in force.
    pub(super) fn ready(&self) {
        self.tell("READY=1");
    }

    /// The configuration is being read again.
    pub(super) fn reloading(&self) {
        // For Type=notify-reload, which wants to know when.
        let microseconds = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// A line for people.
    pub(super) fn status(&self, text: &str) {
        self.tell(&format!("STATUS={text}"));
    }

    fn tell(&self, state: &str) {
        if let Some(socket) = &self.0 {
            // There is nobody to tell if this fails; the service manager has a timeout.
            let _ = socket.send(state.as_bytes());
        }
    }
}
