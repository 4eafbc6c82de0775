//! `meshctl demo`: the local mesh with the sample application under load, shown live, gone with ^C.

mod manifests;
mod view;

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::local::send;
use crate::context::Context;
use crate::error::CliError;
use crate::local::client::{self, Options, Supervisor};
use crate::local::protocol::Request;
use crate::output::live::Live;
use crate::state_dir::DEFAULT_MESH;
use crate::units;

/// How long it may take until all is ready.
const READY: Duration = Duration::from_secs(90);
/// Between two pictures on a terminal, and on a pipe.
const LIVE: Duration = Duration::from_secs(1);
const PLAIN: Duration = Duration::from_secs(5);

/// Start a local mesh with the sample application under load; ^C ends all of it
#[derive(clap::Args, Debug)]
pub struct DemoArgs {
    /// Requests per second of the load generator
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rps: u32,
    /// A network namespace for each pod, with redirected connections (root)
    #[arg(long)]
    pub transparent: bool,
    /// End by itself after this time
    #[arg(long = "for", value_name = "TIME", value_parser = units::parse_duration)]
    pub duration: Option<Duration>,
    /// Print a picture every five seconds instead of repainting the terminal
    #[arg(long)]
    pub plain: bool,
    /// The local mesh's name
    #[arg(long, value_name = "NAME", default_value = DEFAULT_MESH)]
    pub name: String,
}

pub(super) async fn run(args: DemoArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let dir = cx.state.mesh(&args.name)?;
    let options = Options { transparent: args.transparent, attached: true, ..Options::default() };
    let mut supervisor = client::start(&cx.state, &dir, options).await?;
    let played = tokio::select! {
        biased;
        signal = client::interrupted() => signal.map_err(CliError::from),
        played = play(&args, &mut supervisor, cx) => played,
    };
    // Also after an error: nothing of a demo outlives it.
    let ended = supervisor.down(&cx.ui).await;
    played?;
    ended?;
    cx.ui.note("the demo has ended; nothing of it is left running");
    Ok(ExitCode::SUCCESS)
}

/// Brings the sample application up and shows how it does, until the time is over.
async fn play(
    args: &DemoArgs,
    supervisor: &mut Supervisor,
    cx: &mut Context,
) -> Result<(), CliError> {
    send(supervisor, &Request::Apply { files: manifests::files(args.rps) }, cx).await?;
    supervisor.wait_settled(&cx.ui, READY).await?;
    let end = args.duration.map(|duration| Instant::now() + duration);
    let mut ui = cx.ui.clone();
    ui.out_tty &= !args.plain;
    let mut live = Live::new(&ui);
    let mut ticks = interval(if ui.out_tty { LIVE } else { PLAIN });
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first picture would be an empty one.
    ticks.reset();
    if !ui.out_tty {
        cx.ui.note(&view::hints(&supervisor.dir));
    }
    loop {
        let over = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => return Ok(()),
            _ = ticks.tick() => {}
        }
        let status = supervisor.status().await?;
        let figures = view::Figures::ask(&supervisor.dir).await;
        live.paint(&view::picture(&status, &figures, &supervisor.dir, &ui))?;
    }
}
