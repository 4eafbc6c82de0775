//! One plain value of each kind, to be spoilt by tests.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use mesh_model::inbound::{
    Authentication, Authorization, Authorize, Cidr, Network, Rate, RateLimit, ServerPolicy,
    ServerProtocol,
};
use mesh_model::outbound::{
    Backend, BackendKind, Balance, Breaker, Forward, GrpcPolicy, HttpPolicy, Protocol, Queue,
    Refuse, RouteBackend, SuccessRate, TcpPolicy, TcpRoute,
};
use mesh_model::route::{
    Backoff, Distribution, FailureInjector, Filter, GrpcCodes, GrpcMatch, HostMatch, HttpMatch,
    InjectedFailure, PathMatch, PathModifier, Ratio, Redirect, Retry, Route, Rule, Timeouts,
};
use mesh_model::{Endpoint, Meta, OutboundPolicy, ResourceRef, TlsIdentity};

pub(crate) fn meta(name: &str) -> Meta {
    Meta::Resource(ResourceRef::service("shop", name, 80))
}

pub(crate) fn balanced(name: &str) -> Backend {
    Backend {
        meta: meta(name),
        queue: queue(),
        kind: BackendKind::Balance(Balance {
            path: format!("{name}.shop.svc.cluster.local:80"),
            default_rtt: Duration::from_millis(30),
            decay: Duration::from_secs(10),
            penalty: None,
        }),
    }
}

pub(crate) fn forwarded() -> Backend {
    let identity = TlsIdentity { id: "spiffe://mesh/ns/shop".into(), server_name: "shop".into() };
    Backend {
        meta: meta("pod"),
        queue: queue(),
        kind: BackendKind::Forward(Endpoint {
            identity: Some(identity),
            ..Endpoint::plain("10.0.0.9:80".parse().unwrap())
        }),
    }
}

fn queue() -> Queue {
    Queue { capacity: 100, failfast_timeout: Duration::from_secs(3) }
}

pub(crate) fn backoff() -> Backoff {
    Backoff {
        min: Duration::from_secs(1),
        max: Duration::from_secs(60),
        jitter: 0.5,
        respect_retry_after: true,
    }
}

fn breaker() -> Breaker {
    Breaker {
        consecutive: Some(7),
        success_rate: Some(SuccessRate {
            threshold: 0.8,
            decay: Duration::from_secs(10),
            min_requests: 5,
        }),
        backoff: backoff(),
        min_ready: 1,
    }
}

pub(crate) fn forward() -> Forward {
    let backend = |backend| Arc::new(RouteBackend { filters: Vec::new(), backend });
    Forward {
        backends: Distribution::Random(vec![
            (backend(balanced("tax")), 3),
            (backend(forwarded()), 1),
        ]),
        timeouts: Timeouts::default(),
        retry: Some(Retry {
            max_retries: 2,
            max_request_bytes: 65_536,
            statuses: vec![500..=504],
            grpc: GrpcCodes::default(),
            timeout: None,
            backoff: Some(backoff()),
        }),
        session: None,
        allow_request_headers: false,
    }
}

pub(crate) fn failure(failure: InjectedFailure) -> Filter {
    let ratio = Ratio { numerator: 1, denominator: 100 };
    Filter::Fail(FailureInjector { failure, message: "injected".into(), ratio })
}

pub(crate) fn redirect() -> Filter {
    Filter::Redirect(Redirect {
        scheme: None,
        host: None,
        port: None,
        path: Some(PathModifier::Full("/there".into())),
        status: StatusCode::FOUND,
    })
}

pub(crate) fn http_match() -> HttpMatch {
    HttpMatch {
        path: Some(PathMatch::Prefix("/".into())),
        method: Some(Method::GET),
        ..HttpMatch::default()
    }
}

fn http_policy() -> HttpPolicy {
    let route = Route {
        meta: meta("route"),
        hosts: vec![HostMatch::Exact("tax.shop".into())],
        rules: vec![Rule {
            matches: vec![http_match()],
            filters: vec![failure(InjectedFailure::Http(StatusCode::IM_A_TEAPOT)), redirect()],
            action: forward(),
        }],
    };
    HttpPolicy { routes: [route].into(), breaker: Some(breaker()) }
}

pub(crate) fn outbound_http() -> OutboundPolicy {
    OutboundPolicy { meta: meta("tax"), protocol: Protocol::Http1(http_policy()) }
}

pub(crate) fn outbound_grpc() -> OutboundPolicy {
    let mut action = forward();
    if let Some(retry) = &mut action.retry {
        retry.statuses.clear();
        retry.grpc = GrpcCodes::default().with(14);
    }
    let route = Route {
        meta: meta("route"),
        hosts: Vec::new(),
        rules: vec![Rule {
            matches: vec![GrpcMatch { service: Some("tax.Tax".into()), ..GrpcMatch::default() }],
            filters: vec![failure(InjectedFailure::Grpc(14))],
            action,
        }],
    };
    let policy = GrpcPolicy { routes: [route].into(), breaker: None };
    OutboundPolicy { meta: meta("tax"), protocol: Protocol::Grpc(policy) }
}

fn tcp_policy(snis: Vec<HostMatch>, refuse: Option<Refuse>) -> TcpPolicy {
    let backends = Distribution::FirstAvailable(vec![Arc::new(balanced("db"))]);
    TcpPolicy { routes: [TcpRoute { meta: meta("route"), snis, backends, refuse }].into() }
}

pub(crate) fn outbound_opaque(refuse: Option<Refuse>) -> OutboundPolicy {
    let protocol = Protocol::Opaque(tcp_policy(Vec::new(), refuse));
    OutboundPolicy { meta: meta("db"), protocol }
}

pub(crate) fn outbound_tls() -> OutboundPolicy {
    let snis = vec![HostMatch::Suffix(vec!["example".into(), "com".into()])];
    OutboundPolicy { meta: meta("db"), protocol: Protocol::Tls(tcp_policy(snis, None)) }
}

pub(crate) fn outbound_detect() -> OutboundPolicy {
    let protocol = Protocol::Detect {
        timeout: Duration::from_secs(10),
        http1: http_policy(),
        http2: http_policy(),
        opaque: tcp_policy(Vec::new(), None),
    };
    OutboundPolicy { meta: meta("tax"), protocol }
}

pub(crate) fn authorization(name: &str) -> Authorization {
    Authorization {
        meta: meta(name),
        networks: vec![Network {
            net: Cidr { addr: "10.0.0.0".parse().unwrap(), prefix: 8 },
            except: Vec::new(),
        }],
        authentication: Authentication::MeshTls,
        labels: Default::default(),
    }
}

pub(crate) fn server_rule(authorized: &str) -> Rule<HttpMatch, Authorize> {
    Rule {
        matches: vec![http_match()],
        filters: vec![redirect()],
        action: Authorize { authorizations: [authorization(authorized)].into() },
    }
}

pub(crate) fn server() -> ServerPolicy {
    let route =
        Route { meta: meta("route"), hosts: Vec::new(), rules: vec![server_rule("callers")] };
    let limit = RateLimit {
        meta: meta("limit"),
        total: Some(Rate::per_second(100)),
        identity: None,
        overrides: Vec::new(),
        header: None,
    };
    let labels = ["group", "kind", "name"].map(|key| (key.to_owned(), format!("the-{key}")));
    ServerPolicy {
        protocol: ServerProtocol::Detect {
            timeout: Duration::from_secs(10),
            routes: [route].into(),
            limit: Some(limit),
        },
        authorizations: [authorization("everybody")].into(),
        labels: Arc::new(labels.into()),
    }
}
