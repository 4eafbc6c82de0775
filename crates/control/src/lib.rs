//! The control plane: sources feed an index, services answer from it.
//!
//! [`source`] learns what the cluster looks like, [`index`] works out what each proxy is to be
//! told, [`services`] tells it and answers `meshctl`. Read [`index`] first.
//!
//! The process is [`main`]: configuration, logging, listeners, and an orderly end.

mod admin;
pub mod config;
pub mod identity;
pub mod index;
pub mod inject;
mod serve;
pub mod services;
pub mod source;
pub mod state;
pub mod webhook;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tokio::task::JoinSet;
use tracing_subscriber::EnvFilter;

use self::config::{Args, Config, LogFormat};
use self::identity::Authority;
use self::identity::tokens::LocalTokens;
use self::state::Shared;

/// The program `mesh-control`. Ends with 0 after SIGTERM or SIGINT, with 2 for a wrong
/// configuration, with 1 when it cannot start.
pub fn main() -> ExitCode {
    let config = match Config::try_from(Args::parse()) {
        Ok(config) => config,
        Err(error) => return fail(2, &error),
    };
    if let Err(error) = init_log(&config) {
        return fail(2, &*error);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &error),
    };
    let result = runtime.block_on(run(config));
    // A file being read or a stream that nobody ends must not hold the process up.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

/// Runs the control plane until it is told to end.
///
/// # Errors
/// When a listener cannot be had.
pub async fn run(config: Config) -> Result<(), serve::StartError> {
    let names = config.identity.as_ref().map(|identity| identity.names.clone());
    let shared = Arc::new(Shared::new(config.defaults.clone(), names));
    let listeners = serve::Listeners::bind(&config).await?;
    let authority = config.identity.clone().map(|settings| {
        let tokens = LocalTokens::new(&config.state_dir, Arc::clone(&shared));
        Arc::new(Authority::new(settings, Box::new(tokens)))
    });
    let mut running = JoinSet::new();
    if let Some(authority) = &authority {
        // Before anybody asks, so that nobody is turned away who need not be.
        let loaded = identity::folder::load(&authority.settings().folder);
        identity::folder::take(authority, &shared, loaded);
        running.spawn(identity::folder::run(Arc::clone(authority), Arc::clone(&shared)));
    }
    if let Some(config) = config.webhook.clone() {
        webhook::start(config, Arc::clone(&shared), authority.clone(), &mut running).await?;
    }
    running.spawn(source::local::run(config.state_dir.clone(), Arc::clone(&shared)));
    // What runs is aborted with the set.
    Box::pin(listeners.serve(shared, authority, "local")).await
}

fn init_log(config: &Config) -> Result<(), Box<dyn std::error::Error>> {
    let filter = EnvFilter::try_new(&config.log)?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match config.log_format {
        LogFormat::Plain => log.with_ansi(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    }
    .map_err(|error| error as Box<dyn std::error::Error>)
}

fn fail(code: u8, error: &dyn std::error::Error) -> ExitCode {
    let mut text = format!("mesh-control: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    // Nowhere is left to report to when stderr is closed.
    let _ = writeln!(io::stderr(), "{text}");
    ExitCode::from(code)
}
