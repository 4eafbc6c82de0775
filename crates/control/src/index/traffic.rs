//! What BackendTrafficPolicies make of a service's port: how its clients balance, when they leave an
//! endpoint alone, how much they ask at a time and how often again.
//!
//! A policy about one port goes before one about the whole Service, field by field; of several about
//! the same, only the oldest counts. Where none says anything, the Service's annotations do. Policies
//! about routes have faults only, and none goes before another.

use std::collections::BTreeSet;

use mesh_api::limit;
use mesh_model::outbound::{BackendExtension, Breaker, Queue};
use mesh_model::route::{Fault, Filter};

use super::Objects;
use super::conflicts::Before;
use super::object::{
    Balancing, BreakerPolicy, Kind, Name, PolicyTarget, PortRef, Retries, TrafficPolicy,
};
use super::policy::DEFAULT_BREAKER;
use super::routes::QUEUE;

/// The policies in force at a service's port, the most specific one first.
#[derive(Debug, Default)]
pub(super) struct Governing<'a>([Option<&'a TrafficPolicy>; 2]);

impl<'a> Governing<'a> {
    pub(super) fn first<T>(&self, field: impl Fn(&'a TrafficPolicy) -> Option<T>) -> Option<T> {
        self.0.iter().flatten().find_map(|policy| field(policy))
    }
}

impl Objects {
    /// The policy in force at a service's port that says something.
    pub fn traffic_policy_that(
        &self,
        service: &Name,
        port: u16,
        says: impl Fn(&TrafficPolicy) -> bool,
    ) -> Option<&Name> {
        self.traffic(service, port).first(|policy| says(policy).then_some(&policy.name))
    }

    /// When clients of a service's port leave an endpoint alone.
    pub fn breaker(&self, service: &Name, port: u16) -> Option<Breaker> {
        match self.traffic(service, port).first(|policy| policy.breaker) {
            Some(BreakerPolicy::Disabled) => None,
            Some(BreakerPolicy::Enabled { breaker, .. }) => Some(breaker),
            None => {
                let of_service = self.services.get(service).and_then(|service| service.breaker);
                of_service.unwrap_or(Some(DEFAULT_BREAKER))
            }
        }
    }

    /// How many requests may wait for an endpoint of a service's port.
    pub(super) fn queue(&self, service: &Name, port: u16) -> Queue {
        let capacity = self.traffic(service, port).first(|policy| policy.limits.pending);
        Queue { capacity: capacity.unwrap_or(QUEUE.capacity), ..QUEUE }
    }

    /// What the linkerd2 API cannot say of a service's port, also when there is no such service (yet).
    pub fn backend_extension(&self, service: &Name, port: u16) -> BackendExtension {
        let traffic = self.traffic(service, port);
        let balancing = traffic.first(|policy| policy.balancing.clone());
        let balancing = balancing.unwrap_or_else(|| {
            let annotated = self.services.get(service).map(|service| service.balancer.clone());
            Balancing { balancer: annotated.unwrap_or_default(), slow_start: None }
        });
        let breaker_latency = match traffic.first(|policy| policy.breaker) {
            Some(BreakerPolicy::Enabled { latency, .. }) => latency,
            Some(BreakerPolicy::Disabled) | None => None,
        };
        BackendExtension {
            strategy: balancing.balancer.strategy,
            hash_header: balancing.balancer.hash_header,
            slow_start: balancing.slow_start,
            breaker_latency,
            max_connections: traffic.first(|policy| policy.limits.connections),
            max_in_flight: traffic.first(|policy| policy.limits.in_flight),
            retry_budget: traffic.first(|policy| policy.retry_budget),
        }
    }

    /// What is tried again of a service's port, where a route does not say so itself.
    pub fn retries(&self, service: &Name, port: u16) -> Option<&Retries> {
        self.traffic(service, port).first(|policy| policy.retry.as_ref())
    }

    pub(super) fn traffic(&self, service: &Name, port: u16) -> Governing<'_> {
        let mut governing = Governing::default();
        let name = self.services.get(service).and_then(|object| object.port(port));
        let name = name.map_or("", |port| port.name.as_str());
        for policy in self.traffic_policies_in(&service.namespace).filter(|p| p.governs()) {
            let Some((of, wanted)) = target(policy) else { continue };
            if of != service.name || wanted.is_some_and(|wanted| !wanted.is(name, port)) {
                continue;
            }
            let place = &mut governing.0[usize::from(wanted.is_none())];
            if place.is_none_or(|have| goes_before(policy, have)) {
                *place = Some(policy);
            }
        }
        governing
    }

