//! Why a session ended: the closed set of words behind `reason=` in the log.

use std::fmt;

use crate::terms::error::Status;

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Both sides ended in order, the client first.
    ClientClosed,
    /// Both sides ended in order, the upstream first.
    ServerClosed,
    /// The client's connection broke.
    ClientReset,
    /// The upstream's connection broke.
    ServerReset,
    /// No byte passed for as long as `timeout` allows.
    IdleTimeout,
    /// One side had ended, and no byte passed for as long as `half-close-timeout` allows.
    HalfCloseTimeout,
    /// The session lasted as long as `max-duration` allows.
    MaxDuration,
    /// No upstream answered in time.
    ConnectTimeout,
    /// The last upstream tried refused the connection.
    ConnectRefused,
    /// The last upstream tried could not be connected to.
    ConnectFailed,
    /// The last upstream tried has no address.
    NameNotFound,
    /// A rule refused the client.
    DeniedByRule,
    /// The access program did not grant access.
    DeniedByProgram,
    /// There were as many sessions as `max-sessions` allows.
    TooManySessions,
    /// The client had as many sessions as `max-per-source` allows.
    TooManyFromClient,
    /// The client began more sessions than `rate` allows.
    TooFastFromClient,
    /// A proxy did not say as it should whose connection it is.
    BadProxyHeader,
    /// The client or the upstream said what its protocol has no room for.
    ProtocolError,
    /// The session was asked to end.
    Terminated,
    /// The handler ended, with whatever status.
    HandlerExited,
    /// The handler could not be started, or a signal ended it.
    HandlerFailed,
    /// The operating system, or the program itself, failed the session.
    InternalError,
}

impl Reason {
    /// Every reason there is.
    pub const ALL: &[Reason] = &[
        Reason::ClientClosed,
        Reason::ServerClosed,
        Reason::ClientReset,
        Reason::ServerReset,
        Reason::IdleTimeout,
        Reason::HalfCloseTimeout,
        Reason::MaxDuration,
        Reason::ConnectTimeout,
        Reason::ConnectRefused,
        Reason::ConnectFailed,
        Reason::NameNotFound,
        Reason::DeniedByRule,
        Reason::DeniedByProgram,
        Reason::TooManySessions,
        Reason::TooManyFromClient,
        Reason::TooFastFromClient,
        Reason::BadProxyHeader,
        Reason::ProtocolError,
        Reason::Terminated,
        Reason::HandlerExited,
        Reason::HandlerFailed,
        Reason::InternalError,
    ];

    /// The word in the log.
    pub fn word(self) -> &'static str {
        match self {
            Reason::ClientClosed => "client-closed",
            Reason::ServerClosed => "server-closed",
            Reason::ClientReset => "client-reset",
            Reason::ServerReset => "server-reset",
            Reason::IdleTimeout => "idle-timeout",
            Reason::HalfCloseTimeout => "half-close-timeout",
            Reason::MaxDuration => "max-duration",
            Reason::ConnectTimeout => "connect-timeout",
            Reason::ConnectRefused => "connect-refused",
            Reason::ConnectFailed => "connect-failed",
            Reason::NameNotFound => "name-not-found",
            Reason::DeniedByRule => "denied-by-rule",
            Reason::DeniedByProgram => "denied-by-program",
            Reason::TooManySessions => "too-many-sessions",
            Reason::TooManyFromClient => "too-many-from-client",
            Reason::TooFastFromClient => "too-fast-from-client",
            Reason::BadProxyHeader => "bad-proxy-header",
            Reason::ProtocolError => "protocol-error",
            Reason::Terminated => "terminated",
            Reason::HandlerExited => "handler-exited",
            Reason::HandlerFailed => "handler-failed",
            Reason::InternalError => "internal-error",
        }
    }

    /// What a process exits with whose only session ended so.
    pub(crate) fn status(self) -> Status {
        match self {
            Reason::ClientClosed
            | Reason::ServerClosed
            | Reason::ClientReset
            | Reason::ServerReset
            | Reason::IdleTimeout
            | Reason::HalfCloseTimeout
            | Reason::MaxDuration
            | Reason::DeniedByRule
            | Reason::DeniedByProgram
            | Reason::TooManySessions
            | Reason::TooManyFromClient
            | Reason::TooFastFromClient
            | Reason::BadProxyHeader
            | Reason::ProtocolError
            | Reason::Terminated
            | Reason::HandlerExited => Status::Done,
            Reason::ConnectTimeout
            | Reason::ConnectRefused
            | Reason::ConnectFailed
            | Reason::NameNotFound => Status::Unavailable,
            Reason::HandlerFailed | Reason::InternalError => Status::System,
        }
    }

    /// Whether the client was turned away by the gate.
    pub(crate) fn is_the_gates(self) -> bool {
        match self {
            Reason::DeniedByRule
            | Reason::DeniedByProgram
            | Reason::TooManySessions
            | Reason::TooManyFromClient
            | Reason::TooFastFromClient
            | Reason::BadProxyHeader => true,
            Reason::ClientClosed
            | Reason::ServerClosed
            | Reason::ClientReset
            | Reason::ServerReset
            | Reason::IdleTimeout
            | Reason::HalfCloseTimeout
            | Reason::MaxDuration
            | Reason::ConnectTimeout
            | Reason::ConnectRefused
            | Reason::ConnectFailed
            | Reason::NameNotFound
            | Reason::ProtocolError
            | Reason::Terminated
            | Reason::HandlerExited
            | Reason::HandlerFailed
            | Reason::InternalError => false,
        }
    }

    /// Whether the client was turned away, or got nothing of what it came for: worth a line even
    /// where ordinary sessions are not.
    pub(crate) fn is_refusal(self) -> bool {
        self.is_the_gates() || self.status() != Status::Done
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.word())
    }
}
