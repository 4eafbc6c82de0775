//! `meshctl local`: run manifests as processes on this machine.

use std::process::ExitCode;

use crate::error::CliError;

/// Run manifests as processes on this machine
#[derive(clap::Args, Debug)]
pub struct Args {}

pub(crate) fn run(_args: Args) -> Result<ExitCode, CliError> {
    Err(CliError::failed("the local mesh can't be started yet"))
}
