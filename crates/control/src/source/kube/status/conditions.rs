//! The conditions that an object should have.
//!
//! `Accepted`: it is in force, or why not. `ResolvedRefs`: what it refers to is there, or what is not.
//! `Conflicted`, of some policies: an older one is in force in its place.

mod gateways;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{CONTROLLER, Subject, is_route};
use crate::index::gateway::Placed;
use crate::index::object::{
    BackendRef, Kind, Name, ObjectKey, PolicyTarget, PortRef, RouteFilter, RouteRule, Service,
};
use crate::index::routes::{RouteFrom, Unusable, route_from};
use crate::index::{Objects, conflicts};
use crate::source::{Finding, Severity};

/// Messages say all that is wrong, as far as one can read. Characters.
const MAX_MESSAGE: usize = 1024;

/// A condition without its bookkeeping.
struct Verdict {
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn yes(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: "True", reason, message: message.into() }
    }

    fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: "False", reason, message: message.into() }
    }
}

/// What statuses are about.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) objects: &'a Objects,
    /// Those of all Gateways, which take some time to be told apart.
    pub(super) listeners: &'a [Placed<'a>],
}

/// What should be in the object's status; `None` when it is there.
pub(super) fn wanted(
    key: &ObjectKey,
    subject: &Subject,
    Scene { objects, listeners }: Scene<'_>,
    now: Timestamp,
) -> Option<Value> {
    match key.kind {
        Kind::Gateway => return gateways::gateway(key, subject, objects, listeners, now),
        Kind::GatewayClass => return gateways::class(key, subject, objects, now),
        kind if is_route(kind) => {
            let parents = parents(key, subject, Scene { objects, listeners }, now)?;
            return Some(json!({ "parents": parents }));
        }
        _ => {}
    }
    let accepted = accepted(key, subject, objects);
    let of = |kind, verdict| condition(kind, verdict, subject.generation, &subject.have, now);
    let mut list =
        vec![of("Accepted", accepted), of("ResolvedRefs", target_is_there(key, objects))];
    if may_conflict(key.kind) {
        list.push(of("Conflicted", conflicted(key, objects)));
    }
    (!are_there(&subject.have, &list)).then(|| json!({ "conditions": list }))
}

/// Whether conditions are among those that an object has.
fn are_there(have: &[Value], wanted: &[Value]) -> bool {
    wanted.iter().all(|wanted| {
        let have = have.iter().find(|have| have["type"] == wanted["type"]);
        have.is_some_and(|have| says_the_same(have, wanted))
    })
}

/// A route's entries for its parents that are Services or our Gateways, after those of other controllers.
fn parents(
    key: &ObjectKey,
    subject: &Subject,
    Scene { objects, listeners }: Scene<'_>,
    now: Timestamp,
) -> Option<Vec<Value>> {
    let (ours, others): (Vec<&Value>, Vec<&Value>) =
        subject.have.iter().partition(|entry| entry["controllerName"] == CONTROLLER);
    let namespace = &key.name.namespace;
    let of_us = subject
        .parents
        .iter()
        .filter(|parent| is_service(parent) || gateways::is_ours(parent, namespace, objects));
    let wanted: Vec<Value> = of_us
        .map(|parent| {
            let before = ours.iter().find(|entry| entry["parentRef"] == *parent);
            let before = before.and_then(|entry| entry["conditions"].as_array());
            let before = before.map(Vec::as_slice).unwrap_or_default();
            let of = |kind, verdict| condition(kind, verdict, subject.generation, before, now);
            let parent_takes_it = match is_service(parent) {
                true => parent_is_there(parent, namespace, objects)
                    .map_err(|why| Verdict::no("NoMatchingParent", why)),
                false => gateways::takes(key, parent, objects, listeners),
            };
            let accepted = parent_takes_it.map(|()| accepted(key, subject, objects));
            let accepted = accepted.unwrap_or_else(|refused| refused);
            json!({
                "parentRef": parent,
                "controllerName": CONTROLLER,
                "conditions": [
                    of("Accepted", accepted),
                    of("ResolvedRefs", backends_are_there(key, objects)),
                ],
            })
        })
        .collect();
    let same = ours.len() == wanted.len()
        && ours.iter().zip(&wanted).all(|(have, wanted)| {
            let lists = (have["conditions"].as_array(), wanted["conditions"].as_array());
            let (Some(have_all), Some(all)) = lists else { return false };
            have["parentRef"] == wanted["parentRef"]
                && have_all.len() == all.len()
                && have_all.iter().zip(all).all(|(have, wanted)| says_the_same(have, wanted))
        });
    (!same).then(|| others.into_iter().cloned().chain(wanted).collect())
}

