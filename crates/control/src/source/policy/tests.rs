//! Our kinds as people write them.

use std::time::Duration;

use mesh_model::Meta;
use mesh_model::authz::{Action, AuthorizationRule, ClientMatch, DefaultAccess};
use mesh_model::egress::EgressAction;
use mesh_model::inbound::{PortProtocol, Rate};
use mesh_model::outbound::Strategy;
use serde_json::{Value, json};

use super::*;
use crate::index::object::{BreakerPolicy, ZonePreference};

fn read(spec: Value) -> Result<(AuthorizationPolicy, Vec<String>), String> {
    let object = json!({
        "apiVersion": VERSION,
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "p", "namespace": "shop" },
        "spec": spec,
    });
    let object = serde_path_to_error::deserialize(object)
        .map_err(|error| format!("{}: {}", error.path(), error.inner()))?;
    let (policy, findings) = authorization_policy(&object, &MeshNames::default());
    Ok((policy, findings.into_iter().map(|f| format!("{}: {}", f.field, f.message)).collect()))
}

fn good(spec: Value) -> AuthorizationPolicy {
    let (policy, findings) = read(spec).unwrap();
    assert_eq!(findings, [""; 0]);
    policy
}

#[test]
fn a_whole_policy() {
    let policy = good(json!({
        "targetRef": { "group": "core", "kind": "Service", "name": "finance", "port": 8080 },
        "action": "Allow",
        "from": [
            { "serviceAccounts": ["portal", "bank/clerk"], "namespaces": ["ops"],
              "identities": ["*.example"] },
            { "unauthenticated": true,
              "networks": ["10.0.0.0/8", { "cidr": "192.0.2.0/24", "except": ["192.0.2.1"] }] },
            { "identities": ["*"] },
        ],
        "to": [
            { "paths": ["/v1/*", "/%76ersion"], "methods": ["GET", "head"],
              "headers": [{ "name": "X-Beta", "value": "yes" }] },
            { "grpc": [{ "service": "shop.v1.Ledger", "methods": ["Get", "List"] },
                       { "service": "shop.v1.Stock" }] },
        ],
    }));
    assert_eq!(policy.name.to_string(), "shop/p");
    let port = Some(PortRef::Number(8080));
    assert_eq!(policy.target, PolicyTarget::Service { name: "finance".into(), port });
    let rule = AuthorizationRule {
        meta: Meta::Default("p".into()),
        action: policy.action,
        route: None,
        from: policy.from,
        to: policy.to,
    };
    let suffix = "serviceaccount.identity.mesh-system.cluster.local";
    assert_eq!(
        rule.describe_from(),
        format!(
            "*.example, portal.shop.{suffix}, clerk.bank.{suffix}, *.ops.{suffix}; \
             unauthenticated in 10.0.0.0/8, 192.0.2.0/24 without 192.0.2.1/32; authenticated"
        )
    );
    assert_eq!(
        rule.describe_to(),
        "GET,HEAD /v1/*,/version x-beta=yes; \
         /shop.v1.Ledger/Get,/shop.v1.Ledger/List,/shop.v1.Stock/*"
    );
}

#[test]
fn what_is_left_out_means_all() {
    let policy = good(json!({}));
    assert_eq!((policy.action, policy.target), (Action::Allow, PolicyTarget::Namespace));
    assert!(policy.from.is_empty() && policy.to.is_empty());
    let networks = good(json!({ "from": [{ "networks": ["10.0.0.1"] }] }));
    assert_eq!(networks.from[0].client, ClientMatch::Anyone);
}

