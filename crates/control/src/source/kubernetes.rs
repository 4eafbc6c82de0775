//! Namespaces, Services and Pods of Kubernetes as objects of the index.

mod probes;
pub mod slice;

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use kube::core::ObjectMeta;

use super::Finding;
use super::annotations::Annotations;
use crate::index::object::{
    AppProtocol, ContainerPort, Kind, Labels, Name, Namespace, Pod, Service, ServicePort,
};

/// Label of pods whose owner is not told by an owner reference.
pub const OWNER_KIND_LABEL: &str = "meshctl.dev/owner-kind";
/// As [`OWNER_KIND_LABEL`]: the owner's name.
pub const OWNER_NAME_LABEL: &str = "meshctl.dev/owner-name";
/// Annotation of pods that have a proxy: its version.
pub const PROXY_VERSION_ANNOTATION: &str = "meshctl.dev/proxy-version";

/// Label of nodes, and of pods, that names the zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// An object, and what was found wrong with it.
pub type Converted<T> = (T, Vec<Finding>);

/// Namespace and name of a namespaced object. Objects that name no namespace are in `default`.
pub fn name_of(meta: &ObjectMeta) -> Name {
    let namespace = meta.namespace.as_deref().filter(|ns| !ns.is_empty()).unwrap_or("default");
    Name::new(namespace, meta.name.clone().unwrap_or_default())
}

pub fn namespace(object: &core::Namespace) -> Converted<Namespace> {
    let mut annotations = Annotations::new(object.metadata.annotations.as_ref());
    let namespace = Namespace {
        name: object.metadata.name.clone().unwrap_or_default(),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        annotations: own_annotations(&object.metadata),
        opaque_ports: annotations.opaque_ports(),
        default_access: annotations.default_access(),
    };
    (namespace, annotations.findings)
}

/// Those that are the mesh's; the others may be large.
pub(super) fn own_annotations(meta: &ObjectMeta) -> Labels {
    let own = meta.annotations.iter().flatten();
    let own = own.filter(|(key, _)| {
        key.split_once('/')
            .is_some_and(|(prefix, _)| prefix == "meshctl.dev" || prefix == "config.meshctl.dev")
    });
    own.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// A Service; its cluster addresses are those it names itself.
pub fn service(object: &core::Service) -> Converted<Service> {
    let mut annotations = Annotations::new(object.metadata.annotations.as_ref());
    let mut service = Service {
        name: name_of(&object.metadata),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        cluster_ips: Vec::new(),
        external: external(object),
        ports: Vec::new(),
        opaque_ports: annotations.opaque_ports(),
        breaker: annotations.breaker(),
        allow_request_headers: annotations.allow_request_headers(),
        balancer: annotations.balancer(),
    };
    let mut findings = annotations.findings;
    let Some(spec) = &object.spec else {
        findings.push(Finding::error("spec", "a Service needs a spec with ports"));
        return (service, findings);
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        findings.push(Finding::warning(
            "spec.type",
            "ExternalName services are outside the mesh; clients reach the name without it",
        ));
        return (service, findings);
    }
    cluster_ips(spec, &mut service, &mut findings);
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let field = format!("spec.ports[{index}]");
        if let Some(port) = service_port(port, &service.ports, &field, &mut findings) {
            service.ports.push(port);
        }
    }
    (service, findings)
}

/// No load balancer has more addresses.
const MAX_EXTERNAL: usize = 16;

fn external(object: &core::Service) -> Vec<String> {
    let balancer = object.status.iter().filter_map(|status| status.load_balancer.as_ref());
    let ingress = balancer.flat_map(|of| of.ingress.iter().flatten());
    let ingress = ingress.filter_map(|of| of.ip.as_ref().or(of.hostname.as_ref()));
    let ips = object.spec.iter().flat_map(|spec| spec.external_ips.iter().flatten());
    ingress.chain(ips).take(MAX_EXTERNAL).cloned().collect()
}

fn cluster_ips(spec: &core::ServiceSpec, service: &mut Service, findings: &mut Vec<Finding>) {
    let several = spec.cluster_ips.iter().flatten();
    for ip in spec.cluster_ip.iter().chain(several).filter(|ip| !is_headless(ip)) {
        match ip.parse::<IpAddr>() {
            Ok(ip) if service.cluster_ips.contains(&ip) => {}
            Ok(ip) => service.cluster_ips.push(ip),
            Err(_) => findings
                .push(Finding::error("spec.clusterIP", format!("`{ip}` is not an IP address"))),
        }
    }
}

fn is_headless(ip: &str) -> bool {
    ip.is_empty() || ip.eq_ignore_ascii_case("none")
}

