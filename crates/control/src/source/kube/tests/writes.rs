//! What the holder of the Lease writes: statuses, the roots; and tokens it asks about.

use std::time::Duration;

use super::super::tokens::ReviewedTokens;
use super::super::{roots, status};
use super::*;
use crate::identity::folder::Loaded;
use crate::identity::tokens::AUDIENCE;
use crate::identity::tokens::{TokenError, Tokens};
use crate::identity::{self, Authority};
use crate::inject::settings::{ROOTS_CONFIG_MAP, ROOTS_KEY};

/// Statuses that were written, in order.
fn statuses(api: &FakeApi) -> Vec<Value> {
    let written = api.written().into_iter().filter(|(what, _)| what.ends_with("/status"));
    written.map(|(_, body)| body["status"].clone()).collect()
}

async fn settle() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

fn condition<'a>(list: &'a Value, kind: &str) -> (&'a str, &'a str, &'a str) {
    let condition = list.as_array().unwrap().iter().find(|c| c["type"] == kind).unwrap();
    let text = |field: &str| condition[field].as_str().unwrap();
    (text("status"), text("reason"), text("message"))
}

#[tokio::test(start_paused = true)]
async fn a_policy_says_whether_it_is_in_force() {
    let api = shop_api();
    api.serve(POLICY, "authorizationpolicies");
    api.put(POLICY, "authorizationpolicies", policy("p", "portal"));
    let run = Run::of(api);
    run.ready().await;
    settle().await;
    let status = |api: &FakeApi| {
        let object = api.object(POLICY, "authorizationpolicies", "shop", "p");
        object["status"]["conditions"].clone()
    };
    let first = status(&run.api);
    assert_eq!(condition(&first, "Accepted").0, "True");
    assert_eq!(condition(&first, "ResolvedRefs").0, "True");
    assert_eq!(first[0]["observedGeneration"], 1);

    // Written once; nothing changes by itself.
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(statuses(&run.api).len(), 1);

    run.api.delete(CORE, "services", "shop", "tax");
    settle().await;
    let gone = status(&run.api);
    let missing = ("False", "TargetNotFound", "Service shop/tax does not exist");
    assert_eq!(condition(&gone, "ResolvedRefs"), missing);
    let since = |list: &Value| list[0]["lastTransitionTime"].clone();
    assert_eq!(since(&first), since(&gone), "what did not change keeps its time");

    let mut wrong = policy("p", "a/b/c");
    wrong["status"] = json!({ "conditions": gone });
    run.api.put(POLICY, "authorizationpolicies", wrong);
    settle().await;
    let (value, reason, message) = condition(&status(&run.api), "Accepted").into_owned();
    assert_eq!((value.as_str(), reason.as_str()), ("False", "Invalid"));
    assert!(message.starts_with("spec.from[0].serviceAccounts[0]: "), "{message}");
    assert!(message.ends_with("stays in force"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn of_two_policies_about_the_same_the_younger_one_is_told() {
    const KIND: &str = "backendtrafficpolicies";
    let api = shop_api();
    api.serve(POLICY, KIND);
    let traffic = |name: &str, created: &str| {
        json!({
            "apiVersion": "policy.meshctl.dev/v1alpha1",
            "kind": "BackendTrafficPolicy",
            "metadata": {
                "name": name,
                "namespace": "shop",
                "generation": 1,
                "creationTimestamp": created,
            },
            "spec": {
                "targetRef": { "kind": "Service", "name": "tax" },
                "retryBudget": { "percent": 5 },
            },
        })
    };
    api.put(POLICY, KIND, traffic("a", "2026-01-02T00:00:00Z"));
    api.put(POLICY, KIND, traffic("b", "2026-01-01T00:00:00Z"));
    let run = Run::of(api);
    run.ready().await;
    settle().await;
    let status =
        |name: &str| run.api.object(POLICY, KIND, "shop", name)["status"]["conditions"].clone();
    let older = status("b");
    assert_eq!(condition(&older, "Accepted").0, "True");
    assert_eq!(condition(&older, "ResolvedRefs").0, "True");
    assert_eq!(condition(&older, "Conflicted").0, "False");
    let younger = status("a");
    let (value, reason, message) = condition(&younger, "Accepted");
    assert_eq!((value, reason), ("False", "Conflicted"));
    assert!(message.contains("BackendTrafficPolicy shop/b"), "{message}");
    assert_eq!(condition(&younger, "Conflicted").0, "True");

    run.api.delete(POLICY, KIND, "shop", "b");
    settle().await;
    assert_eq!(condition(&status("a"), "Accepted").0, "True");
    assert_eq!(condition(&status("a"), "Conflicted").0, "False");
}

#[tokio::test(start_paused = true)]
async fn a_policy_about_a_route_says_whether_the_rule_is_there() {
    const KIND: &str = "backendtrafficpolicies";
    let api = shop_api();
    api.serve(POLICY, KIND);
    api.serve(GATEWAY, "httproutes");
    api.put(
        POLICY,
        KIND,
        json!({
            "apiVersion": "policy.meshctl.dev/v1alpha1",
            "kind": "BackendTrafficPolicy",
            "metadata": { "name": "p", "namespace": "shop", "generation": 1 },
            "spec": {
                "targetRef": { "kind": "HTTPRoute", "name": "r", "sectionName": "slow" },
                "faults": [{ "delay": "1s" }],
            },
        }),
    );
    let run = Run::of(api);
    run.ready().await;
    let route = |rule: &str| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": { "name": "r", "namespace": "shop", "generation": 1 },
            "spec": {
                "parentRefs": [{ "group": "", "kind": "Service", "name": "tax" }],
                "rules": [{ "name": rule, "backendRefs": [{ "name": "tax", "port": 80 }] }],
            },
        })
    };
    for (rule, expected) in [
        (None, "HTTPRoute shop/r does not exist"),
        (Some("fast"), "HTTPRoute shop/r has no rule named slow"),
        (Some("slow"), "what it is about is there"),
    ] {
        if let Some(rule) = rule {
            run.api.put(GATEWAY, "httproutes", route(rule));
        }
        settle().await;
        let status = run.api.object(POLICY, KIND, "shop", "p")["status"]["conditions"].clone();
        let (_, reason, message) = condition(&status, "ResolvedRefs");
        assert_eq!(message, expected);
        assert_eq!(reason == "TargetNotFound", rule != Some("slow"), "{status}");
        assert_eq!(condition(&status, "Accepted").0, "True");
    }
}

