//! The operating system: what the program asks of it, in safe words.
//!
//! `raw` alone is unsafe. What std and nix offer safely is not wrapped again.

pub mod names;
pub mod program;
#[expect(unsafe_code, reason = "this is where unsafe lives")]
mod raw;
pub mod streams;
pub mod user;
pub mod wait;

pub use raw::Words;
pub(crate) use raw::*;
