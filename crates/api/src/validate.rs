//! What a control plane must hold to in the messages it sends, beyond their types.
//!
//! A foreign proxy panics, hangs or silently does something else on some of what the API's types
//! allow. Each rule here is one such case, learnt from the API's comments and from running
//! proxies; [`crate::server`] checks every message before it is sent.

use linkerd2_proxy_api::destination::{self as dst, tls_identity::Strategy, update::Update};
use linkerd2_proxy_api::inbound as srv;
use linkerd2_proxy_api::meta::{Metadata, metadata};
use linkerd2_proxy_api::outbound as pb;
use pb::backend::{balance_p2c::Load, endpoint_discovery};
use pb::proxy_protocol::Kind;

use crate::error::{At, HasField};

/// A rule that a message breaks, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct Violation {
    /// Path in proto field names.
    pub field: String,
    pub rule: Rule,
}

/// The rules, one per way to break a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rule {
    #[error("the message says nothing")]
    Empty,
    #[error("metadata is missing")]
    Metadata,
    #[error("a resource needs group (`core`, never empty), kind, name and namespace")]
    Resource,
    #[error("a backend needs a queue with a capacity and a fail-fast timeout")]
    Queue,
    #[error("a backend needs a balancer or an address")]
    BackendKind,
    #[error("a balancer needs a path of the form `name:port`")]
    DiscoveryPath,
    #[error("a balancer needs a load estimate with its durations")]
    Load,
    #[error("detection needs timeout, opaque, http1 and http2")]
    Detect,
    #[error("an opaque protocol has exactly one route")]
    OneRoute,
    #[error("a TLS protocol has at least one route")]
    SomeRoute,
    #[error("an opaque or TLS route has exactly one rule")]
    OneRule,
    #[error("a rule needs a distribution")]
    Distribution,
    #[error("a distribution needs a backend")]
    NoBackend,
    #[error("at least one weight must be above 0")]
    Weights,
    #[error("an address to forward to needs a port")]
    ForwardPort,
    #[error("an endpoint needs an address")]
    Address,
    #[error("an identity needs a strategy and a server name")]
    Identity,
    #[error("a retry needs conditions")]
    RetryConditions,
    #[error("a breaker needs a kind")]
    Breaker,
    #[error("a backoff must be present, with max ≥ min > 0")]
    Backoff,
    #[error("a server needs the labels `group`, `kind` and `name`")]
    ServerLabels,
    #[error("a profile has a name or an endpoint, and neither routes nor overrides nor a budget")]
    Profile,
    #[error("a profile may be opaque only if the policy detects or is opaque")]
    OpaqueProfile,
}

type Checked = Result<(), Violation>;

impl HasField for Violation {
    fn field_mut(&mut self) -> &mut String {
        &mut self.field
    }
}

