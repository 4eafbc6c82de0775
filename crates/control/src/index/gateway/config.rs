//! What the gateway is told: the listeners of each port, and their routes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::StatusCode;
use mesh_api::limit;
use mesh_model::Meta;
use mesh_model::gateway::{EdgeCertificate, GatewayConfig, GatewayPort, Https};
use mesh_model::matching::Pattern;
use mesh_model::outbound::{
    Forward, HttpPolicy, HttpRoute as ModelHttpRoute, OutboundPolicy, Protocol, TcpPolicy,
    TcpRoute as ModelTcpRoute,
};
use mesh_model::route::{
    Distribution, FailureInjector, Filter, GrpcMatch, HostMatch, HttpMatch, InjectedFailure,
    PathMatch, Ratio, Route, Rule, Timeouts,
};

use super::room::{self, Offer, Place};
use super::{
    GRPC_IDLE_TIMEOUT, IDLE_TIMEOUT, Placed, gateway_ref, hosts_at, is_narrower, narrower_than,
};
use crate::index::Objects;
use crate::index::object::{
    GrpcRoute, HttpRoute, Kind, ListenerProtocol, RouteHead, RouteRule, route_ref,
};
use crate::index::policy::DEFAULT_BREAKER;
use crate::index::routes::{Besides, RouteFrom, route_from};

/// A listener that is served.
struct Spot<'a> {
    placed: Placed<'a>,
    /// The hosts that other listeners at its port take from it.
    narrower: Vec<&'a HostMatch>,
    /// Whether it takes its own from another.
    has_wider: bool,
}

/// The listeners at a port that speak the same.
type Spots<'a> = BTreeMap<Place, Vec<Spot<'a>>>;

impl Objects {
    /// All that the proxy at the edge is told.
    pub fn gateway_config(&self) -> GatewayConfig {
        let spots = self.spots();
        let mut http = room::http_routes(self.edge_http_routes(&spots));
        let mut tls = room::tls_routes(self.edge_tls_routes(&spots));
        let mut certificates = room::certificates(self.edge_certificates(&spots));
        let ports: BTreeSet<u16> = spots.keys().map(|(port, _)| *port).collect();
        let ports = ports.into_iter().map(|port| {
            let at = |protocol| spots.get(&(port, protocol)).map(Vec::as_slice);
            let mut requests = |protocol| {
                let at = at(protocol)?;
                let routes = http.remove(&(port, protocol)).unwrap_or_default();
                let routes = routes.into_iter().chain(no_http_route(at)).collect();
                let http = HttpPolicy { routes, breaker: Some(DEFAULT_BREAKER) };
                policy(port, at, Protocol::Http1(http))
            };
            let secured = |policy| {
                let certificates = certificates.remove(&(port, ListenerProtocol::Https));
                Https { policy, certificates: certificates.unwrap_or_default() }
            };
            let by_name = |at| {
                let routes = tls.remove(&(port, ListenerProtocol::Tls)).unwrap_or_default();
                let routes: Arc<[_]> = routes.into_iter().chain(no_tls_route(at)).collect();
                if routes.is_empty() {
                    return None;
                }
                policy(port, at, Protocol::Tls(TcpPolicy { routes }))
            };
            let all_bytes = |at: &[Spot<'_>]| {
                let routes = Arc::new([self.edge_tcp_route(&at.first()?.placed)]);
                policy(port, at, Protocol::Opaque(TcpPolicy { routes }))
            };
            GatewayPort {
                port,
                http: requests(ListenerProtocol::Http),
                https: requests(ListenerProtocol::Https).map(secured),
                bytes: at(ListenerProtocol::Tls)
                    .and_then(by_name)
                    .or_else(|| at(ListenerProtocol::Tcp).and_then(all_bytes)),
            }
        });
        GatewayConfig { ports: ports.collect() }
    }

