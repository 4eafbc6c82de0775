//! References that lead nowhere.

use super::{Code, Found, Level, Scene, route_key};
use crate::index::object::{
    BackendRef, BackendTarget, Kind, Name, RouteFilter, RouteHead, RouteRule,
};
use crate::index::routes::{Unusable, route_from};

pub(super) fn look(scene: &Scene<'_>, found: &mut Found) {
    let objects = scene.objects;
    for route in objects.http_routes() {
        parents(scene, Kind::HttpRoute, &route.head, found);
        rules(scene, Kind::HttpRoute, &route.head, &route.rules, found);
    }
    for route in objects.grpc_routes() {
        parents(scene, Kind::GrpcRoute, &route.head, found);
        rules(scene, Kind::GrpcRoute, &route.head, &route.rules, found);
    }
    for route in objects.tcp_routes() {
        parents(scene, Kind::TcpRoute, &route.head, found);
        backends(scene, Kind::TcpRoute, &route.head, &route.backends, "spec.rules[0]", found);
    }
    for route in objects.tls_routes() {
        parents(scene, Kind::TlsRoute, &route.head, found);
        backends(scene, Kind::TlsRoute, &route.head, &route.backends, "spec.rules[0]", found);
    }
}

fn parents(scene: &Scene<'_>, kind: Kind, head: &RouteHead, found: &mut Found) {
    let of_several = head.parents.len() > 1;
    for (index, parent) in head.parents.iter().enumerate() {
        let at =
            if of_several { format!("spec.parentRefs[{index}]") } else { "spec.parentRefs".into() };
        let name = &parent.service;
        let Some(service) = scene.objects.service(name) else {
            let level = scene.level_of_missing(name);
            let message = format!("Service {name} does not exist{}", scene.among(name));
            found.add_as(level, Code::ParentMissing, route_key(kind, head), at, message);
            continue;
        };
        let fits = |port: &crate::index::object::ServicePort| {
            parent.port.is_none_or(|number| number == port.port)
                && parent.section.as_ref().is_none_or(|section| *section == port.name)
        };
        if !service.ports.iter().any(fits) {
            let wanted = match (parent.port, &parent.section) {
                (Some(port), Some(section)) => format!("{port} named {section}"),
                (Some(port), None) => port.to_string(),
                (None, section) => format!("named {}", section.as_deref().unwrap_or_default()),
            };
            let ports: Vec<String> = service.ports.iter().map(|p| p.port.to_string()).collect();
            let message =
                format!("Service {name} has no port {wanted}; it has {}", ports.join(", "));
            found.add(Code::ParentMissing, route_key(kind, head), at, message);
        }
    }
}

fn rules<M>(
    scene: &Scene<'_>,
    kind: Kind,
    head: &RouteHead,
    rules: &[RouteRule<M>],
    found: &mut Found,
) {
    for (index, rule) in rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        backends(scene, kind, head, &rule.backends, &at, found);
        mirrors(scene, kind, head, &rule.filters, &at, found);
        for (index, backend) in rule.backends.iter().enumerate() {
            let at = format!("{at}.backendRefs[{index}]");
            mirrors(scene, kind, head, &backend.filters, &at, found);
        }
    }
}

fn backends(
    scene: &Scene<'_>,
    kind: Kind,
    head: &RouteHead,
    backends: &[BackendRef],
    at: &str,
    found: &mut Found,
) {
    for (index, backend) in backends.iter().enumerate() {
        // A share of nothing is nobody's loss, but for whoever turns it up.
        let at = format!("{at}.backendRefs[{index}]");
        let what = if backend.weight > 0 { "its share fails" } else { "its share would fail" };
        target(scene, kind, head, &backend.target, &at, what, found);
    }
}

fn mirrors(
    scene: &Scene<'_>,
    kind: Kind,
    head: &RouteHead,
    filters: &[RouteFilter],
    at: &str,
    found: &mut Found,
) {
    for (index, filter) in filters.iter().enumerate() {
        if let RouteFilter::Mirror { target: to, .. } = filter {
            let at = format!("{at}.filters[{index}].requestMirror.backendRef");
            target(scene, kind, head, to, &at, "nothing is mirrored", found);
        }
    }
}

fn target(
    scene: &Scene<'_>,
    kind: Kind,
    head: &RouteHead,
    target: &BackendTarget,
    at: &str,
    what: &str,
    found: &mut Found,
) {
    let Err(unusable) = scene.objects.usable(route_from(kind, head), target) else { return };
    let (code, level) = match (&unusable, target) {
        // Whoever reads the object says so.
        (Unusable::Kind(_), _) | (_, BackendTarget::Unusable(_)) => return,
        (Unusable::Missing(_), BackendTarget::Service { service, .. }) => {
            (Code::BackendMissing, scene.level_of_missing(service))
        }
        (Unusable::NotPermitted(_), _) => (Code::NotGranted, Code::NotGranted.level()),
    };
    let among = match target {
        BackendTarget::Service { service, .. } if level == Level::Warning => scene.among(service),
        _ => "",
    };
    let message = format!("{unusable}{among}; {what}");
    found.add_as(level, code, route_key(kind, head), at, message);
}

impl Scene<'_> {
    /// Of files that have no Service of a namespace it can't be told what is in it.
    fn is_known(&self, namespace: &str) -> bool {
        self.complete || self.objects.services().any(|s| s.name.namespace == namespace)
    }

    fn level_of_missing(&self, service: &Name) -> Level {
        if self.is_known(&service.namespace) { Level::Error } else { Level::Warning }
    }

    fn among(&self, service: &Name) -> &'static str {
        if self.is_known(&service.namespace) { "" } else { " among these files" }
    }
}
