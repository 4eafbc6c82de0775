//! Checks of the API server itself.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, ResourceExt};

use super::super::catalog::{Finding, Outcome};
use super::super::scene::Scene;
use super::{of, refused};
use crate::units;

/// The oldest minor version of Kubernetes 1 that is tested.
const OLDEST: u32 = 31;
/// Tokens and certificates allow less than a minute.
const SKEW: Duration = Duration::from_secs(30);
/// Kinds of the Gateway API that the mesh reads.
const ROUTES: [&str; 2] =
    ["httproutes.gateway.networking.k8s.io", "grpcroutes.gateway.networking.k8s.io"];
const BUNDLE: &str = "gateway.networking.k8s.io/bundle-version";

pub(in super::super) async fn answers(scene: Arc<Scene>) -> Outcome {
    match scene.api() {
        Ok(api) => Outcome::Passed(api.version.clone()),
        Err(error) => {
            Outcome::failed(error.message.clone(), error.hint.clone().unwrap_or_default())
        }
    }
}

pub(in super::super) async fn version(scene: Arc<Scene>) -> Outcome {
    let Ok(api) = scene.api() else {
        return Outcome::Skipped(super::super::runner::NO_API.to_owned());
    };
    if (api.major, api.minor) >= (1, OLDEST) {
        return Outcome::passed();
    }
    Outcome::failed(
        format!("the cluster is of Kubernetes {}, older than 1.{OLDEST}", api.version),
        "upgrade the cluster",
    )
}

pub(in super::super) async fn clock(scene: Arc<Scene>) -> Outcome {
    let Ok(api) = scene.api() else {
        return Outcome::Skipped(super::super::runner::NO_API.to_owned());
    };
    let Some(theirs) = api.date else {
        return Outcome::Skipped("the API server does not tell the time".to_owned());
    };
    let ours = api.asked;
    let apart = |a: SystemTime, b: SystemTime| a.duration_since(b).unwrap_or_default();
    let skew = apart(theirs, ours).max(apart(ours, theirs));
    if skew <= SKEW {
        return Outcome::passed();
    }
    let (ahead, secs) = (if ours > theirs { "ahead" } else { "behind" }, skew.as_secs());
    Outcome::failed(
        format!("this machine's clock is {} {ahead} of the API server's", units::age(secs)),
        "set the clock of whichever is wrong; certificates begin and end by it",
    )
}

/// Routes of applications; the mesh works without, and takes them up when they appear.
pub(in super::super) async fn gateway(scene: Arc<Scene>) -> Outcome {
    let cluster = match of(&scene) {
        Ok(cluster) => cluster,
        Err(outcome) => return outcome,
    };
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let (mut missing, mut version) = (Vec::new(), String::new());
    for name in ROUTES {
        match cluster.ask("read definitions", api.get_metadata_opt(name)).await {
            Err(error) => return refused(&error),
            Ok(None) => missing.push(name.to_owned()),
            Ok(Some(found)) => {
                version = found.annotations().get(BUNDLE).cloned().unwrap_or_default();
            }
        }
    }
    if missing.is_empty() {
        return Outcome::Passed(version);
    }
    Outcome::Failed(Finding {
        message: "the cluster does not know the routes of the Gateway API".to_owned(),
        objects: missing,
        remedy: "install the Gateway API's definitions if routes are wanted".to_owned(),
    })
}