    /// The faults of a service's port, those of all policies.
    pub fn faults(&self, service: &Name, port: u16) -> Vec<&Fault> {
        let name = self.services.get(service).and_then(|object| object.port(port));
        let name = name.map_or("", |port| port.name.as_str());
        let policies = self.traffic_policies_in(&service.namespace).filter(|policy| {
            target(policy).is_some_and(|(of, wanted)| {
                of == service.name && wanted.is_none_or(|wanted| wanted.is(name, port))
            })
        });
        policies.flat_map(|policy| &policy.faults).take(limit::FAULTS).collect()
    }

    /// The Services whose clients a policy may mean something to.
    pub(super) fn told_of(&self, policy: &TrafficPolicy) -> BTreeSet<Name> {
        let namespace = &policy.name.namespace;
        match &policy.target {
            PolicyTarget::Service { name, .. } => {
                let service = Name::new(namespace, name);
                let parents = self.parents_by_backend.get(&service);
                let parents = parents.into_iter().flat_map(|parents| parents.keys().cloned());
                parents.chain([service]).collect()
            }
            PolicyTarget::Route { kind, name, .. } => {
                let head = self.route_head(*kind, &Name::new(namespace, name));
                let parents = head.into_iter().flat_map(|head| &head.parents);
                parents.map(|parent| parent.service.clone()).collect()
            }
            _ => BTreeSet::new(),
        }
    }

    /// The faults of a route's requests, those of all policies.
    pub(super) fn route_faults(&self, kind: Kind, route: &Name) -> RouteFaults<'_> {
        let about =
            self.traffic_policies_in(&route.namespace).filter_map(|policy| match &policy.target {
                PolicyTarget::Route { kind: of, name, rule }
                    if *of == kind && *name == route.name =>
                {
                    Some((rule.as_deref(), &policy.faults[..]))
                }
                _ => None,
            });
        RouteFaults(about.collect())
    }

    fn traffic_policies_in<'a, 'n>(
        &'a self,
        namespace: &'n str,
    ) -> impl Iterator<Item = &'a TrafficPolicy> + use<'a, 'n> {
        let from = self.traffic_policies.range(Name::new(namespace, "")..);
        from.take_while(move |(name, _)| name.namespace == namespace).map(|(_, policy)| &**policy)
    }

    /// The BackendTrafficPolicy that goes before another one that is about the same.
    pub(super) fn traffic_policy_before<'a>(&'a self, name: &Name) -> Option<Before<'a>> {
        let policy = self.traffic_policies.get(name).filter(|policy| policy.governs())?;
        let (service, wanted) = target(policy)?;
        let object = self.services.get(&Name::new(&name.namespace, service));
        // A port may be meant by its number and by its name.
        let number = |wanted: &PortRef| {
            let ports = object.map(|object| object.ports.as_slice()).unwrap_or_default();
            ports.iter().find(|port| wanted.is(&port.name, port.port)).map(|port| port.port)
        };
        let same = |rival: &PortRef, wanted: &PortRef| {
            rival == wanted || number(rival).is_some_and(|port| number(wanted) == Some(port))
        };
        let mut rivals = self.traffic_policies_in(&name.namespace).filter(|rival| rival.governs());
        let before = rivals.find(|rival| {
            let Some((of, rivals)) = target(rival) else { return false };
            let about_the_same = match (rivals, wanted) {
                (None, None) => true,
                (Some(rival), Some(wanted)) => same(rival, wanted),
                _ => false,
            };
            rival.name != *name && of == service && about_the_same && goes_before(rival, policy)
        })?;
        Some(Before { policy: &before.name, everywhere: true })
    }
}

/// The faults of a route: of the rule that they are about, or of all.
#[derive(Debug)]
pub(super) struct RouteFaults<'a>(Vec<(Option<&'a str>, &'a [Fault])>);

impl RouteFaults<'_> {
    /// Of the rule with this name, as filters.
    pub(super) fn of(&self, rule: &str) -> Vec<Filter> {
        let about = self.0.iter().filter(|(of, _)| of.is_none_or(|of| of == rule));
        let faults = about.flat_map(|(_, faults)| *faults).take(limit::FAULTS);
        faults.cloned().map(Filter::Fault).collect()
    }
}

/// The service and the port that a policy is about.
fn target(policy: &TrafficPolicy) -> Option<(&str, Option<&PortRef>)> {
    match &policy.target {
        PolicyTarget::Service { name, port } => Some((name, port.as_ref())),
        _ => None,
    }
}

/// Older ones first; names break ties.
fn goes_before(policy: &TrafficPolicy, other: &TrafficPolicy) -> bool {
    (policy.created, &policy.name) < (other.created, &other.name)
}
