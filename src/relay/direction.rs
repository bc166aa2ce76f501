//! One way through the relay.

use std::time::Instant;

use super::buffer::Buffer;

/// How far a direction has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The source may send more.
    Open,
    /// The source has ended; the rest is being delivered.
    Draining,
    /// Everything was delivered, and the sink was told that it is all.
    Done,
    /// The sink is gone: there is nobody to deliver to.
    Dropped,
}

/// One way through the relay, so that one side's end of data never cuts the other side short
/// (half-close, RFC 9293 §3.6.1).
pub(super) struct Direction {
    pub(super) state: State,
    pub(super) buffer: Buffer,
    /// Since when the sink takes no more, if it does not.
    pub(super) blocked: Option<Instant>,
    pub(super) delivered: u64,
}
