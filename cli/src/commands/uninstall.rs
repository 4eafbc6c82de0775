//! `meshctl uninstall`: takes the mesh out of a cluster and leaves nothing but what people have made.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use kube::ResourceExt;

use crate::context::Context;
use crate::error::CliError;
use crate::install::ask;
use crate::install::remove::{Removal, instances, meshed_pods};
use crate::units;

/// Pods that the error names.
const NAMED: usize = 5;

/// Take the mesh out of a cluster
///
/// Webhooks go first, the namespace last. It can be run again after a failure.
#[derive(Args, Debug)]
pub struct UninstallArgs {
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// Remove the mesh's own kinds, too, with every policy that was written
    #[arg(long)]
    pub purge_crds: bool,
    /// Go on although pods with a proxy are running
    #[arg(long)]
    pub force: bool,
    /// How long it may take
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = units::parse_duration)]
    pub wait: Duration,
}

pub(super) async fn run(args: UninstallArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let cluster = cx.cluster().await?;
    let removal = Removal::of(&cluster, args.purge_crds).await?;
    if removal.is_empty() {
        cx.ui.note(&format!("there is no mesh in the cluster of \"{}\"", cluster.context));
        return Ok(ExitCode::SUCCESS);
    }
    let meshed = meshed_pods(&cluster).await?;
    if !meshed.is_empty() && !args.force {
        let more = if meshed.len() > NAMED { ", …" } else { "" };
        let named = meshed[..meshed.len().min(NAMED)].join(", ");
        let message = format!(
            "{} {} a proxy, whose certificates could not be renewed any more: {named}{more}",
            units::plural(meshed.len(), "pod"),
            if meshed.len() == 1 { "has" } else { "have" },
        );
        return Err(CliError::failed(message).hint(
            "kubectl label namespace NAME meshctl.dev/inject- and restart its workloads; or --force",
        ));
    }
    cx.ui.note(&format!("From the cluster of \"{}\" ({}):", cluster.context, cluster.server));
    cx.ui.note(removal.summary(&cluster).trim_end());
    for definition in removal.objects.iter().filter(|object| {
        object.types.as_ref().is_some_and(|types| types.kind == "CustomResourceDefinition")
    }) {
        let count = instances(&cluster, definition, None).await?.len();
        if count > 0 {
            cx.ui.note(&format!("    with {} of them: {count}", definition.name_any()));
        }
    }
    ask::confirm("Uninstall?", args.yes, &mut cx.ui)?;
    removal.run(&cluster, args.wait, &mut cx.ui).await?;
    cx.ui.note("the mesh is gone");
    Ok(ExitCode::SUCCESS)
}
