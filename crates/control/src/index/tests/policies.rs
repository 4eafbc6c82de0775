//! What policies say, and who hears of changes.

use std::time::Duration;

use http::StatusCode;
use mesh_model::ProtocolHint;
use mesh_model::inbound::ServerProtocol;
use mesh_model::outbound::{Backend, BackendKind, Breaker, Forward, Protocol};
use mesh_model::route::{Distribution, Filter, HostMatch, HttpMatch, InjectedFailure, Ratio, Rule};

use super::*;
use crate::index::policy::DEFAULT_BREAKER;

#[test]
fn a_service_without_routes_has_the_default_one() {
    let index = index(vec![Object::Service(service("tax", "10.0.0.1"))]);
    let policy = policy(&index, "tax");
    assert_eq!(policy.meta.to_string(), "Service/shop/tax:8080");
    let Protocol::Detect { timeout, http1, http2, opaque } = policy.protocol else { panic!() };
    assert_eq!(timeout, Duration::from_secs(10));
    assert_eq!(http1, http2);
    assert_eq!(http1.breaker, Some(DEFAULT_BREAKER));
    let [route] = &http1.routes[..] else { panic!() };
    assert_eq!(route.meta.to_string(), "default/http");
    let action = &route.rules[0].action;
    assert_eq!(action.retry, None);
    let Distribution::FirstAvailable(backends) = &action.backends else { panic!() };
    let Backend { kind: BackendKind::Balance(balance), queue, .. } = &backends[0].backend else {
        panic!()
    };
    assert_eq!(balance.path, "tax.shop.svc.cluster.local:8080");
    assert_eq!((queue.capacity, queue.failfast_timeout), (10_000, Duration::from_secs(3)));
    assert_eq!(opaque.routes[0].meta.to_string(), "default/opaque");
}

#[test]
fn what_is_unknown_has_no_policy() {
    let mut index = index(vec![Object::Service(service("tax", "10.0.0.1"))]);
    assert!(index.watch_outbound(&shop("other"), 8080, "shop").is_none());
    assert!(index.watch_outbound(&shop("tax"), 81, "shop").is_none());
    assert!(index.watch_endpoints(&shop("tax"), 81, &None).is_none());
}

#[test]
fn protocols_come_from_hints() {
    let protocol = |app_protocol| {
        let tax = with_protocol(service("tax", "10.0.0.1"), app_protocol);
        policy(&index(vec![Object::Service(tax)]), "tax").protocol
    };
    assert!(matches!(protocol(AppProtocol::Http1), Protocol::Http1(_)));
    assert!(matches!(protocol(AppProtocol::Http2), Protocol::Http2(_)));
    assert!(matches!(protocol(AppProtocol::Grpc), Protocol::Grpc(_)));
    assert!(matches!(protocol(AppProtocol::Opaque), Protocol::Opaque(_)));
}

#[test]
fn a_grpc_route_makes_a_port_grpc() {
    let head = http_route(shop("r"), "tax", &[]).head;
    let route = GrpcRoute { head, ..GrpcRoute::default() };
    for app_protocol in [AppProtocol::Unknown, AppProtocol::Http2] {
        let tax = with_protocol(service("tax", "10.0.0.1"), app_protocol);
        let index = index(vec![Object::Service(tax), Object::GrpcRoute(route.clone())]);
        let Protocol::Grpc(grpc) = policy(&index, "tax").protocol else { panic!() };
        assert_eq!(grpc.routes[0].meta.to_string(), "GRPCRoute/shop/r");
    }
}