/// Checks a distribution; prost generates its type anew for each kind of route.
macro_rules! distribution {
    ($distribution:expr, $module:ident) => {{
        use pb::$module::distribution::Kind;
        let kind = $distribution
            .as_ref()
            .and_then(|distribution| distribution.kind.as_ref());
        let one = |backend: Option<&pb::$module::RouteBackend>| {
            backend_of(backend.and_then(|backend| backend.backend.as_ref()))
        };
        match present(kind, Rule::Distribution).at("backends")? {
            Kind::Empty(_) => Ok(()),
            Kind::FirstAvailable(first) => {
                holds(!first.backends.is_empty(), Rule::NoBackend).at("backends")?;
                each(&first.backends, "backends", |backend| one(Some(backend)))
            }
            Kind::RandomAvailable(random) => {
                let some = random.backends.iter().any(|backend| backend.weight > 0);
                holds(some, Rule::Weights).at("backends")?;
                each(&random.backends, "backends", |backend| {
                    one(backend.backend.as_ref())
                })
            }
        }
    }};
}
/// A policy for a target.
///
/// # Errors
/// The first rule broken.
pub fn outbound(policy: &pb::OutboundPolicy) -> Checked {
    meta(policy.metadata.as_ref()).at("metadata")?;
    let kind = policy
        .protocol
        .as_ref()
        .and_then(|protocol| protocol.kind.as_ref());
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

/// An update of a destination.
///
/// # Errors
/// The first rule broken.
pub fn destination(update: &dst::Update) -> Checked {
    match present(update.update.as_ref(), Rule::Empty)? {
        Update::Add(add) => each(&add.addrs, "addrs", endpoint).at("add"),
        Update::Remove(remove) => {
            each(&remove.addrs, "addrs", |addr| address(Some(addr))).at("remove")
        }
        Update::NoEndpoints(_) => Ok(()),
    }
}

/// A profile. It leaves routing to the policy: a reader would prefer what it says.
///
/// # Errors
/// The first rule broken.
pub fn profile(profile: &dst::DestinationProfile) -> Checked {
    let routing = !profile.routes.is_empty()
        || !profile.dst_overrides.is_empty()
        || profile.retry_budget.is_some();
    let both = profile.endpoint.is_some() && !profile.fully_qualified_name.is_empty();
    holds(!routing && !both, Rule::Profile)?;
    profile
        .endpoint
        .as_ref()
        .map_or(Ok(()), endpoint)
        .at("endpoint")
}

/// A profile beside the policy for the same target.
///
/// # Errors
/// When the profile is opaque and the policy is neither opaque nor detects.
pub fn profile_beside(profile: &dst::DestinationProfile, policy: &pb::OutboundPolicy) -> Checked {
    let kind = policy
        .protocol
        .as_ref()
        .and_then(|protocol| protocol.kind.as_ref());
    let agrees = matches!(kind, Some(Kind::Detect(_) | Kind::Opaque(_)));
    holds(!profile.opaque_protocol || agrees, Rule::OpaqueProfile).at("opaque_protocol")
}

/// The policy of a port.
///
/// # Errors
/// The first rule broken.
pub fn server(server: &srv::Server) -> Checked {
    use srv::proxy_protocol::Kind;
    for label in ["group", "kind", "name"] {
        let set = server
            .labels
            .get(label)
            .is_some_and(|value| !value.is_empty());
        holds(set, Rule::ServerLabels).at("labels")?;
    }
    authorizations(&server.authorizations)?;
    let kind = server
        .protocol
        .as_ref()
        .and_then(|protocol| protocol.kind.as_ref());
    match present(kind, Rule::Empty).at("protocol")? {
        Kind::Detect(detect) => {
            holds(detect.timeout.is_some(), Rule::Detect).at("detect")?;
            server_http(&detect.http_routes).at("detect.http_routes")?;
            rate_limit(detect.http_local_rate_limit.as_ref())
        }
        Kind::Http1(http) => {
            server_http(&http.routes).at("http1.routes")?;
            rate_limit(http.local_rate_limit.as_ref())
        }
        Kind::Http2(http) => {
            server_http(&http.routes).at("http2.routes")?;
            rate_limit(http.local_rate_limit.as_ref())
        }
        Kind::Grpc(grpc) => each(&grpc.routes, "routes", |route| {
            meta(route.metadata.as_ref()).at("metadata")?;
            authorizations(&route.authorizations)
        })
        .at("grpc"),
        Kind::Opaque(_) | Kind::Tls(_) => Ok(()),
    }
    .at("protocol")
}

fn server_http(routes: &[srv::HttpRoute]) -> Checked {
    each(routes, "", |route| {
        meta(route.metadata.as_ref()).at("metadata")?;
        authorizations(&route.authorizations)
    })
}

fn authorizations(authorizations: &[srv::Authz]) -> Checked {
    each(authorizations, "authorizations", |authz| {
        meta(authz.metadata.as_ref()).at("metadata")?;
        let permit = authz
            .authentication
            .as_ref()
            .and_then(|authn| authn.permit.as_ref());
        present(permit, Rule::Empty).at("authentication").map(drop)
    })
}

fn rate_limit(limit: Option<&srv::HttpLocalRateLimit>) -> Checked {
    limit
        .map_or(Ok(()), |limit| meta(limit.metadata.as_ref()))
        .at("rate_limit.metadata")
}

fn detect(detect: &pb::proxy_protocol::Detect) -> Checked {
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
        meta(route.metadata.as_ref()).at("metadata")?;
        each(&route.rules, "rules", http_rule)
    })
}

fn http_rule(rule: &pb::http_route::Rule) -> Checked {
    if let Some(retry) = &rule.retry {
        holds(retry.conditions.is_some(), Rule::RetryConditions).at("retry")?;
        retry
            .backoff
            .as_ref()
            .map_or(Ok(()), |b| backoff(Some(b)))
            .at("retry.backoff")?;
    }
    distribution!(rule.backends, http_route)
}

fn grpc_protocol(grpc: &pb::proxy_protocol::Grpc) -> Checked {
    breaker(grpc.failure_accrual.as_ref()).at("failure_accrual")?;
    each(&grpc.routes, "routes", |route| {
        meta(route.metadata.as_ref()).at("metadata")?;
        each(&route.rules, "rules", grpc_rule)
    })
}

fn grpc_rule(rule: &pb::grpc_route::Rule) -> Checked {
    if let Some(retry) = &rule.retry {
        holds(retry.conditions.is_some(), Rule::RetryConditions).at("retry")?;
        retry
            .backoff
            .as_ref()
            .map_or(Ok(()), |b| backoff(Some(b)))
            .at("retry.backoff")?;
    }
    distribution!(rule.backends, grpc_route)
}

