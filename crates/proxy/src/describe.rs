//! Policies as people and programs read them in `/config` and `meshctl proxy config`.
//!
//! By hand and not by serde: the names here are a promise to whoever reads the document, and must
//! not change with those of the model. What does not apply is left out, so that what is there says
//! something. Durations are text (`1.5s`).

#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_model::Meta;
use mesh_model::authz::{AuthorizationRule, PortAuthz, Probe};
use mesh_model::inbound::{
    Authentication, Authorization, Authorize, Cidr, HeaderRate, Network, Rate, RateLimit,
    ServerPolicy, ServerProtocol,
};
use mesh_model::outbound::{
    Backend, BackendKind, Breaker, Forward, HttpPolicy, Protocol, Refuse, RouteBackend, TcpPolicy,
    TcpRoute,
};
use mesh_model::route::{
    Backoff, Distribution, Fault, FaultKind, Filter, GrpcMatch, HeaderMatch, HeaderModifier,
    HostMatch, HttpMatch, InjectedFailure, PathMatch, PathModifier, Ratio, Retry, Route, Rule,
    Session, SessionBy, ValueMatch,
};
use serde_json::{Map, Value, json};

use crate::discovery::{PortConcurrency, PortRules};

/// What the control plane says about a port of the workload.
pub(crate) fn server_policy(policy: &ServerPolicy) -> Value {
    let http =
        |protocol: &str, routes: &[Route<HttpMatch, Authorize>], limit: &Option<RateLimit>| {
            object([
                ("protocol", json!(protocol)),
                ("rate_limit", limit.as_ref().map_or(Value::Null, rate_limit)),
                ("routes", list(routes, |r| route(r, http_match, authorize))),
            ])
        };
    let mut described = match &policy.protocol {
        ServerProtocol::Detect { timeout, routes, limit } => {
            let mut detect = http("detect", routes, limit);
            detect["detect_timeout"] = duration(*timeout);
            detect
        }
        ServerProtocol::Http1 { routes, limit } => http("http1", routes, limit),
        ServerProtocol::Http2 { routes, limit } => http("http2", routes, limit),
        ServerProtocol::Grpc { routes } => object([
            ("protocol", json!("grpc")),
            ("routes", list(routes, |r| route(r, grpc_match, authorize))),
        ]),
        ServerProtocol::Opaque => json!({ "protocol": "opaque" }),
        ServerProtocol::Tls => json!({ "protocol": "tls" }),
    };
    // Also when it is empty, which says that nobody gets in.
    let all: Vec<Value> = policy.authorizations.iter().map(authorization).collect();
    described["authorizations"] = all.into();
    described
}

/// Who may use a port of the workload.
pub(crate) fn port_authz(authz: &PortAuthz) -> Value {
    let rule = |rule: &AuthorizationRule| {
        object([
            ("name", name(&rule.meta)),
            ("action", json!(rule.action.as_str())),
            ("route", json!(rule.route.as_ref().map(ToString::to_string))),
            ("from", list(&rule.from, |source| source.to_string().into())),
            ("to", list(&rule.to, |operation| operation.to_string().into())),
        ])
    };
    let probe = |probe: &Probe| format!("{} {}", probe.method, probe.path).into();
    object([
        ("rules", list(&authz.rules, rule)),
        ("default", json!(authz.default.access.as_str())),
        ("default_by", name(&authz.default.meta)),
        ("probes", list(&authz.probes, probe)),
    ])
}

/// What the control plane says about a target of the application.
pub(crate) fn outbound_protocol(protocol: &Protocol) -> Value {
    let (name, mut described) = match protocol {
        Protocol::Detect { timeout, http1, http2, opaque } => (
            "detect",
            json!({
                "detect_timeout": duration(*timeout),
                "http1": http_policy(http1),
                "http2": http_policy(http2),
                "opaque": tcp_policy(opaque),
            }),
        ),
        Protocol::Http1(policy) => ("http1", http_policy(policy)),
        Protocol::Http2(policy) => ("http2", http_policy(policy)),
        Protocol::Grpc(policy) => (
            "grpc",
            object([
                ("routes", list(&policy.routes, |r| route(r, grpc_match, forward))),
                ("breaker", policy.breaker.as_ref().map_or(Value::Null, breaker)),
            ]),
        ),
        Protocol::Opaque(policy) => ("opaque", tcp_policy(policy)),
        Protocol::Tls(policy) => ("tls", tcp_policy(policy)),
    };
    described["protocol"] = name.into();
    described
}

