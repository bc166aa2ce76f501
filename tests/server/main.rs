//! The server that listens and forks: where it listens, what operators tell it, and what becomes of
//! it under load and in need. What its sessions cost is in `cost`.

#[path = "../harness/mod.rs"]
mod harness;

mod background;
mod endurance;
mod listeners;
mod loops;
mod operating;
mod pid_file;
mod reload;
mod reload_check;
mod soak;
mod supervisor;
