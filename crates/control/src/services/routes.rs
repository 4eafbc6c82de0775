//! `meshctl routes`: which routes apply to what, in words.

use std::collections::BTreeSet;

use mesh_api::ext::{RouteRow, RoutesReply, Selector};
use mesh_model::meta::ResourceRef;
use mesh_model::route::{GrpcMatch, HttpMatch, PathMatch, SessionBy};

use super::mesh::{Failure, must_exist};
use super::select::select;
use super::words;
use crate::index::Objects;
use crate::index::object::{
    AppProtocol, BackendRef, BackendTarget, Kind, Name, Retries, RouteFilter, RouteHead, RouteRule,
    Service, route_ref,
};
use crate::index::routes::{RouteFrom, retry, route_from};
use crate::state::Shared;

/// The routes of the services that are selected, or that the selected pods are behind.
///
/// # Errors
/// When the selector cannot be understood, or names what does not exist.
pub(super) fn routes(shared: &Shared, selector: &Selector) -> Result<RoutesReply, Failure> {
    let index = shared.index.read();
    let objects = index.objects();
    let selected = select(objects, selector)?;
    must_exist(&selected, std::slice::from_ref(selector))?;
    let mut services: BTreeSet<Name> = BTreeSet::new();
    for selected in &selected {
        services.extend(selected.service.clone());
        if selected.service.is_none() {
            services.extend(selected.pods.iter().flat_map(|p| objects.services_of_pod(&p.name)));
        }
        if selected.object.kind == "namespace" {
            let inside = objects.services().filter(|s| s.name.namespace == selected.object.name);
            services.extend(inside.map(|service| service.name.clone()));
        }
    }
    let mut rows = Vec::new();
    for service in services.iter().filter_map(|name| objects.service(name)) {
        for port in &service.ports {
            of_port(objects, service, port.port, &mut rows);
        }
    }
    Ok(RoutesReply { routes: rows })
}

fn of_port(objects: &Objects, service: &Service, port: u16, rows: &mut Vec<RouteRow>) {
    let name = &service.name;
    let parent = ResourceRef::service(&name.namespace, &name.name, port).to_string();
    let before = rows.len();
    let attached = |head: &RouteHead| objects.attaches(head, name, port);
    let retries = objects.retries(name, port);
    for route in objects.http_routes().filter(|route| attached(&route.head)) {
        let status = status(objects, service, port, Kind::HttpRoute, &route.head, &route.rules);
        let mut matches = Vec::new();
        for rule in &route.rules {
            let any = [HttpMatch::default()];
            let of = if rule.matches.is_empty() { &any[..] } else { &rule.matches };
            matches
                .extend(of.iter().map(|found| (http_rank(found), words::http_match(found), rule)));
        }
        let from = route_from(Kind::HttpRoute, &route.head);
        push(objects, rows, from, &parent, &status, retries, matches);
    }
    for route in objects.grpc_routes().filter(|route| attached(&route.head)) {
        let status = status(objects, service, port, Kind::GrpcRoute, &route.head, &route.rules);
        let mut matches = Vec::new();
        for rule in &route.rules {
            let any = [GrpcMatch::default()];
            let of = if rule.matches.is_empty() { &any[..] } else { &rule.matches };
            matches
                .extend(of.iter().map(|found| (grpc_rank(found), words::grpc_match(found), rule)));
        }
        let from = route_from(Kind::GrpcRoute, &route.head);
        push(objects, rows, from, &parent, &status, retries, matches);
    }
    let connections = |from: RouteFrom<'_>, found: String, refs: &[BackendRef]| RouteRow {
        route: route_ref(from.kind, &from.head.name).to_string(),
        parent: parent.clone(),
        r#match: found,
        backends: backends(objects, from, refs),
        policy: String::new(),
        status: backend_status(objects, from, refs).unwrap_or(ACCEPTED.into()),
    };
    for route in objects.tls_routes().filter(|route| attached(&route.head)) {
        let names: Vec<_> = route.snis.iter().map(ToString::to_string).collect();
        let found =
            if names.is_empty() { "any TLS".into() } else { format!("TLS {}", names.join(", ")) };
        rows.push(connections(route_from(Kind::TlsRoute, &route.head), found, &route.backends));
    }
    for route in objects.tcp_routes().filter(|route| attached(&route.head)) {
        let from = route_from(Kind::TcpRoute, &route.head);
        rows.push(connections(from, "any connection".into(), &route.backends));
    }
    if rows.len() == before {
        rows.push(default_row(objects, service, port, parent));
    }
}

const ACCEPTED: &str = "Accepted";

/// What applies where nobody wrote a route.
fn default_row(objects: &Objects, service: &Service, port: u16, parent: String) -> RouteRow {
    let opaque = objects.service_profile(&service.name, port).is_some_and(|profile| profile.opaque);
    let app_protocol = service.port(port).map(|port| port.app_protocol).unwrap_or_default();
    let name = match app_protocol {
        _ if opaque => "opaque",
        AppProtocol::Grpc => "grpc",
        _ => "http",
    };
    RouteRow {
        route: format!("default/{name}"),
        parent,
        r#match: if opaque { "any connection" } else { "any request" }.into(),
        backends: format!("{}:{port} 100%", service.name.name),
        policy: retried(objects.retries(&service.name, port)).unwrap_or_default(),
        status: ACCEPTED.into(),
    }
}

fn retried(retries: Option<&Retries>) -> Option<String> {
    let retry = retry(retries, None).filter(|retry| retry.max_retries > 0)?;
    Some(words::retry(&retry))
}