fn http_policy(policy: &HttpPolicy) -> Value {
    object([
        ("routes", list(&policy.routes, |r| route(r, http_match, forward))),
        ("breaker", policy.breaker.as_ref().map_or(Value::Null, breaker)),
    ])
}

fn tcp_policy(policy: &TcpPolicy) -> Value {
    object([("routes", list(&policy.routes, tcp_route))])
}

fn tcp_route(route: &TcpRoute) -> Value {
    let refuse = route.refuse.as_ref().map(|refuse| match refuse {
        Refuse::Forbidden => "forbidden".to_owned(),
        Refuse::Invalid(why) => format!("invalid: {why}"),
    });
    object([
        ("name", name(&route.meta)),
        ("snis", list(&route.snis, host)),
        ("refuse", json!(refuse)),
        ("backends", distribution(&route.backends, backend)),
    ])
}

fn route<M, A>(
    route: &Route<M, A>,
    describe_match: fn(&M) -> Value,
    describe_action: fn(&A) -> Map<String, Value>,
) -> Value {
    let rule = |rule: &Rule<M, A>| {
        let mut described = describe_action(&rule.action);
        for (field, value) in [
            ("matches", list(&rule.matches, describe_match)),
            ("filters", list(&rule.filters, filter)),
        ] {
            if !value.is_null() {
                described.insert(field.into(), value);
            }
        }
        Value::Object(described)
    };
    object([
        ("name", name(&route.meta)),
        ("hosts", list(&route.hosts, host)),
        ("rules", list(&route.rules, rule)),
    ])
}

fn forward(forward: &Forward) -> Map<String, Value> {
    let limit = |limit: Option<Duration>| limit.map_or(Value::Null, duration);
    let timeouts = object([
        ("request", limit(forward.timeouts.request)),
        ("response", limit(forward.timeouts.response)),
        ("idle", limit(forward.timeouts.idle)),
    ]);
    let allow = forward.allow_request_headers.then_some(true);
    fields([
        ("backends", distribution(&forward.backends, route_backend)),
        ("timeouts", Some(timeouts).filter(|of| *of != json!({})).unwrap_or_default()),
        ("retry", forward.retry.as_ref().map_or(Value::Null, retry)),
        ("session", forward.session.as_ref().map_or(Value::Null, session)),
        ("allow_request_headers", json!(allow)),
    ])
}

fn authorize(authorize: &Authorize) -> Map<String, Value> {
    fields([("authorizations", list(&authorize.authorizations, authorization))])
}

/// Weights stand beside what they weigh; without them, the first that is available counts.
fn distribution<B>(
    distribution: &Distribution<B>,
    describe: fn(&B) -> Map<String, Value>,
) -> Value {
    match distribution {
        Distribution::Empty => json!([]),
        Distribution::FirstAvailable(all) => all.iter().map(|b| Value::from(describe(b))).collect(),
        Distribution::Random(all) => {
            let weighted = |(b, weight): &(Arc<B>, u32)| {
                let mut described = describe(b);
                described.insert("weight".into(), json!(weight));
                Value::from(described)
            };
            all.iter().map(weighted).collect()
        }
    }
}

fn route_backend(of: &RouteBackend) -> Map<String, Value> {
    let mut described = backend(&of.backend);
    if !of.filters.is_empty() {
        described.insert("filters".into(), list(&of.filters, filter));
    }
    described
}

fn backend(backend: &Backend) -> Map<String, Value> {
    let to = match &backend.kind {
        BackendKind::Forward(endpoint) => ("address", endpoint.addr.to_string()),
        BackendKind::Balance(balance) => ("balance", balance.path.clone()),
    };
    fields([
        ("name", name(&backend.meta)),
        (to.0, to.1.into()),
        ("queue_capacity", json!(backend.queue.capacity)),
        ("failfast_timeout", duration(backend.queue.failfast_timeout)),
    ])
}

fn breaker(breaker: &Breaker) -> Value {
    let rate = breaker.success_rate.map(|rate| {
        json!({
            "threshold": rate.threshold,
            "decay": duration(rate.decay),
            "min_requests": rate.min_requests,
        })
    });
    object([
        ("consecutive_failures", json!(breaker.consecutive)),
        ("success_rate", json!(rate)),
        ("backoff", backoff(&breaker.backoff)),
        ("min_ready", json!(breaker.min_ready)),
    ])
}

