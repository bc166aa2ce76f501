//! `tcpproxy`, the per-connection TCP forwarder.

#![deny(unsafe_code)]

pub mod error;
pub mod gate;
pub mod log;
pub mod lookup;
pub mod program;
pub mod reason;
pub mod relay;
pub mod source;
#[expect(unsafe_code, reason = "this is where unsafe lives")]
pub mod sys;
pub mod transcript;
pub mod upstream;
pub mod user;
pub mod value;
pub mod wait;
