//! The control plane: sources feed an index, services answer from it.
//!
//! [`source`] learns what the cluster looks like, [`index`] works out what each proxy is to be
//! told, [`services`] tells it and answers `meshctl`. Read [`index`] first.
//!
//! The process is [`main`]: configuration, logging, listeners, and an orderly end.

mod admin;
pub mod analyze;
pub mod config;
pub mod identity;
pub mod index;
pub mod inject;
pub mod overlay;
mod serve;
pub mod services;
pub mod source;
pub mod state;
pub mod webhook;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use self::config::{Args, Config, LogFormat, Source};
use self::identity::tokens::{LocalTokens, Tokens};
use self::identity::{Authority, Origin};
use self::source::kube::tokens::ReviewedTokens;
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
/// When a listener cannot be had, or there is no cluster.
pub async fn run(config: Config) -> Result<(), serve::StartError> {
    match config.source.clone() {
        Source::Local { state_dir } => run_local(config, state_dir).await,
        Source::Kube(settings) => run_kube(config, settings).await,
    }
}

async fn run_local(config: Config, state_dir: PathBuf) -> Result<(), serve::StartError> {
    let started = Started::new(&config, |shared| Box::new(LocalTokens::new(&state_dir, shared)));
    let mut started = started.await?;
    let source = source::local::run(state_dir, config.names, Arc::clone(&started.shared));
    started.running.spawn(source);
    started.serve("local").await
}

async fn run_kube(
    config: Config,
    settings: source::kube::Settings,
) -> Result<(), serve::StartError> {
    let client = source::kube::connect().await?;
    let tokens = ReviewedTokens::new(client.clone());
    let mut started = Started::new(&config, |_| Box::new(tokens)).await?;
    let (shared, authority) = (Arc::clone(&started.shared), started.authority.clone());
    if let Some(authority) = authority.clone()
        && authority.settings().origin == Origin::Secret
    {
        let (shared, client) = (Arc::clone(&shared), client.clone());
        started.running.spawn(identity::secret::run(authority, shared, client));
    }
    if let Some(config) = config.webhook {
        let (shared, authority) = (Arc::clone(&shared), authority.clone());
        webhook::start(config, client.clone(), shared, authority, &mut started.running).await?;
    }
    let stop = CancellationToken::new();
    let source = source::kube::run(client, settings, shared, authority, stop.clone());
    let source = tokio::spawn(source);
    let result = started.serve("kube").await;
    stop.cancel();
    // Another replica need not wait for the Lease to expire.
    if tokio::time::timeout(RELEASE, source).await.is_err() {
        tracing::warn!("the Lease could not be given up in time");
    }
    result
}

/// How long the end may take once nothing is served any more.
const RELEASE: Duration = Duration::from_secs(3);

/// What every control plane has, whatever its source.
struct Started {
    shared: Arc<Shared>,
    authority: Option<Arc<Authority>>,
    listeners: serve::Listeners,
    /// What runs is aborted with the set.
    running: JoinSet<()>,
}

impl Started {
    async fn new(
        config: &Config,
        tokens: impl FnOnce(Arc<Shared>) -> Box<dyn Tokens>,
    ) -> Result<Self, serve::StartError> {
        let names = config.identity.as_ref().map(|identity| identity.names.clone());
        let shared = Arc::new(Shared::new(config.defaults.clone(), names));
        let listeners = serve::Listeners::bind(config).await?;
        let authority = config
            .identity
            .clone()
            .map(|settings| Arc::new(Authority::new(settings, tokens(Arc::clone(&shared)))));
        let mut running = JoinSet::new();
        if let Some(authority) = &authority {
            if let Origin::Folder(folder) = authority.settings().origin.clone() {
                // Before anybody asks, so that nobody is turned away who need not be.
                let loaded = identity::folder::load(&folder);
                identity::folder::take(authority, &shared, loaded);
                let (authority, shared) = (Arc::clone(authority), Arc::clone(&shared));
                running.spawn(identity::folder::run(folder, authority, shared));
            }
            running.spawn(shared.own.clone().keep(Arc::clone(authority)));
        }
        Ok(Self { shared, authority, listeners, running })
    }

    async fn serve(self, source: &'static str) -> Result<(), serve::StartError> {
        let Self { shared, authority, listeners, running: _running } = self;
        Box::pin(listeners.serve(shared, authority, source)).await
    }
}

fn init_log(config: &Config) -> Result<(), Box<dyn std::error::Error>> {
    // It logs whole answers that it cannot read, and those may be Secrets.
    let filter = EnvFilter::try_new(&config.log)?.add_directive("kube_client=error".parse()?);
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
