//! Where clients are, and which of a service's endpoints they are to use because of that.
//!
//! Without a policy it is what the cluster's own proxies do: hints of EndpointSlices, which come of the
//! Service's `trafficDistribution` or `topology-mode`, count if every ready endpoint has some and one of
//! them is for the client's zone.

use std::collections::BTreeSet;

use super::Objects;
use super::object::{EndpointAddress, EndpointSlice, Name, ZonePreference};

/// Whose endpoints are asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Client<'a> {
    /// Nobody's: all there are.
    Anybody,
    /// In a zone, or where nobody knows.
    In(Option<&'a str>),
}

impl Client<'_> {
    fn is_in(self, zone: Option<&str>) -> bool {
        matches!(self, Self::In(Some(own)) if zone == Some(own))
    }
}

impl Objects {
    /// The zone that a pod is in, as far as that can be told without knowing nodes: by its own label, by
    /// what an EndpointSlice says of it, or of another endpoint of its node.
    pub fn zone_of(&self, pod: &Name) -> Option<&str> {
        let object = self.pods.get(pod);
        let labelled = object.and_then(|pod| pod.zone.as_deref());
        let of_slices = || {
            self.slices_with(pod).find_map(|slice| {
                let mut own = slice.addresses.iter();
                own.find(|address| address.pod.as_ref() == Some(&pod.name))?.zone.as_deref()
            })
        };
        let of_node = || self.zone_of_node(object?.node.as_deref()?);
        labelled.or_else(of_slices).or_else(of_node)
    }

    /// What policies say about the zones of a service's port.
    pub fn zone_preference(&self, service: &Name, port: u16) -> Option<ZonePreference> {
        self.traffic(service, port).first(|policy| policy.zones)
    }

    /// Takes a slice's word on the zones of nodes instead of what it said before; true if that leaves a
    /// node in another zone than it was known to be in.
    pub(super) fn put_node_zones(
        &mut self,
        slice: &Name,
        old: Option<&EndpointSlice>,
        new: Option<&EndpointSlice>,
    ) -> bool {
        let (old, new) = (of_nodes(old), of_nodes(new));
        let (said, unsaid) = (new.difference(&old), old.difference(&new));
        let mut moved = false;
        // New ones first: what two slices say in turn moves nobody.
        for (is_said, (node, zone)) in said.map(|of| (true, of)).chain(unsaid.map(|of| (false, of)))
        {
            let node = (*node).to_owned();
            let word = ((*zone).to_owned(), slice.clone());
            let before = self.zone_of_node(&node).map(str::to_owned);
            match is_said {
                true => self.zones_by_node.insert(node.clone(), word),
                false => self.zones_by_node.remove(&node, &word),
            }
            moved |= self.zone_of_node(&node) != before.as_deref();
        }
        moved
    }

    fn zone_of_node(&self, node: &str) -> Option<&str> {
        self.zones_by_node.get(node).next().map(|(zone, _)| zone.as_str())
    }
}

/// The nodes that a slice names, with their zones.
fn of_nodes(slice: Option<&EndpointSlice>) -> BTreeSet<(&str, &str)> {
    let all = slice.into_iter().flat_map(|slice| &slice.addresses);
    all.filter_map(|address| Some((address.node.as_deref()?, address.zone.as_deref()?))).collect()
}

/// Whether a client may use an address at all.
pub(super) fn may_use(
    preference: Option<ZonePreference>,
    client: Client<'_>,
    address: &EndpointAddress,
) -> bool {
    match (preference, client) {
        (Some(ZonePreference::Require), Client::In(_)) => client.is_in(address.zone.as_deref()),
        _ => true,
    }
}

/// Leaves a client those of ready addresses that it is to use.
pub(super) fn keep_near(
    preference: Option<ZonePreference>,
    client: Client<'_>,
    ready: &mut Vec<(&EndpointAddress, u16)>,
) {
    let Client::In(Some(_)) = client else { return };
    let is_near = |address: &EndpointAddress| match preference {
        None => address.hints.iter().any(|zone| client.is_in(Some(zone))),
        Some(_) => client.is_in(address.zone.as_deref()),
    };
    match preference {
        Some(ZonePreference::Ignore | ZonePreference::Require) => return,
        Some(ZonePreference::Prefer) => {}
        // Whoever made the hints has not seen all of them yet.
        None if ready.iter().any(|(address, _)| address.hints.is_empty()) => return,
        None => {}
    }
    if ready.iter().any(|(address, _)| is_near(address)) {
        ready.retain(|(address, _)| is_near(address));
    }
}
