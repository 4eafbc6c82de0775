//! Policies of outbound targets.

use std::time::Duration;

use linkerd2_proxy_api::outbound as pb;
use pb::backend::{balance_p2c::Load, endpoint_discovery};
use pb::proxy_protocol::{self, Kind};

use super::destination::endpoint;
use super::{Checked, Rule, each, filter, holds, meta, present};
use crate::error::At;

/// Checks a distribution; prost generates its type anew for each kind of route.
macro_rules! distribution {
    ($distribution:expr, $module:ident) => {{
        use pb::$module::distribution::Kind;
        let kind = $distribution.as_ref().and_then(|distribution| distribution.kind.as_ref());
        let one = |backend: Option<&pb::$module::RouteBackend>| {
            let backend = present(backend, Rule::Backends)?;
            each(&backend.filters, "filters", |filter| filter!($module, filter))?;
            self::backend(backend.backend.as_ref()).at("backend")
        };
        match present(kind, Rule::Distribution).at("backends")? {
            Kind::Empty(_) => Ok(()),
            Kind::FirstAvailable(first) => {
                holds(!first.backends.is_empty(), Rule::Backends).at("backends")?;
                each(&first.backends, "backends", |backend| one(Some(backend)))
            }
            Kind::RandomAvailable(random) => {
                let some = random.backends.iter().any(|backend| backend.weight > 0);
                holds(some, Rule::Weights).at("backends")?;
                each(&random.backends, "backends", |backend| one(backend.backend.as_ref()))
            }
        }
    }};
}

/// The check of a route kind's filters.
macro_rules! filter {
    (http_route, $filter:expr) => {
        filter::outbound_http($filter)
    };
    (grpc_route, $filter:expr) => {
        filter::outbound_grpc($filter)
    };
    (opaque_route, $filter:expr) => {
        filter::opaque($filter)
    };
    (tls_route, $filter:expr) => {
        filter::tls($filter)
    };
}

/// A policy for a target.
///
/// # Errors
/// The first rule broken.
pub fn outbound(policy: &pb::OutboundPolicy) -> Checked {
    meta(policy.metadata.as_ref())?;
    let kind = policy.protocol.as_ref().and_then(|protocol| protocol.kind.as_ref());
    match present(kind, Rule::Empty).at("protocol")? {
        Kind::Detect(detect) => self::detect(detect).at("detect"),
        Kind::Http1(http) => http_protocol(&http.routes, http.failure_accrual.as_ref()).at("http1"),
        Kind::Http2(http) => http_protocol(&http.routes, http.failure_accrual.as_ref()).at("http2"),
        Kind::Grpc(grpc) => grpc_protocol(grpc).at("grpc"),
        Kind::Opaque(opaque) => opaque_protocol(opaque).at("opaque"),
        Kind::Tls(tls) => tls_protocol(tls).at("tls"),
    }
    .at("protocol")
}

fn detect(detect: &proxy_protocol::Detect) -> Checked {
    holds(detect.timeout.is_some(), Rule::Detect).at("timeout")?;
    let http1 = present(detect.http1.as_ref(), Rule::Detect).at("http1")?;
    let http2 = present(detect.http2.as_ref(), Rule::Detect).at("http2")?;
    let opaque = present(detect.opaque.as_ref(), Rule::Detect).at("opaque")?;
    http_protocol(&http1.routes, http1.failure_accrual.as_ref()).at("http1")?;
    http_protocol(&http2.routes, http2.failure_accrual.as_ref()).at("http2")?;
    opaque_protocol(opaque).at("opaque")
}

fn http_protocol(routes: &[pb::HttpRoute], accrual: Option<&pb::FailureAccrual>) -> Checked {
    breaker(accrual).at("failure_accrual")?;
    each(routes, "routes", |route| {
        meta(route.metadata.as_ref())?;
        holds(!route.rules.is_empty(), Rule::Rules).at("rules")?;
        each(&route.rules, "rules", http_rule)
    })
}

fn http_rule(rule: &pb::http_route::Rule) -> Checked {
    if let Some(retry) = &rule.retry {
        let statuses = retry.conditions.as_ref().is_some_and(|conditions| {
            let sound = |range: &pb::http_route::retry::conditions::StatusRange| {
                100 <= range.start && range.start <= range.end && range.end <= 599
            };
            conditions.status_ranges.iter().all(sound)
        });
        holds(statuses, Rule::RetryConditions).at("retry.conditions")?;
        retries(retry.max_retries, retry.backoff.as_ref()).at("retry")?;
    }
    each(&rule.filters, "filters", filter::outbound_http)?;
    distribution!(rule.backends, http_route)
}

fn grpc_protocol(grpc: &proxy_protocol::Grpc) -> Checked {
    breaker(grpc.failure_accrual.as_ref()).at("failure_accrual")?;
    each(&grpc.routes, "routes", |route| {
        meta(route.metadata.as_ref())?;
        holds(!route.rules.is_empty(), Rule::Rules).at("rules")?;
        each(&route.rules, "rules", grpc_rule)
    })
}