#[test]
fn every_kind_of_target() {
    let target = |target: Value| good(json!({ "targetRef": target })).target;
    let of = |kind: &str| target(json!({ "kind": kind, "name": "x" }));
    for kind in ["Deployment", "StatefulSet", "DaemonSet", "Job"] {
        let PolicyTarget::Workload { kind: found, name, port: None } = of(kind) else { panic!() };
        assert_eq!((found.as_str(), name.as_str()), (kind, "x"));
    }
    assert!(matches!(of("HTTPRoute"), PolicyTarget::Route { kind: Kind::HttpRoute, .. }));
    assert!(matches!(of("GRPCRoute"), PolicyTarget::Route { kind: Kind::GrpcRoute, .. }));
    assert_eq!(target(json!({ "kind": "Namespace", "name": "shop" })), PolicyTarget::Namespace);
    let pods =
        json!({ "kind": "Pod", "selector": { "matchLabels": { "a": "b" } }, "port": "http" });
    let PolicyTarget::Pods { labels, port } = target(pods) else { panic!() };
    assert_eq!((labels["a"].as_str(), port), ("b", Some(PortRef::Name("http".into()))));
}

#[test]
fn mistakes_name_their_field() {
    for (spec, expected) in [
        (
            json!({ "targetRef": { "kind": "HTTPRoute", "name": "r", "sectionName": "a" } }),
            "spec.targetRef.sectionName: an AuthorizationPolicy is about all requests of a route",
        ),
        (json!({ "from": [] }), "spec.from: is empty; leave it out to mean everybody"),
        (json!({ "to": [] }), "spec.to: is empty; leave it out to mean everything"),
        (json!({ "from": [{}] }), "spec.from[0]: names nobody"),
        (json!({ "to": [{}] }), "spec.to[0]: names no request"),
        (json!({ "from": [{ "networks": ["10/8"] }] }), "spec.from[0].networks[0]: `10/8` is"),
        (json!({ "from": [{ "serviceAccounts": ["a/b/c"] }] }), "spec.from[0].serviceAccounts[0]"),
        (json!({ "from": [{ "namespaces": ["*.shop"] }] }), "spec.from[0].namespaces[0]"),
        (json!({ "from": [{ "identities": ["a*"] }] }), "spec.from[0].identities[0]"),
        (json!({ "from": [{ "unauthenticated": true, "namespaces": ["a"] }] }), "spec.from[0]: "),
        (json!({ "from": [{ "authenticated": true, "identities": ["a"] }] }), "spec.from[0]: "),
        (json!({ "to": [{ "paths": ["/a/../b"] }] }), "spec.to[0].paths[0]: `/a/../b`: no path"),
        (json!({ "to": [{ "paths": ["/a*"] }] }), "spec.to[0].paths[0]"),
        (json!({ "to": [{ "methods": ["G T"] }] }), "spec.to[0].methods[0]"),
        (
            json!({ "to": [{ "headers": [{ "name": "a b", "value": "" }] }] }),
            "spec.to[0].headers[0].name",
        ),
        (json!({ "to": [{ "grpc": [{ "service": "a/b" }] }] }), "spec.to[0].grpc[0]"),
        (
            json!({ "to": [{ "grpc": [{ "service": "a", "methods": ["*"] }] }] }),
            "spec.to[0].grpc[0]",
        ),
        (json!({ "targetRef": { "kind": "Gateway", "name": "x" } }), "spec.targetRef.kind"),
        (json!({ "targetRef": { "kind": "Service" } }), "spec.targetRef.name"),
        (json!({ "targetRef": { "kind": "Pod", "name": "x" } }), "spec.targetRef.selector"),
        (json!({ "targetRef": { "kind": "Namespace", "name": "bank" } }), "spec.targetRef.name"),
        (
            json!({ "targetRef": { "kind": "Service", "name": "x", "port": 0 } }),
            "spec.targetRef.port",
        ),
        (
            json!({ "targetRef": { "kind": "HTTPRoute", "name": "x", "port": 1 } }),
            "spec.targetRef.port",
        ),
        (
            json!({ "targetRef": { "group": "apps", "kind": "Service", "name": "x" } }),
            "spec.targetRef.group",
        ),
    ] {
        let (_, findings) = read(spec.clone()).unwrap();
        assert!(findings.iter().any(|f| f.starts_with(expected)), "{spec}: {findings:?}");
    }
}

