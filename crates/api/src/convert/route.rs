//! Outbound HTTP and gRPC routes.

use linkerd2_proxy_api::http_route::Timeouts as PbTimeouts;
use linkerd2_proxy_api::outbound::{self as pb, grpc_route, http_route};
use mesh_model::outbound::{Forward, GrpcRoute, HttpRoute, RouteBackend};
use mesh_model::route::{Filter, GrpcCodes, GrpcMatch, HttpMatch, Retry, Rule, Timeouts};

use super::backend::{read_addressless, read_backend, read_backoff, write_backend, write_backoff};
use super::distribution::{read_distribution, write_distribution};
use super::filter::{
    read_outbound_grpc, read_outbound_http, write_outbound_grpc, write_outbound_http,
};
use super::meta::{read_meta, write_meta};
use super::net::{read_limit, write_limit};
use super::request_match::{
    grpc_patterns, http_patterns, read_grpc_match, read_hosts, read_http_match, write_grpc_match,
    write_hosts, write_http_match,
};
use super::{bounded, list, required, write_list};
use crate::error::{At, ConversionError, Result};
use crate::limit;

pub(super) fn read_http_routes(routes: Vec<pb::HttpRoute>) -> Result<Vec<HttpRoute>> {
    bounded(routes.iter().map(|route| route.rules.len()).sum(), "routes.rules", limit::RULES)?;
    bounded(patterns_of_http(&routes), "routes.rules.matches.regex", limit::PATTERNS)?;
    list(routes, "routes", limit::ROUTES, |route| {
        Ok(HttpRoute {
            meta: read_meta(route.metadata, "metadata")?,
            hosts: read_hosts(route.hosts)?,
            rules: list(route.rules, "rules", limit::RULES, read_http_rule)?,
        })
    })
}

/// How many regular expressions the matches of some routes have.
pub(super) fn patterns_of_http(routes: &[pb::HttpRoute]) -> usize {
    let rules = routes.iter().flat_map(|route| &route.rules);
    rules.flat_map(|rule| &rule.matches).map(http_patterns).sum()
}

pub(super) fn write_http_routes(routes: &[HttpRoute]) -> Result<Vec<pb::HttpRoute>> {
    write_list(routes, "routes", |route| {
        Ok(pb::HttpRoute {
            metadata: Some(write_meta(&route.meta)),
            hosts: write_hosts(&route.hosts),
            rules: write_list(&route.rules, "rules", write_http_rule)?,
        })
    })
}

pub(super) fn read_grpc_routes(routes: Vec<pb::GrpcRoute>) -> Result<Vec<GrpcRoute>> {
    bounded(routes.iter().map(|route| route.rules.len()).sum(), "routes.rules", limit::RULES)?;
    let rules = routes.iter().flat_map(|route| &route.rules);
    let patterns = rules.flat_map(|rule| &rule.matches).map(grpc_patterns).sum();
    bounded(patterns, "routes.rules.matches.regex", limit::PATTERNS)?;
    list(routes, "routes", limit::ROUTES, |route| {
        Ok(GrpcRoute {
            meta: read_meta(route.metadata, "metadata")?,
            hosts: read_hosts(route.hosts)?,
            rules: list(route.rules, "rules", limit::RULES, read_grpc_rule)?,
        })
    })
}

pub(super) fn write_grpc_routes(routes: &[GrpcRoute]) -> Result<Vec<pb::GrpcRoute>> {
    write_list(routes, "routes", |route| {
        Ok(pb::GrpcRoute {
            metadata: Some(write_meta(&route.meta)),
            hosts: write_hosts(&route.hosts),
            rules: write_list(&route.rules, "rules", write_grpc_rule)?,
        })
    })
}

#[expect(deprecated, reason = "older control planes say `request_timeout`")]
fn read_http_rule(rule: http_route::Rule) -> Result<Rule<HttpMatch, Forward>> {
    let backends = read_distribution(rule.backends, |backend: http_route::RouteBackend| {
        let filters = list(backend.filters, "filters", limit::ITEMS, read_outbound_http)?;
        read_route_backend(backend.backend, filters)
    })?;
    Ok(Rule {
        matches: list(rule.matches, "matches", limit::ITEMS, read_http_match)?,
        filters: list(rule.filters, "filters", limit::ITEMS, read_outbound_http)?,
        action: Forward {
            backends,
            timeouts: read_timeouts(rule.timeouts, rule.request_timeout)?,
            retry: rule.retry.map(read_http_retry).transpose().at("retry")?,
            allow_request_headers: rule.allow_l5d_request_headers,
            session: None,
        },
    })
}

