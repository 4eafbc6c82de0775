//! From the process to a command: which program this is, its arguments, its runtime and its exit code.

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Commands};
use crate::commands;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Ui;

/// Runs meshctl.
pub fn main() -> ExitCode {
    meshctl()
}

fn meshctl() -> ExitCode {
    let mut ui = Ui::of_process();
    let cli = Cli::parse();
    let ended = match cli.command {
        Commands::Demo(args) => commands::demo::run(args),
        Commands::Local(args) => commands::local::run(args),
        Commands::Run(args) => commands::run::run(args),
        command => on_runtime(command, Context::of_process(cli.global, ui.clone())),
    };
    ended.unwrap_or_else(|error| error.report(&mut ui))
}

/// A single thread is plenty: commands wait for others most of the time.
fn on_runtime(command: Commands, mut cx: Context) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(commands::run(command, &mut cx))
}
