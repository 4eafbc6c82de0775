//! `meshctl uninject`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{files, text};
use crate::context::Context;
use crate::error::CliError;
use crate::output::clean;

/// Take the proxy out of manifests again
///
/// What `meshctl inject` wrote is taken out byte for byte. It also works on objects that a cluster
/// printed, whatever injected them.
#[derive(Args, Debug)]
pub struct UninjectArgs {
    /// Files, folders (their .yaml, .yml and .json files), or - for stdin
    #[arg(value_name = "FILE", required = true)]
    pub input: Vec<PathBuf>,
    /// Write the files instead of printing them
    #[arg(long, short)]
    pub in_place: bool,
}

pub(in super::super) fn run(args: &UninjectArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let inputs = files::read(&args.input)?;
    let mut outputs = Vec::new();
    let mut changed = Vec::new();
    for input in &inputs {
        outputs.push(text::uninject(input, &mut changed)?);
    }
    files::write(&inputs, &outputs, args.in_place, cx)?;
    for object in &changed {
        cx.ui.note(&format!("{} uninjected", clean(object)));
    }
    if changed.is_empty() {
        cx.ui.note("there is no proxy in these manifests; nothing was changed");
    }
    Ok(ExitCode::SUCCESS)
}
