//! `meshctl identity`: who the pods are, by which certificates, and how a root is replaced.

pub(crate) mod life;
mod report;
mod rotate;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use self::report::Report;
pub(crate) use self::report::account;
use crate::commands::shared;
use crate::completing;
use crate::context::Context;
use crate::error::CliError;
use crate::local::authority::Authority;
use crate::output::{Format, format};
use crate::selector;

/// Show the certificates in use, or replace the root
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, after_long_help = HELP)]
pub struct IdentityArgs {
    #[command(subcommand)]
    pub command: Option<IdentityCommand>,
    #[command(flatten)]
    pub show: ShowArgs,
}

#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    Rotate(rotate::RotateArgs),
}

#[derive(Args, Debug)]
pub struct ShowArgs {
    /// Just POD, NAMESPACE/POD or TYPE/NAME
    #[arg(value_name = "POD", add = completing::pods())]
    pub pod: Option<String>,
    /// Just this namespace
    #[arg(long, short, value_name = "NS", add = completing::namespaces())]
    pub namespace: Option<String>,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "wide", "json", "yaml"]))]
    pub output: Format,
}

const HELP: &str = "\
ACCOUNT is the service account and its namespace; wide has the whole identity, the serial and \
since when. LEFT is what is left of a certificate's life, ROOTS how many roots the proxy \
trusts. Proxies renew a certificate when a third of its life is left.

JSON and YAML: {authority, proxies}; authority is null or {issuer: {subject, serial, issuer, \
not_before, not_after}, roots: [{fingerprint, subject, not_before, not_after, trusted_by}]}, \
a proxy has namespace, pod, reachable, error, id, certificate (serial, issuer, not_before, \
not_after, left; or null), roots, renewals, failures and last_error. Times are seconds since \
the Unix epoch, left is a share.";

pub(super) async fn run(args: IdentityArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    match args.command {
        Some(IdentityCommand::Rotate(args)) => rotate::run(args, cx).await,
        None => show(args.show, cx).await,
    }
}

async fn show(args: ShowArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let named = args.pod.as_deref();
    let selector = match named {
        Some(word) => selector::of_pods(word, args.namespace.as_deref())?,
        None => selector::all_pods(args.namespace.as_deref()),
    };
    let mesh = cx.connect().await?;
    let rows = match mesh.proxies(selector.clone()).await {
        Ok(rows) => rows,
        Err(error) => return Err(shared::propose(&mesh, [&selector], error).await),
    };
    if rows.is_empty() && named.is_some() {
        return Err(shared::no_such(&mesh, &selector).await);
    }
    let authority = mesh.place.local().and_then(Authority::of);
    let report = Report::new(rows, authority.as_ref(), life::now())?;
    if report.is_without_identity() {
        cx.ui.note("the pods of this mesh have no identity, and talk in plain text");
    }
    cx.ui.print(&match args.output {
        Format::Json => format::json(&report)?,
        Format::Yaml => format::yaml(&report)?,
        wanted => report.text(wanted == Format::Wide, &cx.zone, cx.ui.out_style),
    })?;
    if args.output.is_for_people() {
        report.notes().iter().for_each(|note| cx.ui.note(note));
    }
    Ok(ExitCode::SUCCESS)
}
