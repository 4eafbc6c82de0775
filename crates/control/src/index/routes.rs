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
    Backoff, Distribution, FailureInjector, Filter, GrpcCodes, InjectedFailure, Mirror, Ratio,
    Retry, Route, Rule, Timeouts,
};

use super::Objects;
use super::lookup;
use super::object::{
    BackendRef, BackendTarget, Kind, Name, ReferenceGrant, Retries, RouteFilter, RouteHead,
    RouteRule, ServiceRef, route_ref,
};

/// How many requests may wait for an endpoint of a backend, and how long the first of them may.
pub const QUEUE: Queue = Queue { capacity: 10_000, failfast_timeout: Duration::from_secs(3) };
/// Backoff between tries where nobody says; ten times as long at most.
pub const RETRY_BACKOFF: Duration = Duration::from_millis(25);
/// Larger request bodies are not kept for another try. Bytes.
const RETRY_MAX_BODY: u32 = 64 * 1024;
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
        let besides = self.besides(service, port);
        if routes.is_empty() {
            return Arc::new([default_route("http", self.backend(service, port), besides)]);
        }
        let of = |route: &super::object::HttpRoute| Route {
            meta: Meta::Resource(route_ref(Kind::HttpRoute, &route.head.name)),
            hosts: route.hosts.clone(),
            rules: self.rules(in_mesh(Kind::HttpRoute, &route.head), &route.rules, &besides),
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
        let besides = self.besides(service, port);
        if routes.is_empty() {
            return Arc::new([default_route("grpc", self.backend(service, port), besides)]);
        }
        let of = |route: &super::object::GrpcRoute| Route {
            meta: Meta::Resource(route_ref(Kind::GrpcRoute, &route.head.name)),
            hosts: route.hosts.clone(),
            rules: self.rules(in_mesh(Kind::GrpcRoute, &route.head), &route.rules, &besides),
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
                let only = Arc::new(self.backend(service, port));
                (Meta::Default("opaque".into()), Distribution::FirstAvailable(vec![only]))
            }
            Some(route) => {
                let meta = route_ref(Kind::TcpRoute, &route.head.name);
                let from = in_mesh(Kind::TcpRoute, &route.head);
                (Meta::Resource(meta), self.connections(from, &route.backends))
            }
        };
        Arc::new([ModelTcpRoute { meta, snis: Vec::new(), backends, refuse: None }])
    }

    /// The TLS routes of a service's port; none is no policy of TLS.
    pub(super) fn tls_policy(
        &self,
        service: &Name,
        port: u16,
        client: &str,
    ) -> Arc<[ModelTcpRoute]> {
        let routes =
            self.effective(&self.tls_routes, Kind::TlsRoute, |r| &r.head, service, port, client);
        let of = |route: &super::object::TlsRoute| ModelTcpRoute {
            meta: Meta::Resource(route_ref(Kind::TlsRoute, &route.head.name)),
            snis: route.snis.clone(),
            backends: self.connections(in_mesh(Kind::TlsRoute, &route.head), &route.backends),
            refuse: None,
        };
        routes.into_iter().map(of).collect()
    }

    /// Backends for bytes. One that cannot be used has no share: there is no way to say so.
    pub(super) fn connections(
        &self,
        from: RouteFrom<'_>,
        backends: &[BackendRef],
    ) -> Distribution<Backend> {
        let usable = backends.iter().filter_map(|reference| {
            let (service, port) = self.usable(from, &reference.target).ok()?;
            (reference.weight > 0).then(|| (Arc::new(backend(service, port)), reference.weight))
        });
        distribution(usable.collect())
    }

    /// Whether requests at a port are governed by routes.
    pub(super) fn has_http_route(&self, service: &Name, port: u16, client: &str) -> bool {
        self.has_grpc_route(service, port, client)
            || !self
                .effective(&self.http_routes, Kind::HttpRoute, |r| &r.head, service, port, client)
                .is_empty()
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

    fn besides(&self, service: &Name, port: u16) -> Besides<'_> {
        let faults = self.faults(service, port).into_iter().cloned().map(Filter::Fault).collect();
        let object = self.services.get(service);
        Besides {
            faults,
            wishes: object.is_some_and(|object| object.allow_request_headers),
            retry: self.retries(service, port),
        }
    }

    /// The rule's own, or the Service's; at the edge, of the first of the rule's backends that has any.
    fn retry<M>(
        &self,
        from: RouteFrom<'_>,
        rule: &RouteRule<M>,
        besides: &Besides<'_>,
    ) -> Option<Retry> {
        let of_backend = |backend: &BackendRef| {
            let (service, port) = self.usable(from, &backend.target).ok()?;
            self.retries(service, port)
        };
        let of_service = || match from.edge {
            true => rule.backends.iter().find_map(of_backend),
            false => besides.retry,
        };
        retry(rule.retry.as_ref().or_else(of_service), rule.try_timeout)
    }

    pub(super) fn rules<M: Clone>(
        &self,
        from: RouteFrom<'_>,
        rules: &[RouteRule<M>],
        besides: &Besides<'_>,
    ) -> Vec<Rule<M, Forward>> {
        let of_route = self.route_faults(from.kind, &from.head.name);
        let of = |rule: &RouteRule<M>| Rule {
            matches: rule.matches.clone(),
            // Faults first, as everything else would be in vain; of faults, those that are about less.
            filters: [
                of_route.of(&rule.name),
                besides.faults.clone(),
                self.filters(from, &rule.filters),
            ]
            .concat(),
            action: Forward {
                backends: self.backends(from, rule),
                timeouts: rule.timeouts,
                retry: self.retry(from, rule, besides),
                allow_request_headers: besides.wishes,
                session: rule.session.clone(),
            },
        };
        rules.iter().map(of).collect()
    }

    /// Where a rule sends. One whose backends have no weight at all, or are none of use, answers 500,
    /// as Gateway API wants it.
    fn backends<M>(&self, from: RouteFrom<'_>, rule: &RouteRule<M>) -> Distribution<RouteBackend> {
        let weighty = rule.backends.iter().filter(|reference| reference.weight > 0);
        let backends: Vec<_> = weighty
            .map(|reference| (Arc::new(self.route_backend(from, reference)), reference.weight))
            .collect();
        if !backends.is_empty() {
            return distribution(backends);
        }
        let why = "the rule has no backend with a weight above 0".to_owned();
        let failing = match from.head.parents.first() {
            Some(parent) => failing(from.kind, &parent.service, parent.port.unwrap_or(1), why),
            None => failing(from.kind, &Name::new("invalid", "invalid"), 1, why),
        };
        distribution(vec![(Arc::new(failing), 1)])
    }

    /// A backend that cannot be used keeps its share of the requests, which fail with 500, as
    /// Gateway API wants it.
    fn route_backend(&self, from: RouteFrom<'_>, reference: &BackendRef) -> RouteBackend {
        match self.usable(from, &reference.target) {
            Ok((service, port)) => RouteBackend {
                filters: self.filters(from, &reference.filters),
                backend: self.backend(service, port),
            },
            Err(unusable) => match &reference.target {
                BackendTarget::Service { service, port } => {
                    failing(from.kind, service, *port, unusable.to_string())
                }
                BackendTarget::Unusable(_) => {
                    failing(from.kind, &Name::new("invalid", "invalid"), 1, unusable.to_string())
                }
            },
        }
    }

    fn filters(&self, from: RouteFrom<'_>, filters: &[RouteFilter]) -> Vec<Filter> {
        let of = |filter: &RouteFilter| match filter {
            RouteFilter::Is(filter) => Some(filter.clone()),
            RouteFilter::Mirror { target, ratio } => {
                let (service, port) = self.usable(from, target).ok()?;
                Some(Filter::Mirror(Box::new(Mirror {
                    backend: self.backend(service, port),
                    ratio: *ratio,
                })))
            }
        };
        filters.iter().filter_map(of).collect()
    }

    /// With the queue that policies give it.
    fn backend(&self, service: &Name, port: u16) -> Backend {
        Backend { queue: self.queue(service, port), ..backend(service, port) }
    }

    /// The service and port a route sends to.
    ///
    /// # Errors
    /// Says why they cannot be sent to.
    pub fn usable<'a>(
        &self,
        from: RouteFrom<'_>,
        target: &'a BackendTarget,
    ) -> Result<(&'a Name, u16), Unusable> {
        let (service, port) = match target {
            BackendTarget::Unusable(why) => return Err(Unusable::Kind(why.clone())),
            BackendTarget::Service { service, port } => (service, *port),
        };
        if !self.is_granted(from, service) {
            let message = format!(
                "no ReferenceGrant in namespace {} lets {}s of namespace {} send to Service {}",
                service.namespace,
                from.kind.as_str(),
                from.head.name.namespace,
                service.name,
            );
            return Err(Unusable::NotPermitted(message));
        }
        match self.services.get(service) {
            None => Err(Unusable::Missing(format!("Service {service} does not exist"))),
            Some(object) if object.port(port).is_none() => {
                Err(Unusable::Missing(format!("Service {service} has no port {port}")))
            }
            Some(_) => Ok((service, port)),
        }
    }

    /// Whether a route may send to a service: one of its own namespace, its own parent (whose
    /// traffic it has anyway, unless the traffic came through the edge), or one whose namespace
    /// lets it.
    fn is_granted(&self, from: RouteFrom<'_>, service: &Name) -> bool {
        let namespace = &from.head.name.namespace;
        let own_parent =
            || !from.edge && from.head.parents.iter().any(|parent| parent.service == *service);
        if service.namespace == *namespace || own_parent() {
            return true;
        }
        self.grants_in(&service.namespace).any(|grant| {
            grant.from.iter().any(|(kind, of)| *kind == from.kind && of == namespace)
                && grant.to.iter().any(|to| to.as_ref().is_none_or(|to| *to == service.name))
        })
    }
}