fn write_http_rule(rule: &Rule<HttpMatch, Forward>) -> Result<http_route::Rule> {
    let action = &rule.action;
    Ok(http_route::Rule {
        matches: write_list(&rule.matches, "matches", write_http_match)?,
        filters: write_list(&rule.filters, "filters", write_outbound_http)?,
        backends: write_distribution(&action.backends, |backend| {
            Ok(http_route::RouteBackend {
                backend: Some(write_backend(&backend.backend).at("backend")?),
                filters: write_list(&backend.filters, "filters", write_outbound_http)?,
                ..Default::default()
            })
        })?,
        timeouts: write_timeouts(&action.timeouts)?,
        retry: action.retry.as_ref().map(write_http_retry).transpose().at("retry")?,
        allow_l5d_request_headers: action.allow_request_headers,
        ..Default::default()
    })
}

#[expect(deprecated, reason = "older control planes say `request_timeout`")]
fn read_grpc_rule(rule: grpc_route::Rule) -> Result<Rule<GrpcMatch, Forward>> {
    let backends = read_distribution(rule.backends, |backend: grpc_route::RouteBackend| {
        let filters = list(backend.filters, "filters", limit::ITEMS, read_outbound_grpc)?;
        read_route_backend(backend.backend, filters)
    })?;
    Ok(Rule {
        matches: list(rule.matches, "matches", limit::ITEMS, read_grpc_match)?,
        filters: list(rule.filters, "filters", limit::ITEMS, read_outbound_grpc)?,
        action: Forward {
            backends,
            timeouts: read_timeouts(rule.timeouts, rule.request_timeout)?,
            retry: rule.retry.map(read_grpc_retry).transpose().at("retry")?,
            allow_request_headers: rule.allow_l5d_request_headers,
            session: None,
        },
    })
}

fn write_grpc_rule(rule: &Rule<GrpcMatch, Forward>) -> Result<grpc_route::Rule> {
    let action = &rule.action;
    Ok(grpc_route::Rule {
        matches: rule.matches.iter().map(write_grpc_match).collect(),
        filters: write_list(&rule.filters, "filters", write_outbound_grpc)?,
        backends: write_distribution(&action.backends, |backend| {
            Ok(grpc_route::RouteBackend {
                backend: Some(write_backend(&backend.backend).at("backend")?),
                filters: write_list(&backend.filters, "filters", write_outbound_grpc)?,
                ..Default::default()
            })
        })?,
        timeouts: write_timeouts(&action.timeouts)?,
        retry: action.retry.as_ref().map(write_grpc_retry).transpose().at("retry")?,
        allow_l5d_request_headers: action.allow_request_headers,
        ..Default::default()
    })
}

fn read_route_backend(backend: Option<pb::Backend>, filters: Vec<Filter>) -> Result<RouteBackend> {
    let backend = required(backend, "backend")?;
    let always_fails = |filter: &Filter| matches!(filter, Filter::Fail(f) if f.ratio.numerator >= f.ratio.denominator);
    let backend = if backend.kind.is_none() && filters.iter().any(always_fails) {
        read_addressless(backend)
    } else {
        read_backend(backend)
    };
    Ok(RouteBackend { filters, backend: backend.at("backend")? })
}

/// `legacy` counts only for a peer that does not send timeouts: others set it, too, to a value
/// that means something else.
fn read_timeouts(
    proto: Option<PbTimeouts>,
    legacy: Option<prost_types::Duration>,
) -> Result<Timeouts> {
    let proto = proto.unwrap_or(PbTimeouts { request: legacy, response: None, idle: None });
    Ok(Timeouts {
        request: read_limit(proto.request, "timeouts.request")?,
        response: read_limit(proto.response, "timeouts.response")?,
        idle: read_limit(proto.idle, "timeouts.idle")?,
    })
}

fn write_timeouts(timeouts: &Timeouts) -> Result<Option<PbTimeouts>> {
    Ok(Some(PbTimeouts {
        request: write_limit(timeouts.request, "timeouts.request")?,
        response: write_limit(timeouts.response, "timeouts.response")?,
        idle: write_limit(timeouts.idle, "timeouts.idle")?,
    }))
}

