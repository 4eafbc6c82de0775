//! The meshctl binary. Everything is in the library, so that the same code can be tested and reused.

use std::process::ExitCode;

fn main() -> ExitCode {
    meshctl::main()
}
