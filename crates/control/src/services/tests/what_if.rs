//! What would become of a request, and that it is what the policies say.

use http::HeaderName;
use mesh_model::matching::find;
use mesh_model::outbound::Protocol;
use mesh_model::route::{
    Filter, HeaderMatch, HttpMatch, PathMatch, PathModifier, Redirect, Rewrite, ValueMatch,
};
use proptest::prelude::*;
use proptest::sample::select;

use super::super::mesh::Failure;
use super::super::what_if::what_if;
use super::*;
use crate::analyze::{Code, Scene, analyze};

fn ask(shared: &Shared, method: &str, path: &str, headers: &[(&str, &str)]) -> ext::WhatIfReply {
    try_ask(shared, method, path, headers, &[]).unwrap()
}

fn try_ask(
    shared: &Shared,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    manifests: &[&str],
) -> Result<ext::WhatIfReply, Failure> {
    let header =
        |(name, value): &(&str, &str)| ext::Header { name: (*name).into(), value: (*value).into() };
    let request = ext::WhatIfRequest {
        client: Some(Selector { namespace: "shop".into(), ..selector("deployment", "web") }),
        authority: "tax.shop:8080".into(),
        method: method.into(),
        path: path.into(),
        headers: headers.iter().map(header).collect(),
        manifests: manifests
            .iter()
            .map(|text| ext::Manifest { name: "new.yaml".into(), text: (*text).into() })
            .collect(),
        outside: false,
    };
    what_if(shared, &request)
}

fn shared() -> Shared {
    let shared = Shared::new(Defaults::default(), Some(MeshNames::default()));
    for object in [
        service("tax"),
        service("tax-v2"),
        Object::Pod(pod("web-1", "127.77.3.1")),
        Object::Pod(pod("tax-1", "127.77.3.2")),
        slice("tax", &[("tax-1", "127.77.3.2")]),
    ] {
        shared.index.write().apply(object);
    }
    shared
}

fn prefix(path: &str) -> HttpMatch {
    HttpMatch { path: Some(PathMatch::Prefix(path.into())), ..HttpMatch::default() }
}

fn header(name: &'static str, value: &str) -> HeaderMatch {
    let value = ValueMatch::Exact(value.into());
    HeaderMatch { name: HeaderName::from_static(name), value }
}

fn backend(service: &str, weight: u32) -> BackendRef {
    let target = BackendTarget::Service { service: Name::new("shop", service), port: 8080 };
    BackendRef { target, weight, filters: Vec::new() }
}

fn route(name: &str, rules: Vec<RouteRule<HttpMatch>>) -> HttpRoute {
    let parent = ServiceRef { service: Name::new("shop", "tax"), port: None, section: None };
    let head =
        RouteHead { name: Name::new("shop", name), parents: vec![parent], ..RouteHead::default() };
    HttpRoute { head, hosts: Vec::new(), rules }
}

fn rule(matches: Vec<HttpMatch>, backends: Vec<BackendRef>) -> RouteRule<HttpMatch> {
    RouteRule { matches, backends, ..RouteRule::default() }
}

#[test]
fn the_way_of_a_request_from_match_to_endpoint() {
    let shared = shared();
    let beta = HttpMatch { headers: vec![header("x-beta", "1")], ..prefix("/cart") };
    let rewrite = Rewrite { path: Some(PathModifier::Prefix("/v2".into())), host: None };
    let of_beta = RouteRule {
        name: "beta".into(),
        filters: vec![RouteFilter::Is(Filter::Rewrite(rewrite))],
        ..rule(vec![beta], vec![backend("tax", 3), backend("tax-v2", 1), backend("gone", 0)])
    };
    let rules = vec![rule(vec![prefix("/")], vec![backend("tax", 1)]), of_beta];
    shared.index.write().apply(Object::HttpRoute(route("tax", rules)));

    let told = ask(&shared, "GET", "/cart/1?a=b", &[("x-beta", "1")]);
    assert_eq!(told.service, "Service/shop/tax:8080");
    let [first, second] = told.matches.as_slice() else { panic!("{told:#?}") };
    assert_eq!((first.rule, first.rule_name.as_str(), first.wins), (1, "beta", true));
    assert_eq!((second.rule, second.matches, second.wins), (0, true, false));
    assert_eq!(second.why, "its path is less specific");
    let shares: Vec<_> = told.backends.iter().map(|b| (b.backend.as_str(), b.share)).collect();
    assert_eq!(shares, [("Service/shop/tax:8080", 0.75), ("Service/shop/tax-v2:8080", 0.25)]);
    assert_eq!(told.backends[0].path, "/v2/1?a=b");
    assert_eq!(told.backends[0].balancer, "peak-ewma");
    let [endpoint] = told.backends[0].endpoints.as_slice() else { panic!("{told:#?}") };
    assert_eq!((endpoint.pod.as_str(), endpoint.address.as_str()), ("tax-1", "127.77.3.2:8080"));
    let verdict = endpoint.verdict.as_ref().unwrap();
    assert_eq!((verdict.allowed, verdict.decided.as_str()), (true, "default/all-unauthenticated"));
    assert!(told.backends[1].endpoints.is_empty());

    let other = ask(&shared, "GET", "/cart", &[]);
    assert!(other.matches[1].wins);
    assert_eq!(other.matches[0].why, "header x-beta is not 1");
}

