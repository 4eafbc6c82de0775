//! The index from outside: objects in, policies out.

mod authorization;
mod egress;
mod endpoints;
mod identity;
mod order;
mod policies;
mod ports;
mod traffic;
mod zones;

use std::net::{IpAddr, SocketAddr};

use mesh_model::outbound::{OutboundPolicy, Protocol};

use super::Index;
use super::object::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn shop(name: &str) -> Name {
    Name::new("shop", name)
}

/// A service with one port, 8080.
fn service(name: &str, cluster_ip: &str) -> Service {
    Service {
        name: shop(name),
        cluster_ips: vec![ip(cluster_ip)],
        ports: vec![ServicePort { port: 8080, ..ServicePort::default() }],
        ..Service::default()
    }
}

fn with_protocol(service: Service, app_protocol: AppProtocol) -> Service {
    let port = ServicePort { port: 8080, app_protocol, ..ServicePort::default() };
    Service { ports: vec![port], ..service }
}

/// A meshed pod that is ready.
fn pod(name: &str, pod_ip: &str) -> Pod {
    Pod {
        name: shop(name),
        ip: Some(ip(pod_ip)),
        service_account: "default".into(),
        owner: Some((Kind::Deployment, "web".into())),
        running: true,
        ready: true,
        proxy: Some("0.1.0".into()),
        ..Pod::default()
    }
}

fn slice(service: &str, pods: &[(&str, &str)]) -> EndpointSlice {
    let address = |(pod, pod_ip): &(&str, &str)| EndpointAddress {
        ip: ip(pod_ip),
        pod: Some((*pod).into()),
        ready: true,
        draining: false,
        zone: None,
        node: None,
        hints: Vec::new(),
    };
    EndpointSlice {
        name: shop(&format!("{service}.80")),
        service: service.into(),
        ports: vec![(String::new(), 80)],
        addresses: pods.iter().map(address).collect(),
    }
}

/// A route from the service `parent` to others, by weight.
fn http_route(name: Name, parent: &str, backends: &[(&str, u32)]) -> HttpRoute {
    let backend = |(service, weight): &(&str, u32)| BackendRef {
        target: BackendTarget::Service { service: shop(service), port: 8080 },
        weight: *weight,
        filters: Vec::new(),
    };
    let parent = ServiceRef { service: shop(parent), port: None, section: None };
    HttpRoute {
        head: RouteHead { name, created: None, parents: vec![parent], ..RouteHead::default() },
        hosts: Vec::new(),
        rules: vec![RouteRule {
            backends: backends.iter().map(backend).collect(),
            ..RouteRule::default()
        }],
    }
}

fn index(objects: Vec<Object>) -> Index {
    let mut index = Index::default();
    objects.into_iter().for_each(|object| index.apply(object));
    index
}

fn policy(index: &Index, name: &str) -> OutboundPolicy {
    index.objects().outbound_policy(&shop(name), 8080, "shop").unwrap()
}

/// The names of the HTTP routes of a policy, whatever its protocol.
fn route_names(policy: &OutboundPolicy) -> Vec<String> {
    let routes = match &policy.protocol {
        Protocol::Detect { http1, .. } => &http1.routes,
        Protocol::Http1(http) | Protocol::Http2(http) => &http.routes,
        other => panic!("no HTTP routes in {other:?}"),
    };
    routes.iter().map(|route| route.meta.to_string()).collect()
}
