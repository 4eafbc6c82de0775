//! `meshctl local`: run manifests as processes on this machine, each behind a real proxy.
//!
//! The work is the supervisor's (`crate::local`); these commands tell it what to do and show what it says.

pub(crate) mod files;
mod logs;
mod ps;
mod up;
mod workload;

use std::process::ExitCode;

use clap::Subcommand;

pub(super) use self::files::send;
use crate::connect;
use crate::context::Context;
use crate::error::CliError;
use crate::state_dir::{DEFAULT_MESH, StateDir};

/// Run manifests as processes on this machine, each behind a proxy
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub struct LocalArgs {
    /// The local mesh [default: the running one, else `default`]
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "local")]
    pub name: Option<String>,
    #[command(subcommand)]
    pub command: LocalCommand,
}

const HELP: &str = "\
A Deployment's container `command` is run as a process for each replica. It is told by
its environment where to listen ($PORT, and $PORT_<NAME> for further named ports; on
$POD_IP, 127.0.0.1 or all addresses) and how to reach others (http_proxy, and
<SVC>_SERVICE_HOST with <SVC>_SERVICE_PORT as in Kubernetes). With --transparent it
needs to know nothing: services have names and addresses as in a cluster.";

#[derive(Debug, Subcommand)]
pub enum LocalCommand {
    Up(up::UpArgs),
    Down(up::DownArgs),
    Apply(files::ApplyArgs),
    Delete(files::DeleteArgs),
    Restart(workload::RestartArgs),
    Scale(workload::ScaleArgs),
    Ps(ps::PsArgs),
    Logs(logs::LogsArgs),
}

pub(super) async fn run(args: LocalArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let name = args.name.or_else(|| cx.global.local.clone());
    match args.command {
        LocalCommand::Up(args) => {
            let dir = cx.state.mesh(name.as_deref().unwrap_or(DEFAULT_MESH))?;
            up::up(args, &dir, cx).await
        }
        LocalCommand::Down(_) => {
            let dir = match name {
                Some(name) => cx.state.mesh(&name)?,
                None => down_target(cx)?,
            };
            up::down(&dir, cx).await
        }
        LocalCommand::Logs(args) => logs::run(args, &log_target(name, cx)?, cx).await,
        LocalCommand::Apply(args) => files::apply(args, &running(name, cx)?, cx).await,
        LocalCommand::Delete(args) => files::delete(args, &running(name, cx)?, cx).await,
        LocalCommand::Restart(args) => workload::restart(args, &running(name, cx)?, cx).await,
        LocalCommand::Scale(args) => workload::scale(args, &running(name, cx)?, cx).await,
        LocalCommand::Ps(args) => ps::run(args, &running(name, cx)?, cx).await,
    }
}

/// The running mesh that is meant.
pub(super) fn running(name: Option<String>, cx: &Context) -> Result<StateDir, CliError> {
    let global = crate::args::Global { local: name, ..cx.global.clone() };
    connect::locate(&global, &cx.state)
}

/// Like [`running`], but a crashed mesh will do: there may be something to clean up.
fn down_target(cx: &Context) -> Result<StateDir, CliError> {
    match running(None, cx) {
        Err(_) if cx.state.running().is_empty() => cx.state.mesh(DEFAULT_MESH),
        found => found,
    }
}

/// Like [`running`], but one that has ended will do: its logs are kept.
fn log_target(name: Option<String>, cx: &Context) -> Result<StateDir, CliError> {
    match name {
        Some(name) => cx.state.mesh(&name),
        None => down_target(cx),
    }
}
