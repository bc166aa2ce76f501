//! The program; see the library's map for how it is built.
//!
//! std's own start before `main` costs a tenth of a short session: it asks for the limits of the
//! stack, for which glibc reads /proc/self/maps, and has handlers ready for its overflow. glibc
//! hands std the arguments without it as well ([`std::env::args_os`]); other C libraries do not.

#![cfg_attr(target_env = "gnu", no_main)]

#[cfg(target_env = "gnu")]
#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    tcpproxy::main()
}

#[cfg(not(target_env = "gnu"))]
fn main() {
    tcpproxy::main()
}
