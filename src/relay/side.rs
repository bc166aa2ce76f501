//! The two ends of a relay.

/// One end of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who connected to us.
    Client = 0,
    /// Whom we connected to.
    Upstream = 1,
}

impl Side {
    /// Every side.
    pub const BOTH: [Side; 2] = [Side::Client, Side::Upstream];

    /// The opposite end.
    pub fn other(self) -> Side {
        match self {
            Side::Client => Side::Upstream,
            Side::Upstream => Side::Client,
        }
    }
}
