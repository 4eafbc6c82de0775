//! What EgressPolicies make of what the workloads of a namespace send out of the mesh.
//!
//! The rules of the namespace and those of the mesh count together, so that what the mesh denies no
//! namespace allows. Of the rest the namespace's default decides before the mesh's; of several policies
//! that say one, a denial. Where there is more than a proxy is told, nothing may leave: a part of the rules
//! would be other rules.

mod others;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::limit;
use mesh_model::Meta;
use mesh_model::egress::{EgressAction, EgressDefault, EgressRules, is_localhost};

pub use self::others::for_others;
use super::Objects;
use super::object::{EgressPolicy, Kind, Name, policy_ref};

/// Items of all policies that concern a namespace.
const MAX_ITEMS: usize = limit::RULES;
/// Hosts, networks and ports of these items.
const MAX_PARTS: usize = 10_000;

/// How much concerns a namespace.
#[derive(Clone, Copy, Debug)]
pub struct EgressSize {
    pub items: usize,
    pub parts: usize,
}

impl EgressSize {
    pub fn is_too_much(self) -> bool {
        self.items > MAX_ITEMS || self.parts > MAX_PARTS
    }
}

impl fmt::Display for EgressSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { items, parts } = self;
        write!(f, "{items} items with {parts} hosts, networks and ports; ")?;
        write!(f, "{MAX_ITEMS} items with {MAX_PARTS} are the most")
    }
}

impl Objects {
    pub fn egress_policies(&self) -> impl Iterator<Item = &Arc<EgressPolicy>> {
        self.egress_policies.values()
    }

    pub fn egress_policy(&self, name: &Name) -> Option<&Arc<EgressPolicy>> {
        self.egress_policies.get(name)
    }

    /// All that decides about what leaves a namespace.
    pub fn egress_rules(&self, namespace: &str) -> EgressRules {
        if self.egress_size(namespace).is_too_much() {
            let meta = Meta::Default("too-many-egress-rules".into());
            let default = EgressDefault { action: EgressAction::Deny, meta };
            return EgressRules { rules: Arc::default(), default };
        }
        let tiers = self.egress_tiers(namespace);
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

    /// How much that is, told or not.
    pub fn egress_size(&self, namespace: &str) -> EgressSize {
        let tiers = self.egress_tiers(namespace);
        let rules = || tiers.iter().flatten().flat_map(|policy| &policy.rules);
        let parts = rules().map(|rule| {
            let networks = rule.networks.iter().map(|network| 1 + network.except.len());
            rule.hosts.len() + networks.sum::<usize>() + rule.ports.len()
        });
        EgressSize { items: rules().count(), parts: parts.sum() }
    }

    /// Whether what goes to an address leaves the mesh.
    pub fn is_outside(&self, ip: IpAddr) -> bool {
        !is_localhost(ip) && self.service_by_ip(ip).is_none() && self.pod_by_ip(ip).is_none()
    }

    /// The policies of a namespace, then those of the mesh.
    fn egress_tiers(&self, namespace: &str) -> [Vec<&EgressPolicy>; 2] {
        let mesh = self.mesh_namespace();
        let tiers = [Some(namespace), Some(mesh).filter(|mesh| *mesh != namespace)];
        tiers.map(|of| of.map(|of| self.egress_policies_in(of)).unwrap_or_default())
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
