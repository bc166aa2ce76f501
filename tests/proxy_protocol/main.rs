//! Who the client is: PROXY headers that are accepted, and sent; and the programs that others use for
//! that.

#[path = "../harness/mod.rs"]
mod harness;

mod bytes;
mod headers;
mod limits;
mod receiving;
mod sending;
mod with_others;
