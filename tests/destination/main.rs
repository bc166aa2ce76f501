//! Where connections go that were not made to the machine, and whose address they have: redirected
//! and transparent clients, and upstreams that see the client itself.

#[path = "../harness/mod.rs"]
mod harness;

mod redirected;
mod source_client;
mod transparent;
