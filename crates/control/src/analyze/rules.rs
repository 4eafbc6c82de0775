//! Rules that never decide, send nowhere, or ask for what they exclude.

use mesh_model::matching::{self, Cover, MatchRequest, Position, shadowed};
use mesh_model::outbound::{Forward, Protocol};
use mesh_model::route::{Filter, GrpcCodes, Route};

use super::{Code, Found, object_of, route_key};
use crate::index::Objects;
use crate::index::object::{Kind, ObjectKey, RouteFilter, RouteHead, RouteRule};
use crate::index::routes::RETRY_BACKOFF;

pub(super) fn look(objects: &Objects, found: &mut Found) {
    for route in objects.http_routes() {
        of_route(route_key(Kind::HttpRoute, &route.head), &route.rules, found);
        shadows(objects, Kind::HttpRoute, &route.head, found);
    }
    for route in objects.grpc_routes() {
        of_route(route_key(Kind::GrpcRoute, &route.head), &route.rules, found);
        shadows(objects, Kind::GrpcRoute, &route.head, found);
    }
}

fn of_route<M: Cover + MatchRequest>(route: ObjectKey, rules: &[RouteRule<M>], found: &mut Found) {
    for (index, rule) in rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        for (index, of) in rule.matches.iter().enumerate() {
            if let Some(why) = of.impossible() {
                found.add(Code::NeverMatches, &route, format!("{at}.matches[{index}]"), why);
            }
        }
        let answers_itself =
            |filter: &RouteFilter| matches!(filter, RouteFilter::Is(Filter::Redirect(_)));
        if rule.filters.iter().any(answers_itself) {
            continue;
        }
        if rule.backends.is_empty() {
            let message = "the rule has no backends, so that its requests fail with 500";
            found.add(Code::NoBackends, &route, format!("{at}.backendRefs"), message);
        } else if rule.backends.iter().all(|backend| backend.weight == 0) {
            let message = "all backends have weight 0, so that the rule's requests fail with 500";
            found.add(Code::WeightsZero, &route, format!("{at}.backendRefs"), message);
        }
        limits(&route, rule, &at, found);
    }
}

fn limits<M: MatchRequest>(route: &ObjectKey, rule: &RouteRule<M>, at: &str, found: &mut Found) {
    let retry = rule.retry.as_ref().filter(|retry| retry.attempts > 0);
    if let Some(retry) = retry {
        let names = matching::names_methods(&rule.matches);
        // A rule of gRPC that names codes means its methods.
        if !names && retry.grpc == GrpcCodes::default() && route.kind == Kind::HttpRoute {
            let message = "requests of methods that are not idempotent (POST, PATCH) are not \
                           retried once they were sent: the rule's matches do not name them";
            found.add(Code::NotIdempotent, route, format!("{at}.retry"), message);
        }
        let backoff = retry.backoff.unwrap_or(RETRY_BACKOFF);
        let a_try = rule.try_timeout.unwrap_or_default();
        if let Some(request) = rule.timeouts.request
            && a_try + backoff >= request
        {
            let (field, message) = match rule.try_timeout {
                Some(timeout) => (
                    "timeouts",
                    format!(
                        "a try may take {timeout:?} of the request's {request:?}, so that one that \
                         times out leaves no time for another"
                    ),
                ),
                None => (
                    "retry.backoff",
                    format!(
                        "the first wait, {backoff:?}, is as long as the whole request may take"
                    ),
                ),
            };
            found.add(Code::TimeoutsExclude, route, format!("{at}.{field}"), message);
        }
    }
    if let Some(session) = &rule.session
        && let (Some(absolute), Some(idle)) = (session.absolute, session.idle)
        && idle >= absolute
    {
        let message =
            format!("the session ends after {absolute:?}, before it can be idle {idle:?}");
        let field = format!("{at}.sessionPersistence.idleTimeout");
        found.add(Code::TimeoutsExclude, route, field, message);
    }
}

/// As the clients see it to whom the route applies: those of its own namespace, at each of its parents.
/// A rule is told of if no parent has a use for it.
fn shadows(objects: &Objects, kind: Kind, head: &RouteHead, found: &mut Found) {
    let mut places: Option<Vec<(usize, Vec<Told>)>> = None;
    for parent in &head.parents {
        let Some(service) = objects.service(&parent.service) else { continue };
        let ports = service.ports.iter().map(|port| port.port);
        for port in ports.filter(|port| objects.attaches(head, &parent.service, *port)) {
            let client = &head.name.namespace;
            let Some(policy) = objects.outbound_policy(&parent.service, port, client) else {
                continue;
            };
            let object = route_key(kind, head).to_string();
            let here = match (&policy.protocol, kind) {
                (Protocol::Detect { http1: http, .. }, Kind::HttpRoute)
                | (Protocol::Http1(http) | Protocol::Http2(http), Kind::HttpRoute) => {
                    useless(&object, &http.routes)
                }
                (Protocol::Grpc(grpc), Kind::GrpcRoute) => useless(&object, &grpc.routes),
                // It is not in force there at all, which is another finding.
                _ => continue,
            };
            places = Some(match places {
                None => here,
                Some(before) => {
                    let still =
                        |(rule, _): &(usize, Vec<Told>)| here.iter().any(|(of, _)| of == rule);
                    before.into_iter().filter(still).collect()
                }
            });
        }
    }
    for (rule, told) in places.into_iter().flatten() {
        let by: Vec<String> = told.into_iter().map(|told| told.0).collect();
        let message = format!("no request is left for it: {}", by.join("; "));
        found.add(Code::Shadowed, route_key(kind, head), format!("spec.rules[{rule}]"), message);
    }
}

/// Who takes the requests of a match.
struct Told(String);

/// Rules of a route all of whose matches are shadowed.
fn useless<M: Cover>(object: &str, routes: &[Route<M, Forward>]) -> Vec<(usize, Vec<Told>)> {
    let all = shadowed(routes);
    let Some(own) = routes.iter().position(|r| object_of(&r.meta).as_deref() == Some(object))
    else {
        return Vec::new();
    };
    let rules = routes[own].rules.iter().enumerate();
    let of = |(index, rule): (usize, &mesh_model::route::Rule<M, Forward>)| {
        let by: Vec<Position> =
            all.iter().filter(|s| (s.at.route, s.at.rule) == (own, index)).map(|s| s.by).collect();
        (by.len() == rule.matches.len().max(1)).then(|| {
            let mut told: Vec<Told> = Vec::new();
            for by in by {
                let other = object_of(&routes[by.route].meta).unwrap_or_default();
                let of = if other == object { String::new() } else { format!(" of {other}") };
                let text = format!("rule {}{of} takes them all", by.rule);
                if told.iter().all(|before| before.0 != text) {
                    told.push(Told(text));
                }
            }
            (index, told)
        })
    };
    rules.filter_map(of).collect()
}
