//! Who may connect: rules, access control programs, and limits; and what `--explain` says of them.

#[path = "../harness/mod.rs"]
mod harness;

mod chosen_server;
mod explain;
mod limits;
mod program;
mod program_messages;
mod rules;
mod state_dir;
