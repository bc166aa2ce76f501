//! What must not creep in unnoticed, as counts: a time on a shared machine proves nothing, but a
//! system call more, a page more or an allocation more is seen at once.
//!
//! A bound is what the program needs, with its reason beside it, and a little room where the
//! kernel or the C library have a say. Who needs to raise one says why there.

#[path = "../harness/mod.rs"]
mod harness;

mod allocations;
mod forked_session;
mod start_up;
