//! What BackendTrafficPolicies make of a service's ports.

use std::time::Duration;

use mesh_model::Meta;
use mesh_model::outbound::{BackendExtension, Breaker, RetryBudget, Strategy};
use mesh_model::route::GrpcCodes;
use mesh_model::route::{Fault, FaultKind, Filter, HeaderModifier, Ratio};

use super::*;
use crate::index::conflicts::Before;
use crate::index::object::{
    Balancing, BreakerPolicy, Kind, ObjectKey, PolicyTarget, PortRef, TrafficLimits, TrafficPolicy,
};
use crate::index::policy::DEFAULT_BREAKER;

fn web() -> Service {
    let port = |name: &str, port| ServicePort { name: name.into(), port, ..ServicePort::default() };
    Service {
        ports: vec![port("http", 80), port("admin", 81)],
        balancer: Balancer { strategy: Strategy::LeastRequest, hash_header: None },
        breaker: Some(None),
        ..service("web", "10.0.0.1")
    }
}

fn policy(name: &str, created: i64, port: Option<PortRef>) -> TrafficPolicy {
    TrafficPolicy {
        name: shop(name),
        created: Some(created),
        target: PolicyTarget::Service { name: "web".into(), port },
        balancing: None,
        breaker: None,
        limits: TrafficLimits::default(),
        retry_budget: None,
        retry: None,
        zones: None,
        faults: Vec::new(),
    }
}

fn budget(percent: u32) -> Option<RetryBudget> {
    Some(RetryBudget { percent, min_per_second: 0 })
}

fn index(policies: impl IntoIterator<Item = TrafficPolicy>) -> Index {
    let mut index = Index::default();
    index.apply(Object::Service(web()));
    policies.into_iter().for_each(|policy| index.apply(Object::TrafficPolicy(policy)));
    index
}

fn told(index: &Index, port: u16) -> (Option<Breaker>, u32) {
    let policy = index.objects().outbound_policy(&shop("web"), port, "shop").unwrap();
    let Protocol::Detect { http1, .. } = policy.protocol else { panic!() };
    let backends = &http1.routes[0].rules[0].action.backends;
    let mesh_model::route::Distribution::FirstAvailable(backends) = backends else { panic!() };
    (http1.breaker, backends[0].backend.queue.capacity)
}

#[test]
fn a_policy_goes_before_annotations_and_one_port_before_the_service() {
    let none = index([]);
    let annotated = BackendExtension { strategy: Strategy::LeastRequest, ..Default::default() };
    assert_eq!(none.objects().backend_extension(&shop("web"), 80), annotated);
    assert_eq!(told(&none, 80), (None, 10_000));

    let latency = Some(Duration::from_millis(250));
    let breaker = Breaker { consecutive: Some(3), ..DEFAULT_BREAKER };
    let limits = TrafficLimits { connections: Some(5), pending: Some(7), in_flight: Some(9) };
    let index = index([
        TrafficPolicy {
            breaker: Some(BreakerPolicy::Enabled { breaker, latency }),
            retry_budget: budget(5),
            limits,
            ..policy("all", 1, None)
        },
        TrafficPolicy {
            balancing: Some(Balancing::default()),
            retry_budget: budget(6),
            ..policy("one", 2, Some(PortRef::Name("http".into())))
        },
    ]);
    let of = |port| index.objects().backend_extension(&shop("web"), port);
    let expected = BackendExtension {
        breaker_latency: latency,
        max_connections: Some(5),
        max_in_flight: Some(9),
        retry_budget: budget(6),
        ..BackendExtension::default()
    };
    assert_eq!(of(80), expected);
    assert_eq!((of(81).retry_budget, of(81).strategy), (budget(5), Strategy::LeastRequest));
    assert_eq!(told(&index, 80), (Some(breaker), 7));
    assert!(index.objects().conflicts().is_empty());
}

