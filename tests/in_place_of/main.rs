//! In the place of other programs: what their users have is served as they know it, and where it is not,
//! on purpose.

#[path = "../harness/mod.rs"]
mod harness;

mod rinetd;
mod rinetd_beside_rinetd;
mod rinetd_many_rules;
