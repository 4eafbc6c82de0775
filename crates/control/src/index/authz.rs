//! Who may do what on a pod's port: which policies are about it, and what their rules are there.
//!
//! Pure functions of the objects, as all that proxies are told. [`others`] says the same, or less, in
//! the words of the linkerd2 API for proxies that do not know ours.

mod others;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use mesh_model::Meta;
use mesh_model::authz::{
    AuthorizationRule, DefaultAccess, DefaultRule, PortAuthz, RouteScope, canonical,
};
use mesh_model::inbound::Cidr;
use mesh_model::matching::Pattern;
use mesh_model::route::{GrpcMatch, HttpMatch, PathMatch};

pub(super) use self::others::{everybody, for_others, labels};
use super::Objects;
use super::object::{
    AuthorizationPolicy, Kind, Name, Pod, PolicyTarget, PortRef, RouteHead, RouteRule, policy_ref,
    route_ref,
};
use super::ports;

/// Where a proxy itself answers: for `tap` and its figures; and about its state, which kubelets ask for.
pub const PROXY_PORTS: [u16; 2] = [4190, 4191];

/// The control plane's namespace. Its annotations are the mesh's.
pub const MESH_NAMESPACE: &str = "mesh-system";

/// What applies where no object says anything else.
#[derive(Clone, Debug)]
pub struct Defaults {
    pub access: DefaultAccess,
    /// The networks of the cluster.
    pub cluster: Arc<[Cidr]>,
}

impl Default for Defaults {
    /// Everybody may do everything, and private addresses are the cluster's.
    fn default() -> Self {
        let v4 = |a, b, prefix| Cidr { addr: IpAddr::V4(Ipv4Addr::new(a, b, 0, 0)), prefix };
        let unique_local = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0);
        Self {
            access: DefaultAccess::AllUnauthenticated,
            cluster: Arc::new([
                v4(10, 0, 8),
                v4(100, 64, 10),
                v4(172, 16, 12),
                v4(192, 168, 16),
                // The pods of a mesh on one machine.
                v4(127, 0, 8),
                Cidr { addr: IpAddr::V6(unique_local), prefix: 8 },
            ]),
        }
    }
}

impl Objects {
    /// All that decides who may use a pod's port. While the pod is not seen yet, it cannot be said
    /// which policies are about it; if there are any that could be, nobody may. A proxy's own ports are
    /// no part of the workload: it would not be ready where the workload lets nobody in.
    pub fn port_authz(&self, pod: &Name, port: u16) -> PortAuthz {
        let object = self.pods.get(pod).map(|pod| &**pod);
        let mut rules = Vec::new();
        for policy in self.policies_in(&pod.namespace) {
            let of = |route| AuthorizationRule {
                meta: Meta::Resource(policy_ref(Kind::AuthorizationPolicy, &policy.name)),
                action: policy.action,
                route,
                from: policy.from.clone(),
                to: policy.to.clone(),
            };
            match &policy.target {
                PolicyTarget::Route { kind, name, .. } => {
                    rules.extend(self.scope(*kind, name, pod, port).map(|scope| of(Some(scope))));
                }
                target if self.is_target(target, pod, object, port) => rules.push(of(None)),
                _ => {}
            }
        }
        // Denials first, so that whoever reads the rules reads them as they work.
        rules.sort_by_key(|rule| rule.action);
        let probes = object.into_iter().flat_map(|pod| &pod.probes);
        PortAuthz {
            rules: rules.into(),
            default: self.default_rule(pod, object, port),
            probes: probes.filter(|p| p.port == port).map(|p| p.probe.clone()).collect(),
        }
    }

    /// The ports of a pod that it declares or that services send to; of one service, those it does.
    pub fn ports_of(&self, pod: &Pod, service: Option<&Name>) -> BTreeSet<u16> {
        let slices = self.slices_with(&pod.name).filter(|slice| {
            let of = Name::new(&slice.name.namespace, &slice.service);
            service.is_none_or(|service| *service == of)
        });
        let targets = slices.flat_map(|slice| slice.ports.iter().map(|(_, target)| *target));
        let declared = pod.ports.iter().filter(|_| service.is_none()).map(|port| port.port);
        targets.chain(declared).collect()
    }

