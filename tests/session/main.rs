//! One session: who serves it, how long it may take, and the handler that may serve it instead of
//! an upstream.

#[path = "../harness/mod.rs"]
mod harness;

mod client_names;
mod confinement;
mod environment;
mod handler_outcomes;
mod handlers;
mod orphans;
mod time_limits;
mod users;
