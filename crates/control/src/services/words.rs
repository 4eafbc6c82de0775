//! Parts of routes in words, the same wherever people read them.

use std::fmt::Write;

use mesh_model::matching::Pattern;
use mesh_model::outbound::{BackendExtension, Breaker, Strategy};
use mesh_model::route::{
    FaultKind, Filter, GrpcMatch, HeaderMatch, HttpMatch, InjectedFailure, PathMatch, PathModifier,
    Retry, Rewrite, ValueMatch,
};

/// `retry 2 on 500-504, grpc:14`
pub(super) fn retry(retry: &Retry) -> String {
    let mut text = format!("retry {}", retry.max_retries);
    let mut statuses = retry.statuses.clone();
    statuses.sort_by_key(|range| *range.start());
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for range in statuses {
        match merged.last_mut() {
            Some((_, end)) if *range.start() <= end.saturating_add(1) => {
                *end = (*end).max(*range.end())
            }
            _ => merged.push((*range.start(), *range.end())),
        }
    }
    for (index, (start, end)) in merged.into_iter().enumerate() {
        text.push_str(if index == 0 { " on " } else { ", " });
        // Writing to a String cannot fail.
        let _ = if start == end { write!(text, "{start}") } else { write!(text, "{start}-{end}") };
    }
    let codes: Vec<_> = (0..32).filter(|code| retry.grpc.contains(*code)).collect();
    for (index, code) in codes.into_iter().enumerate() {
        text.push_str(match index {
            0 if retry.statuses.is_empty() => " on grpc:",
            _ => ", grpc:",
        });
        let _ = write!(text, "{code}");
    }
    text
}

pub(super) fn filter(filter: &Filter) -> String {
    match filter {
        Filter::Rewrite(rewrite) => rewritten(rewrite),
        Filter::Mirror(mirror) => format!("mirrors to {}", mirror.backend.meta.name()),
        Filter::Cors(_) => "answers for CORS".into(),
        Filter::Fault(fault) => fault_kind(fault.kind),
        Filter::Fail(fail) => fail.message.clone(),
        Filter::RequestHeaders(_) => "changes request headers".into(),
        Filter::ResponseHeaders(_) => "changes response headers".into(),
        Filter::Redirect(redirect) => format!("redirects with {}", redirect.status.as_u16()),
    }
}

/// `fails with 503`
pub(super) fn fault_kind(kind: FaultKind) -> String {
    match kind {
        FaultKind::Abort(InjectedFailure::Http(status)) => format!("fails with {status}"),
        FaultKind::Abort(InjectedFailure::Grpc(code)) => format!("fails with gRPC code {code}"),
        FaultKind::Delay(delay) => format!("delays by {delay:?}"),
    }
}

/// `rewrites to other.example, path /v2`
fn rewritten(rewrite: &Rewrite) -> String {
    let host = rewrite.host.as_ref().and_then(|host| host.to_str().ok()).map(str::to_owned);
    let path = rewrite.path.as_ref().map(|path| match path {
        PathModifier::Full(path) => format!("path {path}"),
        PathModifier::Prefix(prefix) => format!("prefix {prefix}"),
    });
    let parts: Vec<String> = host.into_iter().chain(path).collect();
    format!("rewrites to {}", parts.join(", "))
}

/// `PathPrefix /a GET header x=1 query q=2`
pub(super) fn http_match(found: &HttpMatch) -> String {
    let mut parts = Vec::new();
    match &found.path {
        None => {}
        Some(PathMatch::Exact(path)) => parts.push(format!("Exact {path}")),
        Some(PathMatch::Prefix(path)) => parts.push(format!("PathPrefix {path}")),
        Some(PathMatch::Regex(pattern)) => parts.push(format!("Regex {}", pattern.as_str())),
    }
    parts.extend(found.method.as_ref().map(ToString::to_string));
    parts.extend(found.headers.iter().map(header));
    parts.extend(found.query.iter().map(|q| format!("query {}{}", q.name, value(&q.value))));
    if parts.is_empty() { "any request".into() } else { parts.join(" ") }
}

pub(super) fn grpc_match(found: &GrpcMatch) -> String {
    let mut parts = Vec::new();
    match (&found.service, &found.method) {
        (None, None) => {}
        (service, method) => {
            let any = |part: &Option<String>| part.clone().unwrap_or_else(|| "*".into());
            parts.push(format!("gRPC {}/{}", any(service), any(method)));
        }
    }
    parts.extend(found.headers.iter().map(header));
    if parts.is_empty() { "any request".into() } else { parts.join(" ") }
}

fn header(found: &HeaderMatch) -> String {
    format!("header {}{}", found.name, value(&found.value))
}

fn value(found: &ValueMatch) -> String {
    match found {
        ValueMatch::Exact(bytes) => format!("={}", String::from_utf8_lossy(bytes)),
        ValueMatch::Regex(pattern) => format!("~{}", Pattern::as_str(pattern)),
    }
}

/// `ring-hash of header x-user`
pub(super) fn balancer(of: &BackendExtension) -> String {
    let name = of.strategy.as_str();
    match (of.strategy, &of.hash_header) {
        (Strategy::RingHash, Some(header)) => format!("{name} of header {header}"),
        (Strategy::RingHash, None) => format!("{name} of the client's address"),
        _ => name.to_owned(),
    }
}

/// `opens after 7 failures in a row, for 1s to 60s`
pub(super) fn breaker(of: Breaker) -> String {
    let consecutive = of.consecutive.map(|failures| format!("{failures} failures in a row"));
    let rate =
        of.success_rate.map(|rate| format!("less than {}% successful", rate.threshold * 100.0));
    let when: Vec<String> = consecutive.into_iter().chain(rate).collect();
    let (min, max) = (of.backoff.min, of.backoff.max);
    format!("opens after {}, for {min:?} to {max:?}", when.join(" or "))
}
