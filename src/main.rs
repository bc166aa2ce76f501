//! The program; see the library's map for how it is built.

use std::process::ExitCode;

fn main() -> ExitCode {
    tcpproxy::main().into()
}
