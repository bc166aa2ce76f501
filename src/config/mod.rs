//! All that is decided before anybody connects: what was written, on the command line and in files,
//! and what it means.
//!
//! Words become settings by one table ([`settings`]), wherever they stand. The command line ([`cli`])
//! and the configuration file ([`mod@file`]) both say what was written (`entry`); `setup` merges
//! them, and [`service`] is what comes of it. Other programs' command lines and files come to the same, by
//! their front-ends (`as`).

pub(crate) mod answer;
mod r#as;
pub(crate) mod cli;
mod entry;
pub(crate) mod explain;
pub mod file;
pub(crate) mod service;
pub mod settings;
pub(crate) mod setup;
mod unusable;
mod via;

pub use r#as::parse_rinetd;
pub(crate) use r#as::{InPlaceOf, command_line};
pub(crate) use entry::{Config, Destination, Entry};
pub(crate) use unusable::Unusable;
