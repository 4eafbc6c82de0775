//! Who gets a proxy. The first rule that applies decides:
//!
//! 1. The namespace of the control plane and `kube-system` get none.
//! 2. The pod's own label `meshctl.dev/inject`, else its annotation of that name, else the
//!    namespace's label, else its annotation. Without any, it depends on who asks: the webhook leaves
//!    the pod alone, `meshctl inject` was asked to inject.
//! 3. A pod that has our proxy is left as it is.
//! 4. A pod that cannot have one is refused with the reason.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use kube::core::ObjectMeta;

use super::containers::{PORTS, VOLUMES};
use super::{INIT_CONTAINER, INJECT, NamespaceMeta, PROXY_CONTAINER, Settings};
use crate::source::Finding;
use crate::source::kubernetes::PROXY_VERSION_ANNOTATION;

/// What the rules say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decided {
    Inject { rule: String },
    Skip { reason: String },
    Refuse { reason: String },
}

/// Containers of other meshes: two proxies would each take the other's traffic.
const FOREIGN: [(&str, &str); 7] = [
    ("istio-proxy", "Istio"),
    ("linkerd-proxy", "Linkerd"),
    ("consul-dataplane", "Consul"),
    ("consul-connect-envoy-sidecar", "Consul"),
    ("envoy-sidecar", "Consul"),
    ("kuma-sidecar", "Kuma"),
    ("osm-envoy", "Open Service Mesh"),
];

pub(super) fn decide(
    meta: &ObjectMeta,
    spec: &PodSpec,
    namespace: &NamespaceMeta,
    settings: &Settings,
    warnings: &mut Vec<Finding>,
) -> Decided {
    let ours = settings.names.control_namespace.as_str();
    if namespace.name == ours || namespace.name == "kube-system" {
        return Decided::Skip { reason: format!("pods of {} never get a proxy", namespace.name) };
    }
    let empty = BTreeMap::new();
    let places = [
        ("the pod's label", meta.labels.as_ref().unwrap_or(&empty)),
        ("the pod's annotation", meta.annotations.as_ref().unwrap_or(&empty)),
        ("the namespace's label", &namespace.labels),
        ("the namespace's annotation", &namespace.annotations),
    ];
    let said = places.into_iter().find_map(|(place, values)| {
        let value = values.get(INJECT)?;
        match value.trim() {
            "enabled" => Some((true, format!("{place} {INJECT} is enabled"))),
            "disabled" => Some((false, format!("{place} {INJECT} is disabled"))),
            _ => {
                warnings.push(Finding::warning(
                    INJECT,
                    format!("{place} `{value}` is neither `enabled` nor `disabled` and is ignored"),
                ));
                None
            }
        }
    });
    let rule = match said {
        Some((true, rule)) => rule,
        Some((false, reason)) => return Decided::Skip { reason },
        None if settings.inject_unlabelled => format!("no {INJECT} says otherwise"),
        None => {
            let reason = format!("neither the pod nor its namespace has {INJECT}: enabled");
            return Decided::Skip { reason };
        }
    };
    if let Some(version) = injected(meta, spec) {
        return Decided::Skip { reason: format!("already injected (proxy {version})") };
    }
    match obstacle(spec) {
        Some(reason) => Decided::Refuse { reason },
        None => Decided::Inject { rule },
    }
}

fn all_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// The version of the proxy that a pod has.
fn injected(meta: &ObjectMeta, spec: &PodSpec) -> Option<String> {
    let has = |name: &str| all_containers(spec).any(|container| container.name == name);
    let version = meta.annotations.as_ref().and_then(|all| all.get(PROXY_VERSION_ANNOTATION));
    (has(INIT_CONTAINER) && has(PROXY_CONTAINER)).then_some(version?.clone())
}

/// Why a pod cannot have a proxy.
fn obstacle(spec: &PodSpec) -> Option<String> {
    if spec.host_network == Some(true) {
        let why = "hostNetwork shares the node's network, in which nothing may be redirected";
        return Some(why.to_owned());
    }
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return Some("Windows pods are not supported".to_owned());
    }
    for container in all_containers(spec) {
        let name = &container.name;
        if let Some((_, mesh)) = FOREIGN.iter().find(|(foreign, _)| foreign == name) {
            return Some(format!("it has the sidecar of another mesh: {name} ({mesh})"));
        }
        if [INIT_CONTAINER, PROXY_CONTAINER].contains(&name.as_str()) {
            return Some(format!("it has a container {name} that is not the mesh's; rename it"));
        }
        let ports = container.ports.iter().flatten();
        let mut ports = ports.map(|port| port.container_port);
        if let Some(port) =
            ports.find(|port| PORTS.iter().any(|(_, ours)| i32::from(*ours) == *port))
        {
            return Some(format!("container {name} has port {port}, which is the proxy's"));
        }
    }
    let mut volumes = spec.volumes.iter().flatten();
    let taken = volumes.find(|volume| VOLUMES.contains(&volume.name.as_str()))?;
    Some(format!("it has a volume {} that is not the mesh's; rename it", taken.name))
}