#[test]
fn opaque_ports_are_the_services_then_the_namespaces_then_the_defaults() {
    let only = |port: u16| Some(PortSet(vec![port..=port]));
    let is_opaque = |port: u16, app_protocol, of_service, of_namespace| {
        let tax = Service {
            ports: vec![ServicePort { port, app_protocol, ..ServicePort::default() }],
            opaque_ports: of_service,
            ..service("tax", "10.0.0.1")
        };
        let namespace =
            Namespace { name: "shop".into(), opaque_ports: of_namespace, ..Namespace::default() };
        let index = index(vec![Object::Service(tax), Object::Namespace(namespace)]);
        let profile = index.objects().address_profile(SocketAddr::new(ip("10.0.0.1"), port));
        let policy = index.objects().outbound_policy(&shop("tax"), port, "shop").unwrap();
        assert_eq!(profile.opaque, matches!(policy.protocol, Protocol::Opaque(_)));
        profile.opaque
    };
    use AppProtocol::{Http1, Unknown};
    assert!(is_opaque(3306, Unknown, None, None));
    assert!(!is_opaque(3306, Http1, None, None), "who says HTTP means it");
    assert!(is_opaque(3306, Http1, only(3306), None), "who says opaque means it, too");
    assert!(!is_opaque(3306, Unknown, only(1), None));
    assert!(!is_opaque(3306, Unknown, None, only(1)));
    assert!(is_opaque(7000, Unknown, None, only(7000)));
    assert!(!is_opaque(7000, Unknown, only(1), only(7000)));
}

#[test]
fn addresses_are_services_pods_or_nobodys() {
    let index = index(vec![
        Object::Service(service("tax", "10.0.0.1")),
        Object::Pod(pod("tax-1", "127.1.0.1")),
    ]);
    let profile = |text| index.objects().address_profile(addr(text));
    assert_eq!(profile("10.0.0.1:8080").name.unwrap(), "tax.shop.svc.cluster.local:8080");
    let endpoint = profile("127.1.0.1:80").endpoint.unwrap();
    assert_eq!(endpoint.hint, ProtocolHint::H2);
    assert_eq!(endpoint.labels["deployment"], "web");
    assert!(profile("127.1.0.1:3306").opaque);
    let nobody = profile("192.0.2.1:80");
    assert_eq!((nobody.name, nobody.endpoint, nobody.opaque), (None, None, false));
}

#[test]
fn an_address_belongs_to_the_pod_that_stays() {
    let old = Pod { terminating: true, ..pod("a-old", "127.1.0.1") };
    let index = index(vec![Object::Pod(old), Object::Pod(pod("b-new", "127.1.0.1"))]);
    assert_eq!(index.objects().pod_by_ip(ip("127.1.0.1")).unwrap().name, shop("b-new"));
}

#[test]
fn routes_split_and_invalid_backends_fail_their_share() {
    let index = index(vec![
        Object::Service(service("tax", "10.0.0.1")),
        Object::Service(service("tax-v1", "10.0.0.2")),
        Object::HttpRoute(http_route(shop("r"), "tax", &[("tax-v1", 3), ("gone", 1), ("off", 0)])),
    ]);
    let Protocol::Detect { http1, .. } = policy(&index, "tax").protocol else { panic!() };
    let Distribution::Random(backends) = &http1.routes[0].rules[0].action.backends else {
        panic!()
    };
    let [(good, 3), (bad, 1)] = &backends[..] else { panic!("{backends:?}") };
    assert_eq!(good.backend.meta.to_string(), "Service/shop/tax-v1:8080");
    assert!(good.filters.is_empty());
    let [Filter::Fail(fail)] = &bad.filters[..] else { panic!() };
    assert_eq!(fail.message, "Service shop/gone does not exist");
}