fn grpc_rule(rule: &pb::grpc_route::Rule) -> Checked {
    if let Some(retry) = &rule.retry {
        holds(retry.conditions.is_some(), Rule::RetryConditions).at("retry.conditions")?;
        retries(retry.max_retries, retry.backoff.as_ref()).at("retry")?;
    }
    each(&rule.filters, "filters", filter::outbound_grpc)?;
    distribution!(rule.backends, grpc_route)
}

fn retries(max: u32, backoff: Option<&pb::ExponentialBackoff>) -> Checked {
    holds(max <= u32::from(u16::MAX), Rule::MaxRetries).at("max_retries")?;
    backoff.map_or(Ok(()), |backoff| self::backoff(Some(backoff)))
}

fn opaque_protocol(opaque: &proxy_protocol::Opaque) -> Checked {
    holds(opaque.routes.len() == 1, Rule::Routes).at("routes")?;
    each(&opaque.routes, "routes", |route| {
        meta(route.metadata.as_ref())?;
        holds(route.rules.len() == 1, Rule::Rules).at("rules")?;
        each(&route.rules, "rules", |rule| {
            each(&rule.filters, "filters", filter::opaque)?;
            distribution!(rule.backends, opaque_route)
        })
    })
}

fn tls_protocol(tls: &proxy_protocol::Tls) -> Checked {
    holds(!tls.routes.is_empty(), Rule::Routes).at("routes")?;
    each(&tls.routes, "routes", |route| {
        meta(route.metadata.as_ref())?;
        holds(route.rules.len() == 1, Rule::Rules).at("rules")?;
        each(&route.rules, "rules", |rule| {
            each(&rule.filters, "filters", filter::tls)?;
            distribution!(rule.backends, tls_route)
        })
    })
}

fn backend(backend: Option<&pb::Backend>) -> Checked {
    let backend = present(backend, Rule::Backends)?;
    meta(backend.metadata.as_ref())?;
    let queue = backend.queue.as_ref();
    let complete = queue.is_some_and(|q| q.capacity > 0 && q.failfast_timeout.is_some());
    holds(complete, Rule::Queue).at("queue")?;
    match present(backend.kind.as_ref(), Rule::BackendKind)? {
        pb::backend::Kind::Forward(forward) => {
            endpoint(forward).at("forward")?;
            let port = forward.addr.as_ref().map_or(0, |addr| addr.port);
            holds(port != 0, Rule::ForwardPort).at("forward.addr")
        }
        pb::backend::Kind::Balancer(balancer) => balance(balancer).at("balancer"),
    }
}

fn balance(balancer: &pb::backend::BalanceP2c) -> Checked {
    let discovery = balancer.discovery.as_ref().and_then(|discovery| discovery.kind.as_ref());
    let endpoint_discovery::Kind::Dst(dst) =
        present(discovery, Rule::DiscoveryPath).at("discovery")?;
    let named = dst.path.rsplit_once(':').is_some_and(|(name, port)| {
        !name.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    holds(named, Rule::DiscoveryPath).at("discovery.dst.path")?;
    let complete = match present(balancer.load.as_ref(), Rule::Load).at("load")? {
        Load::PeakEwma(load) => load.default_rtt.is_some() && load.decay.is_some(),
        Load::PenaltyPeakEwma(load) => load.default_rtt.is_some() && load.decay.is_some(),
    };
    holds(complete, Rule::Load).at("load")
}

fn breaker(accrual: Option<&pb::FailureAccrual>) -> Checked {
    use pb::failure_accrual::Kind;
    let Some(accrual) = accrual else { return Ok(()) };
    match present(accrual.kind.as_ref(), Rule::Breaker)? {
        Kind::ConsecutiveFailures(consecutive) => backoff(consecutive.backoff.as_ref()),
        Kind::Unified(unified) => {
            success_rate(unified)?;
            backoff(unified.backoff.as_ref())
        }
    }
}

const MIN_WINDOW: Duration = Duration::from_millis(10);
const MAX_MIN_REQUESTS: u32 = 1_000_000;

fn success_rate(unified: &pb::failure_accrual::Unified) -> Checked {
    let window = read(unified.decay).is_some_and(|window| window >= MIN_WINDOW);
    let sound = (0.0..=1.0).contains(&unified.success_rate_threshold)
        && unified.min_requests <= MAX_MIN_REQUESTS
        && window;
    holds(sound, Rule::SuccessRate).at("unified")
}

fn backoff(backoff: Option<&pb::ExponentialBackoff>) -> Checked {
    let backoff = present(backoff, Rule::Backoff).at("backoff")?;
    let ordered = match (read(backoff.min_backoff), read(backoff.max_backoff)) {
        (Some(min), Some(max)) => !min.is_zero() && max >= min,
        _ => false,
    };
    let jitter = (0.0..=100.0).contains(&backoff.jitter_ratio);
    holds(ordered && jitter, Rule::Backoff).at("backoff")
}

fn read(duration: Option<prost_types::Duration>) -> Option<Duration> {
    duration.and_then(|duration| duration.try_into().ok())
}
