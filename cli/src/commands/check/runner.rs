//! Runs checks side by side, each with its own deadline, so that one that hangs or fails hides no other.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::catalog::{Check, Needs, Outcome, World};
use super::cluster::in_cluster;
use super::scene::Scene;

/// The control plane gives proxies 2 s; a check may ask it twice.
const DEADLINE: Duration = Duration::from_secs(6);

/// A check and what came out of it.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) check: &'static Check,
    pub(super) outcome: Outcome,
}

/// Runs them all; the results are in the order of the checks.
pub(super) async fn run(checks: Vec<&'static Check>, scene: &Arc<Scene>) -> Vec<Done> {
    let mut outcomes: Vec<Option<Outcome>> = vec![None; checks.len()];
    let mut running = JoinSet::new();
    for (at, check) in checks.iter().enumerate() {
        match missing(check, scene) {
            Some(why) => outcomes[at] = Some(Outcome::Skipped(why)),
            None => {
                let look = (check.run)(Arc::clone(scene));
                running.spawn(async move { (at, tokio::time::timeout(DEADLINE, look).await.ok()) });
            }
        }
    }
    while let Some(joined) = running.join_next().await {
        if let Ok((at, outcome)) = joined {
            outcomes[at] = Some(outcome.unwrap_or_else(|| {
                Outcome::failed(
                    format!("it did not end within {} s", DEADLINE.as_secs()),
                    "run it again; if it stays so, look at the logs of the control plane",
                )
            }));
        }
    }
    if let Some(cluster) = scene.cluster() {
        for outcome in outcomes.iter_mut().flatten() {
            if let Outcome::Failed(finding) = outcome {
                finding.remedy = in_cluster(&finding.remedy, cluster);
            }
        }
    }
    // Only a check that panicked has left no outcome.
    let died = || Outcome::failed("the check itself failed", "report this as a defect of meshctl");
    let done = checks.into_iter().zip(outcomes);
    done.map(|(check, outcome)| Done { check, outcome: outcome.unwrap_or_else(died) }).collect()
}

pub(super) const NO_API: &str = "the API server does not answer";
const NO_MESH: &str = "no mesh is running";
const NOT_INSTALLED: &str = "no mesh is installed";

/// Why a check would mean nothing now.
fn missing(check: &Check, scene: &Scene) -> Option<String> {
    let in_cluster = scene.is_cluster();
    let why = match (check.world, check.needs) {
        (World::Local, _) if in_cluster => Some("it is for local meshes"),
        (World::Cluster, _) if !in_cluster => Some("it is for clusters"),
        (_, Needs::Nothing) => None,
        _ if in_cluster && scene.api().is_err() => Some(NO_API),
        (_, Needs::Api) => None,
        _ if in_cluster && scene.installed().is_err() => Some(NOT_INSTALLED),
        _ if !in_cluster && scene.dir().is_err() => Some(NO_MESH),
        (_, Needs::Mesh) => None,
        (_, Needs::ControlPlane) => {
            scene.mesh.as_ref().err().map(|_| "the control plane does not answer")
        }
    };
    why.map(str::to_owned)
}
