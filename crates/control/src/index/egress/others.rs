//! The same in the words of the linkerd2 API, for proxies that do not know ours: the policy of an
//! address that is not of the mesh.
//!
//! Such a proxy takes the most specific host where we take the strictest item, so that each host that
//! anybody names is decided here, and told with its verdict. It cannot tell TLS by name and HTTP by host
//! at one address: on port 443 it is told about TLS, and lets nothing else through; elsewhere about HTTP, and
//! carries all else as bytes whose host it does not look at, so that these may leave only where no host is
//! denied. That is narrower, never wider.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_model::egress::{
    Departure, EgressAction, EgressRule, EgressRules, EgressVerdict, egress_default,
};
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

/// Hosts that are told by name. Each is compared with all others, for every address.
const MAX_HOSTS: usize = 1_000;

/// The policy of an address; `None` where everything may go there, and nothing has to be said.
pub fn for_others(rules: &EgressRules, addr: SocketAddr, opaque: bool) -> Option<OutboundPolicy> {
    if rules.allow_everything() {
        return None;
    }
    let what = Departure { names: &[], ip: Some(addr.ip()), port: addr.port() };
    let nameless = rules.decide(what);
    let hosts: HashSet<&HostMatch> = rules.rules.iter().flat_map(|rule| &rule.hosts).collect();
    let bytes = |verdict| TcpPolicy { routes: Arc::new([tcp(verdict, Vec::new(), addr)]) };
    let protocol = if opaque {
        Protocol::Opaque(bytes(nameless))
    } else if hosts.len() > MAX_HOSTS {
        Protocol::Opaque(bytes(of_any_host(rules, addr)))
    } else if addr.port() == TLS_PORT && !hosts.is_empty() {
        let named = by_verdict(rules, hosts, addr).into_iter();
        let routes = named.map(|(verdict, hosts)| tcp(verdict, hosts, addr));
        let routes = routes.chain([tcp(nameless, Vec::new(), addr)]).collect();
        Protocol::Tls(TcpPolicy { routes })
    } else {
        let named = by_verdict(rules, hosts, addr).into_iter();
        let routes = named.map(|(verdict, hosts)| http(verdict, hosts, addr));
        let routes = routes.chain([http(nameless, Vec::new(), addr)]).collect();
        let http = HttpPolicy { routes, breaker: None };
        Protocol::Detect {
            timeout: DETECT_TIMEOUT,
            http1: http.clone(),
            http2: http,
            opaque: bytes(of_any_host(rules, addr)),
        }
    };
    Some(OutboundPolicy { meta: egress_default(), protocol })
}

/// What is decided about bytes that may name any host, or none.
fn of_any_host(rules: &EgressRules, addr: SocketAddr) -> EgressVerdict<'_> {
    let what = Departure { names: &[], ip: Some(addr.ip()), port: addr.port() };
    let denies =
        |rule: &&EgressRule| rule.action == EgressAction::Deny && rule.is_about(what.ip, what.port);
    match rules.rules.iter().find(denies) {
        Some(rule) => EgressVerdict { allowed: false, by: &rule.meta },
        None => rules.decide(what),
    }
}

/// All hosts that are named, by what is decided about them.
fn by_verdict<'a>(
    rules: &'a EgressRules,
    hosts: HashSet<&HostMatch>,
    addr: SocketAddr,
) -> Vec<(EgressVerdict<'a>, Vec<HostMatch>)> {
    let mut hosts: Vec<_> = hosts.into_iter().collect();
    // The same rules make the same policy.
    hosts.sort_by_cached_key(ToString::to_string);
    let mut all: Vec<(EgressVerdict<'_>, Vec<HostMatch>)> = Vec::new();
    for host in hosts {
        let verdict = rules.decide_pattern(host, addr.ip(), addr.port());
        match all.iter_mut().find(|(have, _)| *have == verdict) {
            Some((_, hosts)) => hosts.push(host.clone()),
            None => all.push((verdict, vec![host.clone()])),
        }
    }
    all
}

fn backend(addr: SocketAddr) -> Backend {
    let kind = BackendKind::Forward(Endpoint::plain(addr));
    Backend { meta: egress_default(), queue: QUEUE, kind }
}

fn tcp(verdict: EgressVerdict<'_>, snis: Vec<HostMatch>, addr: SocketAddr) -> TcpRoute {
    TcpRoute {
        meta: verdict.by.clone(),
        snis,
        backends: Distribution::FirstAvailable(vec![Arc::new(backend(addr))]),
        refuse: (!verdict.allowed).then_some(Refuse::Forbidden),
    }
}

fn http(verdict: EgressVerdict<'_>, hosts: Vec<HostMatch>, addr: SocketAddr) -> HttpRoute {
    let denied = || {
        Filter::Fail(FailureInjector {
            failure: InjectedFailure::Http(http::StatusCode::FORBIDDEN),
            message: format!("{} denies it", verdict.by),
            ratio: Ratio { numerator: 1, denominator: 1 },
        })
    };
    let backend = RouteBackend { filters: Vec::new(), backend: backend(addr) };
    Route {
        meta: verdict.by.clone(),
        hosts,
        rules: vec![Rule {
            matches: Vec::new(),
            filters: (!verdict.allowed).then(denied).into_iter().collect(),
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
