//! The endpoints of a service's port: how a set is made, and how two differ.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_model::endpoint::{DEFAULT_WEIGHT, Destination, Endpoint, Http2Params, Labels};
use mesh_model::meta::ResourceRef;
use mesh_model::{Meta, ProtocolHint};

use super::Objects;
use super::object::{EndpointAddress, Name, Pod, Service};
use super::zones::{self, Client};

/// Where proxies take connections from others, with a header that names the application's port.
const PROXY_PORT: u16 = 4143;

/// Everything a balancer hears of one port of a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointSet {
    /// Ready endpoints.
    pub endpoints: BTreeMap<SocketAddr, Arc<Endpoint>>,
    pub labels: Labels,
}

impl EndpointSet {
    /// The messages that lead a reader of `before` here; the whole set when there was nothing
    /// before. Endpoints that did not change are left out: sending one again would cost it what its
    /// clients learned about it.
    pub fn since(&self, before: Option<&Self>) -> Vec<Destination> {
        let Some(before) = before else { return vec![self.whole()] };
        if self.endpoints.is_empty() {
            let was_empty = before.endpoints.is_empty();
            return if was_empty { Vec::new() } else { vec![self.whole()] };
        }
        let removed: Vec<SocketAddr> = before
            .endpoints
            .keys()
            .filter(|addr| !self.endpoints.contains_key(addr))
            .copied()
            .collect();
        let added: Vec<Endpoint> = self
            .endpoints
            .iter()
            .filter(|(addr, endpoint)| before.endpoints.get(addr) != Some(endpoint))
            .map(|(_, endpoint)| (**endpoint).clone())
            .collect();
        let mut messages = Vec::new();
        // New ones first, so that a set that is replaced as a whole is never empty in between.
        if !added.is_empty() {
            messages.push(Destination::Add { endpoints: added, labels: self.labels.clone() });
        }
        if !removed.is_empty() {
            messages.push(Destination::Remove(removed));
        }
        messages
    }

    fn whole(&self) -> Destination {
        if self.endpoints.is_empty() {
            return Destination::NoEndpoints { exists: true };
        }
        let endpoints = self.endpoints.values().map(|endpoint| (**endpoint).clone()).collect();
        Destination::Add { endpoints, labels: self.labels.clone() }
    }
}

impl Objects {
    /// The ready endpoints of a service's port, of all zones; `None` when there is no such port.
    pub fn endpoints(&self, service: &Name, port: u16) -> Option<EndpointSet> {
        self.endpoints_of(service, port, Client::Anybody)
    }

    /// The endpoints that clients in a zone are to use; `None` is where nobody knows.
    pub fn endpoints_from(
        &self,
        service: &Name,
        port: u16,
        zone: Option<&str>,
    ) -> Option<EndpointSet> {
        self.endpoints_of(service, port, Client::In(zone))
    }

    fn endpoints_of(&self, service: &Name, port: u16, client: Client<'_>) -> Option<EndpointSet> {
        let object = self.services.get(service)?;
        let port = object.port(port)?;
        let preference = self.zone_preference(service, port.port);
        let addresses = |wanted: fn(&EndpointAddress) -> bool| {
            self.slices_of(service)
                .filter_map(|slice| {
                    let target = slice.ports.iter().find(|(name, _)| *name == port.name)?.1;
                    Some(slice.addresses.iter().map(move |address| (address, target)))
                })
                .flatten()
                .filter(|(address, _)| {
                    wanted(address)
                        && self.is_known(&service.namespace, address)
                        && zones::may_use(preference, client, address)
                })
                .collect::<Vec<_>>()
        };
        let mut usable = addresses(|address| address.ready);
        zones::keep_near(preference, client, &mut usable);
        if usable.is_empty() {
            // As kube-proxy does, so that the last pods of a rollout can be talked to until they end.
            usable = addresses(|address| address.draining);
        }
        one_family_each(&mut usable, object);
        let mut endpoints = BTreeMap::new();
        for (address, target) in usable {
            let endpoint = self.endpoint(&service.namespace, address, target);
            endpoints.insert(endpoint.addr, Arc::new(endpoint));
        }
        let labels = [("namespace", &service.namespace), ("service", &service.name)]
            .map(|(key, value)| (key.to_owned(), value.clone()));
        Some(EndpointSet { endpoints, labels: Arc::new(labels.into()) })
    }

    /// Whether it is known what is at an address. A pod that is gone, or has not been seen yet, would be one
    /// without identity, and be talked to in the clear.
    fn is_known(&self, namespace: &str, address: &EndpointAddress) -> bool {
        let pod = address.pod.as_ref();
        pod.is_none_or(|pod| self.pods.contains_key(&Name::new(namespace, pod)))
    }

