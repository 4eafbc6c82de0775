//! Gateway API routes, and Gateways ([`edge`]), as objects of the index.
//!
//! The crate `gateway-api` has one set of types for each kind of route and for each place a filter
//! can stand in, all alike; [`shape`] has one set for all of them, which is what is converted.
//! Whatever the mesh cannot do is reported and never silently left out: requests that would have
//! needed it fail, as Gateway API demands.

mod edge;
mod filters;
mod matches;
mod shape;

use std::str::FromStr;
use std::time::Duration;

use gateway_api::experimental::{grpcroutes, httproutes, referencegrants, tcproutes, tlsroutes};
use kube::core::ObjectMeta;
use mesh_model::route::{GrpcCodes, HostMatch, Session, SessionBy, Timeouts};

pub use self::edge::{TLS_SECRET, gateway, gateway_class, tls_secret};
use self::shape::{Backend, Parent, Rule, reshape};
use super::Finding;
use super::kubernetes::{Converted, name_of};
use crate::index::object::{
    BackendRef, BackendTarget, GatewayRef, GrpcRoute, HttpRoute, Kind, Name, ReferenceGrant,
    Retries, RouteHead, RouteRule, ServiceRef, TcpRoute, TlsRoute,
};

const GROUP: &str = "gateway.networking.k8s.io";

pub fn http_route(object: &httproutes::HttpRoute) -> Converted<HttpRoute> {
    let mut findings = Vec::new();
    let head = head(&object.metadata, object.spec.parent_refs.as_ref(), &mut findings);
    let hosts = hosts(object.spec.hostnames.as_deref().unwrap_or_default(), &mut findings);
    let mut rules = Vec::new();
    for (index, rule) in object.spec.rules.iter().flatten().enumerate() {
        let at = format!("spec.rules[{index}]");
        let rule: Rule = reshape(rule, &at, &mut findings);
        rules.push(RouteRule {
            matches: matches::http(&rule.matches, &at, &mut findings),
            ..common(&rule, &head.name, &at, &mut findings)
        });
    }
    (HttpRoute { head, hosts, rules }, findings)
}

pub fn grpc_route(object: &grpcroutes::GrpcRoute) -> Converted<GrpcRoute> {
    let mut findings = Vec::new();
    let head = head(&object.metadata, object.spec.parent_refs.as_ref(), &mut findings);
    let hosts = hosts(object.spec.hostnames.as_deref().unwrap_or_default(), &mut findings);
    let mut rules = Vec::new();
    for (index, rule) in object.spec.rules.iter().flatten().enumerate() {
        let at = format!("spec.rules[{index}]");
        let rule: Rule = reshape(rule, &at, &mut findings);
        rules.push(RouteRule {
            matches: matches::grpc(&rule.matches, &at, &mut findings),
            ..common(&rule, &head.name, &at, &mut findings)
        });
    }
    (GrpcRoute { head, hosts, rules }, findings)
}

pub fn tcp_route(object: &tcproutes::TcpRoute) -> Converted<TcpRoute> {
    let mut findings = Vec::new();
    let head = head(&object.metadata, object.spec.parent_refs.as_ref(), &mut findings);
    let mut backends = Vec::new();
    for (index, rule) in object.spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        if index > 0 {
            findings.push(Finding::warning(at, "only a TCPRoute's first rule has any effect"));
            break;
        }
        let rule: Rule = reshape(rule, &at, &mut findings);
        backends = convert_backends(&rule, &head.name, &at, &mut findings);
    }
    (TcpRoute { head, backends }, findings)
}

pub fn tls_route(object: &tlsroutes::TlsRoute) -> Converted<TlsRoute> {
    let mut findings = Vec::new();
    let head = head(&object.metadata, object.spec.parent_refs.as_ref(), &mut findings);
    let snis = hosts(&object.spec.hostnames, &mut findings);
    let mut backends = Vec::new();
    for (index, rule) in object.spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        if index > 0 {
            findings.push(Finding::warning(at, "only a TLSRoute's first rule has any effect"));
            break;
        }
        let rule: Rule = reshape(rule, &at, &mut findings);
        backends = convert_backends(&rule, &head.name, &at, &mut findings);
    }
    (TlsRoute { head, snis, backends }, findings)
}

/// Entries about other kinds are other controllers' business.
pub fn reference_grant(object: &referencegrants::ReferenceGrant) -> Converted<ReferenceGrant> {
    let kinds = [Kind::HttpRoute, Kind::GrpcRoute, Kind::TcpRoute, Kind::TlsRoute, Kind::Gateway];
    let from = object.spec.from.iter().filter_map(|from| {
        let kind = kinds.into_iter().find(|kind| kind.as_str() == from.kind)?;
        (from.group == GROUP).then(|| (kind, from.namespace.clone()))
    });
    let to = object.spec.to.iter().filter(|to| is_service(Some(&to.group), &to.kind));
    let secrets = object.spec.to.iter().filter(|to| is_secret(Some(&to.group), &to.kind));
    let grant = ReferenceGrant {
        name: name_of(&object.metadata),
        from: from.collect(),
        to: to.map(|to| to.name.clone()).collect(),
        secrets: secrets.map(|to| to.name.clone()).collect(),
    };
    (grant, Vec::new())
}

