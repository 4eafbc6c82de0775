//! What is installed, as snapshots; and that it is what Kubernetes understands.

use std::path::Path;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::*;
use crate::testing::golden;

fn installation(profile: Profile, sets: &[&str]) -> Installation {
    let mut overrides = Overrides::default();
    sets.iter().for_each(|set| overrides.set(set).unwrap());
    Installation::new("mesh-system", profile, overrides).unwrap()
}

#[test]
fn every_profile_has_its_snapshot() {
    for profile in Profile::ALL {
        let yaml = installation(profile, &[]).yaml().unwrap();
        golden(&format!("install-{}.yaml", profile.as_str()), &yaml);
    }
}

#[test]
fn a_gateway_is_installed_where_it_is_wanted() {
    let yaml = installation(
        Profile::Default,
        &["gateway.enabled=true", "gateway.ports=[80, 443, 5432]", "gateway.replicas=2"],
    )
    .render()
    .unwrap();
    let of_gateway = yaml.iter().filter(|manifest| manifest.yaml.contains("mesh-gateway"));
    golden("install-gateway.yaml", &documents(&of_gateway.cloned().collect::<Vec<_>>()));
    let control = yaml.iter().find(|m| m.title() == "Deployment/mesh-control").unwrap();
    assert!(control.yaml.contains("--gateway"));
    let plain = installation(Profile::NoTls, &["gateway.enabled=true"]).yaml().unwrap();
    assert!(!plain.contains("mesh-token"), "there is nothing to prove");
}

/// Whether nothing is lost on the way through the type: fields that it does not know would be.
fn is_strict<T: DeserializeOwned + Serialize>(value: &Value) -> bool {
    let typed: T = serde_json::from_value(value.clone()).unwrap();
    serde_json::to_value(typed).unwrap() == *value
}

fn understood(kind: &str, value: &Value) -> bool {
    match kind {
        "Namespace" => is_strict::<Namespace>(value),
        "CustomResourceDefinition" => is_strict::<CustomResourceDefinition>(value),
        "ServiceAccount" => is_strict::<ServiceAccount>(value),
        "ClusterRole" => is_strict::<ClusterRole>(value),
        "ClusterRoleBinding" => is_strict::<ClusterRoleBinding>(value),
        "Role" => is_strict::<Role>(value),
        "RoleBinding" => is_strict::<RoleBinding>(value),
        "ConfigMap" => is_strict::<ConfigMap>(value),
        "Service" => is_strict::<Service>(value),
        "PodDisruptionBudget" => is_strict::<PodDisruptionBudget>(value),
        "Deployment" => is_strict::<Deployment>(value),
        // Kubernetes itself has no type for it.
        "GatewayClass" => value["spec"]["controllerName"] == "meshctl.dev/gateway",
        "MutatingWebhookConfiguration" => is_strict::<MutatingWebhookConfiguration>(value),
        other => panic!("nobody knows {other}"),
    }
}

#[test]
fn every_bundled_document_is_strictly_of_its_type() {
    for text in [NAMESPACE, RBAC, CONFIG, CONTROL, GATEWAY, INJECTOR] {
        for document in text.split("\n---\n") {
            let value: Value = serde_saphyr::from_str(document).unwrap();
            let kind = value["kind"].as_str().unwrap();
            assert!(understood(kind, &value), "{value}");
        }
    }
}

#[test]
fn the_text_says_what_the_objects_are() {
    for profile in Profile::ALL {
        let odd = [
            "controlPlane.log=yes",
            "image.tag='1e3'",
            "controlPlane.tolerations=[{operator: Exists}]",
        ];
        for manifest in installation(profile, &odd).render().unwrap() {
            let read: Value = serde_saphyr::from_str(&manifest.yaml).unwrap();
            assert_eq!(read, manifest.value, "{}", manifest.yaml);
            assert!(understood(&manifest.kind, &manifest.value), "{}", manifest.yaml);
            assert_eq!(read["kind"], manifest.kind);
            assert_eq!(read["apiVersion"], manifest.api_version);
        }
    }
}

#[test]
fn everything_is_labelled_and_in_the_namespace_that_was_asked_for() {
    let overrides = Overrides::default();
    let manifests =
        Installation::new("elsewhere", Profile::Ha, overrides).unwrap().render().unwrap();
    for manifest in &manifests {
        assert!(!manifest.yaml.contains("mesh-system"), "{}", manifest.yaml);
        let labels = &manifest.value["metadata"]["labels"];
        for name in ["name", "part-of", "version", "managed-by"] {
            assert!(labels[format!("app.kubernetes.io/{name}")].is_string(), "{}", manifest.yaml);
        }
    }
    assert!(manifests.iter().any(|manifest| manifest.kind == "PodDisruptionBudget"));
}

#[test]
fn no_secret_and_no_certificate_is_rendered() {
    for profile in Profile::ALL {
        let yaml = installation(profile, &[]).yaml().unwrap();
        assert!(!yaml.contains("kind: Secret\n") && !yaml.contains("caBundle"), "{yaml}");
    }
}

/// What the level `restricted` of the pod security standards asks for.
#[test]
fn the_control_plane_is_restricted() {
    for manifest in installation(Profile::Ha, &[]).render().unwrap() {
        if manifest.kind != "Deployment" {
            continue;
        }
        let pod = &manifest.value["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
            assert_eq!(context["readOnlyRootFilesystem"], true);
        }
    }
}

/// The folders that people use without meshctl: plain definitions, and a base for kustomize.
#[test]
fn the_files_for_others_are_up_to_date() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    let manifests = installation(Profile::Default, &[]).render().unwrap();
    let mut files = vec![(folder.join("kustomize/base/mesh.yaml"), documents(&manifests))];
    for manifest in manifests.iter().filter(|manifest| manifest.kind == "CustomResourceDefinition")
    {
        files.push((
            folder.join(format!("mesh/crds/{}.yaml", manifest.name)),
            manifest.yaml.clone(),
        ));
    }
    for (path, text) in files {
        if std::env::var_os("MESH_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(written == text, "{} is out of date (MESH_BLESS=1 rewrites it)", path.display());
    }
}
