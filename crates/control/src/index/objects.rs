//! The objects, the references among them, and what a change of one touches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::authz::Defaults;
use super::identity::MeshNames;
use super::multimap::Multimap;
use super::object::{
    AuthorizationPolicy, BackendRef, BackendTarget, Certificate, EgressPolicy, EndpointSlice,
    Gateway, GatewayClass, GrpcRoute, HttpRoute, Kind, Name, Namespace, Object, ObjectKey, Pod,
    PortPolicy, PortSet, ReferenceGrant, RouteFilter, RouteHead, RouteRule, Service, TcpRoute,
    TlsRoute, TrafficPolicy, Workload,
};
use super::touched::Touched;

/// The cluster's objects by name, with the reverse of every reference.
///
/// References may point to what is not there (yet), so that objects can come in any order.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub(super) identity: Option<MeshNames>,
    pub(super) namespaces: BTreeMap<String, Arc<Namespace>>,
    pub(super) services: BTreeMap<Name, Arc<Service>>,
    pub(super) slices: BTreeMap<Name, Arc<EndpointSlice>>,
    pub(super) pods: BTreeMap<Name, Arc<Pod>>,
    workloads: BTreeMap<(Kind, Name), Arc<Workload>>,
    pub(super) http_routes: BTreeMap<Name, Arc<HttpRoute>>,
    pub(super) grpc_routes: BTreeMap<Name, Arc<GrpcRoute>>,
    pub(super) tcp_routes: BTreeMap<Name, Arc<TcpRoute>>,
    pub(super) tls_routes: BTreeMap<Name, Arc<TlsRoute>>,
    pub(super) grants: BTreeMap<Name, Arc<ReferenceGrant>>,
    pub(super) gateway_classes: BTreeMap<String, Arc<GatewayClass>>,
    pub(super) gateways: BTreeMap<Name, Arc<Gateway>>,
    pub(super) certificates: BTreeMap<Name, Arc<Certificate>>,
    pub(super) authorization_policies: BTreeMap<Name, Arc<AuthorizationPolicy>>,
    pub(super) port_policies: BTreeMap<Name, Arc<PortPolicy>>,
    pub(super) traffic_policies: BTreeMap<Name, Arc<TrafficPolicy>>,
    pub(super) egress_policies: BTreeMap<Name, Arc<EgressPolicy>>,
    pub(super) defaults: Defaults,

    /// By the slices that say so.
    pub(super) zones_by_node: Multimap<String, (String, Name)>,
    services_by_ip: Multimap<IpAddr, Name>,
    pods_by_address: Multimap<IpAddr, Name>,
    slices_by_service: Multimap<Name, Name>,
    slices_by_pod: Multimap<Name, Name>,
    routes_by_parent: Multimap<Name, (Kind, Name)>,
    /// Services by the services their routes send to.
    pub(super) parents_by_backend: HashMap<Name, BTreeMap<Name, usize>>,
}

impl Objects {
    pub(super) fn new(defaults: Defaults, identity: Option<MeshNames>) -> Self {
        Self { defaults, identity, ..Self::default() }
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    pub fn service(&self, name: &Name) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    pub fn pod(&self, name: &Name) -> Option<&Arc<Pod>> {
        self.pods.get(name)
    }

    pub fn namespace(&self, name: &str) -> Option<&Arc<Namespace>> {
        self.namespaces.get(name)
    }

    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.namespaces.values()
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    pub fn workload(&self, kind: Kind, name: &Name) -> Option<&Arc<Workload>> {
        self.workloads.get(&(kind, name.clone()))
    }

    /// The names of all objects of a kind.
    pub fn names(&self, kind: Kind) -> Vec<Name> {
        match kind {
            Kind::Namespace => self.namespaces.keys().map(|name| Name::new("", name)).collect(),
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slices.keys().cloned().collect(),
            Kind::Pod => self.pods.keys().cloned().collect(),
            Kind::HttpRoute => self.http_routes.keys().cloned().collect(),
            Kind::GrpcRoute => self.grpc_routes.keys().cloned().collect(),
            Kind::TcpRoute => self.tcp_routes.keys().cloned().collect(),
            Kind::TlsRoute => self.tls_routes.keys().cloned().collect(),
            Kind::ReferenceGrant => self.grants.keys().cloned().collect(),
            Kind::GatewayClass => {
                self.gateway_classes.keys().map(|name| Name::new("", name)).collect()
            }
            Kind::Gateway => self.gateways.keys().cloned().collect(),
            Kind::Secret => self.certificates.keys().cloned().collect(),
            Kind::AuthorizationPolicy => self.authorization_policies.keys().cloned().collect(),
            Kind::ServerPolicy => self.port_policies.keys().cloned().collect(),
            Kind::BackendTrafficPolicy => self.traffic_policies.keys().cloned().collect(),
            Kind::EgressPolicy => self.egress_policies.keys().cloned().collect(),
            Kind::Deployment
            | Kind::StatefulSet
            | Kind::DaemonSet
            | Kind::ReplicaSet
            | Kind::Job
            | Kind::CronJob => {
                let all = self.workloads.keys().filter(|(of, _)| *of == kind);
                all.map(|(_, name)| name.clone()).collect()
            }
        }
    }

    pub fn http_routes(&self) -> impl Iterator<Item = &Arc<HttpRoute>> {
        self.http_routes.values()
    }

    pub fn grpc_routes(&self) -> impl Iterator<Item = &Arc<GrpcRoute>> {
        self.grpc_routes.values()
    }

    pub fn http_route(&self, name: &Name) -> Option<&Arc<HttpRoute>> {
        self.http_routes.get(name)
    }

    pub fn grpc_route(&self, name: &Name) -> Option<&Arc<GrpcRoute>> {
        self.grpc_routes.get(name)
    }

    pub fn authorization_policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.authorization_policies.values()
    }

