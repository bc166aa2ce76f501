//! What the tests share.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `program` | tcpproxy started in each of its ways (`Standalone`, `under_inetd`, ...) and what it says: `Running`, `Said`, `field` |
//! | `waiting` | everything that waits, with a deadline: `eventually`, `Lines`, `patient` streams |
//! | `scratch` | a directory of the test's own, and scripts in it |
//! | `upstreams` | one that follows a script, an echo, one that nobody may come to, one that never answers |
//! | `peers` | both ends of a session in the test's hands: resets, urgent data, how it ended |
//! | `noise` | long data in which every wrong byte is noticed |
//! | `narrow_session` | a session whose client takes little at once, so that the relay blocks soon |
//! | `clients` | clients of chosen ports and from chosen addresses |
//! | `ports` | free ports, for whom port 0 does not serve |
//! | `forward_proxies` | proxies on the way to an upstream: the real ones, and one that follows a script |
//! | `config_file` | a configuration file, what is said about it, and a server that has it |
//! | `reloading` | a server whose file the test changes while it runs |
//! | `access_log` | access logs: lines, JSON, sessions that leave one |
//! | `super_server` | inetd, xinetd, tcpserver, systemd-socket-activate: the real ones |
//! | `processes` | what can be seen of a process from outside: children, descriptors, time, memory |
//! | `namespaces` | a network, mounts, a /dev and a system log of the test's own |
//! | `gateway` | a network of three machines: a client's, a gateway that is the test's own, a server's |
//! | `name_server` | names and a DNS of the test's own |
//! | `terminal` | a terminal, and processes that have it |
//! | `machine` | what is needed of the machine: root, descriptors, and programs |
//!
//! Where the next test goes: into the folder of `tests/` whose `main.rs` says its subject, and there
//! into the file whose first lines say its theme. A new theme is a new file, with a `mod` line in
//! `main.rs`; a new subject is a new folder. A folder is one program, whose tests run at the same
//! time, and beside those of its other files: a test has ports, files and users of its own, and
//! changes nothing of its own process (environment, working directory, limits, signals). One that
//! must, starts a process for it, as `sources/start_up.rs` does. What two files need goes in here.
//!
//! Run one theme with `cargo test --test relay resets::`, all with `tests/run`.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every subject uses a part of this"
)]

pub mod access_log;
pub mod clients;
pub mod config_file;
pub mod forward_proxies;
pub mod gateway;
mod machine;
pub mod name_server;
pub mod namespaces;
pub mod narrow_session;
pub mod noise;
pub mod peers;
mod ports;
pub mod processes;
mod program;
pub mod reloading;
mod scratch;
pub mod super_server;
pub mod terminal;
pub mod upstreams;
mod waiting;

pub use machine::*;
pub use ports::*;
pub use program::*;
pub use scratch::*;
pub use waiting::*;
