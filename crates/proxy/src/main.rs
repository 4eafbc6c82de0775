//! `mesh-proxy`, the sidecar by itself. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    mesh_proxy::main()
}
