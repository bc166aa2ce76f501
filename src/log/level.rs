//! How grave lines are.

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Level {
    /// Something failed that should not.
    Error,
    /// Something is not as it was asked for, but service goes on.
    Warning,
    /// Worth knowing: the server's own life, and clients turned away.
    Notice,
    /// Sessions that open and close.
    #[default]
    Info,
    /// Steps in between.
    Debug,
}

impl Level {
    /// The levels by name, gravest first.
    pub(crate) const WORDS: &[(&str, Level)] = &[
        ("error", Level::Error),
        ("warning", Level::Warning),
        ("notice", Level::Notice),
        ("info", Level::Info),
        ("debug", Level::Debug),
    ];
}