trait Owned {
    fn into_owned(self) -> (String, String, String);
}

impl Owned for (&str, &str, &str) {
    fn into_owned(self) -> (String, String, String) {
        (self.0.into(), self.1.into(), self.2.into())
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_has_an_entry_for_each_service_beside_those_of_others() {
    let api = shop_api();
    api.serve(GATEWAY, "httproutes");
    let foreign = json!({
        "parentRef": { "name": "edge" },
        "controllerName": "example.com/gateway",
        "conditions": [],
    });
    let parent = |name: &str| json!({ "group": "", "kind": "Service", "name": name, "port": 80 });
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "r", "namespace": "shop", "generation": 3 },
        "spec": {
            "parentRefs": [{ "name": "edge" }, parent("tax"), parent("nobody")],
            "rules": [{ "backendRefs": [{ "name": "tax", "port": 80 }, { "name": "gone", "port": 80 }] }],
        },
        "status": { "parents": [foreign] },
    });
    api.put(GATEWAY, "httproutes", route);
    let run = Run::of(api);
    run.ready().await;
    settle().await;
    let parents = run.api.object(GATEWAY, "httproutes", "shop", "r")["status"]["parents"].clone();
    let parents = parents.as_array().unwrap();
    assert_eq!(parents.len(), 3, "{parents:#?}");
    assert_eq!(parents[0], foreign);
    for ours in &parents[1..] {
        assert_eq!(ours["controllerName"], status::CONTROLLER);
    }
    assert_eq!(parents[1]["parentRef"], parent("tax"));
    assert_eq!(condition(&parents[1]["conditions"], "Accepted").0, "True");
    let missing = ("False", "BackendNotFound", "Service shop/gone does not exist");
    assert_eq!(condition(&parents[1]["conditions"], "ResolvedRefs"), missing);
    let (value, reason, _) = condition(&parents[2]["conditions"], "Accepted");
    assert_eq!((value, reason), ("False", "NoMatchingParent"));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(statuses(&run.api).len(), 1, "written once");
}