    /// The pods behind a service's port, ready or not, and their ports.
    pub fn targets_of(&self, service: &Name, port: u16) -> BTreeSet<(Name, u16)> {
        let found = self.services.get(service).and_then(|object| object.port(port));
        let Some(name) = found.map(|port| &port.name) else { return BTreeSet::new() };
        let slices = self.slices_of(service).flat_map(|slice| {
            let target = slice.ports.iter().find(|(of, _)| of == name).map(|(_, target)| *target);
            let pods = slice.addresses.iter().filter_map(|address| address.pod.as_ref());
            pods.filter_map(move |pod| Some((Name::new(&slice.name.namespace, pod), target?)))
        });
        slices.collect()
    }

    /// Where the control plane lives.
    pub(super) fn mesh_namespace(&self) -> &str {
        self.identity().map_or(MESH_NAMESPACE, |names| &names.control_namespace)
    }

    fn policies_in<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a AuthorizationPolicy> {
        let from = self.authorization_policies.range(Name::new(namespace, "")..);
        from.take_while(move |(name, _)| name.namespace == namespace).map(|(_, policy)| &**policy)
    }

    /// Of the port's own policy, then the pod, its namespace, the mesh.
    fn default_rule(&self, name: &Name, pod: Option<&Pod>, port: u16) -> DefaultRule {
        let cluster = Arc::clone(&self.defaults.cluster);
        let governing = self.governing(name, pod, port);
        if let Some((policy, access)) = governing.first(|policy| policy.default_access) {
            return DefaultRule { access, meta: ports::meta(policy), cluster };
        }
        if PROXY_PORTS.contains(&port) {
            let access = DefaultAccess::AllUnauthenticated;
            return DefaultRule { access, meta: Meta::Default(access.as_str().into()), cluster };
        }
        let of_namespace = |name: &str| self.namespaces.get(name).and_then(|ns| ns.default_access);
        let access = match pod {
            None if self.may_be_restricted(&name.namespace) => DefaultAccess::Deny,
            _ => pod
                .and_then(|pod| pod.default_access)
                .or_else(|| of_namespace(&name.namespace))
                .or_else(|| of_namespace(self.mesh_namespace()))
                .unwrap_or(self.defaults.access),
        };
        DefaultRule { access, meta: Meta::Default(access.as_str().into()), cluster }
    }

    /// Whether policies of a namespace could be about a pod that nobody has seen yet.
    fn may_be_restricted(&self, namespace: &str) -> bool {
        self.policies_in(namespace).any(|policy| policy.target != PolicyTarget::Namespace)
            || self.port_policies_in(namespace).any(|policy| policy.default_access.is_some())
    }

    /// Whether a policy's target is the port, or what the port belongs to. Routes are not.
    pub fn is_target(
        &self,
        target: &PolicyTarget,
        name: &Name,
        pod: Option<&Pod>,
        port: u16,
    ) -> bool {
        if PROXY_PORTS.contains(&port) {
            return false;
        }
        match target {
            PolicyTarget::Namespace => true,
            PolicyTarget::Workload { kind, name, port: wanted } => pod.is_some_and(|pod| {
                let owned = pod.owner.as_ref().is_some_and(|(of, n)| of == kind && n == name);
                owned && is_port(pod, wanted.as_ref(), port)
            }),
            PolicyTarget::Pods { labels, port: wanted } => pod.is_some_and(|pod| {
                labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
                    && is_port(pod, wanted.as_ref(), port)
            }),
            PolicyTarget::Service { name: service, port: wanted } => {
                self.service_ports_of(name, port).any(|(of, name, number)| {
                    of.name == *service
                        && wanted.as_ref().is_none_or(|wanted| wanted.is(name, number))
                })
            }
            PolicyTarget::Route { .. } => false,
        }
    }

