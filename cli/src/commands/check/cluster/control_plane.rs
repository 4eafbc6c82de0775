//! Checks of the control plane as Kubernetes runs it.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use super::super::catalog::{Finding, Outcome};
use super::super::scene::Scene;
use super::{of, refused};
use crate::cluster::objects::has_condition;
use crate::cluster::{CONTROL_PLANE, Cluster};
use crate::error::CliError;
use crate::install::apply::trouble;

pub(in super::super) async fn deployed(scene: Arc<Scene>) -> Outcome {
    match scene.installed() {
        Ok(()) => Outcome::passed(),
        Err(error) => {
            Outcome::failed(error.message.clone(), error.hint.clone().unwrap_or_default())
        }
    }
}

pub(in super::super) async fn scheduled(scene: Arc<Scene>) -> Outcome {
    let unscheduled = |pod: &Pod| {
        let status = pod.status.as_ref()?;
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
        Some(condition.message.clone().unwrap_or_default())
    };
    look(
        &scene,
        unscheduled,
        "no node takes these pods of the control plane",
        "add a node, or change controlPlane.resources, nodeSelector or tolerations: meshctl upgrade --set …",
    )
    .await
}

pub(in super::super) async fn replicas(scene: Arc<Scene>) -> Outcome {
    let cluster = match of(&scene) {
        Ok(cluster) => cluster,
        Err(outcome) => return outcome,
    };
    match count(cluster).await {
        Err(error) => refused(&error),
        Ok((ready, wanted)) if ready >= wanted => Outcome::Passed(format!("{ready} of {wanted}")),
        Ok((ready, wanted)) => {
            let kubectl = cluster.kubectl();
            let logs =
                format!("{kubectl} describe pods, then {kubectl} logs deploy/{CONTROL_PLANE}");
            let not_ready = |pod: &Pod| {
                let why = trouble(pod).unwrap_or_else(|| "it is not ready".to_owned());
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                (!has_condition(pod, "Ready"))
                    .then(|| why.trim_start_matches(name).trim_start_matches(": ").to_owned())
            };
            let found = look(&scene, not_ready, "", &logs).await;
            let objects = match found {
                Outcome::Failed(finding) => finding.objects,
                _ => Vec::new(),
            };
            let message = format!("{ready} of {wanted} replicas of the control plane are ready");
            Outcome::Failed(Finding { message, objects, remedy: logs })
        }
    }
}

/// How many replicas are ready, and how many should be.
async fn count(cluster: &Cluster) -> Result<(i32, i32), CliError> {
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), &cluster.mesh_namespace);
    let doing = format!("read Deployment/{CONTROL_PLANE}");
    let deployment = cluster.ask(&doing, api.get(CONTROL_PLANE)).await?;
    let ready = deployment.status.and_then(|status| status.ready_replicas).unwrap_or_default();
    Ok((ready, deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1)))
}

async fn look(
    scene: &Scene,
    wrong: impl Fn(&Pod) -> Option<String>,
    message: &str,
    remedy: &str,
) -> Outcome {
    let cluster = match of(scene) {
        Ok(cluster) => cluster,
        Err(outcome) => return outcome,
    };
    match cluster.control_pods().await {
        Err(error) => refused(&error),
        Ok(pods) => {
            let told = pods.iter().filter_map(|pod| {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                Some(format!("{name}: {}", wrong(pod)?))
            });
            Outcome::of(told.collect(), message, remedy)
        }
    }
}