    fn spots(&self) -> Spots<'_> {
        let mut ports: BTreeMap<u16, Vec<Placed<'_>>> = BTreeMap::new();
        for placed in self.placed_listeners() {
            if placed.conflict.is_none() && self.has_certificate(&placed) {
                ports.entry(placed.listener.port).or_default().push(placed);
            }
        }
        let mut spots = Spots::new();
        for (port, all) in ports {
            for placed in &all {
                let spot = Spot {
                    placed: *placed,
                    narrower: narrower_than(placed.listener, &all),
                    has_wider: all.iter().any(|b| is_narrower(placed.listener, b.listener)),
                };
                spots.entry((port, placed.listener.protocol)).or_default().push(spot);
            }
        }
        spots
    }

    /// Gateways are in the order of their age already.
    fn edge_certificates<'a>(
        &'a self,
        spots: &'a Spots<'a>,
    ) -> impl Iterator<Item = Offer<EdgeCertificate>> + 'a {
        let at = |(place, spot): (Place, &'a Spot<'a>)| {
            let Placed { gateway, listener, .. } = spot.placed;
            let found = listener.certificates.iter();
            let found = found.filter_map(|of| self.certificate(&gateway.name, of).ok());
            found.map(move |content| Offer {
                object: gateway.name.clone(),
                place,
                what: EdgeCertificate {
                    host: listener.host.clone(),
                    chain: content.chain.clone(),
                    key: content.key.clone(),
                },
            })
        };
        let mut all: Vec<(Place, &Spot<'_>)> = spots
            .iter()
            .flat_map(|(place, spots)| spots.iter().map(|spot| (*place, spot)))
            .collect();
        all.sort_by_key(|(_, spot)| (spot.placed.gateway.created, &spot.placed.gateway.name));
        all.into_iter().flat_map(at)
    }

    /// The routes of all listeners, as those of HTTP whatever their kind: one listener has both.
    fn edge_http_routes<'a>(
        &'a self,
        spots: &'a Spots<'a>,
    ) -> impl Iterator<Item = Offer<ModelHttpRoute>> + 'a {
        let http = self.http_routes.values().map(|route| Requests::Http(route));
        let grpc = self.grpc_routes.values().map(|route| Requests::Grpc(route));
        let mut all: Vec<_> = http.chain(grpc).collect();
        all.sort_by_key(|route| (route.head().created, &route.head().name));
        all.into_iter().flat_map(|route| match route {
            Requests::Http(of) => {
                let at = self.hosts_of(spots, Kind::HttpRoute, &of.head, &of.hosts);
                let from = route_from(Kind::HttpRoute, &of.head);
                offers(from, at, || self.edge_rules(from, &of.rules))
            }
            Requests::Grpc(of) => {
                let at = self.hosts_of(spots, Kind::GrpcRoute, &of.head, &of.hosts);
                let from = route_from(Kind::GrpcRoute, &of.head);
                offers(from, at, || {
                    let rules: Vec<_> = of.rules.iter().map(as_http).collect();
                    let mut rules = self.edge_rules(from, &rules);
                    rules.iter_mut().for_each(of_grpc);
                    rules
                })
            }
        })
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

    fn edge_tls_routes<'a>(
        &'a self,
        spots: &'a Spots<'a>,
    ) -> impl Iterator<Item = Offer<ModelTcpRoute>> + 'a {
        let mut all: Vec<_> = self.tls_routes.values().collect();
        all.sort_by_key(|route| (route.head.created, &route.head.name));
        all.into_iter().flat_map(|route| {
            let head = &route.head;
            let at = self.hosts_of(spots, Kind::TlsRoute, head, &route.snis);
            at.into_iter().map(|(place, snis)| Offer {
                object: head.name.clone(),
                place,
                what: ModelTcpRoute {
                    meta: Meta::Resource(route_ref(Kind::TlsRoute, &head.name)),
                    snis,
                    backends: self.connections(route_from(Kind::TlsRoute, head), &route.backends),
                    refuse: None,
                },
            })
        })
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

    /// Where a route is attached, and its hosts there, as many at a time as one route may have.
    fn hosts_of(
        &self,
        spots: &Spots<'_>,
        kind: Kind,
        head: &RouteHead,
        hosts: &[HostMatch],
    ) -> Vec<(Place, Vec<HostMatch>)> {
        let mut found: BTreeMap<Place, Vec<HostMatch>> = BTreeMap::new();
        for (place, spots) in spots {
            for spot in spots.iter().filter(|spot| self.takes(&spot.placed, kind, head)) {
                let Some(more) = hosts_at(spot.placed.listener, &spot.narrower, hosts) else {
                    continue;
                };
                match found.get_mut(place) {
                    None => drop(found.insert(*place, more)),
                    // Without any, it is for all hosts.
                    Some(have) if have.is_empty() || more.is_empty() => have.clear(),
                    Some(have) => {
                        let new = more.into_iter().filter(|host| !have.contains(host));
                        have.extend(new.collect::<Vec<_>>());
                    }
                }
            }
        }
        let split = found.into_iter().flat_map(|(place, hosts)| match hosts.len() {
            0 => vec![(place, hosts)],
            _ => hosts.chunks(limit::ITEMS).map(|some| (place, some.to_vec())).collect(),
        });
        split.collect()
    }
}