fn is_service(group: Option<&str>, kind: &str) -> bool {
    kind == "Service" && matches!(group, Some("" | "core"))
}

fn is_secret(group: Option<&str>, kind: &str) -> bool {
    kind == "Secret" && matches!(group, None | Some("" | "core"))
}

fn head<P: serde::Serialize>(
    meta: &ObjectMeta,
    parents: Option<&Vec<P>>,
    findings: &mut Vec<Finding>,
) -> RouteHead {
    let name = name_of(meta);
    let (mut converted, mut gateways) = (Vec::new(), Vec::new());
    for (index, parent) in parents.into_iter().flatten().enumerate() {
        let at = format!("spec.parentRefs[{index}]");
        let parent: Parent = reshape(parent, &at, findings);
        let group = parent.group.as_deref().unwrap_or(GROUP);
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
        let is_gateway = kind == "Gateway" && group == GROUP;
        if !is_gateway && !is_service(Some(group), kind) {
            findings.push(Finding::warning(
                at,
                format!(
                    "{kind}s as parents are not supported; routes attach to Gateways, and to kind \
                     Service, group \"\""
                ),
            ));
            continue;
        }
        let port = match parent.port.map(u16::try_from) {
            Some(Err(_)) => {
                findings.push(Finding::error(format!("{at}.port"), "is not a port"));
                continue;
            }
            Some(Ok(port)) => Some(port),
            None => None,
        };
        let namespace = parent.namespace.unwrap_or_else(|| name.namespace.clone());
        let (name, section) = (Name::new(namespace, parent.name), parent.section_name);
        if is_gateway {
            gateways.push(GatewayRef { gateway: name, port, section });
        } else {
            converted.push(ServiceRef { service: name, port, section });
        }
    }
    if converted.is_empty() && gateways.is_empty() && findings.is_empty() {
        findings.push(Finding::warning("spec.parentRefs", "without a parent it has no effect"));
    }
    let created = meta.creation_timestamp.as_ref().map(|time| time.0.as_second());
    RouteHead { name, created, parents: converted, gateways }
}

fn hosts(names: &[String], findings: &mut Vec<Finding>) -> Vec<HostMatch> {
    let mut hosts = Vec::new();
    for (index, host) in names.iter().enumerate() {
        match HostMatch::parse(host) {
            Some(host) => hosts.push(host),
            None => {
                let message = format!("`{host}` is not a host name, nor one after `*.`");
                findings.push(Finding::error(format!("spec.hostnames[{index}]"), message));
            }
        }
    }
    hosts
}

/// All of a rule but its matches.
fn common<M>(rule: &Rule, route: &Name, at: &str, findings: &mut Vec<Finding>) -> RouteRule<M> {
    let backends = convert_backends(rule, route, at, findings);
    let answers_itself = rule.filters.iter().any(|filter| filter.r#type == "RequestRedirect");
    if backends.is_empty() && !answers_itself {
        findings.push(Finding::warning(
            format!("{at}.backendRefs"),
            "a rule without backends answers 500; name the parent itself to keep its endpoints",
        ));
    }
    let Limits { timeouts, try_timeout, retry } = limits(rule, at, findings);
    RouteRule {
        name: rule.name.clone().unwrap_or_default(),
        matches: Vec::new(),
        filters: filters::convert(&rule.filters, route, &format!("{at}.filters"), findings),
        backends,
        timeouts,
        try_timeout,
        retry,
        session: rule
            .session_persistence
            .as_ref()
            .map(|persistence| session(persistence, &format!("{at}.sessionPersistence"), findings)),
    }
}

/// Sessions that nobody named are called this.
const SESSION_NAME: &str = "mesh-session";

fn session(
    persistence: &shape::SessionPersistence,
    at: &str,
    findings: &mut Vec<Finding>,
) -> Session {
    let name = persistence.session_name.clone().unwrap_or_else(|| SESSION_NAME.to_owned());
    // What is the name of a header is one of a cookie, too.
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        let message = format!("`{name}` cannot be the name of a cookie or header");
        findings.push(Finding::error(format!("{at}.sessionName"), message));
    }
    let absolute =
        duration(persistence.absolute_timeout.as_deref(), at, "absoluteTimeout", findings);
    let idle = duration(persistence.idle_timeout.as_deref(), at, "idleTimeout", findings);
    let lifetime = persistence.cookie_config.as_ref().and_then(|c| c.lifetime_type.as_deref());
    let permanent = lifetime == Some("Permanent");
    if permanent && absolute.is_none() {
        let message = "a permanent cookie needs the time that it lasts";
        findings.push(Finding::error(format!("{at}.absoluteTimeout"), message));
    }
    let by = match persistence.r#type.as_deref() {
        Some("Header") => SessionBy::Header,
        _ => SessionBy::Cookie { permanent },
    };
    Session { name, by, absolute, idle }
}

