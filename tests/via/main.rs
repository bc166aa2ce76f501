//! Upstreams that are reached through a proxy.

#[path = "../harness/mod.rs"]
mod harness;

mod answers;
mod configuration;
mod credentials;
mod in_use;
mod sessions;
