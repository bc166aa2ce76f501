//! All that is decided before anybody connects: what was written, on the command line and in files,
//! and what it means.
//!
//! Words become settings by one table ([`settings`]), wherever they stand. The command line ([`cli`])
//! and the configuration file ([`mod@file`]) both say what was written (`entry`); `setup` merges
//! them, and [`service`] is what comes of it.

pub(crate) mod answer;
pub(crate) mod cli;
mod entry;
pub(crate) mod explain;
pub mod file;
pub(crate) mod service;
pub mod settings;
pub(crate) mod setup;
mod unusable;
mod via;

pub(crate) use entry::{Config, Destination, Entry};
pub(crate) use unusable::Unusable;