    fn endpoint(&self, namespace: &str, address: &EndpointAddress, port: u16) -> Endpoint {
        let addr = SocketAddr::new(address.ip, port);
        let pod = address.pod.as_ref().and_then(|pod| self.pods.get(&Name::new(namespace, pod)));
        let mut endpoint =
            pod.map_or_else(|| Endpoint::plain(addr), |pod| self.pod_endpoint(pod, addr));
        if let Some(zone) = &address.zone {
            let mut labels = (*endpoint.labels).clone();
            labels.insert("zone".into(), zone.clone());
            endpoint.labels = Arc::new(labels);
        }
        endpoint
    }

    /// A pod's port as an endpoint.
    pub(super) fn pod_endpoint(&self, pod: &Pod, addr: SocketAddr) -> Endpoint {
        let hint = if self.pod_port_is_opaque(pod, addr.port()) {
            ProtocolHint::Opaque
        } else if pod.meshed() {
            ProtocolHint::H2
        } else {
            ProtocolHint::None
        };
        let mut labels = BTreeMap::from([
            ("namespace".to_owned(), pod.name.namespace.clone()),
            ("pod".to_owned(), pod.name.name.clone()),
        ]);
        if let Some((kind, owner)) = &pod.owner {
            labels.insert(kind.as_str().to_ascii_lowercase(), owner.clone());
        }
        let identity = self.tls_identity(pod);
        Endpoint {
            addr,
            weight: DEFAULT_WEIGHT,
            labels: Arc::new(labels),
            hint,
            // Only a proxy that has an identity knows what is behind its TLS.
            opaque_transport: identity.is_some().then_some(PROXY_PORT),
            identity,
            authority_override: None,
            http2: Http2Params::default(),
            resource: Some(Meta::Resource(ResourceRef {
                group: "core".into(),
                kind: "Pod".into(),
                name: pod.name.name.clone(),
                namespace: pod.name.namespace.clone(),
                section: String::new(),
                port: Some(addr.port()),
            })),
        }
    }
}

/// In a dual-stack cluster a pod has an address in a slice of each family. It is one endpoint all the
/// same, in the family of the service's first address.
fn one_family_each(usable: &mut Vec<(&EndpointAddress, u16)>, service: &Service) {
    let v6 = service.cluster_ips.first().is_some_and(IpAddr::is_ipv6);
    let in_family = |address: &EndpointAddress| address.ip.is_ipv6() == v6;
    if usable.iter().all(|(address, _)| in_family(address)) {
        return;
    }
    let pods: HashSet<String> = usable
        .iter()
        .filter(|(address, _)| in_family(address))
        .filter_map(|(address, _)| address.pod.clone())
        .collect();
    usable.retain(|(address, _)| {
        in_family(address) || address.pod.as_ref().is_none_or(|pod| !pods.contains(pod))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(hosts: &[(u8, ProtocolHint)]) -> EndpointSet {
        let endpoints = hosts
            .iter()
            .map(|(host, hint)| {
                let addr = SocketAddr::from(([10, 0, 0, *host], 80));
                (addr, Arc::new(Endpoint { hint: *hint, ..Endpoint::plain(addr) }))
            })
            .collect();
        EndpointSet { endpoints, labels: Labels::default() }
    }

    const NONE: ProtocolHint = ProtocolHint::None;

    #[test]
    fn the_first_message_is_the_whole_set() {
        let first = set(&[(1, NONE), (2, NONE)]).since(None);
        assert!(matches!(&first[..], [Destination::Add { endpoints, .. }] if endpoints.len() == 2));
        assert_eq!(set(&[]).since(None), [Destination::NoEndpoints { exists: true }]);
    }

    #[test]
    fn only_changes_are_sent() {
        let before = set(&[(1, NONE), (2, NONE), (3, NONE)]);
        let after = set(&[(1, NONE), (2, ProtocolHint::H2), (4, NONE)]);
        let messages = after.since(Some(&before));
        let [Destination::Add { endpoints, .. }, Destination::Remove(removed)] = &messages[..]
        else {
            panic!("{messages:?}")
        };
        let added: Vec<u16> = endpoints
            .iter()
            .map(|e| match e.addr.ip() {
                std::net::IpAddr::V4(ip) => u16::from(ip.octets()[3]),
                std::net::IpAddr::V6(_) => 0,
            })
            .collect();
        assert_eq!(added, [2, 4]);
        assert_eq!(removed[..], [SocketAddr::from(([10, 0, 0, 3], 80))]);
        assert_eq!(after.since(Some(&after)), []);
    }

    #[test]
    fn an_emptied_set_says_so_once() {
        let (before, empty) = (set(&[(1, NONE)]), set(&[]));
        assert_eq!(empty.since(Some(&before)), [Destination::NoEndpoints { exists: true }]);
        assert_eq!(empty.since(Some(&empty)), []);
    }
}
