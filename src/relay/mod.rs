//! Moving bytes between two sockets, both ways at once, until both ways have ended.
//!
//! `machine` decides: it is told what is ready and what time it is, and says what it wants next, in
//! the words of `readiness`. `buffer` holds what is on its way, in `memory` or in a `pipe`; `course`
//! chooses between them by what has come so far, and says why. Where somebody edits what passes, that lies
//! on a `desk` instead. `pace` holds a direction back, where that was asked for in the words of `pacing`.
//! `drive` is the loop around a few machines; who holds thousands brings another. Nothing here knows of
//! clients' rights, names or logs: two sockets and their times come in, a reason and two counts go out.

mod buffer;
mod course;
mod desk;
mod direction;
mod drive;
mod hunch;
mod machine;
mod memory;
mod pace;
mod pacing;
mod pipe;
mod readiness;
mod side;
pub(crate) mod transcript;

use std::time::Duration;

use crate::terms::reason::Reason;

pub use desk::Desk;
pub use drive::{Relay, turn};
pub use hunch::Hunch;
pub use machine::{Machine, Parked, Tap};
pub use pacing::Pacing;
pub(crate) use pacing::{Bandwidth, Delay};
pub use readiness::{Interest, Ready};
pub use side::Side;

/// How bytes may get from one socket to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// As is best for what comes: small copies, large ones, or by splice(2).
    Adaptive,
    /// Through memory only, where they can be seen.
    Copy,
    /// Through the hands of the machine's owner, who [edits](Machine::desk) them.
    Edited,
    /// By splice(2) from the first byte on.
    #[cfg(test)]
    Splice,
}

impl Engine {
    /// Whether bytes can be seen on their way.
    fn shows_bytes(self) -> bool {
        match self {
            Engine::Copy | Engine::Edited => true,
            Engine::Adaptive => false,
            #[cfg(test)]
            Engine::Splice => false,
        }
    }
}

/// The bounds of a relay: of what it holds, and of how long nothing may happen.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How many bytes each direction may hold at most.
    pub buffer_size: usize,
    /// How long no byte may pass before the session is ended.
    pub idle_timeout: Option<Duration>,
    /// The same, once one side has ended, if it is another time.
    pub half_close_timeout: Option<Duration>,
}

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Why.
    pub reason: Reason,
    /// Bytes delivered from the client to the upstream.
    pub sent: u64,
    /// Bytes delivered from the upstream to the client.
    pub received: u64,
}

#[cfg(test)]
mod held_back;
#[cfg(test)]
mod switching;
#[cfg(test)]
mod tests;