fn read_http_retry(retry: http_route::Retry) -> Result<Retry> {
    let ranges = required(retry.conditions, "conditions")?.status_ranges;
    let statuses = list(ranges, "conditions.status_ranges", limit::ITEMS, |range| {
        match (u16::try_from(range.start), u16::try_from(range.end)) {
            (Ok(start), Ok(end)) if start <= end => Ok(start..=end),
            _ => {
                let why = format!("{}-{} is no range of statuses", range.start, range.end);
                Err(ConversionError::invalid("", why))
            }
        }
    })?;
    Ok(Retry {
        max_retries: retry.max_retries,
        max_request_bytes: retry.max_request_bytes,
        statuses,
        grpc: GrpcCodes::default(),
        timeout: read_limit(retry.timeout, "timeout")?,
        backoff: retry.backoff.map(read_backoff).transpose().at("backoff")?,
    })
}

fn write_http_retry(retry: &Retry) -> Result<http_route::Retry> {
    use http_route::retry::{Conditions, conditions::StatusRange};
    if retry.grpc != GrpcCodes::default() {
        let why = "an HTTP route cannot retry on gRPC codes; use a GRPCRoute";
        return Err(ConversionError::unsupported("conditions", why));
    }
    let range = |r: &std::ops::RangeInclusive<u16>| StatusRange {
        start: u32::from(*r.start()),
        end: u32::from(*r.end()),
    };
    Ok(http_route::Retry {
        max_retries: retry.max_retries,
        max_request_bytes: retry.max_request_bytes,
        conditions: Some(Conditions { status_ranges: retry.statuses.iter().map(range).collect() }),
        timeout: write_limit(retry.timeout, "timeout")?,
        backoff: retry.backoff.as_ref().map(write_backoff).transpose().at("backoff")?,
    })
}

const CANCELLED: u16 = 1;
const DEADLINE_EXCEEDED: u16 = 4;
const RESOURCE_EXHAUSTED: u16 = 8;
const INTERNAL: u16 = 13;
const UNAVAILABLE: u16 = 14;

fn read_grpc_retry(retry: grpc_route::Retry) -> Result<Retry> {
    let conditions = required(retry.conditions, "conditions")?;
    let codes = [
        (conditions.cancelled, CANCELLED),
        (conditions.deadine_exceeded, DEADLINE_EXCEEDED),
        (conditions.resource_exhausted, RESOURCE_EXHAUSTED),
        (conditions.internal, INTERNAL),
        (conditions.unavailable, UNAVAILABLE),
    ];
    let codes = codes.into_iter().filter(|(set, _)| *set);
    Ok(Retry {
        max_retries: retry.max_retries,
        max_request_bytes: retry.max_request_bytes,
        statuses: Vec::new(),
        grpc: codes.fold(GrpcCodes::default(), |codes, (_, code)| codes.with(code)),
        timeout: read_limit(retry.timeout, "timeout")?,
        backoff: retry.backoff.map(read_backoff).transpose().at("backoff")?,
    })
}

fn write_grpc_retry(retry: &Retry) -> Result<grpc_route::Retry> {
    let known = [CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE];
    let known = known.into_iter().fold(GrpcCodes::default(), GrpcCodes::with);
    if retry.grpc.0 & !known.0 != 0 || !retry.statuses.is_empty() {
        let why = "a gRPC route can retry only on the codes cancelled, deadline-exceeded, \
                   resource-exhausted, internal and unavailable";
        return Err(ConversionError::unsupported("conditions", why));
    }
    Ok(grpc_route::Retry {
        max_retries: retry.max_retries,
        max_request_bytes: retry.max_request_bytes,
        conditions: Some(grpc_route::retry::Conditions {
            cancelled: retry.grpc.contains(CANCELLED),
            deadine_exceeded: retry.grpc.contains(DEADLINE_EXCEEDED),
            resource_exhausted: retry.grpc.contains(RESOURCE_EXHAUSTED),
            internal: retry.grpc.contains(INTERNAL),
            unavailable: retry.grpc.contains(UNAVAILABLE),
        }),
        timeout: write_limit(retry.timeout, "timeout")?,
        backoff: retry.backoff.as_ref().map(write_backoff).transpose().at("backoff")?,
    })
}
