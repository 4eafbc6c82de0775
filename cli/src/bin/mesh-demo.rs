//! `mesh-demo <role>`: one service of the sample application. All of it is in `meshctl::demo_app`.

use std::process::ExitCode;

fn main() -> ExitCode {
    meshctl::demo_app::main()
}
