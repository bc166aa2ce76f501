//! How far the reading of something has come that others have sent, and that comes in pieces.

/// What has come of it. Nothing came in front of it, and behind it anything may.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress<T> {
    /// All of it belongs to it, and more is to come.
    Incomplete,
    /// The whole of it, or enough to end with; and perhaps data behind it.
    Complete {
        /// What it says.
        says: T,
        /// How many bytes it has.
        length: usize,
    },
    /// It is something else; a sentence says why.
    Wrong(String),
}