#[test]
fn routes_send_to_other_namespaces_where_those_let_them() {
    let there = Service { name: Name::new("bank", "ledger"), ..service("ledger", "10.0.0.3") };
    let mut route = http_route(shop("r"), "tax", &[]);
    let target = BackendTarget::Service { service: there.name.clone(), port: 8080 };
    let ratio = Ratio { numerator: 1, denominator: 2 };
    route.rules[0].filters = vec![RouteFilter::Mirror { target: target.clone(), ratio }];
    route.rules[0].backends = vec![BackendRef { target, weight: 1, filters: Vec::new() }];
    let mut index = index(vec![
        Object::Service(service("tax", "10.0.0.1")),
        Object::Service(there.clone()),
        Object::HttpRoute(route),
    ]);
    let rule = |index: &Index| {
        let Protocol::Detect { http1, .. } = policy(index, "tax").protocol else { panic!() };
        http1.routes[0].rules[0].clone()
    };
    let refused = |rule: &Rule<HttpMatch, Forward>| {
        let backend = rule.action.backends.backends().next().unwrap();
        matches!(&backend.filters[..], [Filter::Fail(_)])
    };
    assert!(refused(&rule(&index)) && rule(&index).filters.is_empty());
    let mut watched = index.watch_outbound(&shop("tax"), 8080, "shop").unwrap();
    let grant = |from: Kind, to: Option<&str>| ReferenceGrant {
        name: Name::new("bank", "grant"),
        from: vec![(from, "shop".into())],
        to: vec![to.map(str::to_owned)],
        ..ReferenceGrant::default()
    };
    for (from, to, granted) in [
        (Kind::HttpRoute, None, true),
        (Kind::HttpRoute, Some("ledger"), true),
        (Kind::HttpRoute, Some("vault"), false),
        (Kind::GrpcRoute, None, false),
    ] {
        index.apply(Object::ReferenceGrant(grant(from, to)));
        assert_eq!(!refused(&rule(&index)), granted, "{from:?} {to:?}");
        assert_eq!(rule(&index).filters.len(), usize::from(granted));
    }
    assert!(watched.has_changed().unwrap());
    watched.mark_unchanged();
    index.apply(Object::ReferenceGrant(grant(Kind::HttpRoute, None)));
    assert!(watched.has_changed().unwrap(), "proxies are told");
}

#[test]
fn a_consumers_route_may_send_to_its_own_parent() {
    let foreign = http_route(Name::new("bank", "z"), "tax", &[("tax", 1)]);
    let index =
        index(vec![Object::Service(service("tax", "10.0.0.1")), Object::HttpRoute(foreign)]);
    let policy = index.objects().outbound_policy(&shop("tax"), 8080, "bank").unwrap();
    let Protocol::Detect { http1, .. } = policy.protocol else { panic!() };
    let backend = http1.routes[0].rules[0].action.backends.backends().next().unwrap();
    assert!(backend.filters.is_empty());
}

#[test]
fn rules_without_weight_answer_500() {
    for backends in [&[][..], &[("tax", 0)]] {
        let index = index(vec![
            Object::Service(service("tax", "10.0.0.1")),
            Object::HttpRoute(http_route(shop("r"), "tax", backends)),
        ]);
        let Protocol::Detect { http1, .. } = policy(&index, "tax").protocol else { panic!() };
        let backend = http1.routes[0].rules[0].action.backends.backends().next().unwrap();
        let [Filter::Fail(fail)] = &backend.filters[..] else { panic!() };
        assert_eq!(fail.failure, InjectedFailure::Http(StatusCode::INTERNAL_SERVER_ERROR));
    }
}

#[test]
fn tls_is_routed_by_server_name_unless_requests_are() {
    let parents = vec![ServiceRef { service: shop("tax"), port: None, section: None }];
    let backend = BackendRef {
        target: BackendTarget::Service { service: shop("tax"), port: 8080 },
        weight: 1,
        filters: Vec::new(),
    };
    let route = TlsRoute {
        head: RouteHead { name: shop("t"), created: None, parents, ..RouteHead::default() },
        snis: vec![HostMatch::Exact("tax.example".into())],
        backends: vec![backend],
    };
    let mut index =
        index(vec![Object::Service(service("tax", "10.0.0.1")), Object::TlsRoute(route)]);
    let Protocol::Tls(tls) = policy(&index, "tax").protocol else { panic!() };
    assert_eq!(tls.routes[0].meta.to_string(), "TLSRoute/shop/t");
    assert_eq!(tls.routes[0].snis, [HostMatch::Exact("tax.example".into())]);
    index.apply(Object::HttpRoute(http_route(shop("r"), "tax", &[("tax", 1)])));
    assert!(matches!(policy(&index, "tax").protocol, Protocol::Detect { .. }));
}

