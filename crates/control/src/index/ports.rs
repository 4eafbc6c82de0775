//! What ServerPolicies make of a pod's port: what it speaks, how much it takes, and what fails there on
//! purpose.
//!
//! A policy about one port goes before one about all ports of a workload, field by field: a rate limit
//! on one port must not open a port that is closed for the whole workload. Of several about the same,
//! only the oldest counts. Faults are those of all.

use mesh_api::limit;
use mesh_model::Meta;
use mesh_model::inbound::{Concurrency, PortExtension, PortLimits, PortProtocol};
use mesh_model::route::Fault;

use super::Objects;
use super::conflicts::Before;
use super::object::{AppProtocol, Kind, Name, Pod, PortPolicy, policy_ref};

/// The policies in force at a port, the most specific one first.
#[derive(Debug, Default)]
pub(super) struct Governing<'a>([Option<&'a PortPolicy>; 2]);

impl<'a> Governing<'a> {
    /// The first that says something of a field, and what it says.
    pub(super) fn first<T>(
        &self,
        field: impl Fn(&'a PortPolicy) -> Option<T>,
    ) -> Option<(&'a PortPolicy, T)> {
        self.0.iter().flatten().find_map(|policy| Some((*policy, field(policy)?)))
    }

    /// The most specific one.
    pub(super) fn top(&self) -> Option<&'a PortPolicy> {
        self.first(|_| Some(())).map(|(policy, ())| policy)
    }
}

impl Objects {
    /// Everything that a pod's proxy has to know of a port at once.
    pub fn port_extension(&self, pod: &Name, port: u16) -> PortExtension {
        let governing = self.governing(pod, self.pods.get(pod).map(|pod| &**pod), port);
        PortExtension {
            authz: self.port_authz(pod, port),
            protocol: self.port_protocol(pod, port),
            limits: limits(&governing),
            faults: self.port_faults(pod, port),
        }
    }

    /// What clients of a pod's port speak.
    pub(super) fn port_protocol(&self, name: &Name, port: u16) -> PortProtocol {
        let pod = self.pods.get(name);
        let governing = self.governing(name, pod.map(|pod| &**pod), port);
        if let Some((_, protocol)) = governing.first(|policy| policy.protocol) {
            return protocol;
        }
        let opaque = match pod {
            Some(pod) => self.pod_port_is_opaque(pod, port),
            None => self.is_opaque_by_namespace(&name.namespace, port),
        };
        match self.pod_app_protocol(name, port) {
            _ if opaque => PortProtocol::Opaque,
            AppProtocol::Opaque => PortProtocol::Opaque,
            AppProtocol::Http2 => PortProtocol::Http2,
            AppProtocol::Grpc => PortProtocol::Grpc,
            // HTTP/1 comes as HTTP/2 from other proxies, so even then it is to be detected.
            AppProtocol::Http1 | AppProtocol::Unknown => PortProtocol::Detect,
        }
    }

    pub(super) fn port_limits(&self, pod: &Name, port: u16) -> PortLimits {
        limits(&self.governing(pod, self.pods.get(pod).map(|pod| &**pod), port))
    }

    /// The faults of a port, those of all policies.
    fn port_faults(&self, name: &Name, port: u16) -> Vec<Fault> {
        let pod = self.pods.get(name).map(|pod| &**pod);
        let policies = self.port_policies_in(&name.namespace);
        let about = policies.filter(|policy| {
            // First what is true of few.
            !policy.faults.is_empty() && self.is_target(&policy.target, name, pod, port)
        });
        about.flat_map(|policy| &policy.faults).take(limit::FAULTS).cloned().collect()
    }

    /// The ServerPolicies in force at a port.
    pub(super) fn governing(&self, name: &Name, pod: Option<&Pod>, port: u16) -> Governing<'_> {
        let mut governing = Governing::default();
        for policy in self.port_policies_in(&name.namespace).filter(|policy| policy.governs()) {
            if !self.is_target(&policy.target, name, pod, port) {
                continue;
            }
            let level = usize::from(policy.target.port().is_none());
            let place = &mut governing.0[level];
            if place.is_none_or(|have| goes_before(policy, have)) {
                *place = Some(policy);
            }
        }
        governing
    }

    pub(super) fn port_policies_in<'a, 'n>(
        &'a self,
        namespace: &'n str,
    ) -> impl Iterator<Item = &'a PortPolicy> + use<'a, 'n> {
        let from = self.port_policies.range(Name::new(namespace, "")..);
        from.take_while(move |(name, _)| name.namespace == namespace).map(|(_, policy)| &**policy)
    }

    /// The ServerPolicy that goes before another one that is about the same, and whether it does so
    /// everywhere.
    pub(super) fn port_policy_before<'a>(&'a self, name: &Name) -> Option<Before<'a>> {
        let policy = self.port_policies.get(name).filter(|policy| policy.governs())?;
        let rivals: Vec<&PortPolicy> = self
            .port_policies_in(&name.namespace)
            .filter(|rival| rival.governs() && rival.name != *name && goes_before(rival, policy))
            .filter(|rival| rival.target.port().is_some() == policy.target.port().is_some())
            .collect();
        if let Some(same) = rivals.iter().find(|rival| rival.target == policy.target) {
            return Some(Before { policy: &same.name, everywhere: true });
        }
        if rivals.is_empty() {
            return None;
        }
        let pods = self.pods.range(Name::new(&name.namespace, "")..);
        let mut pods = pods.take_while(|(pod, _)| pod.namespace == name.namespace);
        let rival = pods.find_map(|(pod, object)| {
            self.ports_of(object, None).into_iter().find_map(|port| {
                let about = |of: &PortPolicy| self.is_target(&of.target, pod, Some(object), port);
                // First what is false of most ports.
                about(policy).then(|| rivals.iter().find(|rival| about(rival)).copied())?
            })
        });
        rival.map(|rival| Before { policy: &rival.name, everywhere: false })
    }
}

/// Older ones first; names break ties.
fn goes_before(policy: &PortPolicy, other: &PortPolicy) -> bool {
    (policy.created, &policy.name) < (other.created, &other.name)
}

fn limits(governing: &Governing<'_>) -> PortLimits {
    let concurrency = governing.first(|policy| policy.concurrency);
    PortLimits {
        rate: governing.first(|policy| policy.rate_limit.clone()).map(|(_, limit)| limit),
        concurrency: concurrency.map(|(policy, max)| Concurrency { meta: meta(policy), max }),
    }
}

pub(super) fn meta(policy: &PortPolicy) -> Meta {
    Meta::Resource(policy_ref(Kind::ServerPolicy, &policy.name))
}