#[test]
fn a_field_that_is_not_known_is_an_error() {
    for spec in [
        json!({ "form": [] }),
        json!({ "from": [{ "notNamespaces": ["a"] }] }),
        json!({ "to": [{ "path": "/" }] }),
        json!({ "targetRef": { "kind": "Service", "name": "x", "namespace": "bank" } }),
        json!({ "action": "Permit" }),
        json!({ "from": [{ "networks": [{ "cidr": "10.0.0.0/8", "expect": [] }] }] }),
    ] {
        assert!(read(spec.clone()).is_err(), "{spec}");
    }
}

#[test]
fn a_server_policy_is_about_a_workload() {
    let read = |kind: &str, access: &str| {
        let object = json!({
            "apiVersion": VERSION,
            "kind": "ServerPolicy",
            "metadata": { "name": "p", "namespace": "shop" },
            "spec": { "targetRef": { "kind": kind, "name": "x", "port": 80 }, "defaultAccess": access },
        });
        let object = serde_json::from_value(object).unwrap();
        let (policy, findings) = server_policy(&object, &MeshNames::default());
        let fields: Vec<_> = findings.into_iter().map(|finding| finding.field).collect();
        (policy.default_access, fields.join(" "))
    };
    let read_ok = (Some(DefaultAccess::ClusterAuthenticated), String::new());
    assert_eq!(read("Deployment", "cluster-authenticated"), read_ok);
    assert_eq!(read("Service", "deny").1, "spec.targetRef.kind");
    assert_eq!(
        read("Deployment", "open"),
        (Some(DefaultAccess::Deny), "spec.defaultAccess".into())
    );
}

#[test]
fn limits_of_a_port_are_read_whole_or_refused() {
    let read = |spec: Value| {
        let mut spec = spec;
        spec["targetRef"] = json!({ "kind": "Deployment", "name": "x", "port": 80 });
        let object = json!({
            "apiVersion": VERSION,
            "kind": "ServerPolicy",
            "metadata": { "name": "p", "namespace": "shop" },
            "spec": spec,
        });
        let (policy, findings) =
            server_policy(&serde_json::from_value(object).unwrap(), &MeshNames::default());
        let fields: Vec<_> = findings.into_iter().map(|finding| finding.field).collect();
        (policy, fields.join(" "))
    };
    let (policy, wrong) = read(json!({
        "protocol": "gRPC",
        "concurrency": 50,
        "rateLimit": {
            "total": { "requestsPerSecond": 100, "burst": 5 },
            "perIdentity": { "requestsPerSecond": 10 },
            "overrides": [{ "serviceAccounts": ["bank/batch"], "requestsPerSecond": 1 }],
            "perHeader": { "name": "x-tenant", "requestsPerSecond": 20 },
        },
    }));
    assert_eq!((wrong.as_str(), policy.concurrency), ("", Some(50)));
    assert_eq!(policy.protocol, Some(PortProtocol::Grpc));
    let limit = policy.rate_limit.unwrap();
    assert_eq!(limit.meta.to_string(), "ServerPolicy/shop/p");
    assert_eq!(limit.total, Some(Rate { per_second: 100, burst: 5 }));
    assert_eq!(limit.identity, Some(Rate { per_second: 10, burst: 10 }));
    assert!(limit.overrides[0].1[0].starts_with("batch.bank."));
    assert_eq!(limit.header.unwrap().name, "x-tenant");

    let (policy, wrong) =
        read(json!({ "faults": [{ "abort": { "grpcCode": 14 }, "percent": 5 }] }));
    assert_eq!((wrong.as_str(), policy.governs()), ("", false));
    assert_eq!(policy.faults[0].meta.to_string(), "ServerPolicy/shop/p");

    for (spec, field) in [
        (json!({}), "spec"),
        (json!({ "protocol": "opaque", "faults": [{ "delay": "1s" }] }), "spec.protocol"),
        (json!({ "faults": [{ "delay": "1s", "percent": 0 }] }), "spec.faults[0].percent"),
        (json!({ "faults": [{ "delay": "61m" }] }), "spec.faults[0].delay"),
        (json!({ "protocol": "TCP" }), "spec.protocol"),
        (json!({ "protocol": "opaque", "concurrency": 1 }), "spec.protocol"),
        (json!({ "concurrency": 0 }), "spec.concurrency"),
        (json!({ "rateLimit": {} }), "spec.rateLimit"),
        (
            json!({ "rateLimit": { "total": { "requestsPerSecond": 2_000_000, "burst": 1 } } }),
            "spec.rateLimit.total.requestsPerSecond",
        ),
        (
            json!({ "rateLimit": { "perHeader": { "name": "a b", "requestsPerSecond": 1 } } }),
            "spec.rateLimit.perHeader.name",
        ),
        (
            json!({ "rateLimit": { "overrides": [
                { "identities": ["*.x.y"], "requestsPerSecond": 1 },
            ] } }),
            "spec.rateLimit.overrides[0].identities[0]",
        ),
    ] {
        assert_eq!(read(spec.clone()).1, field, "{spec}");
    }
}

