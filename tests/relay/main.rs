//! The relay as its two peers see it: every case that moves bytes runs under each engine.

#[path = "../harness/mod.rs"]
mod harness;

mod bulk;
mod data_and_ends;
mod flow;
mod resets;
mod transcript;
mod urgent;
