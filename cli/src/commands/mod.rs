//! One file a command. [`run`] sends each to its own.

pub mod demo;
pub mod edges;
pub mod local;
pub mod run;
mod shared;
pub mod stat;
pub mod tap;
pub mod top;
pub mod version;

use std::process::ExitCode;

use crate::args::Commands;
use crate::context::Context;
use crate::error::CliError;

/// Runs a command that asks the mesh.
pub async fn run(command: Commands, cx: &mut Context) -> Result<ExitCode, CliError> {
    match command {
        Commands::Stat(args) => stat::run(args, cx).await,
        Commands::Tap(args) => tap::run(args, cx).await,
        Commands::Top(args) => top::run(args, cx).await,
        Commands::Edges(args) => edges::run(args, cx).await,
        Commands::Version(args) => version::run(args, cx).await,
        Commands::Demo(args) => demo::run(args, cx).await,
        Commands::Local(args) => local::run(args, cx).await,
        Commands::Run(args) => run::run(args, cx).await,
    }
}