#[tokio::test(start_paused = true)]
async fn gateways_and_routes_at_them_say_how_they_are() {
    let api = shop_api();
    for plural in ["httproutes", "gateways", "gatewayclasses"] {
        api.serve(GATEWAY, plural);
    }
    let version = "gateway.networking.k8s.io/v1";
    api.put(
        GATEWAY,
        "gatewayclasses",
        json!({
            "apiVersion": version, "kind": "GatewayClass",
            "metadata": { "name": "edge", "generation": 1 },
            "spec": { "controllerName": "meshctl.dev/gateway" },
        }),
    );
    let gateway = |name: &str, class: &str| {
        json!({
            "apiVersion": version, "kind": "Gateway",
            "metadata": { "name": name, "namespace": "shop", "generation": 2 },
            "spec": { "gatewayClassName": class, "listeners": [
                { "name": "http", "port": 80, "protocol": "HTTP", "hostname": "*.shop.test" },
                { "name": "https", "port": 443, "protocol": "HTTPS",
                  "tls": { "certificateRefs": [{ "name": "gone" }] } },
            ] },
        })
    };
    api.put(GATEWAY, "gateways", gateway("ours", "edge"));
    let mut broken = gateway("broken", "edge");
    broken["spec"]["listeners"][0]["protocol"] = json!("UDP");
    api.put(GATEWAY, "gateways", broken);
    let service = |name: &str, status: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": name, "namespace": "mesh-system" },
            "spec": { "clusterIP": "10.0.0.9", "ports": [{ "port": 80 }] },
            "status": status,
        })
    };
    api.put(CORE, "services", service("mesh-gateway", json!({})));
    api.put(GATEWAY, "gateways", gateway("theirs", "other"));
    api.put(
        GATEWAY,
        "httproutes",
        json!({
            "apiVersion": version, "kind": "HTTPRoute",
            "metadata": { "name": "r", "namespace": "shop", "generation": 3 },
            "spec": {
                "parentRefs": [
                    { "name": "ours" }, { "name": "theirs" }, { "name": "ours", "sectionName": "no" },
                ],
                "hostnames": ["a.shop.test"],
                "rules": [{ "backendRefs": [{ "name": "tax", "port": 80 }] }],
            },
        }),
    );
    let run = Run::of(api);
    run.ready().await;
    settle().await;
    let class = run.api.object(GATEWAY, "gatewayclasses", "", "edge");
    assert_eq!(condition(&class["status"]["conditions"], "Accepted").0, "True");
    let ours = run.api.object(GATEWAY, "gateways", "shop", "ours")["status"].clone();
    let (value, reason, _) = condition(&ours["conditions"], "Accepted");
    assert_eq!((value, reason), ("True", "ListenersNotValid"));
    assert_eq!(condition(&ours["conditions"], "Programmed").0, "True");
    let [http, https] = ours["listeners"].as_array().unwrap().as_slice() else { panic!("{ours}") };
    assert_eq!(http["attachedRoutes"], 1);
    assert_eq!(condition(&http["conditions"], "Programmed").0, "True");
    assert_eq!(condition(&http["conditions"], "Conflicted").0, "False");
    let (value, reason, _) = condition(&https["conditions"], "ResolvedRefs");
    assert_eq!((value, reason), ("False", "InvalidCertificateRef"));
    assert_eq!(condition(&https["conditions"], "Programmed").0, "False");
    assert_eq!(ours["addresses"], json!([{ "type": "IPAddress", "value": "10.0.0.9" }]));
    let broken = run.api.object(GATEWAY, "gateways", "shop", "broken")["status"].clone();
    let (value, reason, message) = condition(&broken["conditions"], "Accepted");
    assert_eq!((value, reason), ("False", "Invalid"));
    assert!(message.contains("`UDP` is not supported"), "{message}");
    assert_eq!(condition(&broken["conditions"], "Programmed").0, "False");
    let theirs = run.api.object(GATEWAY, "gateways", "shop", "theirs");
    assert!(theirs["status"].is_null(), "{theirs}");
    let route = run.api.object(GATEWAY, "httproutes", "shop", "r");
    let parents = route["status"]["parents"].as_array().unwrap().clone();
    assert_eq!(parents.len(), 2, "{parents:#?}");
    assert_eq!(condition(&parents[0]["conditions"], "Accepted").0, "True");
    let (value, reason, _) = condition(&parents[1]["conditions"], "Accepted");
    assert_eq!((value, reason), ("False", "NoMatchingParent"));
    let written = statuses(&run.api).len();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(statuses(&run.api).len(), written, "written once");

    let ingress = json!([{ "ip": "192.0.2.7" }, { "hostname": "lb.test" }]);
    let balancer = json!({ "loadBalancer": { "ingress": ingress } });
    run.api.put(CORE, "services", service("mesh-gateway", balancer));
    settle().await;
    let ours = run.api.object(GATEWAY, "gateways", "shop", "ours")["status"].clone();
    let of = |kind: &str, value: &str| json!({ "type": kind, "value": value });
    assert_eq!(ours["addresses"], json!([of("IPAddress", "192.0.2.7"), of("Hostname", "lb.test")]));
}

