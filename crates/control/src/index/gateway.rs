//! What the proxy at the edge is told: the listeners of all Gateways, merged by port.
//!
//! One gateway serves all Gateways of the mesh's class. Listeners that share a port are told apart by
//! their hosts: a request is for the listener whose host is the most specific, and finds the routes of
//! that one only. Of listeners in conflict the oldest Gateway's counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use mesh_model::Meta;
use mesh_model::gateway::{EdgeCertificate, GatewayConfig, GatewayPort, Https};
use mesh_model::matching::Pattern;
use mesh_model::meta::ResourceRef;
use mesh_model::outbound::{
    Forward, HttpPolicy, HttpRoute as ModelHttpRoute, OutboundPolicy, Protocol, TcpPolicy,
    TcpRoute as ModelTcpRoute,
};
use mesh_model::route::{
    Distribution, FailureInjector, Filter, GrpcMatch, HostMatch, HttpMatch, InjectedFailure,
    PathMatch, Ratio, Route, Rule, Timeouts,
};

use super::Objects;
use super::object::{
    AllowedNamespaces, CertificateContent, CertificateRef, GATEWAY_CLASS, Gateway, GatewayRef,
    Kind, Labels, Listener, ListenerProtocol, Name, RouteHead, RouteRule, route_ref,
};
use super::policy::DEFAULT_BREAKER;
use super::routes::{Besides, RouteFrom, route_from};

/// How long an exchange with a client may be silent when its route has no timeout of its own.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The same of gRPC, whose streams wait for something to happen.
pub const GRPC_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// The label that every namespace has in a cluster.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A listener among all others.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    pub gateway: &'a Gateway,
    pub listener: &'a Listener,
    pub conflict: Option<Conflict>,
}

/// Why a listener cannot have its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// An older one speaks something else there.
    Protocol,
    /// An older one has its host.
    Host,
}

/// Why a route does not attach to a Gateway that it names as parent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAttached {
    #[error("Gateway {0} does not exist")]
    NoGateway(Name),
    #[error("the Gateway has no listener of this name and port")]
    NoListener,
    #[error("the Gateway's listeners take no such routes of this namespace (`allowedRoutes`)")]
    NotAllowed,
    #[error("the Gateway's listeners have none of the route's hostnames")]
    NoHost,
}

impl NotAttached {
    /// The reason of the condition `Accepted`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoGateway(_) | Self::NoListener => "NoMatchingParent",
            Self::NotAllowed => "NotAllowedByListeners",
            Self::NoHost => "NoMatchingListenerHostname",
        }
    }
}

/// Why a listener cannot present a certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCertificate {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotPermitted(String),
}

impl NoCertificate {
    /// The reason of the condition `ResolvedRefs`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "InvalidCertificateRef",
            Self::NotPermitted(_) => "RefNotPermitted",
        }
    }
}

impl Objects {
    /// Whether the mesh serves a Gateway.
    pub fn serves(&self, gateway: &Gateway) -> bool {
        match self.gateway_classes.get(&gateway.class) {
            Some(class) => class.ours,
            None => gateway.class == GATEWAY_CLASS,
        }
    }

    /// All that the proxy at the edge is told.
    pub fn gateway_config(&self) -> GatewayConfig {
        let mut ports: BTreeMap<u16, Vec<Placed<'_>>> = BTreeMap::new();
        for placed in self.placed_listeners() {
            if placed.conflict.is_none() && self.has_certificate(&placed) {
                ports.entry(placed.listener.port).or_default().push(placed);
            }
        }
        let ports = ports.iter().map(|(port, listeners)| self.gateway_port(*port, listeners));
        GatewayConfig { ports: ports.collect() }
    }

