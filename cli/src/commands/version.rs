//! `meshctl version`: what runs here and there.

use std::process::ExitCode;

use clap::Args;

use crate::context::Context;
use crate::error::CliError;

/// Show the version of meshctl and of the control plane
#[derive(Args, Debug)]
pub struct VersionArgs {
    /// Don't ask the control plane
    #[arg(long)]
    pub client: bool,
}

pub(super) async fn run(_args: VersionArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    cx.ui.line(&format!("client: {}", env!("CARGO_PKG_VERSION")))?;
    Ok(ExitCode::SUCCESS)
}