    /// The ports of services that send to a pod's port: service, name and number.
    fn service_ports_of<'a>(
        &'a self,
        pod: &'a Name,
        port: u16,
    ) -> impl Iterator<Item = (&'a Name, &'a str, u16)> {
        self.slices_with(pod).flat_map(move |slice| {
            let service = self.services.get(&Name::new(&slice.name.namespace, &slice.service));
            let names = slice.ports.iter().filter(move |(_, target)| *target == port);
            names.filter_map(move |(name, _)| {
                let service = service?;
                let port = service.ports.iter().find(|port| port.name == *name)?;
                Some((&service.name, port.name.as_str(), port.port))
            })
        })
    }

    /// The requests of a route, if it is one of a pod's port.
    fn scope(&self, kind: Kind, route: &str, pod: &Name, port: u16) -> Option<RouteScope> {
        let name = Name::new(&pod.namespace, route);
        let leads_here = |head: &RouteHead| {
            let mut ports = self.service_ports_of(pod, port);
            ports.any(|(service, _, number)| self.attaches(head, service, number))
        };
        let (hosts, matches) = match kind {
            Kind::GrpcRoute => {
                let route = self.grpc_routes.get(&name).filter(|route| leads_here(&route.head))?;
                (&route.hosts, all_matches(&route.rules, grpc_match))
            }
            _ => {
                let route = self.http_routes.get(&name).filter(|route| leads_here(&route.head))?;
                (&route.hosts, all_matches(&route.rules, http_match))
            }
        };
        let meta = Meta::Resource(route_ref(kind, &name));
        Some(RouteScope { route: meta, hosts: hosts.clone(), matches })
    }
}

fn is_port(pod: &Pod, wanted: Option<&PortRef>, port: u16) -> bool {
    let Some(wanted) = wanted else { return true };
    let named = pod.ports.iter().find(|declared| declared.port == port);
    wanted.is(named.map_or("", |declared| declared.name.as_str()), port)
}

/// The matches of all rules; none at all if one of the rules takes any request.
fn all_matches<M>(rules: &[RouteRule<M>], convert: fn(&M) -> HttpMatch) -> Vec<HttpMatch> {
    if rules.iter().any(|rule| rule.matches.is_empty()) {
        return Vec::new();
    }
    rules.iter().flat_map(|rule| &rule.matches).map(convert).collect()
}

/// With its path in the form in which paths are compared.
fn http_match(matched: &HttpMatch) -> HttpMatch {
    let form = |path: &String| canonical(path).map_or_else(|_| path.clone(), Into::into);
    let path = matched.path.as_ref().map(|path| match path {
        PathMatch::Exact(path) => PathMatch::Exact(form(path)),
        PathMatch::Prefix(path) => PathMatch::Prefix(form(path)),
        PathMatch::Regex(pattern) => PathMatch::Regex(pattern.clone()),
    });
    HttpMatch { path, ..matched.clone() }
}

/// gRPC methods are paths.
fn grpc_match(matched: &GrpcMatch) -> HttpMatch {
    let named = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let path = match (named(&matched.service), named(&matched.method)) {
        (None, None) => None,
        (Some(service), None) => Some(PathMatch::Prefix(format!("/{service}"))),
        (Some(service), Some(method)) => Some(PathMatch::Exact(format!("/{service}/{method}"))),
        (None, Some(method)) => {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let escaped: String = method
                .chars()
                .flat_map(|c| (!plain(c)).then_some('\\').into_iter().chain([c]))
                .collect();
            let pattern = Pattern::new(&format!("/[^/]+/{escaped}"));
            // A name that cannot be a pattern is no method's; it stands for itself and matches none.
            Some(pattern.map_or(PathMatch::Exact(method), PathMatch::Regex))
        }
    };
    HttpMatch { path, headers: matched.headers.clone(), ..HttpMatch::default() }
}
