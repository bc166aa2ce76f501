//! Bytes of others' protocols: read and written, and nothing asked of the operating system.

pub mod answer;
pub mod proxy;
