//! `meshctl check`: is everything as it should be, and if not, what is to be done.
//!
//! [`catalog`] lists the checks, [`scene`] is what they look at, [`runner`] runs them side by side, and [`report`]
//! writes down what they found. What each id means stands in `docs/troubleshooting.md`.

mod authority;
pub(crate) mod catalog;
mod cluster;
mod control_plane;
mod identity;
mod local;
mod pre;
mod proxies;
mod report;
mod round_trip;
mod runner;
mod scene;
mod source;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};

use crate::completing;
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::output::Format;
use crate::selector;

use self::catalog::{CATALOG, Check, Stage, World};
use self::report::Report;
use self::scene::Scene;

/// Check that the mesh is healthy
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct CheckArgs {
    /// Check what a mesh needs, before one is started
    #[arg(long, conflicts_with = "proxy")]
    pub pre: bool,
    /// Check just the proxies and their pods
    #[arg(long)]
    pub proxy: bool,
    /// Just the pods of this namespace
    #[arg(long, short, value_name = "NS", conflicts_with = "pre", add = completing::namespaces())]
    pub namespace: Option<String>,
    /// Run just these checks
    #[arg(long, value_name = "ID", value_delimiter = ',', add = completing::check_ids())]
    pub only: Vec<String>,
    /// Leave these checks out
    #[arg(long, value_name = "ID", value_delimiter = ',', add = completing::check_ids())]
    pub skip: Vec<String>,
    /// The least severe finding that makes the exit code 1
    #[arg(long, value_enum, value_name = "SEVERITY", default_value = "error")]
    pub fail_on: FailOn,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "short", "json", "junit"]))]
    pub output: Format,
}

const HELP: &str = "\
√ is passed, ‼ a warning, × an error, ~ left out. short lists just the findings. meshctl \
explain ID tells more about a check.

JSON: {version, success, counts: {passed, warnings, errors, skipped}, checks: [{id, \
category, severity, status, message, objects, hint, remedy}]}; status is passed, warning, \
error or skipped.

The exit code is 1 after a finding, and 3 if there is no mesh to check.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    Warning,
    Error,
}

pub(super) async fn run(args: CheckArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    for id in args.only.iter().chain(&args.skip) {
        if !CATALOG.iter().any(|check| check.id == id) {
            return Err(unknown(id));
        }
    }
    // What no cluster or mesh could be meant by is not a finding.
    cx.kube.choose(&cx.global)?;
    let scene = Arc::new(Scene::look(args.namespace.clone(), cx).await);
    let checks = chosen(&args, scene.is_cluster());
    let progress = cx.ui.progress(&format!("running {} checks", checks.len()));
    let results = runner::run(checks, &scene).await;
    drop(progress);
    let report = Report::new(results, args.fail_on);
    cx.ui.print(&match args.output {
        Format::Json => report.json()?,
        Format::Junit => report.junit(),
        Format::Short => report.short(cx.ui.out_style),
        _ => report.text(cx.ui.out_style),
    })?;
    Ok(match (report.success, scene.is_absent(args.pre)) {
        (true, _) => ExitCode::SUCCESS,
        (false, true) => CliError::new(Kind::Unreachable, "").exit_code(),
        (false, false) => ExitCode::FAILURE,
    })
}

/// The checks that were asked for, in the catalog's order.
fn chosen(args: &CheckArgs, in_cluster: bool) -> Vec<&'static Check> {
    let other = if in_cluster { World::Local } else { World::Cluster };
    let stage = |check: &Check| match check.stage {
        Stage::Before => args.pre,
        Stage::Always => true,
        Stage::Mesh => !args.pre && !args.proxy,
        Stage::Proxies => !args.pre,
    };
    let named = |id: &str| args.only.iter().any(|only| only == id);
    let wanted = |check: &&Check| {
        if args.only.is_empty() { check.world != other && stage(check) } else { named(check.id) }
    };
    let skipped = |check: &&Check| args.skip.iter().any(|skip| skip == check.id);
    CATALOG.iter().filter(wanted).filter(|check| !skipped(check)).collect()
}

fn unknown(id: &str) -> CliError {
    let nearest = CATALOG.iter().min_by_key(|check| selector::distance(id, check.id));
    CliError::usage(format!("there is no check \"{id}\"")).hint(
        nearest.map_or_else(String::new, |check| {
            format!("{}, or meshctl explain for all of them", check.id)
        }),
    )
}

#[cfg(test)]
mod tests;
