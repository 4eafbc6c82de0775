//! Manifests of a local mesh, as a user would write them.

use std::path::Path;

use serde_json::{Value, json};

use crate::programs;

/// The port of all services and containers.
pub const PORT: u16 = 8080;

/// A Deployment of `scenario-app`, which keeps its files in the folder `scratch`.
pub fn app(name: &str, replicas: u32, scratch: &Path) -> Value {
    let mut object = deployment(name, replicas, &[&programs::scenario_app().display().to_string()]);
    object["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{ "name": "SCRATCH", "value": scratch }]);
    object
}

/// A Deployment of pods that run this command.
pub fn deployment(name: &str, replicas: u32, command: &[&str]) -> Value {
    let labels = json!({ "app": name });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name, "namespace": "test" },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels, "annotations": { "meshctl.dev/inject": "enabled" } },
                "spec": {
                    "containers": [{
                        "name": "app",
                        "image": "none",
                        "command": command,
                        "ports": [{ "containerPort": PORT }],
                    }],
                },
            },
        },
    })
}

/// The Service in front of the pods of this name.
pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "test" },
        "spec": { "selector": { "app": name }, "ports": [{ "port": PORT, "appProtocol": "http" }] },
    })
}

/// The HTTPRoute of a service, to services by weight.
pub fn split(name: &str, backends: &[(&str, u32)]) -> Value {
    let backends =
        backends.iter().map(|(to, weight)| json!({ "name": to, "port": PORT, "weight": weight }));
    route(name, json!({ "backendRefs": backends.collect::<Vec<_>>() }))
}

/// The HTTPRoute of a service whose requests are tried again, each try taking at most `try_timeout`.
pub fn retried(name: &str, try_timeout: &str) -> Value {
    let rule = json!({
        "backendRefs": [{ "name": name, "port": PORT }],
        "timeouts": { "request": "10s", "backendRequest": try_timeout },
        "retry": { "codes": [502, 503, 504], "attempts": 3, "backoff": "10ms" },
    });
    route(name, rule)
}

/// The HTTPRoute of a service, with this rule.
pub fn route(name: &str, rule: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": { "name": name, "namespace": "test" },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": name, "port": PORT }],
            "rules": [rule],
        },
    })
}