/// A duration of Gateway API; zero is how it says "no limit".
fn duration(
    text: Option<&str>,
    at: &str,
    field: &str,
    findings: &mut Vec<Finding>,
) -> Option<Duration> {
    let text = text?;
    let parsed = gateway_api::Duration::from_str(text).ok();
    let millis = parsed.and_then(|parsed| u64::try_from(parsed.as_millis()).ok());
    if millis.is_none() {
        let message = format!("`{text}` is not a duration such as `500ms` or `1m30s`");
        findings.push(Finding::error(format!("{at}.{field}"), message));
    }
    millis.filter(|millis| *millis > 0).map(Duration::from_millis)
}

fn convert_backends(
    rule: &Rule,
    route: &Name,
    at: &str,
    findings: &mut Vec<Finding>,
) -> Vec<BackendRef> {
    let of = |(index, backend)| {
        backend_ref(backend, route, &format!("{at}.backendRefs[{index}]"), findings)
    };
    rule.backend_refs.iter().enumerate().filter_map(of).collect()
}

fn backend_ref(
    backend: &Backend,
    route: &Name,
    at: &str,
    findings: &mut Vec<Finding>,
) -> Option<BackendRef> {
    let Ok(weight) = u32::try_from(backend.weight.unwrap_or(1)) else {
        findings.push(Finding::error(format!("{at}.weight"), "is less than 0"));
        return None;
    };
    let target = target(backend, route, at, findings)?;
    let filters = filters::convert(&backend.filters, route, &format!("{at}.filters"), findings);
    Some(BackendRef { target, weight, filters })
}

/// What a reference of a route stands for.
fn target(
    backend: &Backend,
    route: &Name,
    at: &str,
    findings: &mut Vec<Finding>,
) -> Option<BackendTarget> {
    let kind = backend.kind.as_deref().unwrap_or("Service");
    let group = backend.group.as_deref().unwrap_or_default();
    let port = backend.port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    if !is_service(Some(group), kind) {
        let why = format!("backends of kind {kind} are not supported");
        findings.push(Finding::warning(format!("{at}.kind"), format!("{why}; its share fails")));
        return Some(BackendTarget::Unusable(why));
    }
    let Some(port) = port else {
        findings.push(Finding::error(format!("{at}.port"), "a Service needs a port, 1 to 65535"));
        return None;
    };
    let namespace = backend.namespace.as_deref().unwrap_or(&route.namespace);
    Some(BackendTarget::Service { service: Name::new(namespace, &backend.name), port })
}

fn limits(rule: &Rule, at: &str, findings: &mut Vec<Finding>) -> Limits {
    let mut duration =
        |text: &Option<String>, field: &str| duration(text.as_deref(), at, field, findings);
    let timeouts = rule.timeouts.clone().unwrap_or_default();
    let request = duration(&timeouts.request, "timeouts.request");
    let try_timeout = duration(&timeouts.backend_request, "timeouts.backendRequest");
    let backoff = rule.retry.as_ref().and_then(|retry| duration(&retry.backoff, "retry.backoff"));
    if let (Some(request), Some(one)) = (request, try_timeout)
        && one > request
    {
        findings.push(Finding::error(
            format!("{at}.timeouts.backendRequest"),
            "is longer than timeouts.request",
        ));
    }
    let retry = rule.retry.as_ref().map(|retry| {
        let attempts = retry.attempts.unwrap_or(1);
        let fits = u32::try_from(attempts).ok().filter(|attempts| *attempts <= Retries::MAX);
        if fits.is_none() {
            let message = format!("{attempts} is not from 0 to {}", Retries::MAX);
            findings.push(Finding::error(format!("{at}.retry.attempts"), message));
        }
        let mut codes = Vec::new();
        for (index, code) in retry.codes.iter().enumerate() {
            match u16::try_from(*code).ok().filter(|code| (400..=599).contains(code)) {
                Some(code) => codes.push(code),
                None => findings.push(Finding::error(
                    format!("{at}.retry.codes[{index}]"),
                    format!("{code} is not a status from 400 to 599"),
                )),
            }
        }
        let grpc = GrpcCodes::default();
        let statuses = Retries::statuses(codes);
        Retries { attempts: fits.unwrap_or_default(), statuses, grpc, backoff }
    });
    let timeouts = Timeouts { request, response: None, idle: None };
    Limits { timeouts, try_timeout, retry }
}

/// How long a request may take, and how often.
struct Limits {
    timeouts: Timeouts,
    try_timeout: Option<Duration>,
    retry: Option<Retries>,
}
