//! What ports speak, how clients use a service, and who says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_api::ext::{Port, Setting};
use mesh_model::inbound::ServerProtocol;
use mesh_model::outbound::Protocol;

use super::words;
use crate::index::Objects;
use crate::index::object::{AppProtocol, Name, Pod, Service, TrafficPolicy};
use crate::index::policy::DEFAULT_OPAQUE_PORTS;

pub(super) fn of_service(objects: &Objects, service: &Service) -> Vec<Port> {
    let of = |port: &crate::index::object::ServicePort| {
        let policy = objects.outbound_policy(&service.name, port.port, &service.name.namespace);
        let (protocol, why) = match policy.map(|policy| policy.protocol) {
            Some(Protocol::Opaque(_)) => {
                ("opaque", opaque_because(objects, service, port.port, port.app_protocol))
            }
            Some(Protocol::Tls(_)) => ("tls", "a TLSRoute is attached".to_owned()),
            Some(Protocol::Grpc(_)) if port.app_protocol != AppProtocol::Grpc => {
                ("grpc", "a GRPCRoute is attached".to_owned())
            }
            Some(Protocol::Detect { .. }) | None => ("", "seen by what is spoken".to_owned()),
            Some(_) => (port.app_protocol.as_str(), "appProtocol of the Service".to_owned()),
        };
        Port { name: port.name.clone(), port: port.port.into(), protocol: protocol.into(), why }
    };
    service.ports.iter().map(of).collect()
}

fn opaque_because(objects: &Objects, service: &Service, port: u16, of: AppProtocol) -> String {
    if service.opaque_ports.as_ref().is_some_and(|ports| ports.contains(port)) {
        return "config.meshctl.dev/opaque-ports of the Service".to_owned();
    }
    if of == AppProtocol::Opaque {
        return "appProtocol of the Service".to_owned();
    }
    opaque_by_namespace(objects, &service.name.namespace, port)
}

fn opaque_by_namespace(objects: &Objects, namespace: &str, port: u16) -> String {
    let own = objects.namespace(namespace).and_then(|ns| ns.opaque_ports.as_ref());
    if own.is_some_and(|ports| ports.contains(port)) {
        return format!("config.meshctl.dev/opaque-ports of Namespace {namespace}");
    }
    let usual = DEFAULT_OPAQUE_PORTS.contains(&port);
    if usual { "a port at which servers usually speak first" } else { "the Service" }.to_owned()
}

/// Each number once, as the first pod has it: the pods of a workload are alike.
pub(super) fn of_pods(objects: &Objects, pods: &[Arc<Pod>]) -> Vec<Port> {
    let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
    for pod in pods {
        for number in objects.ports_of(pod, None) {
            ports.entry(number).or_insert_with(|| of_pod(objects, pod, number));
        }
    }
    ports.into_values().collect()
}

fn of_pod(objects: &Objects, pod: &Pod, number: u16) -> Port {
    let named = pod.ports.iter().find(|port| port.port == number);
    let declared = named.map(|port| port.name.clone()).unwrap_or_default();
    let said = || {
        let services = objects.services_of_pod(&pod.name);
        let says = |name: &&Name| {
            objects.service(name).is_some_and(|service| {
                service.ports.iter().any(|port| {
                    port.app_protocol != AppProtocol::Unknown
                        && objects.targets_of(name, port.port).contains(&(pod.name.clone(), number))
                })
            })
        };
        let by = services.iter().find(says);
        by.map_or_else(
            || "seen by what is spoken".to_owned(),
            |service| format!("appProtocol of Service {}", service.name),
        )
    };
    let (protocol, why) = match objects.server_policy(&pod.name, number).protocol {
        ServerProtocol::Opaque => {
            let own = pod.opaque_ports.as_ref().is_some_and(|ports| ports.contains(number));
            let why = match (own, said()) {
                (true, _) => "config.meshctl.dev/opaque-ports of the pod".to_owned(),
                (false, by) if by.starts_with("appProtocol") => by,
                _ => opaque_by_namespace(objects, &pod.name.namespace, number),
            };
            ("opaque", why)
        }
        ServerProtocol::Grpc { .. } => ("grpc", said()),
        ServerProtocol::Http2 { .. } => ("http2", said()),
        ServerProtocol::Http1 { .. } => ("http", said()),
        ServerProtocol::Tls => ("tls", said()),
        // HTTP/1 comes as HTTP/2 from other proxies, so that it is looked at even if it is declared.
        ServerProtocol::Detect { .. } => match said() {
            by if by.starts_with("appProtocol") => ("http", by),
            by => ("", by),
        },
    };
    Port { name: declared, port: number.into(), protocol: protocol.into(), why }
}

/// Those of the Service's first port, where its ports differ.
pub(super) fn settings(objects: &Objects, service: &Service) -> Vec<Setting> {
    let (name, port) = (&service.name, service.ports.first().map_or(0, |port| port.port));
    let by = |says: fn(&TrafficPolicy) -> bool, annotated: bool| match objects
        .traffic_policy_that(name, port, says)
    {
        Some(policy) => format!("BackendTrafficPolicy {}", policy.name),
        None if annotated => "annotations of the Service".to_owned(),
        None => "the default".to_owned(),
    };
    let balancer = Setting {
        name: "balancer".into(),
        value: words::balancer(&objects.backend_extension(name, port)),
        why: by(|policy| policy.balancing.is_some(), service.balancer != Default::default()),
    };
    let breaker = Setting {
        name: "breaker".into(),
        value: objects.breaker(name, port).map_or_else(|| "none".into(), words::breaker),
        why: by(|policy| policy.breaker.is_some(), service.breaker.is_some()),
    };
    let zones = objects.zone_preference(name, port).map(|preference| Setting {
        name: "zones".into(),
        value: preference.as_str().into(),
        why: by(|policy| policy.zones.is_some(), false),
    });
    [balancer, breaker].into_iter().chain(zones).collect()
}