fn condition(
    kind: &str,
    verdict: Verdict,
    generation: i64,
    before: &[Value],
    now: Timestamp,
) -> Value {
    let before = before.iter().find(|before| before["type"] == kind);
    let since = before.filter(|before| before["status"] == verdict.status);
    let since = since.map(|before| before["lastTransitionTime"].clone());
    // Statuses hold whole seconds.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    json!({
        "type": kind,
        "status": verdict.status,
        "reason": verdict.reason,
        "message": verdict.message,
        "observedGeneration": generation,
        "lastTransitionTime": since.unwrap_or_else(|| json!(Time(now))),
    })
}

fn says_the_same(have: &Value, wanted: &Value) -> bool {
    ["type", "status", "reason", "message", "observedGeneration"]
        .iter()
        .all(|field| have[field] == wanted[field])
}

fn accepted(key: &ObjectKey, subject: &Subject, objects: &Objects) -> Verdict {
    let of = |severity| {
        let findings = subject.findings.iter().filter(move |found| found.severity == severity);
        findings.map(describe).collect::<Vec<_>>()
    };
    let errors = of(Severity::Error);
    if errors.is_empty() {
        if let Some(before) = objects.before(key).filter(|before| before.everywhere) {
            return Verdict::no("Conflicted", before.message(key.kind));
        }
        let warnings = of(Severity::Warning);
        let message = match warnings.is_empty() {
            true => "it is in force".to_owned(),
            false => format!("it is in force; but {}", warnings.join("; ")),
        };
        return Verdict::yes("Accepted", short(message));
    }
    let reason = if is_route(key.kind) { "UnsupportedValue" } else { "Invalid" };
    let meanwhile = match is_in_force(key, objects) {
        true => "what it said before stays in force",
        false => "it has no effect",
    };
    Verdict::no(reason, short(format!("{}; {meanwhile}", errors.join("; "))))
}

fn may_conflict(kind: Kind) -> bool {
    conflicts::KINDS.contains(&kind)
}

/// Of the policy as it is in force.
fn conflicted(key: &ObjectKey, objects: &Objects) -> Verdict {
    match objects.before(key) {
        Some(before) => Verdict::yes("Conflicted", before.message(key.kind)),
        None => Verdict::no("NoConflicts", "no older policy is about the same"),
    }
}

fn describe(finding: &Finding) -> String {
    match finding.field.as_str() {
        "" => finding.message.clone(),
        field => format!("{field}: {}", finding.message),
    }
}

