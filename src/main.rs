//! The program; see the library's map for how it is built.
//!
//! std's own start before `main` costs a tenth of a short session: it asks for the limits of the
//! stack, for which glibc reads a file and musl tries one page after the other, and has handlers
//! ready for its overflow. So this is C's `main`.

#![no_main]

#[unsafe(no_mangle)]
extern "C" fn main(_count: std::ffi::c_int, words: tcpproxy::Words) -> ! {
    tcpproxy::main(words)
}