#[test]
fn a_backend_traffic_policy_is_read_whole_or_refused() {
    let read = |mut spec: Value| {
        if spec["targetRef"].is_null() {
            spec["targetRef"] = json!({ "kind": "Service", "name": "x", "port": 80 });
        }
        let object = json!({
            "apiVersion": VERSION,
            "kind": "BackendTrafficPolicy",
            "metadata": { "name": "p", "namespace": "shop" },
            "spec": spec,
        });
        let (policy, findings) = backend_traffic_policy(&serde_json::from_value(object).unwrap());
        let fields: Vec<_> = findings.into_iter().map(|finding| finding.field).collect();
        (policy, fields.join(" "))
    };
    let (policy, wrong) = read(json!({
        "loadBalancer": { "type": "LeastRequest", "slowStart": "1m30s" },
        "circuitBreaker": {
            "successRate": { "threshold": 90 },
            "latency": "250ms",
            "backoff": { "min": "500ms" },
            "minReadyEndpoints": 0,
        },
        "limits": { "pendingRequests": 5 },
        "retryBudget": { "minPerSecond": 0 },
        "retry": { "codes": [502, 503], "grpcCodes": [14], "backoff": "10ms" },
        "zonePreference": "Require",
    }));
    assert_eq!(wrong, "");
    let retry = policy.retry.unwrap();
    assert_eq!((retry.attempts, retry.statuses.len()), (1, 2));
    assert!(retry.grpc.contains(14) && !retry.grpc.contains(13));
    let many = read(json!({ "retry": { "codes": vec![503; 5000] } })).0.retry.unwrap();
    assert_eq!(many.statuses, [503..=503]);
    let balancing = policy.balancing.unwrap();
    assert_eq!(balancing.balancer.strategy, Strategy::LeastRequest);
    assert_eq!(balancing.slow_start, Some(Duration::from_secs(90)));
    let Some(BreakerPolicy::Enabled { breaker, latency }) = policy.breaker else { panic!() };
    assert_eq!(latency, Some(Duration::from_millis(250)));
    assert_eq!((breaker.consecutive, breaker.min_ready), (None, 0));
    assert_eq!(breaker.backoff.min, Duration::from_millis(500));
    let rate = breaker.success_rate.unwrap();
    assert_eq!((rate.threshold, rate.min_requests), (0.9, 5));
    assert_eq!(policy.limits.pending, Some(5));
    assert_eq!(policy.zones, Some(ZonePreference::Require));
    let budget = policy.retry_budget.unwrap();
    assert_eq!((budget.percent, budget.min_per_second), (20, 0));

    let of_route = |kind: &str, more: Value| {
        let mut target = json!({ "kind": kind, "name": "r" });
        target.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "targetRef": target, "faults": [{ "delay": "1s" }] })
    };
    let group = json!({ "group": "gateway.networking.k8s.io", "sectionName": "beta" });
    let (policy, wrong) = read(of_route("GRPCRoute", group));
    assert_eq!((wrong.as_str(), policy.faults.len()), ("", 1));
    let (kind, name, rule) = (Kind::GrpcRoute, "r".into(), Some("beta".into()));
    assert_eq!(policy.target, PolicyTarget::Route { kind, name, rule });

    let disabled = read(json!({ "circuitBreaker": { "disabled": true } })).0;
    assert_eq!(disabled.breaker, Some(BreakerPolicy::Disabled));
    let default = read(json!({ "circuitBreaker": {} })).0.breaker;
    let Some(BreakerPolicy::Enabled { breaker, .. }) = default else { panic!() };
    assert_eq!(breaker.consecutive, Some(7));

    let at_once = json!({ "type": "RingHash", "slowStart": "1s" });
    let deployment = json!({ "kind": "Deployment", "name": "x" });
    for (spec, field) in [
        (json!({}), "spec"),
        (
            json!({ "targetRef": deployment, "limits": { "pendingRequests": 1 } }),
            "spec.targetRef.kind",
        ),
        (of_route("HTTPRoute", json!({ "port": 80 })), "spec.targetRef.port"),
        (of_route("HTTPRoute", json!({ "sectionName": "" })), "spec.targetRef.sectionName"),
        (of_route("Service", json!({ "sectionName": "beta" })), "spec.targetRef.sectionName"),
        (of_route("TCPRoute", json!({})), "spec.targetRef.kind spec.targetRef.kind"),
        (
            json!({
                "targetRef": { "kind": "HTTPRoute", "name": "r" },
                "loadBalancer": { "type": "PeakEwma" },
                "circuitBreaker": {},
                "limits": { "pendingRequests": 1 },
                "retryBudget": {},
            }),
            "spec.loadBalancer spec.circuitBreaker spec.limits spec.retryBudget",
        ),
        (json!({ "loadBalancer": { "type": "Random" } }), "spec.loadBalancer.type"),
        (json!({ "loadBalancer": at_once }), "spec.loadBalancer.slowStart"),
        (
            json!({ "loadBalancer": { "type": "PeakEwma", "hashHeader": "x" } }),
            "spec.loadBalancer.hashHeader",
        ),
        (json!({ "circuitBreaker": { "latency": "0s" } }), "spec.circuitBreaker.latency"),
        (
            json!({ "circuitBreaker": { "backoff": { "min": "2m" } } }),
            "spec.circuitBreaker.backoff.max",
        ),
        (json!({ "circuitBreaker": { "disabled": true, "latency": "1s" } }), "spec.circuitBreaker"),
        (json!({ "limits": {} }), "spec.limits"),
        (json!({ "limits": { "requestsInFlight": 0 } }), "spec.limits.requestsInFlight"),
        (json!({ "retryBudget": { "percent": 101 } }), "spec.retryBudget.percent"),
        (
            json!({ "retry": { "attempts": 101, "codes": [200], "grpcCodes": [0], "backoff": "1" } }),
            "spec.retry.attempts spec.retry.codes[0] spec.retry.grpcCodes[0] spec.retry.backoff",
        ),
        (json!({ "targetRef": { "kind": "HTTPRoute", "name": "r" }, "retry": {} }), "spec.retry"),
        (json!({ "zonePreference": "Near" }), "spec.zonePreference"),
        (
            json!({
                "targetRef": { "kind": "GRPCRoute", "name": "r" },
                "zonePreference": "Prefer",
            }),
            "spec.zonePreference",
        ),
    ] {
        assert_eq!(read(spec.clone()).1, field, "{spec}");
    }
}

