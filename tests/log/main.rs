//! What is written down: the log, wherever it goes, and the access log.

#[path = "../harness/mod.rs"]
mod harness;

mod access_log;
mod access_log_formats;
mod refused;
mod sinks;
mod unread;
