//! The same in the words of the linkerd2 API, for proxies that do not know ours: the policy of an
//! address that is not of the mesh.
//!
//! Such a proxy takes the most specific host where we take the strictest item, so that each host that
//! anybody names is decided here, and told with its verdict. It cannot tell TLS by name and HTTP by host
//! at one address: on port 443 it is told about TLS, elsewhere about HTTP, and what is neither goes by
//! what is said of bytes that name no host. That is narrower, never wider.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_model::Meta;
use mesh_model::egress::{Departure, EgressAction, EgressRules};
use mesh_model::endpoint::Endpoint;
use mesh_model::outbound::{
    Backend, BackendKind, Forward, HttpPolicy, HttpRoute, OutboundPolicy, Protocol, Refuse,
    RouteBackend, TcpPolicy, TcpRoute,
};
use mesh_model::route::{
    Distribution, FailureInjector, Filter, HostMatch, InjectedFailure, Ratio, Route, Rule, Timeouts,
};

use crate::index::policy::DETECT_TIMEOUT;
use crate::index::routes::QUEUE;

/// Where what is spoken is taken for TLS.
const TLS_PORT: u16 = 443;

/// The policy of an address; `None` where everything may go there, and nothing has to be said.
pub fn for_others(rules: &EgressRules, addr: SocketAddr, opaque: bool) -> Option<OutboundPolicy> {
    if rules.rules.is_empty() && rules.default.action == EgressAction::Allow {
        return None;
    }
    let nameless = Verdict::of(rules, None, addr);
    let protocol = if opaque {
        Protocol::Opaque(TcpPolicy { routes: Arc::new([nameless.tcp(Vec::new(), addr)]) })
    } else if addr.port() == TLS_PORT {
        let named = by_verdict(rules, addr);
        let routes = named.into_iter().map(|(verdict, hosts)| verdict.tcp(hosts, addr));
        Protocol::Tls(TcpPolicy {
            routes: routes.chain([nameless.tcp(Vec::new(), addr)]).collect(),
        })
    } else {
        let named = by_verdict(rules, addr);
        let routes = named.into_iter().map(|(verdict, hosts)| verdict.http(hosts, addr));
        let routes = routes.chain([nameless.http(Vec::new(), addr)]).collect();
        let http = HttpPolicy { routes, breaker: None };
        Protocol::Detect {
            timeout: DETECT_TIMEOUT,
            http1: http.clone(),
            http2: http,
            opaque: TcpPolicy { routes: Arc::new([nameless.tcp(Vec::new(), addr)]) },
        }
    };
    Some(OutboundPolicy { meta: parent(), protocol })
}

fn parent() -> Meta {
    Meta::Default("egress".into())
}

/// All hosts that are named, by what is decided about them.
fn by_verdict(rules: &EgressRules, addr: SocketAddr) -> Vec<(Verdict, Vec<HostMatch>)> {
    let mut all: Vec<(Verdict, Vec<HostMatch>)> = Vec::new();
    for host in rules.rules.iter().flat_map(|rule| &rule.hosts) {
        if all.iter().any(|(_, hosts)| hosts.contains(host)) {
            continue;
        }
        let verdict = Verdict::of(rules, Some(host), addr);
        match all.iter_mut().find(|(have, _)| *have == verdict) {
            Some((_, hosts)) => hosts.push(host.clone()),
            None => all.push((verdict, vec![host.clone()])),
        }
    }
    all
}

#[derive(PartialEq)]
struct Verdict {
    allowed: bool,
    by: Meta,
}

impl Verdict {
    /// Of two patterns that have a name in common one has all of the other's: what is decided about a
    /// pattern is decided about each of its names that no narrower pattern has.
    fn of(rules: &EgressRules, host: Option<&HostMatch>, addr: SocketAddr) -> Self {
        let covers = |hosts: &[HostMatch]| {
            hosts.is_empty() || host.is_some_and(|host| hosts.iter().any(|of| of.covers(host)))
        };
        let about = rules.rules.iter().filter(|rule| covers(&rule.hosts)).cloned();
        let about = about.map(|rule| mesh_model::egress::EgressRule { hosts: Vec::new(), ..rule });
        let about = EgressRules { rules: about.collect(), default: rules.default.clone() };
        let what = Departure { names: &[], ip: Some(addr.ip()), port: addr.port() };
        let verdict = about.decide(what);
        Self { allowed: verdict.allowed, by: verdict.by.clone() }
    }

    fn backend(&self, addr: SocketAddr) -> Backend {
        Backend { meta: parent(), queue: QUEUE, kind: BackendKind::Forward(Endpoint::plain(addr)) }
    }

    fn tcp(&self, snis: Vec<HostMatch>, addr: SocketAddr) -> TcpRoute {
        TcpRoute {
            meta: self.by.clone(),
            snis,
            backends: Distribution::FirstAvailable(vec![Arc::new(self.backend(addr))]),
            refuse: (!self.allowed).then_some(Refuse::Forbidden),
        }
    }

    fn http(&self, hosts: Vec<HostMatch>, addr: SocketAddr) -> HttpRoute {
        let denied = || {
            Filter::Fail(FailureInjector {
                failure: InjectedFailure::Http(http::StatusCode::FORBIDDEN),
                message: format!("{} denies it", self.by),
                ratio: Ratio { numerator: 1, denominator: 1 },
            })
        };
        let backend = RouteBackend { filters: Vec::new(), backend: self.backend(addr) };
        Route {
            meta: self.by.clone(),
            hosts,
            rules: vec![Rule {
                matches: Vec::new(),
                filters: (!self.allowed).then(denied).into_iter().collect(),
                action: Forward {
                    backends: Distribution::FirstAvailable(vec![Arc::new(backend)]),
                    timeouts: Timeouts::default(),
                    retry: None,
                    allow_request_headers: false,
                    session: None,
                },
            }],
        }
    }
}
