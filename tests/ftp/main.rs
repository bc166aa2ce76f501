//! FTP and its data connections: `--helper ftp`. Scripted sessions, in which both ends are in the test's
//! hands; and real servers and clients.

#[path = "../harness/mod.rs"]
mod harness;

mod active;
mod configured;
mod control;
mod data;
mod passive;
mod programs;
mod session;
