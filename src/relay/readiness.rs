//! What a machine waits for at one side, and what it is told of it: whatever the loop around it
//! asks the kernel with.

/// What is waited for. That a side fails is to be told whatever is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// That there is something to read, or the end.
    pub readable: bool,
    /// That there is room for something to write.
    pub writable: bool,
}

impl Interest {
    /// Nothing but failures.
    pub(super) const FAILURES: Interest = Interest {
        readable: false,
        writable: false,
    };
}

/// What is known of one side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    /// A read would not wait: that it fails can be what it has to tell.
    pub readable: bool,
    /// The same of a write.
    pub writable: bool,
    /// The connection is broken.
    pub failed: bool,
    /// The connection has ended both ways.
    pub hung_up: bool,
}

impl Ready {
    /// Whether there is anything to be told.
    pub(super) fn is_any(self) -> bool {
        self != Ready::default()
    }
}
