//! Counters of decisions: retries by route, verdicts by policy.
//!
//! They are handles, resolved once and held by whoever counts.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mesh_model::endpoint::Labels;
use mesh_model::{Direction, Meta};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::bounded::{Bounded, Entries};
use super::http_metrics::counter;
use super::labels::{self, Detail, Pairs, Tls};

/// A counter of events, shared by whoever counts and the page.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// `outbound_http_route_retry_*`: what became of retries, by route.
#[derive(Clone, Debug)]
pub struct RetryMetrics {
    table: Arc<Bounded<RouteLabels, RetryCounters>>,
}

/// The retries of one route.
#[derive(Debug, Default)]
pub struct RetryCounters {
    /// Retries sent.
    pub requests: Count,
    /// Retries that were answered with success.
    pub successes: Count,
    /// Not retried: the route's number of retries was used up.
    pub limit_exceeded: Count,
    /// Not retried: the budget was used up.
    pub overflow: Count,
    /// Not retried: the request's body was too large to keep.
    pub body_too_large: Count,
    /// Not retried: the request must not be processed twice.
    pub not_idempotent: Count,
    /// Not retried: the request's deadline was too near.
    pub deadline_near: Count,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RouteLabels {
    parent: Meta,
    route: Meta,
}

impl RetryMetrics {
    pub(super) fn new(max: usize) -> Self {
        Self { table: Arc::new(Bounded::new(max)) }
    }

    /// The counters of a parent's route.
    pub fn route(&self, parent: &Meta, route: &Meta) -> Arc<RetryCounters> {
        self.table.get(&RouteLabels { parent: parent.clone(), route: route.clone() })
    }
}

impl Pairs for RouteLabels {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        labels::meta("parent", &self.parent, Detail::Port, visit);
        labels::meta("route", &self.route, Detail::Object, visit);
    }
}

impl Collector for RetryMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        type Field = fn(&RetryCounters) -> &Count;
        let families: [(&str, &str, Field); 7] = [
            ("requests", "Retries sent", |c| &c.requests),
            ("successes", "Retries answered with success", |c| &c.successes),
            ("limit_exceeded", "Requests out of retries", |c| &c.limit_exceeded),
            ("overflow", "Requests not retried for want of budget", |c| &c.overflow),
            ("body_too_large", "Requests with too much body to retry", |c| &c.body_too_large),
            ("not_idempotent", "Requests that must not be retried", |c| &c.not_idempotent),
            ("deadline_near", "Requests with no time left to retry", |c| &c.deadline_near),
        ];
        let all = self.table.all();
        for (name, help, field) in families {
            let name = format!("outbound_http_route_retry_{name}");
            counts(&mut encoder, &name, help, &all, field)?;
        }
        Ok(())
    }
}

/// One family of counters over a table's entries.
pub(super) fn counts<M>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: &Entries<M>,
    field: impl Fn(&M) -> &Count,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, metrics) in all {
        let sum = metrics.iter().map(|metric| field(metric).get()).sum();
        counter(&mut family, labels, sum)?;
    }
    Ok(())
}

/// `inbound_{http,tcp}_authz_*` and the local rate limit.
#[derive(Clone, Debug)]
pub struct AuthzMetrics {
    http: Arc<Bounded<AuthzLabels, AuthzCounters>>,
    tcp: Arc<Bounded<AuthzLabels, AuthzCounters>>,
}

/// Verdicts with the same labels.
#[derive(Debug, Default)]
pub struct AuthzCounters {
    pub allow: Count,
    pub deny: Count,
    /// Of a policy that only records.
    pub audit: Count,
    /// Allowed, then over the port's rate limit. HTTP only.
    pub rate_limited: Count,
    /// A connection that was let in and then cut, because the policy changed. TCP only.
    pub terminated: Count,
}

/// What decided about a request or connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AuthzLabels {
    /// The local port's address.
    pub target_addr: Option<SocketAddr>,
    pub srv: Labels,
    /// HTTP only.
    pub route: Option<Meta>,
    /// Of the policy or default that decided, or records.
    pub authz: Labels,
    pub tls: Tls,
}

impl AuthzMetrics {
    pub(super) fn new(max: usize) -> Self {
        Self { http: Arc::new(Bounded::new(max)), tcp: Arc::new(Bounded::new(max)) }
    }

    /// Verdicts on requests.
    pub fn http(&self, labels: &AuthzLabels) -> Arc<AuthzCounters> {
        self.http.get(labels)
    }

    /// Verdicts on connections.
    pub fn tcp(&self, labels: &AuthzLabels) -> Arc<AuthzCounters> {
        self.tcp.get(labels)
    }
}

impl Pairs for AuthzLabels {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        labels::target(self.target_addr, visit);
        labels::server(&self.srv, self.target_addr, visit);
        if let Some(route) = &self.route {
            labels::meta("route", route, Detail::Name, visit);
        }
        labels::prefixed("authz", &self.authz, visit);
        labels::tls(&self.tls, Direction::Inbound, visit);
    }
}

impl Collector for AuthzMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (http, tcp) = (self.http.all(), self.tcp.all());
        let encoder = &mut encoder;
        let help = "Requests let in";
        counts(encoder, "inbound_http_authz_allow", help, &http, |c| &c.allow)?;
        let help = "Requests refused";
        counts(encoder, "inbound_http_authz_deny", help, &http, |c| &c.deny)?;
        let help = "Requests recorded by a policy that only audits";
        counts(encoder, "inbound_http_authz_audit", help, &http, |c| &c.audit)?;
        let help = "Requests over the port's rate limit";
        counts(encoder, "inbound_http_local_ratelimit", help, &http, |c| &c.rate_limited)?;
        let help = "Connections let in";
        counts(encoder, "inbound_tcp_authz_allow", help, &tcp, |c| &c.allow)?;
        let help = "Connections refused";
        counts(encoder, "inbound_tcp_authz_deny", help, &tcp, |c| &c.deny)?;
        let help = "Connections recorded by a policy that only audits";
        counts(encoder, "inbound_tcp_authz_audit", help, &tcp, |c| &c.audit)?;
        let help = "Connections cut because a policy changed";
        counts(encoder, "inbound_tcp_authz_terminate", help, &tcp, |c| &c.terminated)
    }
}
