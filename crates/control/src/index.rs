//! The index: what the cluster looks like, and what each proxy is to be told about it.
//!
//! A plain synchronous structure. A source (`crate::source`) calls [`Index::apply`] and
//! [`Index::delete`]; the gRPC services (`crate::services`) call the `watch_*` methods. Everything
//! told is a pure function of the objects held ([`Objects`]), so the order in which they came
//! cannot matter; an event recomputes only what it touches, and only what somebody watches.
//!
//! Read next: [`object`] for what is held, [`policy`] and [`endpoints`] for what is made of it.

pub mod authz;
pub mod conflicts;
mod egress;
pub mod endpoints;
pub mod gateway;
pub mod identity;
pub mod lookup;
mod multimap;
pub mod object;
mod objects;
pub mod policy;
mod ports;
pub mod routes;
#[cfg(test)]
mod tests;
mod touched;
mod traffic;
mod watches;
mod zones;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_model::egress::EgressRules;
use mesh_model::gateway::GatewayConfig;
use mesh_model::inbound::{PortExtension, ServerPolicy};
use mesh_model::outbound::BackendExtension;
use mesh_model::{OutboundPolicy, Profile};
use tokio::sync::watch;

use self::authz::Defaults;
pub use self::egress::for_others as egress_for_others;
use self::endpoints::EndpointSet;
use self::identity::MeshNames;
use self::object::{Name, Object, ObjectKey};
pub use self::objects::Objects;
use self::touched::Touched;
use self::watches::Watches;

/// What is watched is shared by its watchers.
pub type Watched<T> = watch::Receiver<Arc<T>>;

/// Where somebody is; `None` where nobody knows.
pub type Zone = Option<Arc<str>>;

/// See [`Index::watched`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchedCounts {
    pub outbound: usize,
    pub endpoints: usize,
    pub profiles: usize,
    pub servers: usize,
}

/// The objects and those who watch what follows from them.
#[derive(Debug)]
pub struct Index {
    objects: Objects,
    outbound: Watches<Name, (u16, String), Arc<OutboundPolicy>>,
    /// By port and zone.
    endpoints: Watches<Name, (u16, Zone), Arc<EndpointSet>>,
    /// Where pods are.
    zones: Watches<Name, (), Zone>,
    backends: Watches<Name, u16, Arc<BackendExtension>>,
    service_profiles: Watches<Name, u16, Arc<Profile>>,
    address_profiles: Watches<IpAddr, u16, Arc<Profile>>,
    servers: Watches<Name, u16, Arc<ServerPolicy>>,
    ports: Watches<Name, u16, Arc<PortExtension>>,
    /// By namespace.
    egress: Watches<String, (), Arc<EgressRules>>,
    /// There is one edge only.
    gateway: Watches<(), (), Arc<GatewayConfig>>,
    revision: watch::Sender<u64>,
}

/// Changes that nobody is told of before it is dropped. See [`Index::batch`].
#[derive(Debug)]
pub struct Batch<'a> {
    index: &'a mut Index,
    touched: Touched,
}

impl Batch<'_> {
    /// As [`Index::apply`].
    pub fn apply(&mut self, object: Object) {
        self.touched.add(self.index.objects.apply(object));
    }

    /// As [`Index::delete`].
    pub fn delete(&mut self, key: &ObjectKey) {
        self.touched.add(self.index.objects.delete(key));
    }

    /// As they are by now.
    pub fn objects(&self) -> &Objects {
        &self.index.objects
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        // What is different from before was so after some change, which said that it touched it.
        self.index.refresh(std::mem::take(&mut self.touched));
    }
}

impl Default for Index {
    fn default() -> Self {
        Self::new(Defaults::default(), None)
    }
}

impl Index {
    /// An empty one; `defaults` apply where no object says anything else, `identity` is how pods are
    /// called that have identities.
    pub fn new(defaults: Defaults, identity: Option<MeshNames>) -> Self {
        Self {
            objects: Objects::new(defaults, identity),
            outbound: Watches::default(),
            endpoints: Watches::default(),
            zones: Watches::default(),
            backends: Watches::default(),
            service_profiles: Watches::default(),
            address_profiles: Watches::default(),
            servers: Watches::default(),
            ports: Watches::default(),
            egress: Watches::default(),
            gateway: Watches::default(),
            revision: watch::Sender::new(0),
        }
    }

    /// Adds an object, or replaces the one of the same key.
    pub fn apply(&mut self, object: Object) {
        self.batch().apply(object);
    }

    /// Removes an object, if it is there.
    pub fn delete(&mut self, key: &ObjectKey) {
        self.batch().delete(key);
    }