    /// The listeners of all Gateways that the mesh serves; those that win conflicts come first.
    pub fn placed_listeners(&self) -> Vec<Placed<'_>> {
        let mut gateways: Vec<_> = self.gateways.values().filter(|g| self.serves(g)).collect();
        gateways.sort_by_key(|gateway| (gateway.created, &gateway.name));
        let mut all: Vec<Placed<'_>> = Vec::new();
        for gateway in gateways {
            for listener in &gateway.listeners {
                let before = all.iter().filter(|before| {
                    before.conflict.is_none() && before.listener.port == listener.port
                });
                let mut conflicts = before.filter_map(|before| conflict(before.listener, listener));
                let conflict = conflicts.next();
                all.push(Placed { gateway, listener, conflict });
            }
        }
        all
    }

    /// Whether TLS could end at a listener, if it is to.
    fn has_certificate(&self, placed: &Placed<'_>) -> bool {
        let mut refs = placed.listener.certificates.iter();
        placed.listener.protocol != ListenerProtocol::Https
            || refs.any(|of| self.certificate(&placed.gateway.name, of).is_ok())
    }

    /// The certificate that a Gateway refers to.
    ///
    /// # Errors
    /// Says why it cannot be presented.
    pub fn certificate(
        &self,
        gateway: &Name,
        reference: &CertificateRef,
    ) -> Result<&CertificateContent, NoCertificate> {
        let secret = match reference {
            CertificateRef::Secret(secret) => secret,
            CertificateRef::Unusable(why) => return Err(NoCertificate::Invalid(why.clone())),
        };
        let granted = || {
            let grants = self.grants_in(&secret.namespace);
            let mut grants = grants.filter(|grant| {
                let mut from = grant.from.iter();
                from.any(|(kind, of)| *kind == Kind::Gateway && *of == gateway.namespace)
            });
            grants.any(|grant| {
                grant.secrets.iter().any(|to| to.as_ref().is_none_or(|to| *to == secret.name))
            })
        };
        if secret.namespace != gateway.namespace && !granted() {
            return Err(NoCertificate::NotPermitted(format!(
                "no ReferenceGrant in namespace {} lets Gateways of namespace {} use Secret {}",
                secret.namespace, gateway.namespace, secret.name
            )));
        }
        match self.certificates.get(secret).map(|found| &found.content) {
            Some(Ok(content)) => Ok(content),
            Some(Err(why)) => Err(NoCertificate::Invalid(format!("Secret {secret}: {why}"))),
            None => Err(NoCertificate::Invalid(format!(
                "there is no Secret {secret} of the type kubernetes.io/tls"
            ))),
        }
    }

    fn gateway_port(&self, port: u16, all: &[Placed<'_>]) -> GatewayPort {
        let of = |protocol| -> Vec<Placed<'_>> {
            all.iter().filter(|placed| placed.listener.protocol == protocol).copied().collect()
        };
        let policy = |listeners: &[Placed<'_>], protocol| {
            let first = listeners.first()?;
            let meta = Meta::Resource(gateway_ref(&first.gateway.name, port));
            Some(OutboundPolicy { meta, protocol })
        };
        let http = |listeners: &[Placed<'_>]| {
            let routes = self.edge_http_routes(listeners, all);
            policy(
                listeners,
                Protocol::Http1(HttpPolicy { routes, breaker: Some(DEFAULT_BREAKER) }),
            )
        };
        let (in_the_clear, secured) = (of(ListenerProtocol::Http), of(ListenerProtocol::Https));
        let (tls, tcp) = (of(ListenerProtocol::Tls), of(ListenerProtocol::Tcp));
        let certificates = secured.iter().flat_map(|placed| self.edge_certificates(placed));
        let certificates = certificates.collect();
        let tls_routes = self.edge_tls_routes(&tls, all);
        let bytes = match (tls_routes.is_empty(), tcp.first()) {
            (false, _) => policy(&tls, Protocol::Tls(TcpPolicy { routes: tls_routes })),
            (true, Some(placed)) => {
                let routes = Arc::new([self.edge_tcp_route(placed)]);
                policy(&tcp, Protocol::Opaque(TcpPolicy { routes }))
            }
            (true, None) => None,
        };
        GatewayPort {
            port,
            http: http(&in_the_clear),
            https: http(&secured).map(|policy| Https { policy, certificates }),
            bytes,
        }
    }

    fn edge_certificates(&self, placed: &Placed<'_>) -> Vec<EdgeCertificate> {
        let refs = placed.listener.certificates.iter();
        refs.filter_map(|of| {
            let content = self.certificate(&placed.gateway.name, of).ok()?;
            Some(EdgeCertificate {
                host: placed.listener.host.clone(),
                chain: content.chain.clone(),
                key: content.key.clone(),
            })
        })
        .collect()
    }

    /// The routes of some listeners, as those of HTTP whatever their kind: one listener has both.
    fn edge_http_routes(
        &self,
        listeners: &[Placed<'_>],
        all: &[Placed<'_>],
    ) -> Arc<[ModelHttpRoute]> {
        let mut found: Vec<((Option<i64>, Name), ModelHttpRoute)> = Vec::new();
        for route in self.http_routes.values() {
            let head = &route.head;
            if let Some(hosts) = self.hosts_of(listeners, all, Kind::HttpRoute, head, &route.hosts)
            {
                let rules = self.edge_rules(route_from(Kind::HttpRoute, head), &route.rules);
                let meta = Meta::Resource(route_ref(Kind::HttpRoute, &head.name));
                let route = Route { meta, hosts, rules };
                found.push(((head.created, head.name.clone()), route));
            }
        }
        for route in self.grpc_routes.values() {
            let head = &route.head;
            if let Some(hosts) = self.hosts_of(listeners, all, Kind::GrpcRoute, head, &route.hosts)
            {
                let rules: Vec<_> = route.rules.iter().map(as_http).collect();
                let mut rules = self.edge_rules(route_from(Kind::GrpcRoute, head), &rules);
                rules.iter_mut().for_each(of_grpc);
                let meta = Meta::Resource(route_ref(Kind::GrpcRoute, &head.name));
                let route = Route { meta, hosts, rules };
                found.push(((head.created, head.name.clone()), route));
            }
        }
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        let nothing = listeners.iter().filter_map(|placed| {
            let host = placed.listener.host.as_ref()?;
            let wider = all.iter().any(|other| is_narrower(placed.listener, other.listener));
            wider.then(|| no_route(host))
        });
        found.into_iter().map(|(_, route)| route).chain(nothing).collect()
    }

    fn edge_rules(
        &self,
        from: RouteFrom<'_>,
        rules: &[RouteRule<HttpMatch>],
    ) -> Vec<Rule<HttpMatch, Forward>> {
        let mut rules = self.rules(from, rules, &Besides::default());
        for rule in &mut rules {
            let timeouts = &mut rule.action.timeouts;
            if *timeouts == Timeouts::default() {
                timeouts.idle = Some(IDLE_TIMEOUT);
            }
        }
        rules
    }

    fn edge_tls_routes(
        &self,
        listeners: &[Placed<'_>],
        all: &[Placed<'_>],
    ) -> Arc<[ModelTcpRoute]> {
        let mut routes: Vec<_> = self.tls_routes.values().collect();
        routes.sort_by_key(|route| (route.head.created, &route.head.name));
        let of = |route: &Arc<super::object::TlsRoute>| {
            let head = &route.head;
            let snis = self.hosts_of(listeners, all, Kind::TlsRoute, head, &route.snis)?;
            Some(ModelTcpRoute {
                meta: Meta::Resource(route_ref(Kind::TlsRoute, &head.name)),
                snis,
                backends: self.connections(route_from(Kind::TlsRoute, head), &route.backends),
                refuse: None,
            })
        };
        routes.into_iter().filter_map(of).collect()
    }

    /// Bytes carry nothing to choose by, so the first route in order has them all.
    fn edge_tcp_route(&self, placed: &Placed<'_>) -> ModelTcpRoute {
        let attached = self.tcp_routes.values();
        let attached = attached.filter(|route| self.takes(placed, Kind::TcpRoute, &route.head));
        let first = attached.min_by_key(|route| (route.head.created, &route.head.name));
        let (meta, backends) = match first {
            None => (Meta::Default("gateway".into()), Distribution::Empty),
            Some(route) => {
                let from = route_from(Kind::TcpRoute, &route.head);
                let meta = Meta::Resource(route_ref(Kind::TcpRoute, &route.head.name));
                (meta, self.connections(from, &route.backends))
            }
        };
        ModelTcpRoute { meta, snis: Vec::new(), backends, refuse: None }
    }

    /// The hosts that a route has at any of some listeners; `None`: it is attached to none of them.
    fn hosts_of(
        &self,
        listeners: &[Placed<'_>],
        all: &[Placed<'_>],
        kind: Kind,
        head: &RouteHead,
        hosts: &[HostMatch],
    ) -> Option<Vec<HostMatch>> {
        let mut found: Option<Vec<HostMatch>> = None;
        for placed in listeners.iter().filter(|placed| self.takes(placed, kind, head)) {
            let Some(more) = hosts_at(placed.listener, all, hosts) else { continue };
            found = Some(match found {
                Some(have) if !have.is_empty() && !more.is_empty() => [have, more].concat(),
                // Without any, it is for all hosts.
                Some(_) => Vec::new(),
                None => more,
            });
        }
        found
    }

    /// Whether a route is for a listener, and the listener takes it.
    fn takes(&self, placed: &Placed<'_>, kind: Kind, head: &RouteHead) -> bool {
        let mut refs = head.gateways.iter();
        refs.any(|parent| is_for(parent, placed)) && self.lets_in(placed, kind, head)
    }

    fn lets_in(&self, placed: &Placed<'_>, kind: Kind, head: &RouteHead) -> bool {
        let namespace = &head.name.namespace;
        placed.listener.kinds.contains(&kind)
            && match &placed.listener.namespaces {
                AllowedNamespaces::Same => *namespace == placed.gateway.name.namespace,
                AllowedNamespaces::All => true,
                AllowedNamespaces::Selector(selector) => {
                    let known = self.namespaces.get(namespace);
                    let mut labels = known.map(|ns| ns.labels.clone()).unwrap_or_default();
                    let name = || namespace.clone();
                    labels.entry(NAMESPACE_NAME.into()).or_insert_with(name);
                    let labels: Labels = labels;
                    selector.matches(&labels)
                }
            }
    }

    /// Whether a route attaches to a Gateway that it names.
    ///
    /// # Errors
    /// Says why it does not.
    pub fn attach(
        &self,
        kind: Kind,
        head: &RouteHead,
        hosts: &[HostMatch],
        parent: &GatewayRef,
    ) -> Result<(), NotAttached> {
        if !self.gateways.contains_key(&parent.gateway) {
            return Err(NotAttached::NoGateway(parent.gateway.clone()));
        }
        let placed = self.placed_listeners();
        let meant: Vec<_> = placed.iter().filter(|placed| is_for(parent, placed)).collect();
        if meant.is_empty() {
            return Err(NotAttached::NoListener);
        }
        let let_in: Vec<_> = meant.iter().filter(|at| self.lets_in(at, kind, head)).collect();
        if let_in.is_empty() {
            return Err(NotAttached::NotAllowed);
        }
        let fits =
            |at: &Placed<'_>| kind == Kind::TcpRoute || hosts_at(at.listener, &[], hosts).is_some();
        match let_in.iter().any(|at| fits(at)) {
            true => Ok(()),
            false => Err(NotAttached::NoHost),
        }
    }

    /// How many routes are attached to a listener.
    pub fn attached_routes(&self, placed: &Placed<'_>) -> usize {
        let at = |kind, head: &RouteHead, hosts: &[HostMatch]| {
            self.takes(placed, kind, head) && hosts_at(placed.listener, &[], hosts).is_some()
        };
        let http = self.http_routes.values().filter(|r| at(Kind::HttpRoute, &r.head, &r.hosts));
        let grpc = self.grpc_routes.values().filter(|r| at(Kind::GrpcRoute, &r.head, &r.hosts));
        let tls = self.tls_routes.values().filter(|r| at(Kind::TlsRoute, &r.head, &r.snis));
        let tcp = self.tcp_routes.values().filter(|r| self.takes(placed, Kind::TcpRoute, &r.head));
        http.count() + grpc.count() + tls.count() + tcp.count()
    }
}

/// The reference to a Gateway's port, for figures.
pub fn gateway_ref(name: &Name, port: u16) -> ResourceRef {
    ResourceRef { port: Some(port), ..route_ref(Kind::Gateway, name) }
}

fn is_for(parent: &GatewayRef, placed: &Placed<'_>) -> bool {
    parent.gateway == placed.gateway.name
        && parent.section.as_ref().is_none_or(|section| *section == placed.listener.name)
        && parent.port.is_none_or(|port| port == placed.listener.port)
}

/// Why a listener cannot be beside an older one at the same port.
fn conflict(older: &Listener, listener: &Listener) -> Option<Conflict> {
    if !older.protocol.shares_with(listener.protocol) {
        return Some(Conflict::Protocol);
    }
    let same = match (&older.host, &listener.host) {
        (None, None) => true,
        (Some(one), Some(other)) => one.covers(other) && other.covers(one),
        _ => false,
    };
    same.then_some(Conflict::Host)
}

/// Whether a listener takes some of another's hosts from it.
fn is_narrower(listener: &Listener, than: &Listener) -> bool {
    listener.protocol.shares_with(than.protocol)
        && match (&listener.host, &than.host) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(own), Some(than)) => than.covers(own) && !own.covers(than),
        }
}

/// The hosts that a route has at a listener; none is all of them. `None`: the listener has none of the
/// route's, or narrower listeners have them.
fn hosts_at(
    listener: &Listener,
    all: &[Placed<'_>],
    route: &[HostMatch],
) -> Option<Vec<HostMatch>> {
    let mut hosts = match (&listener.host, route) {
        (None, []) => return Some(Vec::new()),
        (None, hosts) => hosts.to_vec(),
        (Some(host), []) => vec![host.clone()],
        (Some(host), hosts) => hosts.iter().filter_map(|of| host.intersect(of)).collect(),
    };
    hosts.retain(|host| {
        let mut narrower = all.iter().filter(|other| is_narrower(other.listener, listener));
        !narrower.any(|other| other.listener.host.as_ref().is_some_and(|own| own.covers(host)))
    });
    (!hosts.is_empty()).then_some(hosts)
}

/// Answers for a listener that has no route for a request: the routes of a wider one are not its own.
fn no_route(host: &HostMatch) -> ModelHttpRoute {
    let fail = FailureInjector {
        failure: InjectedFailure::Http(StatusCode::NOT_FOUND),
        message: "the listener has no route for this".into(),
        ratio: Ratio { numerator: 1, denominator: 1 },
    };
    let action = Forward {
        backends: Distribution::Empty,
        timeouts: Timeouts::default(),
        retry: None,
        allow_request_headers: false,
        session: None,
    };
    Route {
        meta: Meta::Default("no-route".into()),
        hosts: vec![host.clone()],
        rules: vec![Rule { matches: Vec::new(), filters: vec![Filter::Fail(fail)], action }],
    }
}

/// What is different where a rule of HTTP is for gRPC.
fn of_grpc(rule: &mut Rule<HttpMatch, Forward>) {
    let idle = &mut rule.action.timeouts.idle;
    *idle = idle.map(|_| GRPC_IDLE_TIMEOUT);
    let backends = &mut rule.action.backends;
    for index in 0..backends.backends().count() {
        let Some(backend) = backends.backend_mut(index) else { break };
        for filter in &mut Arc::make_mut(backend).filters {
            if let Filter::Fail(fail) = filter {
                // A route of HTTP has no codes of gRPC. Clients take this one for UNAVAILABLE.
                fail.failure = InjectedFailure::Http(StatusCode::SERVICE_UNAVAILABLE);
            }
        }
    }
}

/// A rule of a GRPCRoute in terms of HTTP, which gRPC is.
fn as_http(rule: &RouteRule<GrpcMatch>) -> RouteRule<HttpMatch> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let path = |of: &GrpcMatch| match (given(&of.service), given(&of.method)) {
        (Some(service), Some(method)) => Some(PathMatch::Exact(format!("/{service}/{method}"))),
        (Some(service), None) => Some(PathMatch::Prefix(format!("/{service}"))),
        (None, Some(method)) => {
            let escaped: String = method.chars().flat_map(escape).collect();
            let pattern = Pattern::new(&format!("/[^/]+/{escaped}")).map(PathMatch::Regex);
            // What is no pattern matches nothing: no path is empty.
            Some(pattern.unwrap_or_else(|_| PathMatch::Exact(String::new())))
        }
        (None, None) => None,
    };
    let matches = rule.matches.iter().map(|of| HttpMatch {
        path: path(of),
        headers: of.headers.clone(),
        ..HttpMatch::default()
    });
    RouteRule {
        name: rule.name.clone(),
        matches: matches.collect(),
        filters: rule.filters.clone(),
        backends: rule.backends.clone(),
        timeouts: rule.timeouts,
        retry: rule.retry.clone(),
        session: rule.session.clone(),
    }
}

fn escape(c: char) -> impl Iterator<Item = char> {
    let special = !(c.is_alphanumeric() || c == '_');
    special.then_some('\\').into_iter().chain([c])
}