impl Objects {
    /// What all routes have, of one that may have policies.
    pub fn route_head(&self, kind: Kind, name: &Name) -> Option<&RouteHead> {
        match kind {
            Kind::GrpcRoute => self.grpc_routes.get(name).map(|route| &route.head),
            _ => self.http_routes.get(name).map(|route| &route.head),
        }
    }

    /// The names of a route's rules, in their order; empty where they have none.
    pub fn rule_names(&self, kind: Kind, name: &Name) -> Vec<&str> {
        fn of<M>(rules: &[RouteRule<M>]) -> Vec<&str> {
            rules.iter().map(|rule| rule.name.as_str()).collect()
        }
        match kind {
            Kind::GrpcRoute => self.grpc_routes.get(name).map(|route| of(&route.rules)),
            _ => self.http_routes.get(name).map(|route| of(&route.rules)),
        }
        .unwrap_or_default()
    }

    pub(super) fn grants_in(&self, namespace: &str) -> impl Iterator<Item = &ReferenceGrant> {
        let grants = self.grants.range(Name::new(namespace, "")..);
        let grants = grants.take_while(move |(name, _)| name.namespace == *namespace);
        grants.map(|(_, grant)| &**grant)
    }
}

/// What a service's port has in all of its rules; a gateway's has nothing.
#[derive(Debug, Default)]
pub(super) struct Besides<'a> {
    faults: Vec<Filter>,
    /// Of rules that have none of their own.
    retry: Option<&'a Retries>,
    /// Whether requests may set their own limits.
    wishes: bool,
}

