//! `meshctl run`: join one application to the local mesh.

use std::process::ExitCode;

use crate::error::CliError;

/// Join one application to the local mesh
#[derive(clap::Args, Debug)]
pub struct Args {}

pub(crate) fn run(_args: Args) -> Result<ExitCode, CliError> {
    Err(CliError::failed("the local mesh can't be started yet"))
}
