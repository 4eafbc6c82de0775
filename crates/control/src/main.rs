//! The program `mesh-control`; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    mesh_control::main()
}
