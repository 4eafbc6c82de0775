//! The routes of a service's port: which apply, in which order, and what they do.
//!
//! Gateway API as meshes use it (GAMMA): a route whose parent is a Service governs what clients
//! send to that Service. A route in the Service's own namespace is for every client; one in another
//! namespace is for clients of that namespace only, and then replaces the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use mesh_model::Meta;
use mesh_model::meta::ResourceRef;
use mesh_model::outbound::{
    Backend, BackendKind, Balance, Forward, GrpcRoute as ModelGrpcRoute,
    HttpRoute as ModelHttpRoute, Queue, RouteBackend, TcpRoute as ModelTcpRoute,
};
use mesh_model::route::{
    Distribution, FailureInjector, Filter, InjectedFailure, Ratio, Route, Rule, Timeouts,
};

use super::Objects;
use super::lookup;
use super::object::{
    BackendRef, BackendTarget, Kind, Name, RouteHead, RouteRule, ServiceRef, route_ref,
};

/// How many requests may wait for an endpoint of a backend, and how long the first of them may.
pub const QUEUE: Queue = Queue { capacity: 10_000, failfast_timeout: Duration::from_secs(3) };
const DEFAULT_RTT: Duration = Duration::from_millis(30);
const DECAY: Duration = Duration::from_secs(10);

impl Objects {
    pub(super) fn http_policy(
        &self,
        service: &Name,
        port: u16,
        client: &str,
    ) -> Arc<[ModelHttpRoute]> {
        let routes =
            self.effective(&self.http_routes, Kind::HttpRoute, |r| &r.head, service, port, client);
        let wishes = self.allows_wishes(service);
        if routes.is_empty() {
            return Arc::new([default_route("http", service, port, wishes)]);
        }
        let of = |route: &super::object::HttpRoute| Route {
            meta: Meta::Resource(route_ref(Kind::HttpRoute, &route.head.name)),
            hosts: route.hosts.clone(),
            rules: route.rules.iter().map(|rule| self.rule(rule, wishes)).collect(),
        };
        routes.into_iter().map(of).collect()
    }

    pub(super) fn grpc_policy(
        &self,
        service: &Name,
        port: u16,
        client: &str,
    ) -> Arc<[ModelGrpcRoute]> {
        let routes =
            self.effective(&self.grpc_routes, Kind::GrpcRoute, |r| &r.head, service, port, client);
        let wishes = self.allows_wishes(service);
        if routes.is_empty() {
            return Arc::new([default_route("grpc", service, port, wishes)]);
        }
        let of = |route: &super::object::GrpcRoute| Route {
            meta: Meta::Resource(route_ref(Kind::GrpcRoute, &route.head.name)),
            hosts: route.hosts.clone(),
            rules: route.rules.iter().map(|rule| self.rule(rule, wishes)).collect(),
        };
        routes.into_iter().map(of).collect()
    }

    /// Exactly one route: bytes carry nothing to choose by, so the first in order has them all.
    pub(super) fn tcp_policy(
        &self,
        service: &Name,
        port: u16,
        client: &str,
    ) -> Arc<[ModelTcpRoute]> {
        let routes =
            self.effective(&self.tcp_routes, Kind::TcpRoute, |r| &r.head, service, port, client);
        let (meta, backends) = match routes.first() {
            None => {
                let only = Arc::new(backend(service, port));
                (Meta::Default("opaque".into()), Distribution::FirstAvailable(vec![only]))
            }
            Some(route) => {
                let usable = route.backends.iter().filter_map(|reference| {
                    let (service, port) = self.usable(&reference.target).ok()?;
                    (reference.weight > 0)
                        .then(|| (Arc::new(backend(service, port)), reference.weight))
                });
                let meta = route_ref(Kind::TcpRoute, &route.head.name);
                (Meta::Resource(meta), distribution(usable.collect()))
            }
        };
        Arc::new([ModelTcpRoute { meta, snis: Vec::new(), backends, refuse: None }])
    }

    pub(super) fn has_grpc_route(&self, service: &Name, port: u16, client: &str) -> bool {
        !self
            .effective(&self.grpc_routes, Kind::GrpcRoute, |r| &r.head, service, port, client)
            .is_empty()
    }