#[test]
fn an_egress_policy_is_read_whole_or_refused() {
    let read = |spec: Value| {
        let object = json!({
            "apiVersion": VERSION,
            "kind": "EgressPolicy",
            "metadata": { "name": "p", "namespace": "shop" },
            "spec": spec,
        });
        let object = serde_json::from_value(object).unwrap();
        let (policy, findings) = egress_policy(&object, &MeshNames::default());
        let fields: Vec<_> = findings.into_iter().map(|finding| finding.field).collect();
        (policy, fields.join(" "))
    };
    let (policy, wrong) = read(json!({
        "default": "Deny",
        "allow": [
            { "name": "apis", "hosts": ["api.Example.com", "*.example.org"], "ports": [443] },
            { "networks": ["192.0.2.0/24", { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] }] },
        ],
        "deny": [{ "hosts": ["bad.example.org"] }],
    }));
    assert_eq!(wrong, "");
    assert_eq!(policy.default, Some(EgressAction::Deny));
    let told: Vec<_> = policy.rules.iter().map(|rule| rule.meta.to_string()).collect();
    assert_eq!(
        told,
        ["EgressPolicy/shop/p#deny[0]", "EgressPolicy/shop/p#apis", "EgressPolicy/shop/p#allow[1]",]
    );
    let hosts: Vec<_> = policy.rules[1].hosts.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["api.example.com", "*.example.org"]);
    assert_eq!(policy.rules[1].ports, [443]);

    let many = vec!["a.test"; 129];
    for (spec, field) in [
        (json!({}), "spec"),
        (json!({ "default": "deny" }), "spec.default"),
        (json!({ "allow": [] }), "spec.allow"),
        (json!({ "allow": [{}] }), "spec.allow[0]"),
        (json!({ "allow": [{ "name": "a b", "ports": [1] }] }), "spec.allow[0].name"),
        (json!({ "deny": [{ "hosts": [] }] }), "spec.deny[0].hosts"),
        (json!({ "deny": [{ "hosts": ["*"] }] }), "spec.deny[0].hosts[0]"),
        (json!({ "deny": [{ "hosts": ["a.*.b"] }] }), "spec.deny[0].hosts[0]"),
        (json!({ "deny": [{ "hosts": ["192.0.2.1"] }] }), "spec.deny[0].hosts[0]"),
        (json!({ "deny": [{ "hosts": ["https://a.test"] }] }), "spec.deny[0].hosts[0]"),
        (json!({ "deny": [{ "hosts": ["a.test:443"] }] }), "spec.deny[0].hosts[0]"),
        (json!({ "deny": [{ "hosts": ["münchen.test"] }] }), "spec.deny[0].hosts[0]"),
        (json!({ "deny": [{ "hosts": many }] }), "spec.deny[0].hosts"),
        (json!({ "allow": [{ "networks": ["example.com"] }] }), "spec.allow[0].networks[0]"),
        (json!({ "allow": [{ "ports": [0] }] }), "spec.allow[0].ports[0]"),
        (json!({ "allow": [{ "ports": [65536] }] }), "spec.allow[0].ports[0]"),
    ] {
        assert_eq!(read(spec.clone()).1, field, "{spec}");
    }
}

