//! Routes and the protocols of the ports that they are about.

use super::{Code, Found, route_key};
use crate::index::Objects;
use crate::index::object::{AppProtocol, Kind, RouteHead, Service, ServicePort};

pub(super) fn look(objects: &Objects, found: &mut Found) {
    let heads: Vec<(Kind, &RouteHead)> = objects
        .http_routes()
        .map(|route| (Kind::HttpRoute, &route.head))
        .chain(objects.grpc_routes().map(|route| (Kind::GrpcRoute, &route.head)))
        .chain(objects.tls_routes().map(|route| (Kind::TlsRoute, &route.head)))
        .chain(objects.tcp_routes().map(|route| (Kind::TcpRoute, &route.head)))
        .collect();
    for (kind, head) in &heads {
        for parent in &head.parents {
            let Some(service) = objects.service(&parent.service) else { continue };
            let ports = service.ports.iter();
            for port in ports.filter(|p| objects.attaches(head, &service.name, p.port)) {
                protocol(objects, (*kind, head), service, port, found);
                several(objects, &heads, (*kind, head), service, port, found);
            }
        }
    }
}

fn protocol(
    objects: &Objects,
    (kind, head): (Kind, &RouteHead),
    service: &Service,
    port: &ServicePort,
    found: &mut Found,
) {
    if kind == Kind::TcpRoute {
        return;
    }
    let at = "spec.parentRefs";
    let (name, number) = (&service.name, port.port);
    let profile = objects.service_profile(name, number);
    if profile.is_some_and(|profile| profile.opaque) {
        let message = format!(
            "port {number} of Service {name} is opaque: its bytes are carried unread, and the route \
             has no effect"
        );
        found.add(Code::OpaquePort, route_key(kind, head), at, message);
        return;
    }
    let wrong = match (kind, port.app_protocol) {
        (Kind::GrpcRoute, AppProtocol::Http1) => "HTTP/1, which gRPC is not",
        (Kind::HttpRoute, AppProtocol::Grpc) => "gRPC, for which GRPCRoutes are",
        _ => return,
    };
    let message = format!("the appProtocol of port {number} of Service {name} is {wrong}");
    found.add(Code::ProtocolConflict, route_key(kind, head), at, message);
}

/// Of several kinds at a port the one that says most governs.
fn several(
    objects: &Objects,
    heads: &[(Kind, &RouteHead)],
    (kind, head): (Kind, &RouteHead),
    service: &Service,
    port: &ServicePort,
    found: &mut Found,
) {
    let rank = |kind: Kind| match kind {
        Kind::GrpcRoute => 0,
        Kind::HttpRoute => 1,
        Kind::TlsRoute => 2,
        _ => 3,
    };
    let better = heads.iter().find(|(other, of)| {
        // HTTP on a port whose protocol is still to be seen leaves the bytes to TCPRoutes.
        let apart = kind == Kind::TcpRoute && *other != Kind::TlsRoute;
        rank(*other) < rank(kind)
            && !apart
            && of.name.namespace == head.name.namespace
            && objects.attaches(of, &service.name, port.port)
    });
    if let Some((other, of)) = better {
        let message = format!(
            "{} governs port {} of Service {}, and this route has no effect there",
            route_key(*other, of),
            port.port,
            service.name
        );
        found.add(Code::SeveralKinds, route_key(kind, head), "spec.parentRefs", message);
    }
}
