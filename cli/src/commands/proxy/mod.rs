//! `meshctl proxy`: is each proxy well, and what does one believe.

mod account;
mod config;
mod log_level;
mod outline;
mod pod;
mod status;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::context::Context;
use crate::error::CliError;

/// Show how the proxies are and what one of them believes
#[derive(Args, Debug)]
pub struct ProxyArgs {
    #[command(subcommand)]
    pub command: ProxyCommand,
}

#[derive(Debug, Subcommand)]
pub enum ProxyCommand {
    Status(status::StatusArgs),
    Config(config::ConfigArgs),
}

pub(super) async fn run(args: ProxyArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    match args.command {
        ProxyCommand::Status(args) => status::run(args, cx).await,
        ProxyCommand::Config(args) => config::run(args, cx).await,
    }
}
