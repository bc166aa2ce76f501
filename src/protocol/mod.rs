//! Bytes of others' protocols: read and written, and nothing asked of the operating system.

pub mod answer;
pub mod connect;
pub mod ftp;
pub mod http;
pub mod proxy;
pub mod socks5;
