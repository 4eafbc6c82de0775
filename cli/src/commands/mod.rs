//! One file a command. [`run()`] sends each to its own.

pub mod analyze;
pub mod authz;
pub mod bug_report;
pub mod check;
pub mod completion;
pub mod demo;
pub mod describe;
pub mod edges;
pub mod endpoints;
pub mod explain;
pub mod fault;
pub mod identity;
pub mod inject;
pub mod install;
pub mod local;
pub mod proxy;
pub mod routes;
pub mod run;
mod shared;
pub mod stat;
pub mod tap;
pub mod top;
pub mod uninstall;
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
        Commands::Routes(args) => routes::run(args, cx).await,
        Commands::Authz(args) => authz::run(args, cx).await,
        Commands::Endpoints(args) => endpoints::run(args, cx).await,
        Commands::Describe(args) => describe::run(args, cx).await,
        Commands::Fault(args) => fault::run(args, cx).await,
        Commands::Proxy(args) => proxy::run(args, cx).await,
        Commands::Completion(args) => completion::run(&args, cx),
        Commands::Identity(args) => identity::run(args, cx).await,
        Commands::Inject(args) => inject::run(args, cx).await,
        Commands::Uninject(args) => inject::run_uninject(&args, cx),
        Commands::Check(args) => check::run(args, cx).await,
        Commands::Explain(args) => explain::run(args, cx).await,
        Commands::Analyze(args) => analyze::run(args, cx).await,
        Commands::BugReport(args) => bug_report::run(args, cx).await,
        Commands::Version(args) => version::run(args, cx).await,
        Commands::Install(args) => install::install(args, cx).await,
        Commands::Upgrade(args) => install::upgrade(args, cx).await,
        Commands::Diff(args) => install::diff(args, cx).await,
        Commands::Uninstall(args) => uninstall::run(args, cx).await,
        Commands::Demo(args) => demo::run(args, cx).await,
        Commands::Local(args) => local::run(args, cx).await,
        Commands::Run(args) => run::run(args, cx).await,
    }
}
