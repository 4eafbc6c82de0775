//! `meshctl inject` and `meshctl uninject`: the proxy in manifests instead of at admission.
//!
//! The text of a manifest is edited, not written anew: [`text`] has what is done to one document, over
//! the places that [`place`] finds; what is added is the webhook's own, of `mesh_control::inject`.

mod emit;
mod files;
mod place;
mod settings;
#[cfg(test)]
mod tests;
mod text;
mod uninject;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use mesh_control::inject::Outcome;

use self::text::{Mode, Report, Verdict};
pub use self::uninject::UninjectArgs;
pub(super) use self::uninject::run as run_uninject;
use crate::context::Context;
use crate::error::CliError;
use crate::output::{Cell, Column, Table, clean};

/// Add the proxy to the workloads of manifests
///
/// Prints the manifests with the proxy in every pod template; comments and everything else stay as they
/// are, and `meshctl uninject` takes it out again, byte for byte. Doing it again changes nothing, or
/// brings older proxies up to date.
///
/// Needed where no webhook is wanted. Otherwise label the namespace (`kubectl label ns NAME
/// meshctl.dev/inject=enabled`), or use --enable, which sets that label on each pod template only.
#[derive(Args, Debug)]
pub struct InjectArgs {
    /// Files, folders (their .yaml, .yml and .json files), or - for stdin
    #[arg(value_name = "FILE", required = true)]
    pub input: Vec<PathBuf>,
    /// Only label the pod templates, so that the cluster's webhook injects them
    #[arg(long, conflicts_with_all = ["set", "manual_roots", "no_identity"])]
    pub enable: bool,
    /// Say what would be injected and which rule decided, instead of printing manifests
    #[arg(long)]
    pub explain: bool,
    /// Write the files instead of printing them
    #[arg(long, short, conflicts_with = "explain")]
    pub in_place: bool,
    /// Another value than the mesh's: image.registry, image.tag, image.pullPolicy, or the name of an
    /// annotation without its prefix, such as proxy-log-level
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Take the trust roots from this file (PEM), not from the cluster
    #[arg(long, value_name = "FILE")]
    pub manual_roots: Option<PathBuf>,
    /// For a mesh without identities (profile no-tls): all traffic is plaintext
    #[arg(long, conflicts_with = "manual_roots")]
    pub no_identity: bool,
    /// Ask no cluster for the mesh's settings
    #[arg(long)]
    pub offline: bool,
}

pub(super) async fn run(args: InjectArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let inputs = files::read(&args.input)?;
    let settings;
    let mode = if args.enable {
        Mode::Enable
    } else {
        settings = settings::gather(&args, cx).await?;
        Mode::Inject(&settings)
    };
    let namespaces = text::namespaces(&inputs)?;
    let mut reports = Vec::new();
    let mut outputs = Vec::new();
    for input in &inputs {
        outputs.push(text::inject(input, &namespaces, &mode, &mut reports)?);
    }
    if args.explain {
        let mut table =
            Table::new([Column::left("OBJECT"), Column::left("INJECTED"), Column::left("WHY")]);
        for report in &reports {
            let (injected, why) = report.verdict.told();
            table
                .row([report.object.as_str(), injected, why].map(|text| Cell::from(&*clean(text))));
        }
        cx.ui.print(&table.render(cx.ui.out_style))?;
    } else {
        files::write(&inputs, &outputs, args.in_place, cx)?;
    }
    tell(&reports, args.explain, cx);
    if reports.is_empty() {
        cx.ui.note("there is no workload in these manifests; nothing was injected");
    }
    Ok(ExitCode::SUCCESS)
}

/// What was done, on stderr: stdout is for manifests.
fn tell(reports: &[Report], only_warnings: bool, cx: &mut Context) {
    for report in reports {
        let (injected, why) = report.verdict.told();
        if !only_warnings {
            let line = match report.verdict {
                Verdict::Injected(_) => cx.ui.err_style.green(injected),
                Verdict::Skipped(_) => format!("skipped: {}", clean(why)),
                Verdict::Refused(_) => {
                    format!("{}: {}", cx.ui.err_style.red("refused"), clean(why))
                }
            };
            cx.ui.note(&format!("{} {line}", clean(&report.object)));
        }
        for warning in &report.warnings {
            let label = cx.ui.err_style.yellow("warning:");
            cx.ui.note(&format!("  {label} {}", clean(warning)));
        }
    }
}

impl Verdict {
    /// Whether it was injected, and why or why not.
    fn told(&self) -> (&'static str, &str) {
        match self {
            Self::Injected(rule) => ("injected", rule),
            Self::Skipped(reason) => ("no", reason),
            Self::Refused(reason) => ("refused", reason),
        }
    }
}

impl From<&Outcome> for Verdict {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Injected(injection) => Self::Injected(injection.rule.clone()),
            Outcome::Skipped { reason } => Self::Skipped(reason.clone()),
            Outcome::Refused { reason } => Self::Refused(reason.clone()),
        }
    }
}
