//! The sample application: a small shop whose services use every protocol the mesh carries.
//!
//! One binary, `mesh-demo <role>`, is each of the services; `manifests/demo` says how they run together, in a
//! cluster as in the local mesh. `web` calls `checkout`, which calls `tax` (HTTP/1), `shipping` (gRPC) and
//! `ledger` (TCP); `load` calls `web`; `portal` calls `finance`, as only it may. Read `args.rs` next, then `web.rs` and on down the calls.

mod args;
mod catalog;
mod checkout;
mod client;
mod env;
mod finance;
mod ledger;
mod lifecycle;
mod load;
mod portal;
mod server;
mod shipping;
mod tax;
mod web;

#[cfg(test)]
mod codegen;
#[cfg(test)]
mod manifests;
#[cfg(test)]
mod tests;

/// Generated from `shop.proto`.
#[allow(unreachable_pub, missing_debug_implementations, clippy::all, clippy::large_futures)]
mod pb {
    include!("gen/shop.v1.rs");
}

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

pub use args::Args;
pub use env::{EnvErrors, Environment};

use args::Role;
use lifecycle::Lifecycle;

/// The program `mesh-demo <role>`: one service of the sample application.
pub fn main() -> ExitCode {
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

/// Why the sample application ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("{0}")]
    Environment(#[from] EnvErrors),
    #[error(
        "can't listen on {address}: {source}; set PORT and POD_IP, or --port, to a free address"
    )]
    Bind { address: SocketAddr, source: io::Error },
    #[error("{role}: {source}")]
    Role { role: &'static str, source: io::Error },
}

/// Runs one role until SIGTERM or SIGINT (`load --count`: until all requests are sent).
pub async fn run(args: Args, env: &Environment) -> Result<(), DemoError> {
    let role = args.role.name();
    let (terminator, lifecycle) = Lifecycle::new(args.role.linger());
    tokio::spawn(async move {
        if let Err(error) = terminator.on_signal().await {
            tracing::error!(%error, "can't listen for signals");
        }
    });
    let served = match args.role {
        Role::Web(args) => {
            let (listen, config) = args.resolve(env)?;
            web::serve(config, bind(role, listen).await?, lifecycle).await
        }
        Role::Checkout(args) => {
            let (listen, config) = args.resolve(env)?;
            checkout::serve(config, bind(role, listen).await?, lifecycle).await
        }
        Role::Tax(args) => {
            let (listen, config) = args.resolve(env)?;
            tax::serve(config, bind(role, listen).await?, lifecycle).await
        }
        Role::Shipping(args) => {
            let ((http, grpc), config) = args.resolve(env)?;
            let (http, grpc) = (bind(role, http).await?, bind(role, grpc).await?);
            shipping::serve(config, http, grpc, lifecycle).await
        }
        Role::Ledger(args) => {
            let (listen, config) = args.resolve(env)?;
            ledger::serve(config, bind(role, listen).await?, lifecycle).await
        }
        Role::Finance(args) => {
            finance::serve(bind(role, args.resolve(env)?).await?, lifecycle).await
        }
        Role::Portal(args) => {
            let (listen, config) = args.resolve(env)?;
            portal::serve(config, bind(role, listen).await?, lifecycle).await
        }
        Role::Load(args) => {
            let (listen, config) = args.resolve(env)?;
            match config.count {
                // A single measurement serves nobody, so it needs no port of its own.
                Some(_) => print(&load::run(config, &lifecycle).await),
                None => load::serve(config, bind(role, listen).await?, lifecycle).await,
            }
        }
    };
    served.map_err(|source| DemoError::Role { role, source })
}

async fn bind(role: &'static str, address: SocketAddr) -> Result<TcpListener, DemoError> {
    let listener =
        TcpListener::bind(address).await.map_err(|source| DemoError::Bind { address, source })?;
    tracing::info!(role, %address, "listening");
    Ok(listener)
}

fn print(summary: &load::Summary) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, summary)?;
    writeln!(out)
}