#[test]
fn definitions_are_what_an_api_server_takes() {
    for crd in crds() {
        let name = crd.metadata.name.clone().unwrap();
        assert!(name.ends_with(".policy.meshctl.dev"), "{name}");
        let [version] = &crd.spec.versions[..] else { panic!("{name} has one version") };
        assert_eq!(version.name, "v1alpha1");
        assert!(version.subresources.as_ref().unwrap().status.is_some(), "{name}");
        let schema = version.schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        structural(&serde_json::to_value(schema).unwrap(), &name);
    }
}

/// The rules for structural schemas, as far as ours could break them.
fn structural(schema: &Value, at: &str) {
    let is = |key: &str| schema.get(key) == Some(&Value::Bool(true));
    let untyped = is("x-kubernetes-int-or-string") || is("x-kubernetes-preserve-unknown-fields");
    assert!(schema["type"].is_string() || untyped, "{at} has no type: {schema}");
    for forbidden in ["$ref", "additionalProperties", "oneOf", "definitions", "uniqueItems"] {
        let labels = forbidden == "additionalProperties" && at.ends_with("matchLabels");
        assert!(labels || schema.get(forbidden).is_none(), "{at}: {forbidden}");
    }
    // A rule over a list without a bound costs too much.
    assert!(schema["type"] != "array" || schema["maxItems"].is_u64(), "{at} has no bound");
    assert!(schema.get("default").is_none(), "{at}: {}", schema["default"]);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        structural(property, &format!("{at}.{name}"));
    }
    if let Some(items) = schema.get("items") {
        structural(items, &format!("{at}[]"));
    }
}