#[test]
fn requests_that_end_on_the_way() {
    let shared = shared();
    let redirect = Redirect {
        scheme: Some("https".into()),
        host: None,
        port: None,
        path: Some(PathModifier::Full("/new".into())),
        status: http::StatusCode::FOUND,
    };
    let rules = vec![
        RouteRule {
            filters: vec![RouteFilter::Is(Filter::Redirect(redirect))],
            ..rule(vec![prefix("/old")], Vec::new())
        },
        rule(vec![prefix("/broken")], vec![backend("gone", 1)]),
    ];
    shared.index.write().apply(Object::HttpRoute(route("tax", rules)));
    let answer = ask(&shared, "GET", "/old?a=1", &[("host", "shop.example")]).answer.unwrap();
    assert_eq!((answer.status, answer.location.as_str()), (302, "https://shop.example/new?a=1"));
    let told = ask(&shared, "GET", "/other", &[]);
    assert_eq!(told.answer.unwrap().status, 404);
    assert!(told.backends.is_empty());
    let told = ask(&shared, "GET", "/broken", &[]);
    let answer = told.backends[0].answer.as_ref().unwrap();
    assert_eq!(answer.status, 500);
    assert!(answer.why.contains("Service shop/gone does not exist"), "{answer:?}");
}

#[test]
fn faults_of_a_route_are_told_with_who_wants_them() {
    let shared = shared();
    let slow =
        RouteRule { name: "slow".into(), ..rule(vec![prefix("/slow")], vec![backend("tax", 1)]) };
    let rules = vec![slow, rule(vec![prefix("/")], vec![backend("tax", 1)])];
    shared.index.write().apply(Object::HttpRoute(route("tax", rules)));
    const NEW: &str = "
apiVersion: policy.meshctl.dev/v1alpha1
kind: BackendTrafficPolicy
metadata: {name: chaos, namespace: shop}
spec:
  targetRef: {kind: HTTPRoute, name: tax, sectionName: slow}
  faults: [{abort: {httpStatus: 503}, percent: 50}, {delay: 1s}]
";
    let told = |path| try_ask(&shared, "GET", path, &[], &[NEW]).unwrap();
    let by = "BackendTrafficPolicy/shop/chaos";
    let of_slow = told("/slow").filters.join("; ");
    assert!(of_slow.contains(&format!("50% of the requests: {by}")), "{of_slow}");
    assert!(of_slow.contains("delay"), "{of_slow}");
    assert_eq!(told("/other").filters, [""; 0]);
}

#[test]
fn routes_that_do_not_apply_are_told_with_the_reason() {
    let shared = shared();
    let all = || vec![rule(Vec::new(), vec![backend("tax", 1)])];
    let mut elsewhere = route("theirs", all());
    elsewhere.head.name.namespace = "other".into();
    shared.index.write().apply(Object::HttpRoute(elsewhere));
    let head = RouteHead { name: Name::new("shop", "bytes"), ..route("x", Vec::new()).head };
    let bytes = TcpRoute { head, backends: vec![backend("tax", 1)] };
    shared.index.write().apply(Object::TcpRoute(bytes));
    let told = ask(&shared, "GET", "/", &[]);
    assert_eq!(told.matches[0].route, "default/http");
    let aside: Vec<_> =
        told.aside.iter().map(|aside| (aside.route.as_str(), aside.why.as_str())).collect();
    assert_eq!(
        aside,
        [
            ("HTTPRoute/other/theirs", "is for clients in namespace other only"),
            ("TCPRoute/shop/bytes", "is for connections that turn out not to be HTTP"),
        ]
    );
}

