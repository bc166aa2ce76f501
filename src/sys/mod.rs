//! The operating system: what the program asks of it, in safe words.
//!
//! `raw` alone is unsafe. What std and nix offer safely is not wrapped again.

pub(crate) mod errand;
pub(crate) mod names;
pub(crate) mod peeking;
pub(crate) mod program;
#[expect(unsafe_code, reason = "this is where unsafe lives")]
mod raw;
pub(crate) mod sockets;
pub(crate) mod streams;
pub(crate) mod user;
pub(crate) mod vigil;
pub(crate) mod wait;

pub use raw::Words;
pub(crate) use raw::*;
