//! How an upstream is reached, and who is asked for its name.

#[path = "../harness/mod.rs"]
mod harness;

mod connecting;
mod name_services;
