//! Applies a mesh and waits until it is there: definitions first, then all else, then the control plane's pods.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::Api;
use tokio::time::Instant;

use super::plan::Plan;
use crate::cluster::objects::{Applying, Kind, has_condition};
use crate::cluster::{CONTROL_PLANE, Cluster};
use crate::error::CliError;
use crate::manifests::Manifest;
use crate::output::Progress;
use crate::output::Ui;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// An API server takes a moment for a new kind.
const ESTABLISHING: Duration = Duration::from_secs(60);

/// Makes the cluster as the manifests say.
pub async fn apply(
    cluster: &Cluster,
    manifests: &[Manifest],
    plan: &Plan,
    force: bool,
    ui: &mut Ui,
) -> Result<(), CliError> {
    let is_definition = |manifest: &&Manifest| manifest.kind == "CustomResourceDefinition";
    let applying = Applying { dry_run: false, force };
    let all = manifests.len();
    for (at, manifest) in manifests.iter().filter(is_definition).enumerate() {
        let _line = ui.progress(&format!("applying {} ({}/{all})", manifest.title(), at + 1));
        cluster.apply(manifest, applying).await?;
    }
    for manifest in manifests.iter().filter(is_definition) {
        established(cluster, manifest, ui).await?;
    }
    for manifest in manifests.iter().filter(|manifest| !is_definition(manifest)) {
        let _line = ui.progress(&format!("applying {}", manifest.title()));
        cluster.apply(manifest, applying).await?;
    }
    for object in &plan.stale {
        let kind = object.types.as_ref().map_or("", |types| types.kind.as_str());
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let _line = ui.progress(&format!("removing {kind}/{name}"));
        cluster.delete(Kind::of(kind)?, name).await?;
    }
    Ok(())
}

async fn established(cluster: &Cluster, manifest: &Manifest, ui: &Ui) -> Result<(), CliError> {
    let _line = ui.progress(&format!("waiting for {} to be established", manifest.title()));
    let until = Instant::now() + ESTABLISHING;
    loop {
        let live = cluster.live(manifest).await?;
        if live.as_ref().is_some_and(|live| has_condition(live, "Established")) {
            return Ok(());
        }
        if Instant::now() >= until {
            let said = live.and_then(|live| Some(live.data.get("status")?.to_string()));
            return Err(CliError::timed_out(format!(
                "{} was not established within {} s: {}",
                manifest.title(),
                ESTABLISHING.as_secs(),
                said.unwrap_or_default()
            ))
            .hint(format!("{} describe crd {}", cluster.kubectl(), manifest.name)));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until all replicas of the control plane are of this version and ready.
pub async fn wait_ready(cluster: &Cluster, limit: Duration, ui: &Ui) -> Result<(), CliError> {
    let until = Instant::now() + limit;
    let mut line: Option<(String, Progress)> = None;
    loop {
        let Some(lacking) = lacking(cluster).await? else { return Ok(()) };
        if Instant::now() >= until {
            drop(line.take());
            let late =
                format!("the control plane is not ready after {} s: {lacking}", limit.as_secs());
            return Err(CliError::timed_out(late).hint("meshctl check, which says what is wrong"));
        }
        if line.as_ref().is_none_or(|(shown, _)| *shown != lacking) {
            drop(line.take());
            let progress = ui.progress(&format!("waiting for the control plane: {lacking}"));
            line = Some((lacking, progress));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What the control plane still lacks.
async fn lacking(cluster: &Cluster) -> Result<Option<String>, CliError> {
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), &cluster.mesh_namespace);
    let doing = format!("read Deployment/{CONTROL_PLANE}");
    let Some(deployment) = cluster.ask(&doing, api.get_opt(CONTROL_PLANE)).await? else {
        return Ok(Some("its Deployment is not there".to_owned()));
    };
    let status = deployment.status.clone().unwrap_or_default();
    let wanted = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let seen = status.observed_generation.unwrap_or_default()
        >= deployment.metadata.generation.unwrap_or_default();
    let [updated, available, all] =
        [status.updated_replicas, status.available_replicas, status.replicas]
            .map(Option::unwrap_or_default);
    if seen && updated == wanted && available == wanted && all == wanted {
        return Ok(None);
    }
    let why = cluster.control_pods().await?.iter().find_map(trouble);
    let why = why.map(|why| format!("; {why}")).unwrap_or_default();
    let ready = available.min(updated);
    Ok(Some(format!("{ready} of {wanted} replicas are new and ready{why}")))
}

/// What keeps a pod from running, in Kubernetes' words.
pub fn trouble(pod: &Pod) -> Option<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref()?;
    let containers: Vec<&ContainerStatus> = status.container_statuses.iter().flatten().collect();
    let waiting =
        containers.iter().filter_map(|c| c.state.as_ref()?.waiting.as_ref()).find(|waiting| {
            !matches!(
                waiting.reason.as_deref(),
                None | Some("ContainerCreating" | "PodInitializing")
            )
        });
    if let Some(waiting) = waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let message = waiting.message.as_deref().unwrap_or_default();
        return Some(format!("{name}: {reason}: {message}"));
    }
    let conditions = status.conditions.iter().flatten();
    let unscheduled =
        conditions.into_iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
    let message = unscheduled.message.as_deref().unwrap_or_default();
    Some(format!("{name}: it can't be scheduled: {message}"))
}
