//! `meshctl local restart` and `scale`.

use std::process::ExitCode;

use super::files::Wait;
use crate::context::Context;
use crate::error::CliError;
use crate::local::client::Supervisor;
use crate::local::protocol::{Request, Target};
use crate::state_dir::StateDir;

/// Replace all pods of a workload by new ones, without losing a request
#[derive(clap::Args, Debug)]
pub struct RestartArgs {
    /// The workload: deploy/NAME
    #[arg(value_name = "TYPE/NAME", value_parser = parse)]
    pub workload: Target,
    /// Its namespace, if several have one of that name
    #[arg(long, short, value_name = "NS")]
    pub namespace: Option<String>,
    #[command(flatten)]
    pub wait: Wait,
}

/// Run more or fewer pods of a workload
#[derive(clap::Args, Debug)]
pub struct ScaleArgs {
    /// The workload: deploy/NAME
    #[arg(value_name = "TYPE/NAME", value_parser = parse)]
    pub workload: Target,
    /// How many pods
    #[arg(long, value_name = "N")]
    pub replicas: u32,
    /// Its namespace, if several have one of that name
    #[arg(long, short, value_name = "NS")]
    pub namespace: Option<String>,
    #[command(flatten)]
    pub wait: Wait,
}

pub(super) async fn restart(
    args: RestartArgs,
    dir: &StateDir,
    cx: &mut Context,
) -> Result<ExitCode, CliError> {
    let target = Target { namespace: args.namespace, ..args.workload };
    let named = format!("{}/{}", target.kind, target.name);
    let mut supervisor = Supervisor::connect(dir).await?;
    supervisor.ask(&Request::Restart(target)).await?;
    args.wait.wait(&mut supervisor, cx).await?;
    cx.ui.line(&format!("{named} restarted"))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn scale(
    args: ScaleArgs,
    dir: &StateDir,
    cx: &mut Context,
) -> Result<ExitCode, CliError> {
    let target = Target { namespace: args.namespace, ..args.workload };
    let named = format!("{}/{}", target.kind, target.name);
    let mut supervisor = Supervisor::connect(dir).await?;
    supervisor.ask(&Request::Scale { target, replicas: args.replicas }).await?;
    args.wait.wait(&mut supervisor, cx).await?;
    cx.ui.line(&format!("{named} scaled to {}", args.replicas))?;
    Ok(ExitCode::SUCCESS)
}

fn parse(text: &str) -> Result<Target, String> {
    match text.split_once('/') {
        Some((kind, name)) if !kind.is_empty() && !name.is_empty() => {
            Ok(Target { kind: kind.to_owned(), namespace: None, name: name.to_owned() })
        }
        _ => Err("write it as deploy/NAME".to_owned()),
    }
}
