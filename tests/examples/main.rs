//! Every file in `examples/`, used as it says.

#[path = "../harness/mod.rs"]
mod harness;

mod files;
mod systemd_units;
mod transparent_gateway;
