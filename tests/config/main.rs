//! What is decided before anybody connects: the command line and the configuration file, as they
//! are written, read, checked, and printed again.

#[path = "../harness/mod.rs"]
mod harness;

mod check;
mod command_line;
mod include;
mod options_and_directives;
mod order_of_sources;
mod printed;
mod samples;
mod scopes;
mod services;