/// The policy of a port, which is the first listener's.
fn policy(port: u16, at: &[Spot<'_>], protocol: Protocol) -> Option<OutboundPolicy> {
    let meta = Meta::Resource(gateway_ref(&at.first()?.placed.gateway.name, port));
    Some(OutboundPolicy { meta, protocol })
}

/// A route of requests.
enum Requests<'a> {
    Http(&'a HttpRoute),
    Grpc(&'a GrpcRoute),
}

impl<'a> Requests<'a> {
    fn head(&self) -> &'a RouteHead {
        match self {
            Self::Http(route) => &route.head,
            Self::Grpc(route) => &route.head,
        }
    }
}

/// A route for each place, with the same rules.
fn offers(
    from: RouteFrom<'_>,
    at: Vec<(Place, Vec<HostMatch>)>,
    rules: impl FnOnce() -> Vec<Rule<HttpMatch, Forward>>,
) -> Vec<Offer<ModelHttpRoute>> {
    if at.is_empty() {
        return Vec::new();
    }
    let rules = rules();
    let name = &from.head.name;
    let offers = at.into_iter().map(|(place, hosts)| Offer {
        object: name.clone(),
        place,
        what: Route {
            meta: Meta::Resource(route_ref(from.kind, name)),
            hosts,
            rules: rules.clone(),
        },
    });
    offers.collect()
}

/// The hosts that listeners take from wider ones. The routes of those are not for them.
fn taken(at: &[Spot<'_>]) -> Vec<HostMatch> {
    let narrower = at.iter().filter(|spot| spot.has_wider);
    narrower.filter_map(|spot| spot.placed.listener.host.clone()).collect()
}

/// Answers where a listener has no route for a request, and a wider one may have.
fn no_http_route(at: &[Spot<'_>]) -> Option<ModelHttpRoute> {
    let hosts = taken(at);
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
    (!hosts.is_empty()).then(|| Route {
        meta: Meta::Default("no-route".into()),
        hosts,
        rules: vec![Rule { matches: Vec::new(), filters: vec![Filter::Fail(fail)], action }],
    })
}

/// The same of connections.
fn no_tls_route(at: &[Spot<'_>]) -> Option<ModelTcpRoute> {
    let snis = taken(at);
    (!snis.is_empty()).then(|| ModelTcpRoute {
        meta: Meta::Default("no-route".into()),
        snis,
        backends: Distribution::Empty,
        refuse: None,
    })
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
        try_timeout: rule.try_timeout,
        retry: rule.retry.clone(),
        session: rule.session.clone(),
    }
}

fn escape(c: char) -> impl Iterator<Item = char> {
    let special = !(c.is_alphanumeric() || c == '_');
    special.then_some('\\').into_iter().chain([c])
}
