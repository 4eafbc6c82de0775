//! `meshctl demo`: start the local mesh with the sample application.

use std::process::ExitCode;

use crate::error::CliError;

/// Start the local mesh with the sample application
#[derive(clap::Args, Debug)]
pub struct Args {}

pub(crate) fn run(_args: Args) -> Result<ExitCode, CliError> {
    Err(CliError::failed("the local mesh can't be started yet"))
}
