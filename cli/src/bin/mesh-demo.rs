//! `mesh-demo <role>`: one service of the sample application. All of it is in `meshctl::demo_app`.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use meshctl::demo_app::{Args, DemoError, Environment, run};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// One thread is plenty: the work of a request is tiny.
fn serve(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended: Result<(), DemoError> = runtime.block_on(run(args, &Environment::of_process()));
    Ok(ended?)
}
