//! Uninstalling and upgrading, against an API server that has what an installation leaves there.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::manifests::Installation;
use crate::manifests::values::{Overrides, Profile};
use crate::testing::objects::Objects;
use crate::testing::{Ran, run_in};

fn object(kind: &str, namespace: &str, name: &str) -> Value {
    json!({"kind": kind, "metadata": {"namespace": namespace, "name": name}})
}

fn rendered(namespace: &str, profile: Profile, sets: &[&str]) -> Vec<Value> {
    let mut overrides = Overrides::default();
    sets.iter().for_each(|set| overrides.set(set).unwrap());
    let installation = Installation::new(namespace, profile, overrides).unwrap();
    installation.render().unwrap().into_iter().map(|manifest| manifest.value).collect()
}

/// A mesh in `mesh-system`, with what its control plane has made, and more.
async fn mesh(more: &[Value]) -> Objects {
    let mut all = rendered("mesh-system", Profile::Default, &[]);
    all.extend([
        object("Secret", "mesh-system", "mesh-identity-issuer"),
        object("Secret", "mesh-system", "mesh-webhook-cert"),
        object("Lease", "mesh-system", "mesh-control"),
        object("ConfigMap", "mesh-system", "mesh-trust-roots"),
        object("ConfigMap", "mesh-system", "kube-root-ca.crt"),
    ]);
    all.extend(more.iter().cloned());
    Objects::start(all).await
}

async fn run(line: &str, objects: &Objects) -> Ran {
    run_in(line, &tempfile::tempdir().unwrap(), objects.files()).await
}

#[tokio::test]
async fn a_mesh_elsewhere_is_not_taken_apart() {
    let objects = mesh(&[]).await;
    let before = objects.ids();
    let ran = run("uninstall -y --purge-crds --mesh-namespace other", &objects).await;
    let error = ran.result.unwrap_err();
    assert_eq!(
        error.message,
        "the mesh of this cluster is in the namespace mesh-system, not in other"
    );
    assert_eq!(error.hint.unwrap(), "meshctl uninstall --mesh-namespace mesh-system");
    assert_eq!(objects.ids(), before);
}

#[tokio::test]
async fn a_namespace_with_nothing_but_the_mesh_goes() {
    let objects = mesh(&[]).await;
    let ran = run("uninstall -y", &objects).await;
    assert_eq!(ran.result.unwrap(), ExitCode::SUCCESS, "{}", ran.err);
    assert!(ran.err.contains("- remove Namespace/mesh-system"), "{}", ran.err);
    let left = objects.ids();
    assert!(left.iter().all(|id| id.starts_with("CustomResourceDefinition/")), "{left:?}");
    assert!(run("uninstall -y", &objects).await.err.starts_with("there is no mesh"));
}

#[tokio::test]
async fn a_cluster_without_gateway_api_has_no_gateways_to_keep() {
    let objects = mesh(&[]).await;
    objects.lack("/apis/gateway.networking.k8s.io/");
    let ran = run("uninstall -y", &objects).await;
    assert_eq!(ran.result.unwrap(), ExitCode::SUCCESS, "{}", ran.err);
    assert!(ran.err.contains("- remove Namespace/mesh-system"), "{}", ran.err);
}

#[tokio::test]
async fn a_gateway_needs_kinds_that_not_every_cluster_has() {
    let objects = Objects::start([]).await;
    let line = "install --dry-run server --set gateway.enabled=true";
    let ran = run(line, &objects).await;
    assert_eq!(ran.result.unwrap(), ExitCode::SUCCESS, "{}", ran.err);
    assert!(ran.err.contains("+ create GatewayClass/mesh"), "{}", ran.err);
    objects.lack("/apis/gateway.networking.k8s.io/");
    let error = run("install -y --set gateway.enabled=true", &objects).await.result.unwrap_err();
    let version = "gateway.networking.k8s.io/v1";
    assert_eq!(
        error.message,
        format!("the API server does not know the kind GatewayClass of {version}")
    );
    assert!(error.hint.unwrap().ends_with("or leave gateway.enabled off"));
    assert!(objects.ids().is_empty(), "nothing is written");
    let ran = run("install --dry-run server", &objects).await;
    assert_eq!(ran.result.unwrap(), ExitCode::SUCCESS, "{}", ran.err);
}

#[tokio::test]
async fn what_people_have_made_keeps_the_namespace() {
    for kind in [
        "Secret",
        "PersistentVolumeClaim",
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "Job",
        "CronJob",
        "Pod",
        "Service",
        "ConfigMap",
        "Gateway",
        "HTTPRoute",
        "GRPCRoute",
        "ReferenceGrant",
        // Its definition stays.
        "AuthorizationPolicy",
    ] {
        let objects = mesh(&[object(kind, "mesh-system", "theirs")]).await;
        let ran = run("uninstall -y", &objects).await;
        ran.result.unwrap();
        let kept =
            format!("keep Namespace/mesh-system with what is in it, such as {kind}/theirs\n");
        assert!(ran.err.contains(&kept), "{kind}: {}", ran.err);
        let left = objects.ids();
        assert!(left.contains(&format!("mesh-system/{kind}/theirs")), "{left:?}");
        assert!(left.contains(&"Namespace/mesh-system".to_owned()), "{left:?}");
        assert!(!left.iter().any(|id| id.contains("mesh-identity-issuer")), "{left:?}");
    }
}

#[tokio::test]
async fn the_key_of_the_authority_does_not_outlive_a_failure() {
    let objects = mesh(&[object("Secret", "mesh-system", "theirs")]).await;
    objects.hold(Some("mesh-system/Secret/mesh-identity-issuer"));
    run("uninstall -y", &objects).await.result.unwrap_err();
    let left = objects.ids();
    assert!(left.contains(&"mesh-system/Secret/mesh-identity-issuer".to_owned()), "{left:?}");
    objects.hold(None);
    let ran = run("uninstall -y", &objects).await;
    assert!(ran.err.contains("- remove Secret/mesh-identity-issuer\n"), "{}", ran.err);
    let left = objects.ids();
    let own = ["mesh-identity-issuer", "mesh-webhook-cert", "mesh-control", "mesh-trust-roots"];
    assert!(!left.iter().any(|id| own.iter().any(|own| id.ends_with(own))), "{left:?}");
}

#[tokio::test]
async fn without_its_values_a_mesh_keeps_its_profile() {
    let all = rendered("mesh-system", Profile::Ha, &["image.tag=of-old"]);
    let objects = Objects::start(all).await;
    let ran = run("upgrade --reset-values --dry-run client", &objects).await;
    assert!(ran.out.contains("profile: ha\n") && !ran.out.contains("of-old"), "{}", ran.out);
}