fn short(text: String) -> String {
    match text.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn is_in_force(key: &ObjectKey, objects: &Objects) -> bool {
    match key.kind {
        Kind::HttpRoute => objects.http_route(&key.name).is_some(),
        Kind::GrpcRoute => objects.grpc_route(&key.name).is_some(),
        Kind::TcpRoute => objects.tcp_route(&key.name).is_some(),
        Kind::TlsRoute => objects.tls_route(&key.name).is_some(),
        Kind::AuthorizationPolicy => objects.authorization_policy(&key.name).is_some(),
        Kind::BackendTrafficPolicy => objects.traffic_policy(&key.name).is_some(),
        Kind::EgressPolicy => objects.egress_policy(&key.name).is_some(),
        Kind::Gateway => objects.gateway(&key.name).is_some(),
        _ => objects.port_policy(&key.name).is_some(),
    }
}

pub(super) fn is_service(parent: &Value) -> bool {
    parent["kind"] == "Service" && matches!(parent["group"].as_str(), Some("" | "core"))
}

pub(super) fn is_gateway(parent: &Value) -> bool {
    gateways::is_gateway(parent)
}

fn parent_is_there(parent: &Value, namespace: &str, objects: &Objects) -> Result<(), String> {
    let text = |field: &str| parent[field].as_str();
    let name = Name::new(text("namespace").unwrap_or(namespace), text("name").unwrap_or_default());
    let Some(service) = objects.service(&name) else {
        return Err(format!("Service {name} does not exist"));
    };
    let number = parent["port"].as_u64();
    let number = number.map(|port| u16::try_from(port).unwrap_or_default());
    if let Some(number) = number
        && service.port(number).is_none()
    {
        return Err(format!("Service {name} has no port {number}"));
    }
    if let Some(section) = text("sectionName")
        && !service.ports.iter().any(|port| port.name == section)
    {
        return Err(format!("Service {name} has no port named {section}"));
    }
    Ok(())
}

/// Of the route as it is in force.
fn backends_are_there(key: &ObjectKey, objects: &Objects) -> Verdict {
    let name = &key.name;
    let missing = match key.kind {
        Kind::HttpRoute => objects
            .http_route(name)
            .map(|route| first_of_rules(&route.rules, route_from(key.kind, &route.head), objects)),
        Kind::GrpcRoute => objects
            .grpc_route(name)
            .map(|route| first_of_rules(&route.rules, route_from(key.kind, &route.head), objects)),
        Kind::TcpRoute => objects.tcp_route(name).map(|route| {
            first_unusable(&route.backends, route_from(key.kind, &route.head), objects)
        }),
        _ => objects.tls_route(name).map(|route| {
            first_unusable(&route.backends, route_from(key.kind, &route.head), objects)
        }),
    };
    match missing {
        None => Verdict {
            status: "Unknown",
            reason: "NotInForce",
            message: "it is not in force".into(),
        },
        Some(None) => Verdict::yes("ResolvedRefs", "all backends are there"),
        Some(Some(why)) => Verdict::no(why.reason(), why.to_string()),
    }
}

fn first_of_rules<M>(
    rules: &[RouteRule<M>],
    from: RouteFrom<'_>,
    objects: &Objects,
) -> Option<Unusable> {
    let mirrored = |filter: &RouteFilter| match filter {
        RouteFilter::Mirror { target, .. } => objects.usable(from, target).err(),
        RouteFilter::Is(_) => None,
    };
    rules.iter().find_map(|rule| {
        let of_backends = rule.backends.iter().flat_map(|backend| &backend.filters);
        first_unusable(&rule.backends, from, objects)
            .or_else(|| rule.filters.iter().chain(of_backends).find_map(mirrored))
    })
}

fn first_unusable(
    backends: &[BackendRef],
    from: RouteFrom<'_>,
    objects: &Objects,
) -> Option<Unusable> {
    backends.iter().find_map(|backend| objects.usable(from, &backend.target).err())
}

/// Of the policy as it is in force.
fn target_is_there(key: &ObjectKey, objects: &Objects) -> Verdict {
    let namespace = &key.name.namespace;
    let target = match key.kind {
        Kind::AuthorizationPolicy => {
            objects.authorization_policy(&key.name).map(|policy| &policy.target)
        }
        Kind::BackendTrafficPolicy => {
            objects.traffic_policy(&key.name).map(|policy| &policy.target)
        }
        // It is about a namespace, or all of them.
        Kind::EgressPolicy => objects.egress_policy(&key.name).map(|_| &PolicyTarget::Namespace),
        _ => objects.port_policy(&key.name).map(|policy| &policy.target),
    };
    let Some(target) = target else {
        return Verdict {
            status: "Unknown",
            reason: "NotInForce",
            message: "it is not in force".into(),
        };
    };
    let missing = match target {
        PolicyTarget::Namespace => None,
        PolicyTarget::Service { name, port } => {
            let name = Name::new(namespace, name);
            match (objects.service(&name), port) {
                (None, _) => Some(format!("Service {name} does not exist")),
                (Some(service), Some(port)) if !has_port(service, port) => {
                    Some(format!("Service {name} has no port {}", port_text(port)))
                }
                _ => None,
            }
        }
        PolicyTarget::Route { kind, name, rule } => {
            let (name, what) = (Name::new(namespace, name), kind.as_str());
            let has = |rule: &String| objects.rule_names(*kind, &name).contains(&rule.as_str());
            match objects.route_head(*kind, &name) {
                None => Some(format!("{what} {name} does not exist")),
                Some(_) => rule
                    .as_ref()
                    .filter(|rule| !has(rule))
                    .map(|rule| format!("{what} {name} has no rule named {rule}")),
            }
        }
        PolicyTarget::Workload { kind, name, .. } => {
            let name = Name::new(namespace, name);
            // One that another made is known by its pods only.
            let there = objects.workload(*kind, &name).is_some();
            (!there).then(|| {
                format!("{} {name} does not exist, or another workload made it", kind.as_str())
            })
        }
        PolicyTarget::Pods { labels, .. } => {
            let mut pods = objects.pods().filter(|pod| pod.name.namespace == *namespace);
            let any = pods
                .any(|pod| labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value)));
            (!any).then(|| "no pod has these labels".to_owned())
        }
    };
    match missing {
        None => Verdict::yes("ResolvedRefs", "what it is about is there"),
        Some(why) => Verdict::no("TargetNotFound", why),
    }
}

fn has_port(service: &Service, port: &PortRef) -> bool {
    service.ports.iter().any(|have| port.is(&have.name, have.port))
}

fn port_text(port: &PortRef) -> String {
    match port {
        PortRef::Number(number) => number.to_string(),
        PortRef::Name(name) => name.clone(),
    }
}