#[test]
fn what_a_route_does_not_say_of_retries_the_service_says() {
    let retries = |attempts| {
        Some(Retries {
            attempts,
            statuses: vec![503..=503],
            grpc: GrpcCodes::default().with(14),
            backoff: None,
        })
    };
    let mut index = index([
        TrafficPolicy { retry: retries(1), ..policy("all", 1, None) },
        TrafficPolicy { retry: retries(2), ..policy("one", 2, Some(PortRef::Number(81))) },
    ]);
    let told = |index: &Index, port| -> Vec<_> {
        let policy = index.objects().outbound_policy(&shop("web"), port, "shop").unwrap();
        let Protocol::Detect { http1, .. } = policy.protocol else { panic!() };
        let rules = http1.routes.iter().flat_map(|route| &route.rules);
        let retries = rules.map(|rule| {
            let retry = rule.action.retry.as_ref()?;
            Some((retry.max_retries, retry.grpc.contains(14), retry.timeout))
        });
        retries.collect()
    };
    assert_eq!(told(&index, 80), [Some((1, true, None))]);
    assert_eq!(told(&index, 81), [Some((2, true, None))]);

    let second = Some(Duration::from_secs(1));
    let own = Retries { attempts: 0, grpc: GrpcCodes::default(), ..retries(0).unwrap() };
    let mut route = http_route(shop("r"), "web", &[("web", 1)]);
    route.rules = vec![
        RouteRule { try_timeout: second, ..RouteRule::default() },
        RouteRule { retry: Some(own), ..RouteRule::default() },
    ];
    index.apply(Object::HttpRoute(route));
    assert_eq!(told(&index, 80), [Some((1, true, second)), Some((0, false, None))]);
    for name in ["all", "one"] {
        index.delete(&ObjectKey { kind: Kind::BackendTrafficPolicy, name: shop(name) });
    }
    assert_eq!(told(&index, 80), [Some((0, false, second)), Some((0, false, None))]);
}

#[test]
fn of_two_about_the_same_the_older_one_counts_and_watchers_are_told() {
    let younger = TrafficPolicy { retry_budget: budget(1), ..policy("a", 2, None) };
    let older = TrafficPolicy {
        breaker: Some(BreakerPolicy::Disabled),
        retry_budget: budget(2),
        ..policy("b", 1, None)
    };
    let mut index = index([younger, older]);
    let mut watch = index.watch_backend(&shop("web"), 80);
    assert_eq!(watch.borrow_and_update().retry_budget, budget(2));
    let key = |name| ObjectKey { kind: Kind::BackendTrafficPolicy, name: shop(name) };
    let before = Before { policy: &shop("b"), everywhere: true };
    assert_eq!(index.objects().before(&key("a")), Some(before));
    assert_eq!(index.objects().before(&key("b")), None);
    index.delete(&key("b"));
    assert_eq!(watch.borrow_and_update().retry_budget, budget(1));
    assert!(index.objects().conflicts().is_empty());

    // By its name and by its number it is the same port.
    let of = |name, created, port| TrafficPolicy {
        retry_budget: budget(3),
        ..policy(name, created, Some(port))
    };
    index.apply(Object::TrafficPolicy(of("named", 1, PortRef::Name("http".into()))));
    index.apply(Object::TrafficPolicy(of("numbered", 2, PortRef::Number(80))));
    let before = Before { policy: &shop("named"), everywhere: true };
    assert_eq!(index.objects().before(&key("numbered")), Some(before));
}

fn fault(name: &str) -> Fault {
    Fault {
        meta: Meta::Default(name.into()),
        headers: Vec::new(),
        ratio: Ratio { numerator: 1, denominator: 10 },
        kind: FaultKind::Delay(Duration::from_millis(5)),
        until: None,
    }
}

/// About a route, or one of its rules.
fn of_route(name: &str, kind: Kind, rule: Option<&str>) -> TrafficPolicy {
    TrafficPolicy {
        target: PolicyTarget::Route { kind, name: "r".into(), rule: rule.map(str::to_owned) },
        faults: vec![fault(name)],
        ..policy(name, 1, None)
    }
}

/// The names of the faults of each rule of each route.
fn faults(policy: &mesh_model::OutboundPolicy) -> Vec<Vec<Vec<String>>> {
    let Protocol::Detect { http1, .. } = &policy.protocol else { panic!() };
    let name = |filter: &Filter| match filter {
        Filter::Fault(fault) => fault.meta.to_string(),
        other => panic!("{other:?}"),
    };
    let of = |route: &mesh_model::outbound::HttpRoute| {
        route.rules.iter().map(|rule| rule.filters.iter().map(name).collect()).collect()
    };
    http1.routes.iter().map(of).collect()
}