    /// For changes that belong together: who watches is told once, of all of them.
    pub fn batch(&mut self) -> Batch<'_> {
        Batch { index: self, touched: Touched::default() }
    }

    /// The objects, and pure functions of them.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// How many different things are watched, by kind.
    pub fn watched(&self) -> WatchedCounts {
        WatchedCounts {
            outbound: self.outbound.len(),
            endpoints: self.endpoints.len(),
            profiles: self.service_profiles.len() + self.address_profiles.len(),
            servers: self.servers.len(),
        }
    }

    /// A number that changes with the objects.
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// The policy for a service's port as clients in `client` (a namespace) have it; `None` when
    /// there is no such port. Ends when the port goes away.
    pub fn watch_outbound(
        &mut self,
        service: &Name,
        port: u16,
        client: &str,
    ) -> Option<Watched<OutboundPolicy>> {
        let policy = Arc::new(self.objects.outbound_policy(service, port, client)?);
        Some(self.outbound.subscribe(service.clone(), (port, client.to_owned()), policy))
    }

    /// The endpoints of a service's port for clients in a zone; `None` when there is no such port. Ends
    /// when it goes.
    pub fn watch_endpoints(
        &mut self,
        service: &Name,
        port: u16,
        zone: &Zone,
    ) -> Option<Watched<EndpointSet>> {
        let set = Arc::new(self.objects.endpoints_from(service, port, zone.as_deref())?);
        Some(self.endpoints.subscribe(service.clone(), (port, zone.clone()), set))
    }

    /// The zone of a pod, known or not.
    pub fn watch_zone(&mut self, pod: &Name) -> watch::Receiver<Zone> {
        let zone = self.objects.zone_of(pod).map(Arc::from);
        self.zones.subscribe(pod.clone(), (), zone)
    }

    /// What the linkerd2 API cannot say of a service's port, also when there is no such service (yet).
    pub fn watch_backend(&mut self, service: &Name, port: u16) -> Watched<BackendExtension> {
        let extension = Arc::new(self.objects.backend_extension(service, port));
        self.backends.subscribe(service.clone(), port, extension)
    }

    /// The profile of a service's port; `None` when there is no such port. Ends when it goes.
    pub fn watch_service_profile(&mut self, service: &Name, port: u16) -> Option<Watched<Profile>> {
        let profile = Arc::new(self.objects.service_profile(service, port)?);
        Some(self.service_profiles.subscribe(service.clone(), port, profile))
    }

    /// The profile of an address, which may be a service's, a pod's or nobody's.
    pub fn watch_address_profile(&mut self, addr: SocketAddr) -> Watched<Profile> {
        let profile = Arc::new(self.objects.address_profile(addr));
        self.address_profiles.subscribe(addr.ip(), addr.port(), profile)
    }

    /// The policy of a pod's own port, known or not: a proxy may start before its pod is seen.
    pub fn watch_server(&mut self, pod: &Name, port: u16) -> Watched<ServerPolicy> {
        let policy = Arc::new(self.objects.server_policy(pod, port));
        self.servers.subscribe(pod.clone(), port, policy)
    }

    /// All the rules of a pod's own port, known or not.
    pub fn watch_port(&mut self, pod: &Name, port: u16) -> Watched<PortExtension> {
        let rules = Arc::new(self.objects.port_extension(pod, port));
        self.ports.subscribe(pod.clone(), port, rules)
    }

    /// What workloads of a namespace may send out of the mesh.
    pub fn watch_egress(&mut self, namespace: &str) -> Watched<EgressRules> {
        let rules = egress_rules(&self.objects, namespace);
        self.egress.subscribe(namespace.to_owned(), (), rules)
    }

    /// What the proxy at the edge listens on.
    pub fn watch_gateway(&mut self) -> Watched<GatewayConfig> {
        let config = Arc::new(self.objects.gateway_config());
        self.gateway.subscribe((), (), config)
    }

    fn refresh(&mut self, mut touched: Touched) {
        if !touched.changed {
            return;
        }
        let objects = &self.objects;
        if touched.gateways {
            self.gateway.refresh(&(), |()| Some(Arc::new(objects.gateway_config())));
        }
        if touched.egress {
            let namespaces: Vec<String> = self.egress.owners().cloned().collect();
            for of in &namespaces {
                self.egress.refresh(of, |()| Some(egress_rules(objects, of)));
            }
        }
        for service in &touched.policies {
            self.outbound.refresh(service, |(port, client)| {
                objects.outbound_policy(service, *port, client).map(Arc::new)
            });
            self.service_profiles
                .refresh(service, |port| objects.service_profile(service, *port).map(Arc::new));
            self.backends
                .refresh(service, |port| Some(Arc::new(objects.backend_extension(service, *port))));
        }
        let (namespaces, everywhere) =
            (std::mem::take(&mut touched.namespaces), touched.everywhere);
        let watched = self.servers.owners().chain(self.ports.owners());
        let affected = |pod: &&Name| everywhere || namespaces.contains(&pod.namespace);
        touched.pods.extend(watched.filter(affected).cloned());
        let moved: Vec<Name> = match touched.zones {
            true => self.zones.owners().cloned().collect(),
            false => touched.pods.iter().cloned().collect(),
        };
        for pod in &moved {
            self.zones.refresh(pod, |()| Some(objects.zone_of(pod).map(Arc::from)));
        }
        // After the zones: who is told of endpoints knows of which by then.
        for service in &touched.endpoints {
            self.endpoints.refresh(service, |(port, zone)| {
                objects.endpoints_from(service, *port, zone.as_deref()).map(Arc::new)
            });
        }
        for pod in &touched.pods {
            self.ports.refresh(pod, |port| Some(Arc::new(objects.port_extension(pod, *port))));
            self.servers.refresh(pod, |port| Some(Arc::new(objects.server_policy(pod, *port))));
        }
        for ip in &touched.addresses {
            self.address_profiles.refresh(ip, |port| {
                Some(Arc::new(objects.address_profile(SocketAddr::new(*ip, *port))))
            });
        }
        self.revision.send_modify(|revision| *revision += 1);
    }
}

fn egress_rules(objects: &Objects, namespace: &str) -> Arc<EgressRules> {
    let size = objects.egress_size(namespace);
    if size.is_too_much() {
        tracing::warn!(namespace, %size, "nothing may leave: too many items of EgressPolicies");
    }
    Arc::new(objects.egress_rules(namespace))
}