fn session(session: &Session) -> Value {
    let by = match session.by {
        SessionBy::Cookie { .. } => "cookie",
        SessionBy::Header => "header",
    };
    object([
        (by, json!(session.name)),
        ("absolute_timeout", session.absolute.map_or(Value::Null, duration)),
        ("idle_timeout", session.idle.map_or(Value::Null, duration)),
    ])
}

fn retry(retry: &Retry) -> Value {
    let range = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
        (one, last) if one == last => one.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    let grpc: Vec<u16> = (0..32).filter(|code| retry.grpc.contains(*code)).collect();
    object([
        ("max_retries", json!(retry.max_retries)),
        ("statuses", list(&retry.statuses, |statuses| range(statuses).into())),
        ("grpc_codes", list(&grpc, |code| json!(code))),
        ("try_timeout", retry.timeout.map_or(Value::Null, duration)),
        ("max_request_bytes", json!(retry.max_request_bytes)),
        ("backoff", retry.backoff.as_ref().map_or(Value::Null, backoff)),
    ])
}

fn backoff(backoff: &Backoff) -> Value {
    object([
        ("min", duration(backoff.min)),
        ("max", duration(backoff.max)),
        ("jitter", json!(backoff.jitter)),
        ("respect_retry_after", json!(backoff.respect_retry_after.then_some(true))),
    ])
}

fn http_match(of: &HttpMatch) -> Value {
    let path = of.path.as_ref().map(|path| match path {
        PathMatch::Exact(path) => format!("exact {path}"),
        PathMatch::Prefix(path) => format!("prefix {path}"),
        PathMatch::Regex(pattern) => format!("regex {}", pattern.as_str()),
    });
    object([
        ("path", json!(path)),
        ("method", json!(of.method.as_ref().map(http::Method::as_str))),
        ("headers", list(&of.headers, header)),
        ("query", list(&of.query, |query| condition(&query.name, &query.value))),
    ])
}

fn grpc_match(of: &GrpcMatch) -> Value {
    object([
        ("service", json!(of.service)),
        ("method", json!(of.method)),
        ("headers", list(&of.headers, header)),
    ])
}

fn header(of: &HeaderMatch) -> Value {
    condition(of.name.as_str(), &of.value)
}

fn condition(name: &str, value: &ValueMatch) -> Value {
    match value {
        ValueMatch::Exact(value) => format!("{name}: {}", String::from_utf8_lossy(value)).into(),
        ValueMatch::Regex(pattern) => format!("{name}: regex {}", pattern.as_str()).into(),
    }
}

fn filter(filter: &Filter) -> Value {
    match filter {
        Filter::Fail(fail) => {
            let (kind, code) = match fail.failure {
                InjectedFailure::Http(status) => ("status", status.as_u16()),
                InjectedFailure::Grpc(code) => ("grpc_code", code),
            };
            let ratio = ratio(fail.ratio);
            json!({ "fail": { kind: code, "message": fail.message, "ratio": ratio } })
        }
        Filter::RequestHeaders(change) => json!({ "request_headers": headers(change) }),
        Filter::ResponseHeaders(change) => json!({ "response_headers": headers(change) }),
        Filter::Redirect(to) => {
            let redirect = object([
                ("status", json!(to.status.as_u16())),
                ("scheme", json!(to.scheme)),
                ("host", json!(to.host)),
                ("port", json!(to.port)),
                ("path", path_modifier(to.path.as_ref())),
            ]);
            json!({ "redirect": redirect })
        }
        Filter::Rewrite(to) => {
            let host = to.host.as_ref().map(|host| String::from_utf8_lossy(host.as_bytes()));
            let rewrite =
                object([("host", json!(host)), ("path", path_modifier(to.path.as_ref()))]);
            json!({ "rewrite": rewrite })
        }
        Filter::Mirror(mirror) => {
            json!({ "mirror": { "backend": name(&mirror.backend.meta), "ratio": ratio(mirror.ratio) } })
        }
        Filter::Cors(cors) => {
            let origins: Vec<String> = cors.origins.iter().map(ToString::to_string).collect();
            json!({ "cors": { "origins": origins, "credentials": cors.credentials } })
        }
        Filter::Fault(fault) => json!({ "fault": fault_of(fault) }),
    }
}

