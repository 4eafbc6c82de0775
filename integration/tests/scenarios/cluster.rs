//! The control plane on a real API server, with the rights of its own service account and no others.
//!
//! Runs when `MESH_TEST_KUBECONFIG` names a kubeconfig of somebody who may do everything. Needs no
//! node: pods are said to be running. What is made is taken away again.

mod broken;
mod walk;
mod world;

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use mesh_api::client::ControlClient;
use mesh_api::ext::{RefreshRequest, Selector};
use mesh_api::{Update, Workload};
use mesh_integration::wait;
use mesh_model::{Destination, Endpoint};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use self::world::World;

/// Of TEST-NET-2, where nobody is.
const POD_IP: &str = "198.51.100.7";

#[tokio::test(flavor = "multi_thread")]
async fn services_and_endpoints_are_those_of_the_cluster() {
    World::run("cluster::services_and_endpoints", async |world| {
        let mut control = world.control_plane().await;
        world.workload("web", POD_IP).await;

        let endpoints = endpoints_of(&control.client(), world, "web:80", 1).await;
        assert_eq!(endpoints[0].addr.to_string(), format!("{POD_IP}:8080"));
        assert_eq!(endpoints[0].labels.get("zone").map(String::as_str), Some("zone-a"));
        let identity = endpoints[0].identity.clone().expect("a meshed pod has an identity");
        assert_eq!(identity.id, world.id("web"));

        let mut people = control.people();
        people.refresh(RefreshRequest {}).await.unwrap();
        for kind in ["deployment", "service"] {
            let selector = Selector {
                kind: kind.into(),
                name: "web".into(),
                namespace: world.apps.clone(),
                ..Selector::default()
            };
            let reply = people.resources(selector).await.unwrap().into_inner();
            let [web] = &reply.workloads[..] else { panic!("{kind}: {:?}", reply.workloads) };
            assert_eq!(web.pods.len(), 1, "{kind}");
            let owner = web.pods[0].owner.clone().unwrap();
            assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("deployment", "web"));
        }

        // A Service without a selector, whose slice a person wrote; and one that has no address.
        world.apply_service("manual", json!({ "ports": [{ "name": "db", "port": 5432 }] })).await;
        world.apply_slice("manual-1", "manual", ("db", 15432), "203.0.113.5").await;
        let manual = endpoints_of(&control.client(), world, "manual:5432", 1).await;
        assert_eq!(manual[0].addr.to_string(), "203.0.113.5:15432");
        assert_eq!(manual[0].identity, None, "nobody knows who is there");
        let headless = json!({ "clusterIP": "None", "selector": { "app": "web" },
                               "ports": [{ "port": 80, "targetPort": "http" }] });
        world.apply_service("headless", headless).await;
        endpoints_of(&control.client(), world, "headless:80", 1).await;

        // The last pod is still talked to while it ends, and then no more.
        world.delete_workload("web").await;
        wait::until("the pod to be told to end", async || {
            let selector = Selector {
                kind: "pod".into(),
                namespace: world.apps.clone(),
                ..Selector::default()
            };
            let reply = people.resources(selector).await.unwrap().into_inner();
            reply
                .workloads
                .iter()
                .any(|pod| pod.pods.iter().any(|pod| pod.terminating))
                .then_some(())
        })
        .await;
        endpoints_of(&control.client(), world, "web:80", 1).await;
        world.end_pods().await;
        endpoints_of(&control.client(), world, "web:80", 0).await;
        control.process.assert_sound();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_certify_whom_they_belong_to() {
    World::run("cluster::tokens", async |world| {
        let control = world.control_plane().await;
        world.service_account("web").await;
        let client = control.client();
        let certify = async |id: &str, token: &str| {
            let key = mesh_tls::Key::generate();
            let request = key.request(&id.parse().unwrap());
            client.certify(id, token, request).await
        };
        let token = world.token("web", "meshctl.dev/identity").await;
        let certified = certify(&world.id("web"), &token).await.unwrap();
        assert!(!certified.leaf.is_empty());

        let other = certify(&world.id("bank"), &token).await.unwrap_err();
        assert_eq!(other.code(), tonic::Code::PermissionDenied, "{other}");
        let foreign = world.token("web", "https://kubernetes.default.svc.cluster.local").await;
        for token in [foreign.as_str(), "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"] {
            let refused = certify(&world.id("web"), token).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_writes_conditions_and_the_roots() {
    World::run("cluster::writes", async |world| {
        world.definitions().await;
        let mut control = world.control_plane().await;
        world.apply_service("tax", json!({ "ports": [{ "port": 80 }] })).await;

        // What the API server itself refuses, by the schema and its rules.
        for (spec, why) in [
            (json!({ "from": [] }), "should have at least 1 items"),
            (json!({ "from": [{}] }), "should have at least 1 properties"),
            (json!({ "to": [{}] }), "names no request"),
            (json!({ "action": "Permit" }), "Unsupported value"),
            (json!({ "form": [] }), "field not declared in schema"),
            (json!({ "targetRef": { "kind": "Service" } }), "name says which object"),
            (json!({ "targetRef": { "kind": "Pod", "name": "x" } }), "pods are meant by"),
            (
                json!({ "targetRef": { "kind": "Service", "name": "x", "port": 70000 } }),
                "less than or equal to 65535",
            ),
        ] {
            let refused = world.policy("refused", spec.clone()).await;
            let message = refused.expect_err(&spec.to_string());
            assert!(message.contains(why), "{spec}: {message}");
        }

        let target = json!({ "kind": "Service", "name": "tax", "port": 80 });
        let networks = json!(["10.0.0.0/8", { "cidr": "192.0.2.0/24", "except": ["192.0.2.1"] }]);
        let spec = json!({ "targetRef": target, "from": [{ "networks": networks }] });
        world.policy("good", spec).await.unwrap();
        let spec = json!({ "targetRef": target, "from": [{ "serviceAccounts": ["a/b/c"] }] });
        world.policy("wrong", spec).await.unwrap();
        let of = async |name: &str| world.conditions("AuthorizationPolicy", name).await;
        wait::until("the conditions of a policy", async || {
            let conditions = of("good").await?;
            (conditions == "Accepted=True ResolvedRefs=True").then_some(())
        })
        .await;
        wait::until("the conditions of a wrong one", async || {
            of("wrong").await.filter(|text| text.starts_with("Accepted=False"))
        })
        .await;
        world.delete_service("tax").await;
        wait::until("the conditions without the Service", async || {
            let conditions = of("good").await?;
            (conditions == "Accepted=True ResolvedRefs=False").then_some(())
        })
        .await;

        let lease = wait::until("the Lease", async || world.holder().await).await;
        assert!(lease.starts_with("replica-1_"), "{lease}");
        let roots = wait::until("the roots", async || world.roots().await).await;
        assert_eq!(roots, control.roots);

        control.process.signal(Signal::TERM);
        assert!(control.process.end().await.success());
        assert_eq!(world.holder().await, None, "given up at the end");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_come_with_their_definition_and_have_an_entry_of_ours() {
    World::run("cluster::routes", async |world| {
        let control = world.control_plane().await;
        world.apply_service("tax", json!({ "ports": [{ "port": 80 }] })).await;
        // After the control plane began, if the cluster did not have it.
        world.route_definition().await;
        let foreign = json!({
            "parentRef": { "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge" },
            "controllerName": "example.com/gateway",
            "conditions": [{
                "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        });
        let parent = json!({ "group": "", "kind": "Service", "name": "tax", "port": 80 });
        let spec = json!({
            "parentRefs": [{ "name": "edge" }, parent],
            "rules": [{ "backendRefs": [{ "name": "tax", "port": 80 }] }],
        });
        let api = world.routes();
        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": { "name": "split" }, "spec": spec,
        });
        let by = PatchParams::apply("test");
        api.patch("split", &by, &Patch::Apply(&route)).await.unwrap();
        let status = json!({ "status": { "parents": [foreign] } });
        api.patch_status("split", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
        let patience = Duration::from_secs(60);
        let parents = wait::until_within("an entry of ours", patience, async || {
            let route = api.get("split").await.ok()?;
            let parents = route.data["status"]["parents"].as_array()?.clone();
            let ours = |entry: &Value| entry["controllerName"] == "meshctl.dev/control";
            (parents.len() == 2 && parents.iter().any(ours)).then_some(parents)
        })
        .await;
        assert_eq!(parents[0], foreign, "the entry of another controller");
        assert_eq!(parents[1]["parentRef"], parent);
        let info = control.people().info(mesh_api::ext::InfoRequest {}).await.unwrap().into_inner();
        assert_eq!(info.problems, [], "a Gateway is another controller's business");
        for condition in parents[1]["conditions"].as_array().unwrap() {
            assert_eq!(condition["status"], "True", "{condition}");
        }
        drop(control);
    })
    .await;
}

/// Waits until a service's port has so many endpoints.
async fn endpoints_of(
    client: &ControlClient,
    world: &World,
    authority: &str,
    count: usize,
) -> Vec<Endpoint> {
    let (service, port) = authority.split_once(':').unwrap();
    let path = format!("{service}.{}.svc.cluster.local:{port}", world.apps);
    wait::until(&format!("{count} endpoints of {path}"), async || {
        // It may be that the Service is not known yet.
        let mut updates = client.watch_destination(&path).await.ok()?;
        let Update::Valid(update) = updates.next().await?.ok()? else { return None };
        let endpoints = match update {
            Destination::Add { endpoints, .. } => endpoints,
            Destination::NoEndpoints { .. } | Destination::Remove(_) => Vec::new(),
        };
        (endpoints.len() == count).then_some(endpoints)
    })
    .await
}

fn workload(namespace: &str) -> Workload {
    Workload { namespace: namespace.into(), pod: "client-1".into() }
}
