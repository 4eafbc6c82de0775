//! The webhook with a real API server: `MESH_TEST_KUBECONFIG` names the kubeconfig. The API server must
//! reach this process on 127.0.0.1. Without the variable the test says so and passes.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Write, stderr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use mesh_control::inject::Settings;
use mesh_control::state::Shared;
use mesh_control::webhook::Webhook;
use mesh_control::webhook::certificate::{Keeper, Pair, SECRET, Serving};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// For what the cluster does in its own time.
const PATIENCE: Duration = Duration::from_secs(60);

async fn client() -> Option<Client> {
    let path = std::env::var_os("MESH_TEST_KUBECONFIG")?;
    let kubeconfig = Kubeconfig::read_from(path).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    Some(Client::try_from(config).unwrap())
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Asks until the answer is there.
async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let mut turns = tokio::time::interval(Duration::from_millis(100));
    let found = async {
        loop {
            turns.tick().await;
            if let Some(found) = ask().await {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{what} never came"))
}

fn names(list: &Option<Vec<k8s_openapi::api::core::v1::Container>>) -> Vec<&str> {
    list.iter().flatten().map(|container| container.name.as_str()).collect()
}

#[tokio::test]
async fn the_api_server_gets_its_pods_from_us() {
    let Some(client) = client().await else {
        let _ = writeln!(stderr(), "SKIPPED: MESH_TEST_KUBECONFIG names no cluster");
        return;
    };
    let prefix = std::env::var("MESH_TEST_PREFIX").unwrap_or("mesh-test".into());
    let own = format!("{prefix}-webhook-{}", std::process::id());
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let label = json!({"meshctl.dev/inject": "enabled"});
    let namespace = typed(json!({"metadata": {"name": own, "labels": label}}));
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    // What it made is removed whatever became of it.
    let walking = tokio::task::LocalSet::new();
    let result = walking
        .run_until(async { tokio::task::spawn_local(walk(client.clone(), own.clone())).await })
        .await;
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(client);
    let delete = DeleteParams::default();
    let (_, _) = tokio::join!(webhooks.delete(&own, &delete), namespaces.delete(&own, &delete));
    result.unwrap();
}

async fn walk(client: Client, own: String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = Arc::new(Serving::default());
    let names_of_it = vec![format!("mesh-control.{own}.svc"), "127.0.0.1".to_owned()];
    let keeper = |serving: &Arc<Serving>| Keeper {
        client: client.clone(),
        namespace: own.clone(),
        webhook: own.clone(),
        names: names_of_it.clone(),
        serving: Arc::clone(serving),
    };
    // Two replicas begin at once and must agree on one certificate.
    let other = Arc::new(Serving::default());
    tokio::spawn(keeper(&other).run());
    tokio::spawn(keeper(&serving).run());
    let settings = || {
        let trust_roots = Some("roots\n".into());
        Some(Settings { trust_roots, ..Settings::default() })
    };
    let webhook = Webhook::new(Arc::new(Shared::default()), client.clone(), settings);
    tokio::spawn(webhook.serve(listener, Arc::clone(&serving)));

    // The configuration comes after the control plane, as with `kubectl apply` in any order.
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let configuration = typed(json!({
        "metadata": {"name": own},
        "webhooks": [{
            "name": "inject.test.meshctl.dev",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "NoneOnDryRun",
            "failurePolicy": "Fail",
            "reinvocationPolicy": "IfNeeded",
            "timeoutSeconds": 10,
            "clientConfig": {"url": format!("https://127.0.0.1:{port}/inject")},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": own}},
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                "resources": ["pods"], "scope": "Namespaced",
            }],
        }],
    }));
    webhooks.create(&PostParams::default(), &configuration).await.unwrap();
    let bundle = async |webhooks: &Api<MutatingWebhookConfiguration>| {
        let found = webhooks.get(&own).await.ok()?.webhooks?.into_iter().next()?;
        found.client_config.ca_bundle.map(|bundle| bundle.0)
    };
    eventually("the caBundle", async || bundle(&webhooks).await).await;

    // A pod without a service account of its own waits for the namespace's.
    let pods: Api<Pod> = Api::namespaced(client.clone(), &own);
    let pod = |name: &str, more: Value| -> Pod {
        let mut spec = json!({
            "automountServiceAccountToken": false,
            "containers": [{"name": "web", "image": "web:1"}],
            "initContainers": [{"name": "migrate", "image": "web:1"}],
        });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        typed(json!({"metadata": {"name": name}, "spec": spec}))
    };
    let created = eventually("the service account", async || {
        pods.create(&PostParams::default(), &pod("web", json!({}))).await.ok()
    })
    .await;
    let spec = created.spec.unwrap();
    assert_eq!(names(&spec.init_containers), ["mesh-init", "mesh-proxy", "migrate"]);
    let volumes = spec.volumes.unwrap();
    assert_eq!(volumes.len(), 2, "{volumes:?}");
    let annotations = created.metadata.annotations.unwrap();
    assert_eq!(annotations["meshctl.dev/proxy-version"], env!("CARGO_PKG_VERSION"));

    // Dry runs are answered, too.
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let created = pods.create(&dry, &pod("dry", json!({}))).await.unwrap();
    assert_eq!(names(&created.spec.unwrap().init_containers).len(), 3);

    // What cannot have a proxy is created all the same.
    let created = pods.create(&dry, &pod("host", json!({"hostNetwork": true}))).await.unwrap();
    assert_eq!(names(&created.spec.unwrap().init_containers), ["migrate"]);

    // A wrong annotation is told where people look.
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &own);
    let annotations: BTreeMap<_, _> = [("config.meshctl.dev/proxy-cpu-limits", "1")].into();
    let deployment = typed(json!({
        "metadata": {"name": "owned"},
        "spec": {
            "selector": {"matchLabels": {"app": "owned"}},
            "template": {
                "metadata": {"labels": {"app": "owned"}, "annotations": annotations},
                "spec": {"containers": [{"name": "web", "image": "web:1"}]},
            },
        },
    }));
    deployments.create(&PostParams::default(), &deployment).await.unwrap();
    let events: Api<Event> = Api::namespaced(client.clone(), &own);
    let event = eventually("the event", async || {
        let all = events.list(&ListParams::default()).await.ok()?.items;
        all.into_iter().find(|event| event.reason.as_deref() == Some("ProxyAnnotationInvalid"))
    })
    .await;
    assert_eq!(event.regarding.unwrap().kind.as_deref(), Some("ReplicaSet"));
    assert!(event.note.unwrap().contains("config.meshctl.dev/proxy-cpu-limit"));

    // Someone deletes the Secret and damages the bundle: both are made good, and pods go on.
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &own);
    let before = secrets.get(SECRET).await.unwrap();
    secrets.delete(SECRET, &DeleteParams::default()).await.unwrap();
    let after = eventually("the new Secret", async || secrets.get(SECRET).await.ok()).await;
    assert_ne!(before.data, after.data);
    let wanted = after.data.unwrap()["ca.crt"].0.clone();
    eventually("the new caBundle", async || {
        bundle(&webhooks).await.filter(|bundle| *bundle == wanted)
    })
    .await;
    eventually("a pod with the new certificate", async || {
        pods.create(&dry, &pod("again", json!({}))).await.ok()
    })
    .await;
    assert!(other.config().is_some());
    assert!(Pair::generate(&names_of_it, None).is_ok());
}
