//! The source against an API server of our own, and against any sequence of events.

mod events;
mod lease;
mod writes;

use std::sync::Arc;

use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::testing::FakeApi;
use super::*;
use crate::index::Index;
use crate::index::object::{Kind, Name, Pod};

const CORE: &str = "/api/v1";
const APPS: &str = "/apis/apps/v1";
const SLICES: &str = "/apis/discovery.k8s.io/v1";
const GATEWAY: &str = "/apis/gateway.networking.k8s.io/v1";
const POLICY: &str = "/apis/policy.meshctl.dev/v1alpha1";

fn shop(name: &str) -> Name {
    Name::new("shop", name)
}

fn meta(name: &str) -> Value {
    json!({ "name": name, "namespace": "shop", "resourceVersion": "1" })
}

fn service(name: &str, ip: &str) -> Value {
    json!({
        "metadata": meta(name),
        "spec": { "clusterIP": ip, "clusterIPs": [ip], "ports": [{ "port": 80 }] },
    })
}

/// A slice with one ready pod.
fn slice(name: &str, service: &str, pod: &str, ip: &str) -> Value {
    let mut meta = meta(name);
    meta["labels"] = json!({ "kubernetes.io/service-name": service });
    json!({
        "metadata": meta,
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": 8080 }],
        "endpoints": [{ "addresses": [ip], "targetRef": { "kind": "Pod", "name": pod } }],
    })
}

fn owner(api_version: &str, kind: &str, name: &str) -> Value {
    json!([{ "apiVersion": api_version, "kind": kind, "name": name, "uid": "1", "controller": true }])
}