    pub fn port_policies(&self) -> impl Iterator<Item = &Arc<PortPolicy>> {
        self.port_policies.values()
    }

    pub fn authorization_policy(&self, name: &Name) -> Option<&Arc<AuthorizationPolicy>> {
        self.authorization_policies.get(name)
    }

    pub fn port_policy(&self, name: &Name) -> Option<&Arc<PortPolicy>> {
        self.port_policies.get(name)
    }

    pub fn traffic_policies(&self) -> impl Iterator<Item = &Arc<TrafficPolicy>> {
        self.traffic_policies.values()
    }

    pub fn traffic_policy(&self, name: &Name) -> Option<&Arc<TrafficPolicy>> {
        self.traffic_policies.get(name)
    }

    pub fn tcp_routes(&self) -> impl Iterator<Item = &Arc<TcpRoute>> {
        self.tcp_routes.values()
    }

    pub fn tcp_route(&self, name: &Name) -> Option<&Arc<TcpRoute>> {
        self.tcp_routes.get(name)
    }

    pub fn tls_routes(&self) -> impl Iterator<Item = &Arc<TlsRoute>> {
        self.tls_routes.values()
    }

    pub fn tls_route(&self, name: &Name) -> Option<&Arc<TlsRoute>> {
        self.tls_routes.get(name)
    }

    pub fn gateways(&self) -> impl Iterator<Item = &Arc<Gateway>> {
        self.gateways.values()
    }

    pub fn gateway_class(&self, name: &str) -> Option<&Arc<GatewayClass>> {
        self.gateway_classes.get(name)
    }

    pub fn gateway(&self, name: &Name) -> Option<&Arc<Gateway>> {
        self.gateways.get(name)
    }

    /// The service with this cluster address.
    pub fn service_by_ip(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        self.services_by_ip.get(&ip).next().and_then(|name| self.services.get(name))
    }

    /// The pod with this address. An address may pass from one pod to the next, and both be seen
    /// for a while: the one that stays counts.
    pub fn pod_by_ip(&self, ip: IpAddr) -> Option<&Arc<Pod>> {
        self.pods_by_address
            .get(&ip)
            .filter_map(|name| self.pods.get(name))
            .min_by_key(|pod| (pod.terminating, !pod.running))
    }

    /// Every pod with an address of its own, as [`Self::pod_by_ip`] finds it.
    pub fn pods_by_ip(&self) -> BTreeMap<IpAddr, Arc<Pod>> {
        let addresses = self.pods_by_address.keys();
        addresses.filter_map(|ip| Some((*ip, Arc::clone(self.pod_by_ip(*ip)?)))).collect()
    }

    /// The pods behind a service, ready or not.
    pub fn pods_of_service(&self, service: &Name) -> BTreeSet<Name> {
        self.slices_of(service)
            .flat_map(|slice| {
                let pods = slice.addresses.iter().filter_map(|address| address.pod.as_ref());
                pods.map(|pod| Name::new(&slice.name.namespace, pod))
            })
            .collect()
    }

