//! From the process to a command: which program this is, its arguments, its runtime and its exit code.

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Commands};
use crate::commands;
use crate::context::Context;
use crate::error::CliError;
use crate::local::supervisor;
use crate::output::Ui;

/// Runs the program that this process was called as: meshctl, or one of those it starts for a local mesh.
pub fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&called).file_name().and_then(|name| name.to_str());
    match name {
        Some("mesh-proxy") => mesh_proxy::main(),
        Some("mesh-control") => mesh_control::main(),
        Some("mesh-demo") => crate::demo_app::main(),
        Some(supervisor::PROGRAM) => supervisor::main(),
        _ => meshctl(),
    }
}

fn meshctl() -> ExitCode {
    if commands::completion::answer() {
        return ExitCode::SUCCESS;
    }
    let mut ui = Ui::of_process();
    let cli = Cli::parse();
    let ended = on_runtime(cli.command, Context::of_process(cli.global, ui.clone()));
    ended.unwrap_or_else(|error| error.report(&mut ui))
}

/// A single thread is plenty: commands wait for others most of the time. And what they start dies with the thread
/// that started it.
fn on_runtime(command: Commands, mut cx: Context) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(commands::run(command, &mut cx))
}