fn authority() -> (Arc<Authority>, mesh_tls::Root) {
    let day = Duration::from_secs(86_400);
    let settings = identity::Settings {
        origin: identity::Origin::Secret,
        names: MeshNames::default(),
        lifetime: Duration::from_secs(60),
    };
    let api = FakeApi::new();
    let tokens = ReviewedTokens::new(api.client());
    let root = mesh_tls::Root::generate("mesh", day, day).unwrap();
    (Arc::new(Authority::new(settings, Box::new(tokens))), root)
}

fn install(authority: &Authority, root: &mesh_tls::Root, roots: &str) {
    let issuer = mesh_tls::Issuer::from_pem(&root.issuer, &root.issuer_key).unwrap();
    authority.install(Loaded { issuer, roots: roots.to_owned() });
}

#[tokio::test(start_paused = true)]
async fn the_roots_are_published_and_kept() {
    let (api, (authority, root)) = (FakeApi::new(), authority());
    let (lead, leader) = tokio::sync::watch::channel(false);
    let task = roots::run(api.client(), "mesh-system".into(), Arc::clone(&authority), leader);
    let task = tokio::spawn(task);
    let published = |api: &FakeApi| {
        let map = api.object(CORE, "configmaps", "mesh-system", ROOTS_CONFIG_MAP);
        map["data"][ROOTS_KEY].as_str().map(str::to_owned)
    };
    install(&authority, &root, "first");
    settle().await;
    assert_eq!(published(&api), None, "it does not hold the Lease");
    lead.send_replace(true);
    settle().await;
    assert_eq!(published(&api).as_deref(), Some("first"));
    install(&authority, &root, "second");
    settle().await;
    assert_eq!(published(&api).as_deref(), Some("second"));
    let writes = api.written().len();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(api.written().len(), writes, "nothing to write");
    api.delete(CORE, "configmaps", "mesh-system", ROOTS_CONFIG_MAP);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(published(&api).as_deref(), Some("second"));
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn tokens_are_reviewed_for_our_audience() {
    let api = FakeApi::new();
    api.review_tokens(|token| {
        json!({
            "authenticated": token == "good.a.b",
            "audiences": [AUDIENCE],
            "user": { "username": "system:serviceaccount:shop:web" },
        })
    });
    let tokens = ReviewedTokens::new(api.client());
    assert_eq!(tokens.owner("good.a.b").await.unwrap(), shop("web"));
    assert!(matches!(tokens.owner("bad.a.b").await, Err(TokenError::Refused { .. })));
    let asked = api.written();
    assert_eq!(asked[0].1["spec"]["audiences"], json!([AUDIENCE]));
    for text in ["", "a b", "a\nb", "é", &"a".repeat(70_000)] {
        assert!(matches!(tokens.owner(text).await, Err(TokenError::Malformed)));
    }
    assert_eq!(api.written().len(), asked.len(), "what is no token is not asked about");

    api.set_down(true);
    let started = Instant::now();
    let refused = tokens.owner("good.a.b").await;
    assert!(matches!(refused, Err(TokenError::Unavailable { .. })), "{refused:?}");
    assert_eq!(started.elapsed().as_secs(), 10);
}