    /// The services a pod is behind.
    pub fn services_of_pod(&self, pod: &Name) -> BTreeSet<Name> {
        let slices = self.slices_with(pod);
        slices.map(|slice| Name::new(&slice.name.namespace, &slice.service)).collect()
    }

    /// The slices with a service's endpoints.
    pub fn slices_of(&self, service: &Name) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.slices_by_service.get(service).filter_map(|name| self.slices.get(name))
    }

    pub(super) fn slices_with(&self, pod: &Name) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.slices_by_pod.get(pod).filter_map(|name| self.slices.get(name))
    }

    pub(super) fn routes_to(&self, parent: &Name) -> impl Iterator<Item = &(Kind, Name)> {
        self.routes_by_parent.get(parent)
    }

    /// The opaque ports of a namespace, if it has its own.
    pub(super) fn namespace_opaque_ports(&self, namespace: &str) -> Option<&PortSet> {
        self.namespaces.get(namespace)?.opaque_ports.as_ref()
    }

    /// A copy in which something is otherwise, for questions.
    #[must_use]
    pub fn with(&self, removed: &[ObjectKey], added: impl IntoIterator<Item = Object>) -> Self {
        let mut copy = self.clone();
        for key in removed {
            copy.delete(key);
        }
        for object in added {
            copy.apply(object);
        }
        copy
    }

    pub(super) fn apply(&mut self, object: Object) -> Touched {
        let mut touched = Touched::default();
        match object {
            Object::Namespace(o) => self.put_namespace(&o.name.clone(), Some(o), &mut touched),
            Object::Service(o) => self.put_service(&o.name.clone(), Some(o), &mut touched),
            Object::EndpointSlice(o) => self.put_slice(&o.name.clone(), Some(o), &mut touched),
            Object::Pod(o) => self.put_pod(&o.name.clone(), Some(o), &mut touched),
            Object::Workload(o) => {
                self.put_workload(o.kind, &o.name.clone(), Some(o), &mut touched)
            }
            Object::HttpRoute(o) => {
                self.put_http_route(&o.head.name.clone(), Some(o), &mut touched)
            }
            Object::GrpcRoute(o) => {
                self.put_grpc_route(&o.head.name.clone(), Some(o), &mut touched)
            }
            Object::TcpRoute(o) => self.put_tcp_route(&o.head.name.clone(), Some(o), &mut touched),
            Object::TlsRoute(o) => self.put_tls_route(&o.head.name.clone(), Some(o), &mut touched),
            Object::ReferenceGrant(o) => self.put_grant(&o.name.clone(), Some(o), &mut touched),
            Object::GatewayClass(o) => {
                touched.edge(replace(&mut self.gateway_classes, o.name.clone(), Some(o)));
            }
            Object::Gateway(o) => {
                touched.edge(replace(&mut self.gateways, o.name.clone(), Some(o)));
            }
            Object::Certificate(o) => {
                touched.edge(replace(&mut self.certificates, o.name.clone(), Some(o)));
            }
            Object::AuthorizationPolicy(o) => {
                let name = o.name.clone();
                touched.policy(
                    &name,
                    replace(&mut self.authorization_policies, name.clone(), Some(o)),
                );
            }
            Object::PortPolicy(o) => self.put_port_policy(&o.name.clone(), Some(o), &mut touched),
            Object::TrafficPolicy(o) => {
                self.put_traffic_policy(&o.name.clone(), Some(o), &mut touched)
            }
            Object::EgressPolicy(o) => {
                touched.leaving(replace(&mut self.egress_policies, o.name.clone(), Some(o)));
            }
        }
        touched
    }

    pub(super) fn delete(&mut self, key: &ObjectKey) -> Touched {
        let mut touched = Touched::default();
        let name = &key.name;
        match key.kind {
            Kind::Namespace => self.put_namespace(&name.name, None, &mut touched),
            Kind::Service => self.put_service(name, None, &mut touched),
            Kind::EndpointSlice => self.put_slice(name, None, &mut touched),
            Kind::Pod => self.put_pod(name, None, &mut touched),
            Kind::HttpRoute => self.put_http_route(name, None, &mut touched),
            Kind::GrpcRoute => self.put_grpc_route(name, None, &mut touched),
            Kind::TcpRoute => self.put_tcp_route(name, None, &mut touched),
            Kind::TlsRoute => self.put_tls_route(name, None, &mut touched),
            Kind::ReferenceGrant => self.put_grant(name, None, &mut touched),
            Kind::GatewayClass => {
                touched.edge(replace(&mut self.gateway_classes, name.name.clone(), None));
            }
            Kind::Gateway => touched.edge(replace(&mut self.gateways, name.clone(), None)),
            Kind::Secret => touched.edge(replace(&mut self.certificates, name.clone(), None)),
            Kind::AuthorizationPolicy => {
                let gone = replace(&mut self.authorization_policies, name.clone(), None);
                touched.policy(name, gone);
            }
            Kind::ServerPolicy => self.put_port_policy(name, None, &mut touched),
            Kind::BackendTrafficPolicy => self.put_traffic_policy(name, None, &mut touched),
            Kind::EgressPolicy => {
                touched.leaving(replace(&mut self.egress_policies, name.clone(), None));
            }
            Kind::Deployment
            | Kind::StatefulSet
            | Kind::DaemonSet
            | Kind::ReplicaSet
            | Kind::Job
            | Kind::CronJob => self.put_workload(key.kind, name, None, &mut touched),
        }
        touched
    }

    fn put_port_policy(&mut self, name: &Name, new: Option<PortPolicy>, touched: &mut Touched) {
        let speaks = |policy: Option<&PortPolicy>| policy.and_then(|policy| policy.protocol);
        let protocol = speaks(new.as_ref());
        let replaced = replace(&mut self.port_policies, name.clone(), new);
        let was = replaced.as_ref().map(|old| speaks(old.as_deref()));
        touched.policy(name, replaced);
        // What a port speaks is also known to those who connect to it.
        if was.is_some_and(|was| was.or(protocol).is_some()) {
            self.touch_pods_of(&name.namespace, touched);
        }
    }

    fn put_traffic_policy(
        &mut self,
        name: &Name,
        new: Option<TrafficPolicy>,
        touched: &mut Touched,
    ) {
        let now = new.as_ref().map(|policy| self.told_of(policy)).unwrap_or_default();
        let replaced = replace(&mut self.traffic_policies, name.clone(), new);
        let Some(old) = replaced else { return };
        touched.changed = true;
        // A gateway's routes have queues and faults, too.
        touched.gateways = true;
        let told: BTreeSet<Name> =
            old.iter().flat_map(|old| self.told_of(old)).chain(now).collect();
        // It, or one that it goes before, may decide about zones.
        touched.endpoints.extend(told.iter().cloned());
        touched.policies.extend(told);
    }

    fn put_namespace(&mut self, name: &str, new: Option<Namespace>, touched: &mut Touched) {
        let opaque = |ns: Option<&Namespace>| ns.and_then(|ns| ns.opaque_ports.clone());
        let access = |ns: Option<&Namespace>| ns.and_then(|ns| ns.default_access);
        let (ports, default) = (opaque(new.as_ref()), access(new.as_ref()));
        let Some(old) = replace(&mut self.namespaces, name.to_owned(), new) else { return };
        touched.changed = true;
        // Its labels may decide whose routes attach.
        touched.gateways = true;
        if access(old.as_deref()) != default {
            touched.namespaces.insert(name.to_owned());
            touched.everywhere = name == self.mesh_namespace();
        }
        if opaque(old.as_deref()) == ports {
            return;
        }
        touched.namespaces.insert(name.to_owned());
        let first = Name::new(name, "");
        for (service, object) in self.services.range(first..) {
            if service.namespace != name {
                break;
            }
            touched.policies.insert(service.clone());
            touched.addresses.extend(&object.cluster_ips);
        }
        self.touch_pods_of(name, touched);
    }

    fn put_service(&mut self, name: &Name, new: Option<Service>, touched: &mut Touched) {
        let ips = new.as_ref().map(|s| s.cluster_ips.clone()).unwrap_or_default();
        let Some(old) = replace(&mut self.services, name.clone(), new) else { return };
        touched.changed = true;
        touched.gateways = true;
        for ip in old.iter().flat_map(|old| &old.cluster_ips) {
            self.services_by_ip.remove(ip, name);
            touched.addresses.insert(*ip);
        }
        for ip in ips {
            self.services_by_ip.insert(ip, name.clone());
            touched.addresses.insert(ip);
        }
        touched.policies.insert(name.clone());
        touched.endpoints.insert(name.clone());
        // Its protocol is a hint for the pods behind it, its existence one for routes to it.
        touched.pods.extend(self.pods_of_service(name));
        if let Some(parents) = self.parents_by_backend.get(name) {
            touched.policies.extend(parents.keys().cloned());
        }
    }

    fn put_slice(&mut self, name: &Name, new: Option<EndpointSlice>, touched: &mut Touched) {
        let new = new.map(Arc::new);
        let Some(old) = replace_arc(&mut self.slices, name.clone(), new.clone()) else { return };
        touched.changed = true;
        touched.zones = self.put_node_zones(name, old.as_deref(), new.as_deref());
        for slice in old.iter().chain(&new) {
            touched.endpoints.insert(Name::new(&name.namespace, &slice.service));
            touched.pods.extend(pods_in(slice));
        }
        if let Some(old) = old {
            let service = Name::new(&name.namespace, &old.service);
            self.slices_by_service.remove(&service, name);
            for pod in pods_in(&old) {
                self.slices_by_pod.remove(&pod, name);
            }
        }
        if let Some(new) = new {
            let service = Name::new(&name.namespace, &new.service);
            self.slices_by_service.insert(service, name.clone());
            for pod in pods_in(&new) {
                self.slices_by_pod.insert(pod, name.clone());
            }
        }
    }

    fn put_pod(&mut self, name: &Name, new: Option<Pod>, touched: &mut Touched) {
        let ips: Vec<IpAddr> = new.iter().flat_map(Pod::own_ips).collect();
        let Some(old) = replace(&mut self.pods, name.clone(), new) else { return };
        touched.changed = true;
        for ip in old.iter().flat_map(|old| old.own_ips()) {
            self.pods_by_address.remove(&ip, name);
            touched.addresses.insert(ip);
        }
        for ip in ips {
            self.pods_by_address.insert(ip, name.clone());
            touched.addresses.insert(ip);
        }
        self.touch_pod(name, touched);
    }

    fn put_workload(
        &mut self,
        kind: Kind,
        name: &Name,
        new: Option<Workload>,
        touched: &mut Touched,
    ) {
        touched.changed |= replace(&mut self.workloads, (kind, name.clone()), new).is_some();
    }

    fn put_http_route(&mut self, name: &Name, new: Option<HttpRoute>, touched: &mut Touched) {
        let refs = new.as_ref().map(|route| Refs::new(&route.head, targets(&route.rules)));
        let Some(old) = replace(&mut self.http_routes, name.clone(), new) else { return };
        let old = old.map(|route| Refs::new(&route.head, targets(&route.rules)));
        self.put_route_refs((Kind::HttpRoute, name.clone()), old, refs, touched);
    }

    fn put_grpc_route(&mut self, name: &Name, new: Option<GrpcRoute>, touched: &mut Touched) {
        let refs = new.as_ref().map(|route| Refs::new(&route.head, targets(&route.rules)));
        let Some(old) = replace(&mut self.grpc_routes, name.clone(), new) else { return };
        let old = old.map(|route| Refs::new(&route.head, targets(&route.rules)));
        self.put_route_refs((Kind::GrpcRoute, name.clone()), old, refs, touched);
    }

    fn put_tcp_route(&mut self, name: &Name, new: Option<TcpRoute>, touched: &mut Touched) {
        let refs = new.as_ref().map(|route| Refs::new(&route.head, of(&route.backends)));
        let Some(old) = replace(&mut self.tcp_routes, name.clone(), new) else { return };
        let old = old.map(|route| Refs::new(&route.head, of(&route.backends)));
        self.put_route_refs((Kind::TcpRoute, name.clone()), old, refs, touched);
    }

    fn put_tls_route(&mut self, name: &Name, new: Option<TlsRoute>, touched: &mut Touched) {
        let refs = new.as_ref().map(|route| Refs::new(&route.head, of(&route.backends)));
        let Some(old) = replace(&mut self.tls_routes, name.clone(), new) else { return };
        let old = old.map(|route| Refs::new(&route.head, of(&route.backends)));
        self.put_route_refs((Kind::TlsRoute, name.clone()), old, refs, touched);
    }

    /// It decides about routes that send to Services of its namespace.
    fn put_grant(&mut self, name: &Name, new: Option<ReferenceGrant>, touched: &mut Touched) {
        if replace(&mut self.grants, name.clone(), new).is_none() {
            return;
        }
        touched.changed = true;
        touched.gateways = true;
        let granted = self.parents_by_backend.iter();
        let granted = granted.filter(|(backend, _)| backend.namespace == name.namespace);
        touched.policies.extend(granted.flat_map(|(_, parents)| parents.keys().cloned()));
    }

    fn put_route_refs(
        &mut self,
        route: (Kind, Name),
        old: Option<Refs>,
        new: Option<Refs>,
        touched: &mut Touched,
    ) {
        touched.changed = true;
        touched.gateways = true;
        // Policies may be about the route's requests, which end at these pods.
        for parent in old.iter().chain(&new).flat_map(|refs| &refs.parents) {
            touched.pods.extend(self.pods_of_service(parent));
        }
        if let Some(old) = old {
            for parent in &old.parents {
                self.routes_by_parent.remove(parent, &route);
                for backend in &old.backends {
                    self.unlink(backend, parent);
                }
            }
            touched.policies.extend(old.parents);
        }
        if let Some(new) = new {
            for parent in &new.parents {
                self.routes_by_parent.insert(parent.clone(), route.clone());
                for backend in &new.backends {
                    let parents = self.parents_by_backend.entry(backend.clone()).or_default();
                    *parents.entry(parent.clone()).or_default() += 1;
                }
            }
            touched.policies.extend(new.parents);
        }
    }

    fn unlink(&mut self, backend: &Name, parent: &Name) {
        let Some(parents) = self.parents_by_backend.get_mut(backend) else { return };
        if let Some(routes) = parents.get_mut(parent) {
            *routes -= 1;
            if *routes == 0 {
                parents.remove(parent);
            }
        }
        if parents.is_empty() {
            self.parents_by_backend.remove(backend);
        }
    }

    fn touch_pods_of(&self, namespace: &str, touched: &mut Touched) {
        for (pod, object) in self.pods.range(Name::new(namespace, "")..) {
            if pod.namespace != namespace {
                break;
            }
            self.touch_pod(pod, touched);
            touched.addresses.extend(object.own_ips());
        }
    }

    fn touch_pod(&self, pod: &Name, touched: &mut Touched) {
        touched.pods.insert(pod.clone());
        for slice in self.slices_with(pod) {
            touched.endpoints.insert(Name::new(&slice.name.namespace, &slice.service));
        }
    }
}

