//! Sessions that are held back on purpose: a bandwidth, delays. Which way bytes are moved meanwhile, and
//! to the byte when, is tested beside the code (`src/relay/held_back.rs`, `src/relay/pace.rs`).

#[path = "../harness/mod.rs"]
mod harness;

mod sessions;