/// Which route refers to something.
#[derive(Clone, Copy, Debug)]
pub struct RouteFrom<'a> {
    pub kind: Kind,
    pub head: &'a RouteHead,
    /// Whether requests from outside count, too: those of Gateways.
    edge: bool,
}

/// For all of its parents.
pub fn route_from(kind: Kind, head: &RouteHead) -> RouteFrom<'_> {
    RouteFrom { kind, head, edge: !head.gateways.is_empty() }
}

/// For those of its parents that are Services.
fn in_mesh(kind: Kind, head: &RouteHead) -> RouteFrom<'_> {
    RouteFrom { kind, head, edge: false }
}

/// Why a route cannot send to what it names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Nothing that a mesh can send requests to.
    #[error("{0}")]
    Kind(String),
    #[error("{0}")]
    Missing(String),
    #[error("{0}")]
    NotPermitted(String),
}

impl Unusable {
    /// The reason of the route's condition `ResolvedRefs`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Kind(_) => "InvalidKind",
            Self::Missing(_) => "BackendNotFound",
            Self::NotPermitted(_) => "RefNotPermitted",
        }
    }
}

/// A backend whose requests fail: with 500, or UNAVAILABLE.
fn failing(kind: Kind, service: &Name, port: u16, message: String) -> RouteBackend {
    const UNAVAILABLE: u16 = 14;
    let failure = match kind {
        Kind::GrpcRoute => InjectedFailure::Grpc(UNAVAILABLE),
        _ => InjectedFailure::Http(StatusCode::INTERNAL_SERVER_ERROR),
    };
    let ratio = Ratio { numerator: 1, denominator: 1 };
    let fail = Filter::Fail(FailureInjector { failure, message, ratio });
    RouteBackend { filters: vec![fail], backend: backend(service, port) }
}

fn distribution<B>(backends: Vec<(Arc<B>, u32)>) -> Distribution<B> {
    if backends.is_empty() { Distribution::Empty } else { Distribution::Random(backends) }
}

/// Without retries, one try may be limited still.
pub fn retry(retries: Option<&Retries>, timeout: Option<Duration>) -> Option<Retry> {
    let none =
        || Retries { attempts: 0, statuses: Vec::new(), grpc: GrpcCodes::default(), backoff: None };
    let retries = retries.cloned().or_else(|| timeout.map(|_| none()))?;
    let min = retries.backoff.unwrap_or(RETRY_BACKOFF);
    Some(Retry {
        max_retries: retries.attempts,
        max_request_bytes: RETRY_MAX_BODY,
        statuses: retries.statuses,
        grpc: retries.grpc,
        timeout,
        backoff: Some(Backoff {
            min,
            max: min.saturating_mul(10),
            jitter: 1.0,
            respect_retry_after: true,
        }),
    })
}

/// The route of a service's port that has none: everything goes to the service itself.
fn default_route<M>(name: &str, backend: Backend, besides: Besides<'_>) -> Route<M, Forward> {
    let only = RouteBackend { filters: Vec::new(), backend };
    let action = Forward {
        backends: Distribution::FirstAvailable(vec![Arc::new(only)]),
        timeouts: Timeouts::default(),
        retry: retry(besides.retry, None),
        allow_request_headers: besides.wishes,
        session: None,
    };
    Route {
        meta: Meta::Default(name.into()),
        hosts: Vec::new(),
        rules: vec![Rule { matches: Vec::new(), filters: besides.faults, action }],
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
