//! `manifests/demo` against the program it starts: commands parse, names and ports meet.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::Parser;
use serde_json::Value;

use super::args::Args;

/// Every object of the folder, keyed `Kind/name`.
fn objects() -> BTreeMap<String, Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/demo");
    let mut objects = BTreeMap::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# "), "{} begins with what to look at", path.display());
        for object in serde_saphyr::from_multiple::<Value>(&text).unwrap() {
            let key = format!("{}/{}", string(&object, "/kind"), string(&object, "/metadata/name"));
            assert!(objects.insert(key.clone(), object).is_none(), "{key} occurs twice");
        }
    }
    objects
}

fn of_kind<'a>(objects: &'a BTreeMap<String, Value>, kind: &str) -> Vec<&'a Value> {
    objects.values().filter(|object| object["kind"] == kind).collect()
}

fn string<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("no {pointer}: {object}"))
}

fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn container(deployment: &Value) -> &Value {
    &list(deployment, "/spec/template/spec/containers")[0]
}

fn has_port(deployment: &Value, name: &Value) -> bool {
    list(container(deployment), "/ports").iter().any(|port| port["name"] == *name)
}

/// The Deployments whose pods the Service selects.
fn selected<'a>(objects: &'a BTreeMap<String, Value>, service: &Value) -> Vec<&'a Value> {
    let selector = service["spec"]["selector"].as_object().unwrap();
    let mut deployments = of_kind(objects, "Deployment");
    deployments.retain(|deployment| {
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        selector.iter().all(|(name, value)| labels[name] == *value)
    });
    deployments
}

#[test]
fn every_command_is_one_the_program_takes() {
    let objects = objects();
    for deployment in of_kind(&objects, "Deployment") {
        let command = list(container(deployment), "/command");
        let command: Vec<&str> = command.iter().map(|word| word.as_str().unwrap()).collect();
        if let Err(error) = Args::try_parse_from(&command) {
            panic!("{command:?}: {error}");
        }
    }
    assert_eq!(of_kind(&objects, "Deployment").len(), 12);
}

#[test]
fn every_name_a_manifest_uses_exists() {
    let objects = objects();
    for deployment in of_kind(&objects, "Deployment") {
        let account = string(deployment, "/spec/template/spec/serviceAccountName");
        assert!(objects.contains_key(&format!("ServiceAccount/{account}")), "{account}");
        let probe = &container(deployment)["readinessProbe"];
        let port = probe.pointer("/httpGet/port").or(probe.pointer("/tcpSocket/port"));
        assert!(has_port(deployment, port.unwrap()), "the probe of {deployment}");
        assert_eq!(
            deployment["spec"]["template"]["metadata"]["labels"],
            deployment["spec"]["selector"]["matchLabels"],
        );
    }
    for service in of_kind(&objects, "Service") {
        let deployments = selected(&objects, service);
        assert!(!deployments.is_empty(), "{service} selects nothing");
        for port in list(service, "/spec/ports") {
            assert!(deployments.iter().all(|d| has_port(d, &port["targetPort"])), "{service}");
        }
    }
    for policy in of_kind(&objects, "AuthorizationPolicy") {
        let target = &policy["spec"]["targetRef"];
        let service = &objects[&format!("Service/{}", string(target, "/name"))];
        let ports = list(service, "/spec/ports");
        assert!(ports.iter().any(|port| port["port"] == target["port"]), "{target}");
        let from = list(policy, "/spec/from").iter();
        let accounts = from.flat_map(|from| list(from, "/serviceAccounts"));
        for account in accounts.map(|account| account.as_str().unwrap()) {
            assert!(objects.contains_key(&format!("ServiceAccount/{account}")), "{account}");
        }
    }
    for route in of_kind(&objects, "HTTPRoute") {
        let rules = list(route, "/spec/rules").iter();
        let backends = rules.flat_map(|rule| list(rule, "/backendRefs"));
        for reference in backends.chain(list(route, "/spec/parentRefs")) {
            let name = string(reference, "/name");
            let service = &objects[&format!("Service/{name}")];
            let ports = list(service, "/spec/ports");
            assert!(ports.iter().any(|port| port["port"] == reference["port"]), "{reference}");
        }
    }
}

#[test]
fn routes_are_of_the_standard_channel_and_their_services_have_retries() {
    let objects = objects();
    for name in ["checkout", "tax"] {
        let spec = &objects[&format!("HTTPRoute/{name}")]["spec"];
        let parsed: gateway_api::apis::standard::httproutes::HttpRouteSpec =
            serde_json::from_value(spec.clone()).unwrap();
        // An API server refuses what its definition does not have.
        assert_eq!(serde_json::to_value(&parsed).unwrap(), *spec);
        let rule = &parsed.rules.unwrap()[0];
        let timeouts = rule.timeouts.as_ref().unwrap();
        assert!(timeouts.request.is_some() && timeouts.backend_request.is_some());
        let policy = &objects[&format!("BackendTrafficPolicy/{name}")]["spec"];
        assert_eq!(policy["targetRef"]["name"], name);
        assert!(policy["retry"]["attempts"].is_u64(), "{policy}");
    }
}

#[test]
fn services_that_show_something_select_all_their_deployments() {
    let objects = objects();
    for (service, deployments) in [("checkout", 2), ("checkout-v1", 1), ("tax", 2), ("shipping", 2)]
    {
        let found = selected(&objects, &objects[&format!("Service/{service}")]);
        assert_eq!(found.len(), deployments, "{service}");
    }
}
