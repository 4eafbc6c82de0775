//! `meshctl local up` and `down`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::{files, ps};
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::local::client::{self, Options, Supervisor, force_down, interrupted};
use crate::local::protocol::{Request, Status};
use crate::local::record::Record;
use crate::state_dir::StateDir;
use crate::units;

/// Start a local mesh in the background and wait until all of it is ready
#[derive(clap::Args, Debug)]
pub struct UpArgs {
    /// Manifests: files, folders, or - for standard input
    #[arg(long = "filename", short, required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// A network namespace for each pod, with redirected connections: programs need not know of the mesh (root)
    #[arg(long)]
    pub transparent: bool,
    /// Without certificates: pods have no identities and talk in plain text
    #[arg(long)]
    pub no_identity: bool,
    /// Stay, and end the mesh with ^C
    #[arg(long)]
    pub foreground: bool,
    /// How long to wait until all pods are ready
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = units::parse_duration)]
    pub timeout: Duration,
}

/// End the local mesh: applications, then proxies, then the control plane
#[derive(clap::Args, Debug)]
pub struct DownArgs {}

pub(super) async fn up(
    args: UpArgs,
    dir: &StateDir,
    cx: &mut Context,
) -> Result<ExitCode, CliError> {
    let given = files::read(&args.files)?;
    let options = Options {
        transparent: args.transparent,
        no_identity: args.no_identity,
        attached: args.foreground,
    };
    let mut supervisor = client::start(&cx.state, dir, options).await?;
    if let Err(error) = files::send(&mut supervisor, &Request::Apply { files: given }, cx).await {
        supervisor.down(&cx.ui).await?;
        return Err(error);
    }
    let settled = tokio::select! {
        biased;
        settled = supervisor.wait_settled(&cx.ui, args.timeout) => settled,
        signal = interrupted() => {
            signal?;
            return interrupted_up(args.foreground, supervisor, cx).await;
        }
    };
    match settled {
        Ok(status) => told_up(&status, dir, cx)?,
        Err(error) if args.foreground => {
            supervisor.down(&cx.ui).await?;
            return Err(error);
        }
        // What runs is left for the user to look at.
        Err(error) => {
            cx.ui.note(&format!(
                "the mesh is left as it is; meshctl local down{} ends it",
                dir.flag()
            ));
            return Err(error);
        }
    }
    if args.foreground {
        cx.ui.note("^C ends it");
        stay(supervisor, cx).await?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn down(dir: &StateDir, cx: &mut Context) -> Result<ExitCode, CliError> {
    if dir.is_running() {
        match Supervisor::connect(dir).await {
            Ok(supervisor) => supervisor.down(&cx.ui).await?,
            Err(_) => force_down(dir).await?,
        }
        cx.ui.note(&format!("the local mesh \"{}\" has ended", dir.name));
        return Ok(ExitCode::SUCCESS);
    }
    if Record::read(&dir.path).is_some() {
        force_down(dir).await?;
        cx.ui.note(&format!("removed what a crashed local mesh \"{}\" had left behind", dir.name));
        return Ok(ExitCode::SUCCESS);
    }
    let message = format!("the local mesh \"{}\" is not running", dir.name);
    Err(CliError::unreachable(message).hint("meshctl demo, or meshctl local up -f FILE"))
}

/// Waits for the user or for the mesh to end, whichever comes first.
pub(crate) async fn stay(mut supervisor: Supervisor, cx: &Context) -> Result<(), CliError> {
    let mut looks = tokio::time::interval(Duration::from_secs(2));
    let signal = interrupted();
    tokio::pin!(signal);
    loop {
        tokio::select! {
            ended = &mut signal => {
                ended?;
                return supervisor.down(&cx.ui).await;
            }
            _ = looks.tick() => {
                supervisor.status().await?;
            }
        }
    }
}

async fn interrupted_up(
    foreground: bool,
    supervisor: Supervisor,
    cx: &mut Context,
) -> Result<ExitCode, CliError> {
    if foreground {
        supervisor.down(&cx.ui).await?;
    } else {
        let flag = supervisor.dir.flag();
        cx.ui.note(&format!("the mesh goes on starting; meshctl local down{flag} ends it"));
    }
    Err(CliError::new(Kind::Interrupted, "interrupted"))
}

fn told_up(status: &Status, dir: &StateDir, cx: &mut Context) -> Result<(), CliError> {
    cx.ui.print(&ps::table(status, None, false).render(cx.ui.out_style))?;
    let flag = dir.flag();
    cx.ui.note(&format!(
        "\nthe local mesh \"{}\" is up; meshctl stat deploy tells how it does, meshctl local down{flag} ends it",
        dir.name
    ));
    Ok(())
}
