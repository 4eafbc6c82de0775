//! What EgressPolicies make of what the workloads of a namespace send out of the mesh.
//!
//! The rules of the namespace and those of the mesh count together, so that what the mesh denies no
//! namespace allows. Of the rest the namespace's default decides before the mesh's; of several policies
//! that say one, a denial.

mod others;

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_model::egress::{EgressAction, EgressDefault, EgressRules, is_localhost};
use mesh_model::{Meta, OutboundPolicy};

pub use self::others::for_others;
use super::Objects;
use super::object::{EgressPolicy, Kind, Name, policy_ref};

impl Objects {
    pub fn egress_policies(&self) -> impl Iterator<Item = &Arc<EgressPolicy>> {
        self.egress_policies.values()
    }

    pub fn egress_policy(&self, name: &Name) -> Option<&Arc<EgressPolicy>> {
        self.egress_policies.get(name)
    }

    /// All that decides about what leaves a namespace.
    pub fn egress_rules(&self, namespace: &str) -> EgressRules {
        let mesh = self.mesh_namespace();
        let tiers = [Some(namespace), Some(mesh).filter(|mesh| *mesh != namespace)];
        let tiers = tiers.map(|of| of.map(|of| self.egress_policies_in(of)).unwrap_or_default());
        let rules = tiers.iter().flatten().flat_map(|policy| policy.rules.iter().cloned());
        let mut rules: Vec<_> = rules.collect();
        // Denials first, so that whoever reads the rules reads them as they work.
        rules.sort_by_key(|rule| rule.action);
        let default = tiers.iter().find_map(|tier| default_of(tier));
        EgressRules {
            rules: rules.into(),
            default: default.unwrap_or_else(|| EgressRules::default().default),
        }
    }

    /// What a proxy that does not know these rules is told of an address, if it is outside of the mesh and
    /// there is anything to tell.
    pub fn egress_policy_of(&self, namespace: &str, addr: SocketAddr) -> Option<OutboundPolicy> {
        let ip = addr.ip();
        if is_localhost(ip) || self.service_by_ip(ip).is_some() || self.pod_by_ip(ip).is_some() {
            return None;
        }
        let opaque = self.address_profile(addr).opaque;
        for_others(&self.egress_rules(namespace), addr, opaque)
    }

    fn egress_policies_in(&self, namespace: &str) -> Vec<&EgressPolicy> {
        let from = self.egress_policies.range(Name::new(namespace, "")..);
        from.take_while(|(name, _)| name.namespace == namespace)
            .map(|(_, policy)| &**policy)
            .collect()
    }
}

fn default_of(policies: &[&EgressPolicy]) -> Option<EgressDefault> {
    let said = policies.iter().filter_map(|policy| Some((policy.default?, &policy.name)));
    // `Deny` sorts first; of the same, the first by name.
    let (action, name): (EgressAction, _) = said.min()?;
    let mut meta = policy_ref(Kind::EgressPolicy, name);
    meta.section = "default".into();
    Some(EgressDefault { action, meta: Meta::Resource(meta) })
}
