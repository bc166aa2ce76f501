//! Why a session ended: the closed set of words behind `reason=` in the log.

use std::fmt;

use crate::error::Status;

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
        Reason::ConnectTimeout,
        Reason::ConnectRefused,
        Reason::ConnectFailed,
        Reason::NameNotFound,
        Reason::DeniedByRule,
        Reason::DeniedByProgram,
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
            Reason::ConnectTimeout => "connect-timeout",
            Reason::ConnectRefused => "connect-refused",
            Reason::ConnectFailed => "connect-failed",
            Reason::NameNotFound => "name-not-found",
            Reason::DeniedByRule => "denied-by-rule",
            Reason::DeniedByProgram => "denied-by-program",
            Reason::Terminated => "terminated",
            Reason::HandlerExited => "handler-exited",
            Reason::HandlerFailed => "handler-failed",
            Reason::InternalError => "internal-error",
        }
    }

    /// What a process exits with whose only session ended so.
    pub fn status(self) -> Status {
        match self {
            Reason::ClientClosed
            | Reason::ServerClosed
            | Reason::ClientReset
            | Reason::ServerReset
            | Reason::IdleTimeout
            | Reason::DeniedByRule
            | Reason::DeniedByProgram
            | Reason::Terminated
            | Reason::HandlerExited => Status::Done,
            Reason::ConnectTimeout
            | Reason::ConnectRefused
            | Reason::ConnectFailed
            | Reason::NameNotFound => Status::Unavailable,
            Reason::HandlerFailed | Reason::InternalError => Status::System,
        }
    }

    /// Whether the client was turned away, or got nothing of what it came for: worth a line even
    /// where ordinary sessions are not.
    pub fn is_refusal(self) -> bool {
        match self {
            Reason::ClientClosed
            | Reason::ServerClosed
            | Reason::ClientReset
            | Reason::ServerReset
            | Reason::IdleTimeout
            | Reason::Terminated
            | Reason::HandlerExited => false,
            Reason::ConnectTimeout
            | Reason::ConnectRefused
            | Reason::ConnectFailed
            | Reason::NameNotFound
            | Reason::DeniedByRule
            | Reason::DeniedByProgram
            | Reason::HandlerFailed
            | Reason::InternalError => true,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.word())
    }
}