fn opaque_protocol(opaque: &pb::proxy_protocol::Opaque) -> Checked {
    holds(opaque.routes.len() == 1, Rule::OneRoute).at("routes")?;
    each(&opaque.routes, "routes", |route| {
        meta(route.metadata.as_ref()).at("metadata")?;
        holds(route.rules.len() == 1, Rule::OneRule).at("rules")?;
        each(&route.rules, "rules", |rule| {
            distribution!(rule.backends, opaque_route)
        })
    })
}

fn tls_protocol(tls: &pb::proxy_protocol::Tls) -> Checked {
    holds(!tls.routes.is_empty(), Rule::SomeRoute).at("routes")?;
    each(&tls.routes, "routes", |route| {
        meta(route.metadata.as_ref()).at("metadata")?;
        holds(route.rules.len() == 1, Rule::OneRule).at("rules")?;
        each(&route.rules, "rules", |rule| {
            distribution!(rule.backends, tls_route)
        })
    })
}

fn backend_of(backend: Option<&pb::Backend>) -> Checked {
    let backend = present(backend, Rule::NoBackend)?;
    meta(backend.metadata.as_ref()).at("metadata")?;
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
    .at("backend")
}

fn balance(balancer: &pb::backend::BalanceP2c) -> Checked {
    let discovery = balancer
        .discovery
        .as_ref()
        .and_then(|discovery| discovery.kind.as_ref());
    let endpoint_discovery::Kind::Dst(dst) = present(discovery, Rule::DiscoveryPath)?;
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
    let Some(accrual) = accrual else {
        return Ok(());
    };
    match present(accrual.kind.as_ref(), Rule::Breaker)? {
        Kind::ConsecutiveFailures(consecutive) => backoff(consecutive.backoff.as_ref()),
        Kind::Unified(unified) => backoff(unified.backoff.as_ref()),
    }
    .at("backoff")
}

fn backoff(backoff: Option<&pb::ExponentialBackoff>) -> Checked {
    let backoff = present(backoff, Rule::Backoff)?;
    let read = |duration: Option<prost_types::Duration>| {
        duration.and_then(|duration| std::time::Duration::try_from(duration).ok())
    };
    let ordered = match (read(backoff.min_backoff), read(backoff.max_backoff)) {
        (Some(min), Some(max)) => !min.is_zero() && max >= min,
        _ => false,
    };
    holds(ordered && backoff.jitter_ratio >= 0.0, Rule::Backoff)
}

fn endpoint(endpoint: &dst::WeightedAddr) -> Checked {
    address(endpoint.addr.as_ref())?;
    if let Some(resource) = &endpoint.resource_ref {
        meta(Some(resource)).at("resource_ref")?;
    }
    let Some(identity) = &endpoint.tls_identity else {
        return Ok(());
    };
    let named = identity
        .server_name
        .as_ref()
        .is_some_and(|name| !name.name.is_empty());
    let id = match &identity.strategy {
        None => "",
        Some(Strategy::DnsLikeIdentity(dns)) => &dns.name,
        Some(Strategy::UriLikeIdentity(uri)) => &uri.uri,
    };
    holds(named && !id.is_empty(), Rule::Identity).at("tls_identity")
}

fn address(addr: Option<&linkerd2_proxy_api::net::TcpAddress>) -> Checked {
    let ip = addr
        .and_then(|addr| addr.ip.as_ref())
        .and_then(|ip| ip.ip.as_ref());
    holds(ip.is_some(), Rule::Address).at("addr")
}

fn meta(metadata: Option<&Metadata>) -> Checked {
    match present(
        metadata.and_then(|metadata| metadata.kind.as_ref()),
        Rule::Metadata,
    )? {
        metadata::Kind::Default(name) => holds(!name.is_empty(), Rule::Metadata),
        metadata::Kind::Resource(r) => {
            let names = [&r.group, &r.kind, &r.name, &r.namespace];
            holds(names.iter().all(|name| !name.is_empty()), Rule::Resource)
        }
    }
}

fn each<T>(items: &[T], field: &str, mut check: impl FnMut(&T) -> Checked) -> Checked {
    items
        .iter()
        .enumerate()
        .try_for_each(|(index, item)| check(item).at_index(field, index))
}

fn present<T>(value: Option<T>, rule: Rule) -> Result<T, Violation> {
    value.ok_or_else(|| Violation {
        field: String::new(),
        rule,
    })
}

fn holds(condition: bool, rule: Rule) -> Checked {
    present(condition.then_some(()), rule)
}
