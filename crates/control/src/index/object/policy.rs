//! Policies about who may do what, as objects.

use std::time::Duration;

use mesh_model::authz::{Action, DefaultAccess, Operation, Probe, Source};
use mesh_model::egress::{EgressAction, EgressRule};
use mesh_model::inbound::{PortProtocol, RateLimit};
use mesh_model::meta::ResourceRef;
use mesh_model::outbound::{Breaker, RetryBudget};
use mesh_model::route::Fault;

use super::Retries;
use super::{Balancer, Kind, Labels, Name};

/// The group of our own kinds.
pub const POLICY_GROUP: &str = "policy.meshctl.dev";

/// Allows, denies or audits what clients do with its target.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationPolicy {
    pub name: Name,
    pub target: PolicyTarget,
    pub action: Action,
    /// Any of these; empty is everybody.
    pub from: Vec<Source>,
    /// Any of these; empty is everything.
    pub to: Vec<Operation>,
}

/// What a policy is about, always in its own namespace.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicyTarget {
    Namespace,
    Workload {
        kind: Kind,
        name: String,
        port: Option<PortRef>,
    },
    /// Pods with all of these labels.
    Pods {
        labels: Labels,
        port: Option<PortRef>,
    },
    /// The pods behind a Service, at the ports that it sends to.
    Service {
        name: String,
        port: Option<PortRef>,
    },
    /// The requests of a route to its parents.
    Route {
        kind: Kind,
        name: String,
        /// Those of one of its rules, by name.
        rule: Option<String>,
    },
}

/// A port, by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRef {
    Number(u16),
    Name(String),
}

impl PortRef {
    pub fn is(&self, name: &str, number: u16) -> bool {
        match self {
            Self::Number(wanted) => *wanted == number,
            Self::Name(wanted) => wanted == name,
        }
    }
}

/// How the proxies of a workload treat a port, or all. What is `None` is left to others.
#[derive(Clone, Debug, PartialEq)]
pub struct PortPolicy {
    pub name: Name,
    /// Seconds since the Unix epoch; of two policies about the same, the older one counts. `None`
    /// sorts first.
    pub created: Option<i64>,
    /// A workload or pods.
    pub target: PolicyTarget,
    /// Who may use the port where no AuthorizationPolicy says so.
    pub default_access: Option<DefaultAccess>,
    pub protocol: Option<PortProtocol>,
    pub rate_limit: Option<RateLimit>,
    /// Requests in flight.
    pub concurrency: Option<u32>,
    /// Besides those of all other policies about the same.
    pub faults: Vec<Fault>,
}

impl PortPolicy {
    /// Whether it says anything of which only one policy's word counts.
    pub fn governs(&self) -> bool {
        self.default_access.is_some()
            || self.protocol.is_some()
            || self.rate_limit.is_some()
            || self.concurrency.is_some()
    }
}

impl PolicyTarget {
    /// The one port that it is about, if it is about one.
    pub fn port(&self) -> Option<&PortRef> {
        match self {
            Self::Workload { port, .. } | Self::Pods { port, .. } | Self::Service { port, .. } => {
                port.as_ref()
            }
            Self::Namespace | Self::Route { .. } => None,
        }
    }
}

/// How clients of a Service treat it, or what becomes of a route's requests. What is `None` is left to
/// others.
#[derive(Clone, Debug, PartialEq)]
pub struct TrafficPolicy {
    pub name: Name,
    /// As [`PortPolicy::created`].
    pub created: Option<i64>,
    /// A Service; or a route, which has faults only.
    pub target: PolicyTarget,
    pub balancing: Option<Balancing>,
    pub breaker: Option<BreakerPolicy>,
    pub limits: TrafficLimits,
    pub retry_budget: Option<RetryBudget>,
    /// Of rules that have none of their own.
    pub retry: Option<Retries>,
    /// `None`: as the Service's hints say.
    pub zones: Option<ZonePreference>,
    /// Besides those of all other policies about the same.
    pub faults: Vec<Fault>,
}

impl TrafficPolicy {
    /// Whether it says anything of which only one policy's word counts.
    pub fn governs(&self) -> bool {
        self.balancing.is_some()
            || self.breaker.is_some()
            || self.limits != TrafficLimits::default()
            || self.retry_budget.is_some()
            || self.retry.is_some()
            || self.zones.is_some()
    }
}

/// Which endpoints clients of a zone use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZonePreference {
    /// Those of their own zone, while one is ready.
    Prefer,
    /// Those of their own zone, or none.
    Require,
    /// All, whatever hints say.
    Ignore,
}

impl ZonePreference {
    pub const ALL: [Self; 3] = [Self::Prefer, Self::Require, Self::Ignore];

    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prefer => "Prefer",
            Self::Require => "Require",
            Self::Ignore => "Ignore",
        }
    }
}

/// What the workloads of its namespace may send out of the mesh; in the mesh's own namespace, all
/// workloads.
#[derive(Clone, Debug, PartialEq)]
pub struct EgressPolicy {
    pub name: Name,
    /// What becomes of what no rule names; `None` is left to others.
    pub default: Option<EgressAction>,
    pub rules: Vec<EgressRule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balancing {
    pub balancer: Balancer,
    pub slow_start: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BreakerPolicy {
    Disabled,
    Enabled {
        breaker: Breaker,
        /// A response whose head takes longer is a failure.
        latency: Option<Duration>,
    },
}

/// What one client may have at a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficLimits {
    /// To each endpoint.
    pub connections: Option<u32>,
    pub pending: Option<u32>,
    pub in_flight: Option<u32>,
}

/// A health probe that a pod declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortProbe {
    pub port: u16,
    pub probe: Probe,
}

/// The reference to a policy, for verdicts and figures.
pub fn policy_ref(kind: Kind, name: &Name) -> ResourceRef {
    ResourceRef {
        group: POLICY_GROUP.into(),
        kind: kind.as_str().into(),
        name: name.name.clone(),
        namespace: name.namespace.clone(),
        section: String::new(),
        port: None,
    }
}
