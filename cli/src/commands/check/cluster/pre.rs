//! Checks of what an installation needs, before one is made.

use std::sync::Arc;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use serde_json::Value;

use super::super::catalog::{Finding, Outcome};
use super::super::scene::Scene;
use super::{of, refused};
use crate::cluster::Cluster;
use crate::cluster::objects::{Applying, KINDS, Kind};
use crate::error::CliError;
use crate::install::record;
use crate::manifests::values::{Overrides, Profile};
use crate::manifests::{Installation, Manifest};

/// The namespace that every cluster has. Nothing can be tried in one that is not there yet.
const STAND_IN: &str = "default";

pub(in super::super) async fn namespace(scene: Arc<Scene>) -> Outcome {
    let cluster = match of(&scene) {
        Ok(cluster) => cluster,
        Err(outcome) => return outcome,
    };
    let look = async {
        for binding in cluster.installed(Kind::of("ClusterRoleBinding")?).await? {
            let there = binding.data.pointer("/subjects/0/namespace").and_then(Value::as_str);
            if let Some(there) = there {
                return Ok(Outcome::failed(
                    format!("the cluster has a mesh already, in the namespace {there}"),
                    "meshctl upgrade, or meshctl uninstall",
                ));
            }
        }
        Ok::<_, CliError>(match record::read(cluster).await? {
            Some(_) => Outcome::failed(
                format!("the namespace {} has a mesh already", cluster.mesh_namespace),
                "meshctl upgrade, or meshctl uninstall",
            ),
            None => Outcome::Passed(cluster.mesh_namespace.clone()),
        })
    };
    look.await.unwrap_or_else(|error| refused(&error))
}

/// Whether we may do all of it: Kubernetes is asked for each kind.
pub(in super::super) async fn rights(scene: Arc<Scene>) -> Outcome {
    let cluster = match of(&scene) {
        Ok(cluster) => cluster,
        Err(outcome) => return outcome,
    };
    let mut asked = tokio::task::JoinSet::new();
    for kind in &KINDS {
        for verb in ["create", "patch", "delete"] {
            let cluster = cluster.clone();
            asked.spawn(async move { may(&cluster, kind, verb).await });
        }
    }
    let mut lacking = Vec::new();
    for answer in asked.join_all().await {
        match answer {
            Ok(None) => {}
            Ok(Some(denied)) => lacking.push(denied),
            Err(error) => return refused(&error),
        }
    }
    lacking.sort();
    Outcome::of(
        lacking,
        "you may not do everything that an installation needs",
        "have it installed by somebody with the ClusterRole cluster-admin",
    )
}

async fn may(cluster: &Cluster, kind: &Kind, verb: &str) -> Result<Option<String>, CliError> {
    let (group, plural) = kind.resource();
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(group.to_owned()),
                resource: Some(plural.to_owned()),
                verb: Some(verb.to_owned()),
                namespace: kind.namespaced.then(|| cluster.mesh_namespace.clone()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let params = PostParams::default();
    let answer = cluster.ask("review own rights", api.create(&params, &review)).await?;
    let allowed = answer.status.is_some_and(|status| status.allowed);
    let dot = if group.is_empty() { "" } else { "." };
    Ok((!allowed).then(|| format!("{verb} {plural}{dot}{group}")))
}

/// Everything is applied, and nothing is kept.
pub(in super::super) async fn dry_run(scene: Arc<Scene>) -> Outcome {
    let cluster = match of(&scene) {
        Ok(cluster) => cluster,
        Err(outcome) => return outcome,
    };
    let all = async {
        let namespace = &cluster.mesh_namespace;
        let installation = Installation::new(namespace, Profile::Default, Overrides::default())?;
        let there = cluster.exists(Kind::of("Namespace")?, namespace).await?;
        let mut refusals = Vec::new();
        for manifest in installation.render()? {
            let title = manifest.title();
            let manifest = if there { manifest } else { moved(manifest) };
            let applying = Applying { dry_run: true, force: true };
            if let Err(error) = cluster.apply(&manifest, applying).await {
                refusals.push(format!("{title}: {error}"));
            }
        }
        Ok::<_, CliError>(refusals)
    };
    match all.await {
        Err(error) => refused(&error),
        Ok(refusals) if refusals.is_empty() => Outcome::passed(),
        Ok(objects) => Outcome::Failed(Finding {
            message: "the API server would refuse some of the mesh's objects".to_owned(),
            objects,
            remedy: "each says why; admission policies of the cluster may have to allow them"
                .to_owned(),
        }),
    }
}

fn moved(mut manifest: Manifest) -> Manifest {
    if manifest.namespace.is_some() {
        manifest.namespace = Some(STAND_IN.to_owned());
        manifest.value["metadata"]["namespace"] = STAND_IN.into();
    }
    manifest
}