fn service_port(
    port: &core::ServicePort,
    before: &[ServicePort],
    field: &str,
    findings: &mut Vec<Finding>,
) -> Option<ServicePort> {
    if !matches!(port.protocol.as_deref(), None | Some("TCP")) {
        findings.push(Finding::warning(
            format!("{field}.protocol"),
            "the mesh carries TCP only; this port is left out",
        ));
        return None;
    }
    let Some(number) = u16::try_from(port.port).ok().filter(|port| *port > 0) else {
        let message = format!("{} is not a port from 1 to 65535", port.port);
        findings.push(Finding::error(format!("{field}.port"), message));
        return None;
    };
    let name = port.name.clone().unwrap_or_default();
    if before.iter().any(|p| p.port == number || p.name == name) {
        let message = "a port before it has the same name or number";
        findings.push(Finding::error(field, message));
        return None;
    }
    let app_protocol = match port.app_protocol.as_deref().unwrap_or_default() {
        "http" | "kubernetes.io/ws" => AppProtocol::Http1,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tcp" | "meshctl.dev/opaque" => AppProtocol::Opaque,
        _ => AppProtocol::Unknown,
    };
    Some(ServicePort { name, port: number, app_protocol })
}

/// A Pod with its status.
pub fn pod(object: &core::Pod) -> Converted<Pod> {
    let meta = &object.metadata;
    let mut annotations = Annotations::new(meta.annotations.as_ref());
    let status = object.status.as_ref();
    let spec = object.spec.as_ref();
    let mut findings = Vec::new();
    let ip = status.and_then(|status| status.pod_ip.as_deref()).filter(|ip| !ip.is_empty());
    let parsed = ip.and_then(|ip| ip.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical());
    if let (Some(ip), None) = (ip, parsed) {
        findings.push(Finding::error("status.podIP", format!("`{ip}` is not an IP address")));
    }
    let all_ips = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
    let other_ips = all_ips
        .filter_map(|ip| ip.ip.parse::<IpAddr>().ok())
        .map(|ip| ip.to_canonical())
        .filter(|ip| Some(*ip) != parsed);
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let running = phase == "Running";
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let containers = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let ports = containers.iter().flat_map(|container| container.ports.iter().flatten());
    let ports = ports.filter_map(|port| {
        let number = u16::try_from(port.container_port).ok().filter(|port| *port > 0)?;
        Some(ContainerPort { name: port.name.clone().unwrap_or_default(), port: number })
    });
    let service_account = spec.and_then(|spec| spec.service_account_name.as_deref());
    let service_account = service_account.filter(|name| !name.is_empty());
    let proxy = meta.annotations.as_ref().and_then(|all| all.get(PROXY_VERSION_ANNOTATION));
    let pod = Pod {
        name: name_of(meta),
        ip: parsed,
        other_ips: other_ips.collect(),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        service_account: service_account.unwrap_or("default").to_owned(),
        owner: owner(meta),
        labels: meta.labels.clone().unwrap_or_default(),
        ports: ports.collect(),
        zone: zone(meta),
        node: spec.and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty()),
        running,
        ready: ready && running,
        terminating: meta.deletion_timestamp.is_some(),
        proxy: proxy.cloned(),
        opaque_ports: annotations.opaque_ports(),
        probes: containers.iter().flat_map(probes::of_container).collect(),
        default_access: annotations.default_access(),
    };
    findings.append(&mut annotations.findings);
    (pod, findings)
}

/// Clusters copy the label from the node (Kubernetes 1.35 and later); a local mesh has no nodes, and
/// takes what the pod's template says.
fn zone(meta: &ObjectMeta) -> Option<String> {
    let named = |all: Option<&Labels>| all.and_then(|all| all.get(ZONE_LABEL)).cloned();
    let zone = named(meta.labels.as_ref()).or_else(|| named(meta.annotations.as_ref()));
    zone.filter(|zone| !zone.is_empty())
}

/// The workload at the top of a pod's ownership.
fn owner(meta: &ObjectMeta) -> Option<(Kind, String)> {
    let label = |name: &str| meta.labels.as_ref().and_then(|labels| labels.get(name));
    if let (Some(kind), Some(name)) = (label(OWNER_KIND_LABEL), label(OWNER_NAME_LABEL)) {
        return Some((Kind::workload(kind)?, name.clone()));
    }
    let direct = controller(meta)?;
    Some(top_by_name(direct, meta.labels.as_ref()))
}

/// What made the object and looks after it, if that is a kind of workload.
pub fn controller(meta: &ObjectMeta) -> Option<(Kind, String)> {
    let mut references = meta.owner_references.iter().flatten();
    let controller = references.find(|owner| owner.controller == Some(true))?;
    // Other groups have kinds of these names, too.
    let group = controller.api_version.split('/').next().unwrap_or_default();
    let kind = Kind::workload(&controller.kind).filter(|_| matches!(group, "apps" | "batch"))?;
    Some((kind, controller.name.clone()))
}

/// The top of a pod's ownership, as far as names tell: a ReplicaSet that a Deployment made carries
/// the hash that the Deployment put on its pods.
pub fn top_by_name((kind, name): (Kind, String), labels: Option<&Labels>) -> (Kind, String) {
    let hash = labels.and_then(|labels| labels.get("pod-template-hash"));
    let deployment = hash.and_then(|hash| name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    match (kind, deployment) {
        (Kind::ReplicaSet, Some(deployment)) => (Kind::Deployment, deployment.to_owned()),
        _ => (kind, name),
    }
}
