//! What an event may have changed, of all that is told.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::object::Name;

/// What may be different after an event. Namespaced names of services and pods, addresses.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) changed: bool,
    pub(super) policies: BTreeSet<Name>,
    pub(super) endpoints: BTreeSet<Name>,
    pub(super) pods: BTreeSet<Name>,
    /// All pods of which, known or not.
    pub(super) namespaces: BTreeSet<String>,
    /// All pods there are.
    pub(super) everywhere: bool,
    /// What may leave the mesh.
    pub(super) egress: bool,
    /// What Gateways do.
    pub(super) gateways: bool,
    /// Where nodes are.
    pub(super) zones: bool,
    pub(super) addresses: BTreeSet<IpAddr>,
}

impl Touched {
    /// What is touched by both.
    pub(super) fn add(&mut self, other: Self) {
        let Self {
            changed,
            policies,
            endpoints,
            pods,
            namespaces,
            everywhere,
            egress,
            gateways,
            zones,
            addresses,
        } = other;
        self.changed |= changed;
        self.policies.extend(policies);
        self.endpoints.extend(endpoints);
        self.pods.extend(pods);
        self.namespaces.extend(namespaces);
        self.everywhere |= everywhere;
        self.egress |= egress;
        self.gateways |= gateways;
        self.zones |= zones;
        self.addresses.extend(addresses);
    }

    /// A policy that was replaced, unless nothing changed: it is about its own namespace.
    pub(super) fn policy<V>(&mut self, name: &Name, replaced: Option<V>) {
        if replaced.is_some() {
            self.changed = true;
            self.namespaces.insert(name.namespace.clone());
        }
    }

    /// A policy of what leaves was replaced, unless nothing changed.
    pub(super) fn leaving<V>(&mut self, replaced: Option<V>) {
        if replaced.is_some() {
            self.changed = true;
            self.egress = true;
        }
    }

    /// Something was replaced that only Gateways have to do with, unless nothing changed.
    pub(super) fn edge<V>(&mut self, replaced: Option<V>) {
        if replaced.is_some() {
            self.changed = true;
            self.gateways = true;
        }
    }
}