pub(crate) fn fault_of(fault: &Fault) -> Value {
    let (kind, value) = match fault.kind {
        FaultKind::Abort(InjectedFailure::Http(status)) => ("status", json!(status.as_u16())),
        FaultKind::Abort(InjectedFailure::Grpc(code)) => ("grpc_code", json!(code)),
        FaultKind::Delay(delay) => ("delay_ms", json!(delay.as_millis())),
    };
    let until = fault.until.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    object([
        ("policy", name(&fault.meta)),
        (kind, value),
        ("ratio", json!(ratio(fault.ratio))),
        ("headers", list(&fault.headers, header)),
        ("until_unix_seconds", json!(until.map(|at| at.as_secs()))),
    ])
}

fn ratio(ratio: Ratio) -> String {
    format!("{}/{}", ratio.numerator, ratio.denominator)
}

fn path_modifier(path: Option<&PathModifier>) -> Value {
    json!(path.map(|path| match path {
        PathModifier::Full(path) => format!("full {path}"),
        PathModifier::Prefix(path) => format!("prefix {path}"),
    }))
}

fn headers(change: &HeaderModifier) -> Value {
    let pair = |(name, value): &(http::HeaderName, http::HeaderValue)| {
        format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())).into()
    };
    object([
        ("set", list(&change.set, pair)),
        ("add", list(&change.add, pair)),
        ("remove", list(&change.remove, |name| name.as_str().into())),
    ])
}

fn authorization(of: &Authorization) -> Value {
    let who = match &of.authentication {
        Authentication::Unauthenticated => json!("anybody"),
        Authentication::MeshTls => json!("any identity of the mesh"),
        Authentication::Identities { identities, suffixes } => {
            let suffixes = suffixes.iter().map(|labels| format!("*.{}", labels.join(".")));
            identities.iter().cloned().chain(suffixes).collect()
        }
    };
    json!({ "name": name(&of.meta), "networks": list(&of.networks, network), "who": who })
}

fn network(network: &Network) -> Value {
    let cidr = |of: &Cidr| format!("{}/{}", of.addr, of.prefix);
    let except: Vec<String> = network.except.iter().map(cidr).collect();
    match except.as_slice() {
        [] => cidr(&network.net).into(),
        _ => format!("{} except {}", cidr(&network.net), except.join(", ")).into(),
    }
}

fn rate_limit(limit: &RateLimit) -> Value {
    let of = |rate: &Rate| json!({ "per_second": rate.per_second, "burst": rate.burst });
    let or_null = |rate: &Option<Rate>| rate.as_ref().map_or(Value::Null, of);
    let of_named = |(rate, identities): &(Rate, Vec<String>)| json!({ "rate": of(rate), "identities": identities });
    let header =
        |header: &HeaderRate| json!({ "name": header.name.as_str(), "rate": of(&header.rate) });
    object([
        ("name", name(&limit.meta)),
        ("total", or_null(&limit.total)),
        ("client", or_null(&limit.identity)),
        ("overrides", list(&limit.overrides, of_named)),
        ("header", limit.header.as_ref().map_or(Value::Null, header)),
    ])
}

/// How much a port takes, and how much it has.
pub(crate) fn port_limits(rules: &PortRules) -> Value {
    let concurrency = |PortConcurrency { of, limit }: &PortConcurrency| {
        json!({
            "name": name(&of.meta),
            "max_in_flight": limit.max(),
            "in_flight": limit.in_flight(),
        })
    };
    object([
        ("rate_limit", rules.rate_limit.as_ref().map_or(Value::Null, |l| rate_limit(l.limit()))),
        ("concurrency", rules.concurrency.as_ref().map_or(Value::Null, concurrency)),
    ])
}

fn host(host: &HostMatch) -> Value {
    match host {
        HostMatch::Exact(name) => name.as_str().into(),
        HostMatch::Suffix(labels) => format!("*.{}", labels.join(".")).into(),
    }
}

fn name(meta: &Meta) -> Value {
    meta.to_string().into()
}

fn duration(duration: Duration) -> Value {
    format!("{duration:?}").into()
}

/// `null` for none, which [`object`] leaves out.
fn list<T>(all: &[T], describe: impl Fn(&T) -> Value) -> Value {
    if all.is_empty() { Value::Null } else { all.iter().map(describe).collect() }
}

fn object<const N: usize>(all: [(&str, Value); N]) -> Value {
    fields(all).into()
}

fn fields<const N: usize>(all: [(&str, Value); N]) -> Map<String, Value> {
    let there = all.into_iter().filter(|(_, value)| !value.is_null());
    there.map(|(name, value)| (name.to_owned(), value)).collect()
}