/// What a policy says is the same after it was written by the types.
#[test]
fn policies_are_written_as_they_are_read() {
    let spec = json!({
        "targetRef": { "kind": "Pod", "selector": { "matchLabels": { "a": "b" } }, "port": 80 },
        "action": "Deny",
        "from": [{ "networks": ["10.0.0.0/8", { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] }] }],
        "to": [{ "grpc": [{ "service": "a.B" }] }],
    });
    let read: AuthorizationPolicySpec = serde_json::from_value(spec.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), spec);
}

#[test]
fn accounts_and_namespaces_are_those_of_the_mesh() {
    let object = json!({
        "apiVersion": VERSION,
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "p", "namespace": "shop" },
        "spec": { "from": [{ "serviceAccounts": ["portal"], "namespaces": ["ops"] }] },
    });
    let object = serde_json::from_value(object).unwrap();
    let names = MeshNames { control_namespace: "mesh".into(), trust_domain: "example.org".into() };
    let (policy, findings) = authorization_policy(&object, &names);
    assert!(findings.is_empty());
    let ClientMatch::Among(patterns) = &policy.from[0].client else { panic!("{policy:?}") };
    let told: Vec<_> = patterns.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "portal.shop.serviceaccount.identity.mesh.example.org",
            "*.ops.serviceaccount.identity.mesh.example.org",
        ]
    );
}

/// A schema written by hand makes its field one that must be there, unless it has a default.
/// An API server compiles rules against the fields that it can type, and refuses the definition otherwise.
#[test]
fn rules_are_about_fields_that_have_types() {
    fn is_typed(schema: &serde_json::Value) -> bool {
        let items = schema.get("items").is_none_or(is_typed);
        items && (schema.get("type").is_some() || schema["x-kubernetes-int-or-string"] == true)
    }
    fn look(schema: &serde_json::Value, path: &str, rules: &mut usize) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let text = rule["rule"].as_str().unwrap();
            *rules += 1;
            for named in text.split("self.").skip(1) {
                let end = named.find(|c: char| !c.is_alphanumeric()).unwrap_or(named.len());
                let field = &schema["properties"][&named[..end]];
                assert!(is_typed(field), "{path}: `{text}` cannot see {}", &named[..end]);
            }
        }
        for (name, of) in schema["properties"].as_object().into_iter().flatten() {
            look(of, &format!("{path}.{name}"), rules);
        }
        if let Some(items) = schema.get("items") {
            look(items, path, rules);
        }
    }
    let mut rules = 0;
    for crd in crds() {
        let crd = serde_json::to_value(crd).unwrap();
        let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap();
        look(schema, crd["spec"]["names"]["kind"].as_str().unwrap(), &mut rules);
    }
    assert!(rules > 5, "{rules}");
}

#[test]
fn what_may_be_left_out_is_not_required() {
    fn required(schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        for name in schema["required"].as_array().into_iter().flatten() {
            found.push(format!("{path}.{}", name.as_str().unwrap()));
        }
        for (name, of) in schema["properties"].as_object().into_iter().flatten() {
            required(of, &format!("{path}.{name}"), found);
        }
        if let Some(items) = schema.get("items") {
            required(items, path, found);
        }
    }
    let mut found = Vec::new();
    for crd in crds() {
        let crd = serde_json::to_value(crd).unwrap();
        let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
        required(
            crd.pointer(spec).unwrap(),
            crd["spec"]["names"]["kind"].as_str().unwrap(),
            &mut found,
        );
    }
    let needed = [
        "targetRef.kind",
        ".matchLabels",
        ".targetRef",
        ".name",
        ".value",
        ".service",
        ".requestsPerSecond",
        "loadBalancer.type",
    ];
    let others: Vec<_> =
        found.iter().filter(|at| !needed.iter().any(|end| at.ends_with(end))).collect();
    assert!(others.is_empty(), "{others:?}");
}