/// Specificity as in `mesh_model::matching`, greater first.
type Rank = ((u8, usize), usize, usize, usize);

/// Adds a route's matches, in the order in which they win.
fn push<M>(
    objects: &Objects,
    rows: &mut Vec<RouteRow>,
    from: RouteFrom<'_>,
    parent: &str,
    status: &str,
    of_service: Option<&Retries>,
    mut matches: Vec<(Rank, String, &RouteRule<M>)>,
) {
    matches.sort_by(|(a, ..), (b, ..)| b.cmp(a));
    rows.extend(matches.into_iter().map(|(_, text, rule)| RouteRow {
        route: route_ref(from.kind, &from.head.name).to_string(),
        parent: parent.to_owned(),
        r#match: text,
        backends: backends(objects, from, &rule.backends),
        policy: policy(rule, of_service),
        status: status.to_owned(),
    }));
}

fn status<M>(
    objects: &Objects,
    service: &Service,
    port: u16,
    kind: Kind,
    head: &RouteHead,
    rules: &[RouteRule<M>],
) -> String {
    let profile = objects.service_profile(&service.name, port);
    if profile.is_some_and(|profile| profile.opaque) {
        return "Conflicted: the port is opaque".into();
    }
    let protocol = service.port(port).map(|port| port.app_protocol).unwrap_or_default();
    match (kind, protocol) {
        (Kind::GrpcRoute, AppProtocol::Http1) => {
            return "Conflicted: the port's appProtocol is HTTP/1".into();
        }
        (Kind::HttpRoute, AppProtocol::Grpc) => {
            return "Conflicted: the port's appProtocol is gRPC".into();
        }
        (Kind::HttpRoute, AppProtocol::Http2 | AppProtocol::Unknown)
            if objects.grpc_routes().any(|route| {
                route.head.name.namespace == head.name.namespace
                    && objects.attaches(&route.head, &service.name, port)
            }) =>
        {
            return "Conflicted: a GRPCRoute governs this port".into();
        }
        _ => {}
    }
    let from = route_from(kind, head);
    let all = rules.iter().find_map(|rule| backend_status(objects, from, &rule.backends));
    all.unwrap_or_else(|| {
        if head.name.namespace == service.name.namespace {
            ACCEPTED.into()
        } else {
            format!("{ACCEPTED}: for clients in namespace {}", head.name.namespace)
        }
    })
}

fn backend_status(
    objects: &Objects,
    from: RouteFrom<'_>,
    backends: &[BackendRef],
) -> Option<String> {
    let unusable = |backend: &BackendRef| objects.usable(from, &backend.target).err();
    backends.iter().find_map(unusable).map(|why| format!("ResolvedRefs is false: {why}"))
}

/// `checkout-v1:8080 75%, checkout-v2:8080 25%`
fn backends(objects: &Objects, from: RouteFrom<'_>, backends: &[BackendRef]) -> String {
    let total: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    let one = |backend: &BackendRef| {
        let share = match total {
            0 => 0.0,
            total => f64::from(backend.weight) * 100.0 / total as f64,
        };
        let name = match &backend.target {
            BackendTarget::Service { service, port } => format!("{}:{port}", service.name),
            BackendTarget::Unusable(why) => format!("({why})"),
        };
        let broken = match objects.usable(from, &backend.target) {
            Ok(_) => "",
            Err(_) => " (fails with 500)",
        };
        // At most one decimal, and none where it says nothing.
        let share = (share * 10.0).round() / 10.0;
        format!("{name} {share}%{broken}")
    };
    backends.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// `retry 2 on 500-504; request 5s`
fn policy<M>(rule: &RouteRule<M>, of_service: Option<&Retries>) -> String {
    let mut parts = Vec::new();
    parts.extend(retried(rule.retry.as_ref().or(of_service)));
    if let Some(request) = rule.timeouts.request {
        parts.push(format!("request {request:?}"));
    }
    if let Some(timeout) = rule.try_timeout {
        parts.push(format!("each try {timeout:?}"));
    }
    if let Some(session) = &rule.session {
        let by = match session.by {
            SessionBy::Cookie { .. } => "cookie",
            SessionBy::Header => "header",
        };
        parts.push(format!("session by {by} {}", session.name));
    }
    let filters = rule.filters.iter().chain(rule.backends.iter().flat_map(|b| &b.filters));
    parts.extend(filters.map(filter));
    parts.join("; ")
}

fn filter(filter: &RouteFilter) -> String {
    let filter = match filter {
        RouteFilter::Is(filter) => filter,
        RouteFilter::Mirror { target, ratio } => {
            let share = f64::from(ratio.numerator) * 100.0 / f64::from(ratio.denominator);
            let to = match target {
                BackendTarget::Service { service, port } => format!("{}:{port}", service.name),
                BackendTarget::Unusable(_) => "nobody".into(),
            };
            return format!("mirrors {}% to {to}", (share * 10.0).round() / 10.0);
        }
    };
    words::filter(filter)
}

fn http_rank(found: &HttpMatch) -> Rank {
    let path = match &found.path {
        None => (2, 0),
        Some(PathMatch::Exact(path)) => (3, path.len()),
        Some(PathMatch::Prefix(path)) => (2, path.trim_end_matches('/').len()),
        Some(PathMatch::Regex(pattern)) => (1, pattern.as_str().len()),
    };
    (path, usize::from(found.method.is_some()), found.headers.len(), found.query.len())
}

fn grpc_rank(found: &GrpcMatch) -> Rank {
    let length = |part: &Option<String>| part.as_ref().map_or(0, String::len);
    ((2, length(&found.service)), length(&found.method), found.headers.len(), 0)
}