#[test]
fn routes_apply_by_age_then_name_and_consumers_have_their_own() {
    let dated = |name: &str, created| {
        let mut route = http_route(shop(name), "tax", &[("tax", 1)]);
        route.head.created = Some(created);
        Object::HttpRoute(route)
    };
    let foreign = http_route(Name::new("bank", "z"), "tax", &[("tax", 1)]);
    let index = index(vec![
        Object::Service(service("tax", "10.0.0.1")),
        dated("a", 20),
        dated("b", 10),
        dated("c", 10),
        Object::HttpRoute(foreign),
    ]);
    let names = |client| {
        let policy = index.objects().outbound_policy(&shop("tax"), 8080, client).unwrap();
        route_names(&policy)
    };
    let own = ["HTTPRoute/shop/b", "HTTPRoute/shop/c", "HTTPRoute/shop/a"];
    assert_eq!(names("shop"), own);
    assert_eq!(names("elsewhere"), own);
    assert_eq!(names("bank"), ["HTTPRoute/bank/z"]);
}

#[test]
fn routes_attach_to_ports_by_number_and_name() {
    let mut route = http_route(shop("r"), "tax", &[("tax", 1)]);
    let ports = ["web", "admin"].into_iter().zip([8080, 9090]);
    let ports =
        ports.map(|(name, port)| ServicePort { name: name.into(), port, ..ServicePort::default() });
    let tax = Service { ports: ports.collect(), ..service("tax", "10.0.0.1") };
    let mut attached = |port, section: Option<&str>| {
        route.head.parents[0].port = port;
        route.head.parents[0].section = section.map(str::to_owned);
        let index = index(vec![Object::Service(tax.clone()), Object::HttpRoute(route.clone())]);
        [8080, 9090].map(|port| {
            let policy = index.objects().outbound_policy(&shop("tax"), port, "shop").unwrap();
            route_names(&policy) == ["HTTPRoute/shop/r"]
        })
    };
    assert_eq!(attached(None, None), [true, true]);
    assert_eq!(attached(Some(9090), None), [false, true]);
    assert_eq!(attached(None, Some("web")), [true, false]);
    assert_eq!(attached(Some(9090), Some("web")), [false, false]);
}

#[test]
fn breakers_can_be_changed_and_turned_off() {
    let with = |breaker: Option<Option<Breaker>>| {
        let tax = Service { breaker, ..service("tax", "10.0.0.1") };
        match policy(&index(vec![Object::Service(tax)]), "tax").protocol {
            Protocol::Detect { http1, .. } => http1.breaker,
            other => panic!("{other:?}"),
        }
    };
    let strict = Breaker { consecutive: Some(1), ..DEFAULT_BREAKER };
    assert_eq!(with(None), Some(DEFAULT_BREAKER));
    assert_eq!(with(Some(Some(strict))), Some(strict));
    assert_eq!(with(Some(None)), None);
}

#[test]
fn a_service_may_let_requests_set_their_own_limits() {
    let route = http_route(shop("r"), "tax", &[("tax", 1)]);
    for allow_request_headers in [false, true] {
        let tax = || Service { allow_request_headers, ..service("tax", "10.0.0.1") };
        for objects in [
            vec![Object::Service(tax())],
            vec![Object::Service(tax()), Object::HttpRoute(route.clone())],
            vec![Object::Service(with_protocol(tax(), AppProtocol::Grpc))],
        ] {
            let allowed = match policy(&index(objects), "tax").protocol {
                Protocol::Detect { http1, .. } => http1.routes[0].rules[0].action.clone(),
                Protocol::Grpc(grpc) => grpc.routes[0].rules[0].action.clone(),
                other => panic!("{other:?}"),
            };
            assert_eq!(allowed.allow_request_headers, allow_request_headers);
        }
    }
}