fn pod(name: &str, ip: &str, replica_set: &str) -> Value {
    let mut meta = meta(name);
    meta["ownerReferences"] = owner("apps/v1", "ReplicaSet", replica_set);
    json!({
        "metadata": meta,
        "spec": { "containers": [], "serviceAccountName": "web" },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{ "ip": ip }, { "ip": "fd00::1" }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn replica_set(name: &str, deployment: &str) -> Value {
    let mut meta = meta(name);
    meta["ownerReferences"] = owner("apps/v1", "Deployment", deployment);
    json!({ "metadata": meta })
}

fn policy(name: &str, account: &str) -> Value {
    json!({
        "apiVersion": "policy.meshctl.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": "shop", "generation": 1 },
        "spec": {
            "targetRef": { "kind": "Service", "name": "tax" },
            "from": [{ "serviceAccounts": [account] }],
        },
    })
}

/// A running source; it stops when dropped.
struct Run {
    api: FakeApi,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

impl Run {
    fn of(api: FakeApi) -> Self {
        let (shared, stop) = (Arc::new(Shared::default()), CancellationToken::new());
        let settings =
            Settings { names: MeshNames::default(), replica: "one".into(), gateway: true };
        let source = run(api.client(), settings, Arc::clone(&shared), None, stop.clone());
        tokio::spawn(source);
        Self { api, shared, _stop: stop.drop_guard() }
    }

    /// Waits until something is so.
    async fn until(&self, what: &str, so: impl Fn(&Index) -> bool) {
        let mut revision = self.shared.index.read().revision();
        let wait = async {
            while !so(&self.shared.index.read()) {
                revision.changed().await.unwrap();
            }
        };
        let limit = Duration::from_secs(600);
        tokio::time::timeout(limit, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    async fn ready(&self) {
        let mut ready = self.shared.watch_ready();
        let limit = Duration::from_secs(600);
        tokio::time::timeout(limit, ready.wait_for(|ready| *ready)).await.unwrap().unwrap();
    }
}

fn shop_api() -> FakeApi {
    let api = FakeApi::new();
    api.put(CORE, "namespaces", json!({ "metadata": { "name": "shop", "resourceVersion": "1" } }));
    api.put(CORE, "services", service("tax", "10.0.0.1"));
    api.put(SLICES, "endpointslices", slice("tax-1", "tax", "tax-x", "10.1.0.1"));
    api.put(CORE, "pods", pod("tax-x", "10.1.0.1", "tax-rs"));
    api.put(APPS, "replicasets", replica_set("tax-rs", "tax"));
    api.put(APPS, "deployments", json!({ "metadata": meta("tax") }));
    api
}

#[tokio::test(start_paused = true)]
async fn a_cluster_is_in_the_index_before_anybody_is_told_anything() {
    let run = Run::of(shop_api());
    run.ready().await;
    let index = run.shared.index.read();
    let objects = index.objects();
    let endpoints = objects.endpoints(&shop("tax"), 80).unwrap();
    let addresses: Vec<String> = endpoints.endpoints.keys().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.1.0.1:8080"]);
    let pod = objects.pod(&shop("tax-x")).unwrap();
    assert_eq!(pod.owner, Some((Kind::Deployment, "tax".into())));
    let by_v6 = objects.pod_by_ip("fd00::1".parse().unwrap()).map(|pod| pod.name.clone());
    assert_eq!(by_v6, Some(shop("tax-x")));
    assert!(objects.workload(Kind::Deployment, &shop("tax")).is_some());
    assert!(objects.names(Kind::ReplicaSet).is_empty(), "a Deployment's are not spoken of");
    assert!(run.shared.problems().is_empty());
}

#[tokio::test(start_paused = true)]
async fn changes_arrive_and_what_vanished_meanwhile_is_gone() {
    let run = Run::of(shop_api());
    run.ready().await;
    run.api.put(CORE, "services", service("web", "10.0.0.2"));
    run.until("a new service", |index| index.objects().service(&shop("web")).is_some()).await;
    run.api.delete(CORE, "services", "shop", "web");
    run.until("no service", |index| index.objects().service(&shop("web")).is_none()).await;

    run.api.away(|api| {
        api.delete(CORE, "services", "shop", "tax");
        api.put(CORE, "services", service("new", "10.0.0.3"));
    });
    run.until("the list of today", |index| {
        let objects = index.objects();
        objects.service(&shop("tax")).is_none() && objects.service(&shop("new")).is_some()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn kinds_may_come_later_and_go() {
    let run = Run::of(shop_api());
    run.ready().await;
    run.api.serve(POLICY, "authorizationpolicies");
    run.api.put(POLICY, "authorizationpolicies", policy("p", "portal"));
    let there = |index: &Index| index.objects().authorization_policy(&shop("p")).is_some();
    run.until("the policy", there).await;

    // Wrong: what it said before stays in force, and the problem is told.
    run.api.put(POLICY, "authorizationpolicies", policy("p", "a/b/c"));
    let look = run.shared.refresh();
    tokio::time::timeout(Duration::from_secs(60), look).await.unwrap();
    assert!(there(&run.shared.index.read()));
    let problems = run.shared.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].object, "AuthorizationPolicy/shop/p");
    assert_eq!(problems[0].field, "spec.from[0].serviceAccounts[0]");

    run.api.withdraw(POLICY);
    run.until("no policy", |index| !there(index)).await;
    tokio::time::timeout(Duration::from_secs(60), run.shared.refresh()).await.unwrap();
    assert!(run.shared.problems().is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_object_that_makes_no_sense_is_no_harm_to_others() {
    let api = shop_api();
    api.serve(GATEWAY, "httproutes");
    let route = |name: &str, rules: Value| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": { "name": name, "namespace": "shop" },
            "spec": {
                "parentRefs": [{ "group": "", "kind": "Service", "name": "tax" }],
                "rules": rules,
            },
        })
    };
    let backends = json!([{ "backendRefs": [{ "name": "tax", "port": 80 }] }]);
    api.put(GATEWAY, "httproutes", route("good", backends));
    api.put(GATEWAY, "httproutes", route("odd", json!([{ "filters": [{ "type": "Teleport" }] }])));
    let run = Run::of(api);
    run.ready().await;
    assert!(run.shared.index.read().objects().http_route(&shop("good")).is_some());
    assert!(run.shared.index.read().objects().http_route(&shop("odd")).is_none());
    let problems = run.shared.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].object, "HTTPRoute/shop/odd");
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_no_ready_source() {
    let api = shop_api();
    api.set_down(true);
    let run = Run::of(api);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(!run.shared.is_ready());
    assert!(run.shared.index.read().objects().pods().map(|pod: &Arc<Pod>| pod).next().is_none());
}
