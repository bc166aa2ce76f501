//! Bytes of others' protocols: read and written, and nothing asked of the operating system.

pub mod answer;
pub mod connect;
pub mod ftp;
pub mod http;
pub mod proxy;
pub mod socks5;

/// What has come of an answer, in front of which nothing came and behind which anything may.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// All of it belongs to the answer, of which more is to come.
    Incomplete,
    /// The whole answer, or enough of it to end with; and perhaps data behind it.
    Complete {
        /// What it says.
        says: T,
        /// How many bytes it has.
        length: usize,
    },
    /// It is no answer; a sentence says why.
    Wrong(String),
}