#[test]
fn a_pods_own_ports_follow_the_same_hints() {
    let protocol = |app_protocol, port| {
        let index = index(vec![
            Object::Service(with_protocol(service("tax", "10.0.0.1"), app_protocol)),
            Object::Pod(pod("tax-1", "127.1.0.1")),
            Object::EndpointSlice(slice("tax", &[("tax-1", "127.1.0.1")])),
        ]);
        index.objects().server_policy(&shop("tax-1"), port).protocol
    };
    use AppProtocol::{Grpc, Http1, Http2, Opaque, Unknown};
    assert!(matches!(protocol(Unknown, 80), ServerProtocol::Detect { .. }));
    assert!(matches!(protocol(Http1, 80), ServerProtocol::Detect { .. }));
    assert!(matches!(protocol(Http2, 80), ServerProtocol::Http2 { .. }));
    assert!(matches!(protocol(Grpc, 80), ServerProtocol::Grpc { .. }));
    assert!(matches!(protocol(Opaque, 80), ServerProtocol::Opaque));
    assert!(matches!(protocol(Grpc, 81), ServerProtocol::Detect { .. }), "another port");
    assert!(matches!(protocol(Unknown, 3306), ServerProtocol::Opaque));
}

#[test]
fn everybody_may_come_in_by_default() {
    let policy = Index::default().objects().server_policy(&shop("unknown"), 80);
    let authorization = &policy.authorizations[0];
    assert_eq!(authorization.meta.to_string(), "default/all-unauthenticated");
    for client in ["192.0.2.1", "2001:db8::1"] {
        assert!(authorization.networks.iter().any(|network| network.contains(ip(client))));
    }
    for label in ["group", "kind", "name"] {
        assert!(!policy.labels[label].is_empty());
    }
}

#[test]
fn watchers_hear_what_touches_them_and_nothing_else() {
    let mut index = index(vec![
        Object::Service(service("tax", "10.0.0.1")),
        Object::Service(service("web", "10.0.0.2")),
        Object::Pod(pod("tax-1", "127.1.0.1")),
        Object::EndpointSlice(slice("tax", &[("tax-1", "127.1.0.1")])),
    ]);
    let mut tax = index.watch_outbound(&shop("tax"), 8080, "shop").unwrap();
    let mut web = index.watch_outbound(&shop("web"), 8080, "shop").unwrap();
    let mut endpoints = index.watch_endpoints(&shop("tax"), 8080, &None).unwrap();

    index.apply(Object::HttpRoute(http_route(shop("r"), "tax", &[("web", 1)])));
    assert_eq!(route_names(&tax.borrow_and_update()), ["HTTPRoute/shop/r"]);
    assert!(!web.has_changed().unwrap() && !endpoints.has_changed().unwrap());

    // The backend of a route goes: the route's share fails from then on.
    index.delete(&ObjectKey { kind: Kind::Service, name: shop("web") });
    assert!(tax.has_changed().unwrap());
    assert!(web.has_changed().is_err(), "its own watchers' streams end");
    tax.mark_unchanged();

    // A pod's proxy goes: its endpoint is another one.
    index.apply(Object::Pod(Pod { proxy: None, ..pod("tax-1", "127.1.0.1") }));
    let set = endpoints.borrow_and_update().clone();
    assert_eq!(set.endpoints.values().next().unwrap().hint, ProtocolHint::None);
    assert!(!tax.has_changed().unwrap());

    index.apply(Object::Pod(Pod { proxy: None, ..pod("tax-1", "127.1.0.1") }));
    assert!(!endpoints.has_changed().unwrap(), "nothing new");
    web.mark_unchanged();
}