#[test]
fn faults_of_a_route_are_for_its_rules_at_all_of_its_parents() {
    let mut route = http_route(shop("r"), "web", &[("web", 1)]);
    let parent = |name: &str| ServiceRef { service: shop(name), ..ServiceRef::default() };
    route.head.parents = vec![parent("web"), parent("front")];
    let named = RouteRule { name: "beta".into(), ..route.rules[0].clone() };
    route.rules.push(named);
    let other = http_route(shop("s"), "web", &[("web", 1)]);
    let mut index = index([TrafficPolicy { faults: vec![fault("svc")], ..policy("svc", 1, None) }]);
    index.apply(Object::Service(service("front", "10.0.0.2")));
    index.apply(Object::HttpRoute(route));
    index.apply(Object::HttpRoute(other));
    let mut front = index.watch_outbound(&shop("front"), 8080, "shop").unwrap();
    front.mark_unchanged();
    index.apply(Object::TrafficPolicy(of_route("a", Kind::HttpRoute, None)));
    assert!(front.has_changed().unwrap(), "clients of each parent are told");
    index.apply(Object::TrafficPolicy(of_route("b", Kind::HttpRoute, Some("beta"))));
    // Another route that has only the name in common.
    index.apply(Object::TrafficPolicy(of_route("c", Kind::GrpcRoute, None)));

    let at = |service: &str, port| {
        faults(&index.objects().outbound_policy(&shop(service), port, "shop").unwrap())
    };
    let [a, b, svc] = ["default/a", "default/b", "default/svc"].map(str::to_owned);
    let of_r = vec![vec![a.clone(), svc.clone()], vec![a.clone(), b.clone(), svc.clone()]];
    assert_eq!(at("web", 80), [of_r, vec![vec![svc]]]);
    assert_eq!(at("front", 8080), [vec![vec![a.clone()], vec![a, b]]]);
    assert!(index.objects().conflicts().is_empty());

    front.mark_unchanged();
    index.delete(&ObjectKey { kind: Kind::BackendTrafficPolicy, name: shop("a") });
    assert_eq!(faults(&front.borrow_and_update())[0][0], [""; 0]);
}

#[test]
fn faults_are_those_of_all_policies_and_come_before_everything() {
    let with = |name, created, port| TrafficPolicy {
        faults: vec![fault(name)],
        ..policy(name, created, port)
    };
    let governs = TrafficPolicy { breaker: Some(BreakerPolicy::Disabled), ..policy("c", 3, None) };
    let mut route = http_route(shop("r"), "web", &[("web", 1)]);
    let change = Filter::RequestHeaders(HeaderModifier::default());
    route.rules[0].filters = vec![RouteFilter::Is(change.clone())];
    let mut index = index([with("a", 1, None), with("b", 2, Some(PortRef::Number(81))), governs]);
    index.apply(Object::HttpRoute(route));
    let filters = |port| {
        let policy = index.objects().outbound_policy(&shop("web"), port, "shop").unwrap();
        let Protocol::Detect { http1, .. } = policy.protocol else { panic!() };
        (http1.routes[0].rules[0].filters.clone(), http1.breaker)
    };
    let (a, b) = (Filter::Fault(fault("a")), Filter::Fault(fault("b")));
    // That "a" is older makes it no rival: it says nothing of the breaker.
    assert_eq!(filters(80), (vec![a.clone(), change.clone()], None));
    assert_eq!(filters(81), (vec![a, b, change], None));
    assert!(index.objects().conflicts().is_empty());
}

#[test]
fn those_who_route_to_the_service_are_told_of_its_queue() {
    let mut index = index([]);
    index.apply(Object::Service(service("front", "10.0.0.2")));
    let mut route = http_route(shop("r"), "front", &[("web", 1)]);
    if let BackendTarget::Service { port, .. } = &mut route.rules[0].backends[0].target {
        *port = 80;
    }
    index.apply(Object::HttpRoute(route));
    let mut watch = index.watch_outbound(&shop("front"), 8080, "shop").unwrap();
    watch.mark_unchanged();
    let limits = TrafficLimits { pending: Some(3), ..TrafficLimits::default() };
    index.apply(Object::TrafficPolicy(TrafficPolicy { limits, ..policy("p", 1, None) }));
    assert!(watch.has_changed().unwrap());
    assert!(format!("{:?}", watch.borrow_and_update()).contains("capacity: 3"));
}
