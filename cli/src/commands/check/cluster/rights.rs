//! Whether the control plane may do what it has to, as its roles are installed.

use std::sync::Arc;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use serde_json::Value;

use super::super::catalog::Outcome;
use super::super::scene::Scene;
use super::{of, refused};
use crate::cluster::{CONTROL_PLANE, Cluster};
use crate::error::CliError;
use crate::manifests::values::{Overrides, Profile};
use crate::manifests::{Installation, Manifest};

pub(in super::super) async fn granted(scene: Arc<Scene>) -> Outcome {
    let cluster = match of(&scene) {
        Ok(cluster) => cluster,
        Err(outcome) => return outcome,
    };
    let namespace = &cluster.mesh_namespace;
    // What every profile needs.
    let installation = Installation::new(namespace, Profile::Minimal, Overrides::default());
    let manifests = match installation.and_then(|installation| installation.render()) {
        Ok(manifests) => manifests,
        Err(error) => return refused(&error),
    };
    let mut asked = tokio::task::JoinSet::new();
    for (right, attributes) in manifests.iter().flat_map(|m| rights(m, namespace)) {
        let cluster = cluster.clone();
        asked.spawn(async move { Ok((!may(&cluster, attributes).await?).then_some(right)) });
    }
    let mut lacking = Vec::new();
    for answer in asked.join_all().await {
        match answer {
            Ok(denied) => lacking.extend(denied),
            Err(error) => return refused(&error),
        }
    }
    lacking.sort();
    Outcome::of(lacking, "the control plane may not do everything it has to", "meshctl upgrade")
}

/// Each right that a role gives, in words and as it is asked for.
fn rights(role: &Manifest, namespace: &str) -> Vec<(String, ResourceAttributes)> {
    let namespace = match role.kind.as_str() {
        "ClusterRole" => None,
        "Role" => Some(namespace.to_owned()),
        _ => return Vec::new(),
    };
    let texts = |rule: &Value, field: &str| -> Vec<String> {
        let all = rule[field].as_array().into_iter().flatten();
        all.filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let mut rights = Vec::new();
    for rule in role.value["rules"].as_array().into_iter().flatten() {
        let name = texts(rule, "resourceNames").into_iter().next();
        for group in texts(rule, "apiGroups") {
            for resource in texts(rule, "resources") {
                let (of, part) = match resource.split_once('/') {
                    Some((of, part)) => (of, Some(part.to_owned())),
                    None => (resource.as_str(), None),
                };
                for verb in texts(rule, "verbs") {
                    let dot = if group.is_empty() { "" } else { "." };
                    let attributes = ResourceAttributes {
                        group: Some(group.clone()),
                        resource: Some(of.to_owned()),
                        subresource: part.clone(),
                        verb: Some(verb.clone()),
                        name: name.clone(),
                        namespace: namespace.clone(),
                        ..ResourceAttributes::default()
                    };
                    rights.push((format!("{verb} {resource}{dot}{group}"), attributes));
                }
            }
        }
    }
    rights
}

async fn may(cluster: &Cluster, attributes: ResourceAttributes) -> Result<bool, CliError> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{}:{CONTROL_PLANE}", cluster.mesh_namespace)),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(cluster.client.clone());
    let params = PostParams::default();
    let answer = cluster.ask("review the control plane's rights", api.create(&params, &review));
    Ok(answer.await?.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_those_of_the_roles_that_are_installed() {
        let installation =
            Installation::new("mesh-system", Profile::Minimal, Overrides::default()).unwrap();
        let manifests = installation.render().unwrap();
        let all: Vec<_> = manifests.iter().flat_map(|m| rights(m, "mesh-system")).collect();
        let has = |words: &str, namespace: Option<&str>| {
            let mut of = all.iter();
            of.any(|(right, of)| right == words && of.namespace.as_deref() == namespace)
        };
        assert!(has("watch pods", None) && has("list endpointslices.discovery.k8s.io", None));
        assert!(has("create secrets", Some("mesh-system")) && !has("create secrets", None));
    }
}