    /// The routes of one kind that apply to a service's port for clients of a namespace, in order
    /// of precedence.
    fn effective<'a, R>(
        &self,
        routes: &'a BTreeMap<Name, Arc<R>>,
        kind: Kind,
        head: fn(&R) -> &RouteHead,
        service: &Name,
        port: u16,
        client: &str,
    ) -> Vec<&'a R> {
        let attached = || {
            self.routes_to(service)
                .filter(|(of, _)| *of == kind)
                .filter_map(|(_, name)| routes.get(name).map(|route| &**route))
                .filter(|route| self.attaches(head(route), service, port))
        };
        let in_namespace = |namespace: &str| -> Vec<&'a R> {
            attached().filter(|route| head(route).name.namespace == namespace).collect()
        };
        let mut effective = in_namespace(client);
        if effective.is_empty() {
            effective = in_namespace(&service.namespace);
        }
        effective.sort_by_key(|route| (head(route).created, &head(route).name));
        effective
    }

    /// Whether one of a route's parents is this port of this service.
    pub fn attaches(&self, head: &RouteHead, service: &Name, port: u16) -> bool {
        head.parents.iter().any(|parent| self.is_parent(parent, service, port))
    }

    fn is_parent(&self, parent: &ServiceRef, service: &Name, port: u16) -> bool {
        let section_fits = parent.section.as_ref().is_none_or(|section| {
            let port = self.services.get(service).and_then(|service| service.port(port));
            port.is_some_and(|port| port.name == *section)
        });
        parent.service == *service && parent.port.is_none_or(|p| p == port) && section_fits
    }

    fn allows_wishes(&self, service: &Name) -> bool {
        self.services.get(service).is_some_and(|service| service.allow_request_headers)
    }

    fn rule<M: Clone>(&self, rule: &RouteRule<M>, wishes: bool) -> Rule<M, Forward> {
        let backends = rule
            .backends
            .iter()
            .filter(|reference| reference.weight > 0)
            .map(|reference| (Arc::new(self.route_backend(reference)), reference.weight))
            .collect();
        Rule {
            matches: rule.matches.clone(),
            filters: rule.filters.clone(),
            action: Forward {
                backends: distribution(backends),
                timeouts: rule.timeouts,
                retry: rule.retry.clone(),
                allow_request_headers: wishes,
            },
        }
    }

    /// A backend that cannot be used keeps its share of the requests, which fail with 500, as
    /// Gateway API wants it.
    fn route_backend(&self, reference: &BackendRef) -> RouteBackend {
        match self.usable(&reference.target) {
            Ok((service, port)) => {
                RouteBackend { filters: reference.filters.clone(), backend: backend(service, port) }
            }
            Err(message) => {
                let (service, port) = match &reference.target {
                    BackendTarget::Service { service, port } => (service.clone(), *port),
                    BackendTarget::Unusable(_) => (Name::new("invalid", "invalid"), 1),
                };
                let fail = Filter::Fail(FailureInjector {
                    failure: InjectedFailure::Http(StatusCode::INTERNAL_SERVER_ERROR),
                    message,
                    ratio: Ratio { numerator: 1, denominator: 1 },
                });
                RouteBackend { filters: vec![fail], backend: backend(&service, port) }
            }
        }
    }

    /// The service and port a route sends to.
    ///
    /// # Errors
    /// Says why they cannot be sent to.
    pub fn usable<'a>(&self, target: &'a BackendTarget) -> Result<(&'a Name, u16), String> {
        match target {
            BackendTarget::Unusable(why) => Err(why.clone()),
            BackendTarget::Service { service, port } => match self.services.get(service) {
                None => Err(format!("Service {service} does not exist")),
                Some(object) if object.port(*port).is_none() => {
                    Err(format!("Service {service} has no port {port}"))
                }
                Some(_) => Ok((service, *port)),
            },
        }
    }
}

fn distribution<B>(backends: Vec<(Arc<B>, u32)>) -> Distribution<B> {
    if backends.is_empty() { Distribution::Empty } else { Distribution::Random(backends) }
}

/// The route of a service's port that has none: everything goes to the service itself.
fn default_route<M>(name: &str, service: &Name, port: u16, wishes: bool) -> Route<M, Forward> {
    let only = RouteBackend { filters: Vec::new(), backend: backend(service, port) };
    let action = Forward {
        backends: Distribution::FirstAvailable(vec![Arc::new(only)]),
        timeouts: Timeouts::default(),
        retry: None,
        allow_request_headers: wishes,
    };
    Route {
        meta: Meta::Default(name.into()),
        hosts: Vec::new(),
        rules: vec![Rule { matches: Vec::new(), filters: Vec::new(), action }],
    }
}

fn backend(service: &Name, port: u16) -> Backend {
    Backend {
        meta: Meta::Resource(ResourceRef::service(&service.namespace, &service.name, port)),
        queue: QUEUE,
        kind: BackendKind::Balance(Balance {
            path: lookup::path(service, port),
            default_rtt: DEFAULT_RTT,
            decay: DECAY,
            penalty: None,
        }),
    }
}