#[test]
fn manifests_are_for_the_question_only() {
    let shared = shared();
    const NEW: &str = "
apiVersion: policy.meshctl.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {action: Deny, targetRef: {kind: Deployment, name: tax}, to: [{paths: [/admin/*]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: tax, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: tax}]
  rules: [{backendRefs: [{name: tax, port: 8080}], timeouts: {request: 2s}}]
";
    let told = try_ask(&shared, "GET", "/admin/x", &[], &[NEW]).unwrap();
    assert_eq!(told.matches[0].route, "HTTPRoute/shop/tax");
    assert!(told.limits[0].contains("2s"), "{:?}", told.limits);
    let verdict = told.backends[0].endpoints[0].verdict.clone().unwrap();
    assert_eq!(
        (verdict.allowed, verdict.decided.as_str()),
        (false, "AuthorizationPolicy/shop/nobody")
    );

    let before = ask(&shared, "GET", "/admin/x", &[]);
    assert_eq!(before.matches[0].route, "default/http");
    let wrong = NEW.replace("2s", "soon");
    let told = try_ask(&shared, "GET", "/", &[], &[&wrong]).unwrap();
    assert_eq!((told.problems.len(), told.problems[0].severity.as_str()), (1, "error"));
    assert!(told.matches.is_empty());
    let large = "#".repeat(3 << 20);
    assert!(matches!(try_ask(&shared, "GET", "/", &[], &[&large]), Err(Failure::Invalid(_))));
}

#[test]
fn questions_that_make_no_sense_are_refused() {
    let shared = shared();
    for (method, path, name) in [("G T", "/", "a"), ("GET", "x", "a"), ("GET", "/", "a b")] {
        assert!(matches!(
            try_ask(&shared, method, path, &[(name, "1")], &[]),
            Err(Failure::Invalid(_))
        ));
    }
}

fn any_match() -> impl Strategy<Value = HttpMatch> {
    const PATHS: &[&str] = &["/", "/a", "/a/", "/a/b", "/b"];
    let path = prop_oneof![
        Just(None),
        select(PATHS).prop_map(|path| Some(PathMatch::Exact(path.into()))),
        select(PATHS).prop_map(|path| Some(PathMatch::Prefix(path.into()))),
    ];
    let header = (select(&["x-a", "x-b"][..]), select(&["1", "2"][..]));
    let header = header.prop_map(|(name, value)| self::header(name, value));
    let method = proptest::option::of(select(&[http::Method::GET, http::Method::POST][..]));
    (path, method, proptest::collection::vec(header, 0..3))
        .prop_map(|(path, method, headers)| HttpMatch { path, method, headers, query: Vec::new() })
}

fn any_routes() -> impl Strategy<Value = Vec<HttpRoute>> {
    let rule = proptest::collection::vec(any_match(), 0..3)
        .prop_map(|matches| rule(matches, vec![backend("tax", 1)]));
    let of = (
        select(&["r1", "r2", "r3", "r4"][..]),
        proptest::option::of(0..2i64),
        proptest::collection::vec(rule, 1..4),
    );
    let of = of.prop_map(|(name, created, rules)| {
        let mut route = route(name, rules);
        route.head.created = created;
        route
    });
    proptest::collection::vec(of, 0..5)
}

/// Which rule wins, from the objects alone: the most specific match; of equals that of the older
/// route, then of the first by namespace and name, then the first rule.
fn winner(routes: &[HttpRoute], req: &http::request::Parts) -> Option<(String, u32)> {
    let mut all = Vec::new();
    for route in routes {
        for (index, rule) in route.rules.iter().enumerate() {
            let any = [HttpMatch::default()];
            let matches = if rule.matches.is_empty() { &any[..] } else { &rule.matches };
            for of in matches.iter().filter(|of| holds(of, req)) {
                let (exact, length) = match &of.path {
                    Some(PathMatch::Exact(path)) => (1, path.len()),
                    Some(PathMatch::Prefix(path)) => (0, path.trim_end_matches('/').len()),
                    _ => (0, 0),
                };
                let best_first = (
                    std::cmp::Reverse((exact, length, of.method.is_some(), of.headers.len())),
                    route.head.created,
                    route.head.name.clone(),
                    index,
                );
                all.push(best_first);
            }
        }
    }
    let (.., name, rule) = all.into_iter().min()?;
    Some((format!("HTTPRoute/{name}"), u32::try_from(rule).unwrap()))
}

fn holds(of: &HttpMatch, req: &http::request::Parts) -> bool {
    let path = req.uri.path();
    let fits = match &of.path {
        Some(PathMatch::Exact(exact)) => path == exact,
        Some(PathMatch::Prefix(prefix)) => {
            let bare = prefix.trim_end_matches('/');
            path == bare || path.starts_with(&format!("{bare}/"))
        }
        _ => true,
    };
    let has = |header: &HeaderMatch| {
        let ValueMatch::Exact(wanted) = &header.value else { unreachable!("none is made") };
        req.headers.get(&header.name).is_some_and(|value| value.as_bytes() == wanted)
    };
    fits && of.method.as_ref().is_none_or(|method| *method == req.method)
        && of.headers.iter().all(has)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// What is told of a request, what the proxy's matcher does with the policy that the proxy gets,
    /// and what the specification says of the objects, is one and the same; and what is called a
    /// shadowed rule never wins.
    #[test]
    fn what_if_analyze_and_matcher_agree(
        routes in any_routes(),
        paths in proptest::collection::vec(select(&["/", "/a", "/a/", "/a/b", "/b/c"][..]), 4),
        method in select(&["GET", "POST", "PUT"][..]),
        a in select(&["1", "2", "3"][..]),
        b in select(&["1", "2", "3"][..]),
    ) {
        let shared = shared();
        // The last of a name counts.
        let mut in_force: std::collections::BTreeMap<Name, HttpRoute> = Default::default();
        for route in routes {
            in_force.insert(route.head.name.clone(), route.clone());
            shared.index.write().apply(Object::HttpRoute(route));
        }
        let in_force: Vec<_> = in_force.into_values().collect();
        let dead: Vec<(String, String)> = {
            let index = shared.index.read();
            let objects = index.objects();
            let found = analyze(&Scene { objects, problems: &[], written: &[], complete: true });
            let dead = found.into_iter().filter(|d| d.code == Code::Shadowed);
            dead.map(|d| (d.object, d.field)).collect()
        };
        for path in paths {
            let headers = [("x-a", a), ("x-b", b)];
            let told = ask(&shared, method, path, &headers);
            let wins = told.matches.iter().find(|of| of.wins).map(|of| (of.route.clone(), of.rule));
            let uri = format!("http://tax.shop.svc.cluster.local:8080{path}");
            let request = http::Request::builder().method(method).uri(uri);
            let request = headers.iter().fold(request, |r, (name, value)| r.header(*name, *value));
            let (req, ()) = request.body(()).unwrap().into_parts();
            let index = shared.index.read();
            let policy = index.objects().outbound_policy(&Name::new("shop", "tax"), 8080, "shop");
            let Some(Protocol::Detect { http1, .. }) = policy.map(|p| p.protocol) else {
                panic!("a port of which nothing is known")
            };
            let found = find(&http1.routes, &req).map(|found| {
                let route = http1.routes[found.route].meta.to_string();
                (route, u32::try_from(found.rule).unwrap())
            });
            prop_assert_eq!(&wins, &found);
            if !in_force.is_empty() {
                prop_assert_eq!(&wins, &winner(&in_force, &req));
            }
            prop_assert_eq!(told.answer.is_none(), wins.is_some());
            if let Some((route, rule)) = wins {
                let at = (route, format!("spec.rules[{rule}]"));
                prop_assert!(!dead.contains(&at));
            }
        }
    }
}

#[test]
fn what_leaves_is_decided_as_the_proxy_does() {
    let shared = shared();
    let policy = "
apiVersion: policy.meshctl.dev/v1alpha1
kind: EgressPolicy
metadata: {name: web, namespace: shop}
spec:
  default: Deny
  allow: [{hosts: [\"*.example.com\"], ports: [443]}, {networks: [192.0.2.0/24]}]
";
    let ask = |authority: &str, headers: &[(&str, &str)]| {
        let header = |(name, value): &(&str, &str)| ext::Header {
            name: (*name).into(),
            value: (*value).into(),
        };
        let request = ext::WhatIfRequest {
            client: Some(Selector { namespace: "shop".into(), ..selector("deployment", "web") }),
            authority: authority.into(),
            method: "GET".into(),
            path: "/".into(),
            headers: headers.iter().map(header).collect(),
            manifests: vec![ext::Manifest { name: "new.yaml".into(), text: policy.into() }],
            outside: true,
        };
        let reply = what_if(&shared, &request).map_err(|error| error.to_string())?;
        let verdict = reply.backends[0].endpoints[0].verdict.clone().unwrap();
        assert_eq!(verdict.allowed, reply.answer.is_none(), "{reply:?}");
        Ok::<_, String>((verdict.allowed, verdict.decided, reply.notes.len()))
    };
    let by = |item: &str| format!("EgressPolicy/shop/web#{item}");
    for (authority, headers, expected) in [
        ("api.example.com:443", &[][..], (true, by("allow[0]"), 1)),
        ("api.example.com:80", &[], (false, by("default"), 1)),
        ("api.example.com:443", &[("host", "b.example.com")], (true, by("allow[0]"), 1)),
        ("api.example.com:443", &[("host", "other.test")], (false, by("default"), 1)),
        ("192.0.2.7:22", &[], (true, by("allow[1]"), 0)),
        ("[2001:db8::1]:22", &[], (false, by("default"), 0)),
    ] {
        assert_eq!(ask(authority, headers), Ok(expected), "{authority} {headers:?}");
    }
    for wrong in ["api.example.com", "a b:80", "example..com:80", "127.77.3.1:80", "10.0.0.1:8080"]
    {
        assert!(ask(wrong, &[]).is_err(), "{wrong}");
    }
}