/// The services a route refers to.
struct Refs {
    parents: BTreeSet<Name>,
    backends: BTreeSet<Name>,
}

impl Refs {
    fn new<'a>(head: &RouteHead, targets: impl Iterator<Item = &'a BackendTarget>) -> Self {
        Self {
            parents: head.parents.iter().map(|parent| parent.service.clone()).collect(),
            backends: targets
                .filter_map(|target| match target {
                    BackendTarget::Service { service, .. } => Some(service.clone()),
                    BackendTarget::Unusable(_) => None,
                })
                .collect(),
        }
    }
}

/// All that rules send to, mirrored requests included.
fn targets<M>(rules: &[RouteRule<M>]) -> impl Iterator<Item = &BackendTarget> {
    rules.iter().flat_map(|rule| {
        let filters = rule.backends.iter().flat_map(|backend| &backend.filters);
        of(&rule.backends).chain(rule.filters.iter().chain(filters).filter_map(mirrored))
    })
}

fn mirrored(filter: &RouteFilter) -> Option<&BackendTarget> {
    match filter {
        RouteFilter::Mirror { target, .. } => Some(target),
        RouteFilter::Is(_) => None,
    }
}

fn of(backends: &[BackendRef]) -> impl Iterator<Item = &BackendTarget> {
    backends.iter().map(|backend| &backend.target)
}

fn pods_in(slice: &EndpointSlice) -> BTreeSet<Name> {
    let pods = slice.addresses.iter().filter_map(|address| address.pod.as_ref());
    pods.map(|pod| Name::new(&slice.name.namespace, pod)).collect()
}

/// Puts or removes a value; `None` when that changes nothing, else what was there.
fn replace<K: Ord, V: PartialEq>(
    map: &mut BTreeMap<K, Arc<V>>,
    key: K,
    new: Option<V>,
) -> Option<Option<Arc<V>>> {
    replace_arc(map, key, new.map(Arc::new))
}

fn replace_arc<K: Ord, V: PartialEq>(
    map: &mut BTreeMap<K, Arc<V>>,
    key: K,
    new: Option<Arc<V>>,
) -> Option<Option<Arc<V>>> {
    if map.get(&key) == new.as_ref() {
        return None;
    }
    Some(match new {
        Some(new) => map.insert(key, new),
        None => map.remove(&key),
    })
}
