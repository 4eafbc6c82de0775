//! Which policies are about a port, and that other proxies are never told more than they say.

use std::sync::Arc;

use http::{Method, Uri};
use mesh_model::Meta;
use mesh_model::authz::{
    Action, AuthorizationRule, AuthzRequest, ClientMatch, DefaultAccess, DefaultRule, HttpRequest,
    Operation, PathPattern, PortAuthz, Probe, RouteScope, Source, decide,
};
use mesh_model::inbound::{Authentication, Authorization, Network, ServerProtocol};
use mesh_model::route::{GrpcMatch, HttpMatch, PathMatch};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::index::authz::{self, Defaults, for_others};

fn policy_for(name: &str, target: PolicyTarget) -> Object {
    Object::AuthorizationPolicy(AuthorizationPolicy {
        name: shop(name),
        target,
        action: Action::Allow,
        from: Vec::new(),
        to: Vec::new(),
    })
}

fn workload(kind: Kind, name: &str, port: Option<PortRef>) -> PolicyTarget {
    PolicyTarget::Workload { kind, name: name.into(), port }
}

fn to_service(name: &str, port: Option<PortRef>) -> PolicyTarget {
    PolicyTarget::Service { name: name.into(), port }
}

/// The names of the policies about a port of `web-1`.
fn about(index: &Index, port: u16) -> Vec<String> {
    let authz = index.objects().port_authz(&shop("web-1"), port);
    authz.rules.iter().map(|rule| rule.meta.name().to_owned()).collect()
}

fn web() -> Pod {
    Pod {
        labels: [("app".to_owned(), "web".to_owned())].into(),
        ports: vec![ContainerPort { name: "http".into(), port: 80 }],
        ..pod("web-1", "127.1.0.1")
    }
}

/// `web-1`, behind the service `web` at port 80.
fn objects() -> Vec<Object> {
    vec![
        Object::Pod(web()),
        Object::Service(service("web", "10.0.0.1")),
        Object::EndpointSlice(slice("web", &[("web-1", "127.1.0.1")])),
    ]
}

#[test]
fn policies_are_about_what_they_target() {
    use Kind::{Deployment, Job};
    let labels = |app: &str| Labels::from([("app".to_owned(), app.to_owned())]);
    let pods = |app: &str, port| PolicyTarget::Pods { labels: labels(app), port };
    let number = |port| Some(PortRef::Number(port));
    let named = |name: &str| Some(PortRef::Name(name.into()));
    for (target, at_80, at_81) in [
        (PolicyTarget::Namespace, true, true),
        (workload(Deployment, "web", None), true, true),
        (workload(Deployment, "web", number(80)), true, false),
        (workload(Deployment, "web", named("http")), true, false),
        (workload(Job, "web", None), false, false),
        (workload(Deployment, "api", None), false, false),
        (pods("web", None), true, true),
        (pods("web", number(81)), false, true),
        (pods("api", None), false, false),
        (to_service("web", None), true, false),
        (to_service("web", number(8080)), true, false),
        (to_service("web", number(80)), false, false),
        (to_service("api", None), false, false),
    ] {
        let mut all = objects();
        all.push(policy_for("p", target.clone()));
        let index = index(all);
        assert_eq!(about(&index, 80) == ["p"], at_80, "{target:?}");
        assert_eq!(about(&index, 81) == ["p"], at_81, "{target:?}");
        let elsewhere = index.objects().port_authz(&Name::new("bank", "web-1"), 80);
        assert!(elsewhere.rules.is_empty(), "{target:?}");
    }
}

#[test]
fn a_proxys_own_ports_are_no_part_of_the_workload() {
    let mut objects = objects();
    objects.push(policy_for("all", PolicyTarget::Namespace));
    objects.push(policy_for("web", workload(Kind::Deployment, "web", None)));
    let mesh = Defaults { access: DefaultAccess::Deny, ..Defaults::default() };
    let mut index = Index::new(mesh, None);
    objects.into_iter().for_each(|object| index.apply(object));
    for port in authz::PROXY_PORTS {
        assert!(about(&index, port).is_empty());
        let default = index.objects().port_authz(&shop("web-1"), port).default;
        assert_eq!(default.access, DefaultAccess::AllUnauthenticated);
    }
}

#[test]
fn a_route_limits_a_policy_to_its_requests() {
    let mut route = http_route(shop("r"), "web", &[]);
    let path = |path: &str| HttpMatch {
        path: Some(PathMatch::Prefix(path.into())),
        ..HttpMatch::default()
    };
    route.rules[0].matches = vec![path("/%62uy/")];
    let target = |kind| PolicyTarget::Route { kind, name: "r".into(), rule: None };
    let mut all = objects();
    all.push(Object::HttpRoute(route.clone()));
    all.push(policy_for("p", target(Kind::HttpRoute)));
    all.push(policy_for("q", target(Kind::GrpcRoute)));
    let mut index = index(all);
    let scope = |index: &Index, port| {
        let authz = index.objects().port_authz(&shop("web-1"), port);
        authz.rules.iter().filter_map(|rule| rule.route.clone()).collect::<Vec<RouteScope>>()
    };
    let [found] = &scope(&index, 80)[..] else { panic!() };
    assert_eq!(found.route.to_string(), "HTTPRoute/shop/r");
    assert_eq!(found.matches, [path("/buy")], "in the form in which paths are compared");
    assert!(scope(&index, 81).is_empty());

    let mut watch = index.watch_port(&shop("web-1"), 80);
    watch.mark_unchanged();
    route.rules.push(RouteRule::default());
    index.apply(Object::HttpRoute(route));
    assert!(watch.has_changed().unwrap());
    assert!(scope(&index, 80)[0].matches.is_empty(), "a rule without matches takes everything");

    let head = http_route(shop("r"), "web", &[]).head;
    let matches = |service: Option<&str>, method: Option<&str>| GrpcMatch {
        service: service.map(Into::into),
        method: method.map(Into::into),
        ..GrpcMatch::default()
    };
    let matches =
        vec![matches(Some("a.B"), Some("C")), matches(Some("a.B"), None), matches(None, Some("C"))];
    let rules = vec![RouteRule { matches, ..RouteRule::default() }];
    index.apply(Object::GrpcRoute(GrpcRoute { head, hosts: Vec::new(), rules }));
    let paths = scope(&index, 80).swap_remove(1).matches;
    let paths: Vec<_> = paths.into_iter().filter_map(|matched| matched.path).collect();
    assert_eq!(paths[..2], [PathMatch::Exact("/a.B/C".into()), PathMatch::Prefix("/a.B".into())]);
    assert!(matches!(&paths[2], PathMatch::Regex(p) if p.matches(b"/x.Y/C") && !p.matches(b"/C")));
}

#[test]
fn defaults_come_from_the_nearest_who_sets_one() {
    let access = |index: &Index, port| index.objects().port_authz(&shop("web-1"), port).default;
    let namespace = |name: &str, default_access| {
        Object::Namespace(Namespace { name: name.into(), default_access, ..Namespace::default() })
    };
    let mesh = Defaults { access: DefaultAccess::Deny, ..Defaults::default() };
    let mut index = Index::new(mesh, None);
    index.apply(Object::Pod(web()));
    let mut watch = index.watch_port(&shop("web-1"), 80);
    let mut servers = index.watch_server(&shop("web-1"), 80);
    let mut expect = |index: &Index, expected: DefaultAccess| {
        assert_eq!(access(index, 80).access, expected);
        assert_eq!(watch.borrow_and_update().authz.default.access, expected, "the watch is told");
        assert_eq!(servers.borrow_and_update().labels["name"], expected.as_str());
    };
    expect(&index, DefaultAccess::Deny);
    index.apply(namespace("mesh-system", Some(DefaultAccess::AllAuthenticated)));
    expect(&index, DefaultAccess::AllAuthenticated);
    index.apply(namespace("shop", Some(DefaultAccess::ClusterUnauthenticated)));
    expect(&index, DefaultAccess::ClusterUnauthenticated);
    let audited = Pod { default_access: Some(DefaultAccess::Audit), ..web() };
    index.apply(Object::Pod(audited));
    expect(&index, DefaultAccess::Audit);
    index.apply(Object::Pod(web()));
    index.apply(namespace("shop", None));
    expect(&index, DefaultAccess::AllAuthenticated);

    index.apply(Object::PortPolicy(PortPolicy {
        name: shop("admin"),
        target: workload(Kind::Deployment, "web", Some(PortRef::Number(80))),
        created: None,
        default_access: Some(DefaultAccess::Deny),
        protocol: None,
        rate_limit: None,
        concurrency: None,
        faults: Vec::new(),
    }));
    assert_eq!(access(&index, 80).access, DefaultAccess::Deny);
    assert_eq!(access(&index, 80).meta.to_string(), "ServerPolicy/shop/admin");
    assert_eq!(access(&index, 81).access, DefaultAccess::AllAuthenticated);
    index.delete(&ObjectKey { kind: Kind::ServerPolicy, name: shop("admin") });
    assert_eq!(access(&index, 80).access, DefaultAccess::AllAuthenticated);
}

#[test]
fn a_pod_that_is_not_seen_yet_is_closed_if_a_policy_could_be_about_it() {
    let access = |policies: Vec<Object>| {
        index(policies).objects().port_authz(&shop("web-1"), 80).default.access
    };
    assert_eq!(access(vec![]), DefaultAccess::AllUnauthenticated);
    let all = policy_for("p", PolicyTarget::Namespace);
    assert_eq!(access(vec![all]), DefaultAccess::AllUnauthenticated, "it is known to apply");
    let some = policy_for("p", workload(Kind::Deployment, "web", None));
    assert_eq!(access(vec![some]), DefaultAccess::Deny);
}

#[test]
fn policies_change_live_and_only_what_they_are_about() {
    let mut index = index(objects());
    let mut here = index.watch_port(&shop("web-1"), 80);
    let other = index.watch_port(&Name::new("bank", "web-1"), 80);
    index.apply(policy_for("p", PolicyTarget::Namespace));
    assert_eq!(here.borrow_and_update().authz.rules.len(), 1);
    index.apply(policy_for("q", to_service("api", None)));
    assert!(!here.has_changed().unwrap() && !other.has_changed().unwrap());
    index.delete(&ObjectKey { kind: Kind::AuthorizationPolicy, name: shop("p") });
    assert!(here.borrow_and_update().authz.rules.is_empty());
}

#[test]
fn probes_are_the_ports_and_go_first_for_other_proxies() {
    let probe = Probe { method: Method::GET, path: PathPattern::new("/healthz").unwrap() };
    let probes = vec![PortProbe { port: 80, probe: probe.clone() }];
    let closed = Some(DefaultAccess::Deny);
    let index = index(vec![Object::Pod(Pod { probes, default_access: closed, ..web() })]);
    let objects = index.objects();
    assert_eq!(objects.port_authz(&shop("web-1"), 80).probes[..], [probe]);
    assert!(objects.port_authz(&shop("web-1"), 81).probes.is_empty());
    let policy = objects.server_policy(&shop("web-1"), 80);
    assert!(policy.authorizations.is_empty());
    let ServerProtocol::Detect { routes, .. } = policy.protocol else { panic!() };
    let names: Vec<_> = routes.iter().map(|route| route.meta.name()).collect();
    assert_eq!(names, ["probe", "http"]);
    assert!(routes[1].rules[0].action.authorizations.is_empty());
}

const IDENTITIES: [&str; 2] = [
    "web.shop.serviceaccount.identity.mesh-system.cluster.local",
    "api.bank.serviceaccount.identity.mesh-system.cluster.local",
];

fn rule() -> impl Strategy<Value = AuthorizationRule> {
    let identity = select(vec![IDENTITIES[0], IDENTITIES[1], "*.cluster.local", "*.local", "x.y"]);
    let identities = vec(identity.prop_map(|text| text.parse().unwrap()), 0..3);
    let client = prop_oneof![
        Just(ClientMatch::Anyone),
        Just(ClientMatch::Unauthenticated),
        Just(ClientMatch::Authenticated),
        identities.prop_map(ClientMatch::Among),
    ];
    let net = |text: &str| text.parse().unwrap();
    let networks = select(vec![
        vec![],
        vec![Network { net: net("10.0.0.0/8"), except: vec![] }],
        vec![Network { net: net("10.0.0.0/8"), except: vec![net("10.1.0.0/16")] }],
        vec![Network { net: net("0.0.0.0/0"), except: vec![net("10.0.0.0/8")] }],
    ]);
    let source = (client, networks).prop_map(|(client, networks)| Source { client, networks });
    let paths = vec![PathPattern::new("/a/*").unwrap()];
    let to = select(vec![vec![], vec![Operation { paths, ..Operation::default() }]]);
    let route = select(vec![
        None,
        Some(RouteScope { route: Meta::Default("r".into()), hosts: vec![], matches: vec![] }),
    ]);
    let action = select(Action::ALL.to_vec());
    (action, vec(source, 0..3), to, route).prop_map(|(action, from, to, route)| AuthorizationRule {
        meta: Meta::Default("p".into()),
        action,
        route,
        from,
        to,
    })
}

/// As a proxy reads an authorization that knows nothing else.
fn permits(authorization: &Authorization, client: IpAddr, identity: Option<&str>) -> bool {
    let proven = match (&authorization.authentication, identity) {
        (Authentication::Unauthenticated, _) => true,
        (_, None) => false,
        (Authentication::MeshTls, Some(_)) => true,
        (Authentication::Identities { identities, suffixes }, Some(id)) => {
            identities.iter().any(|identity| identity == id)
                || suffixes.iter().any(|suffix| id.ends_with(&format!(".{}", suffix.join("."))))
        }
    };
    proven && authorization.networks.iter().any(|network| network.contains(client))
}

proptest! {
    #[test]
    fn other_proxies_let_in_nobody_more(
        access in select(DefaultAccess::ALL.to_vec()),
        rules in vec(rule(), 0..5),
        client in select(vec!["10.0.0.1", "10.1.0.1", "192.0.2.1", "2001:db8::1"]),
        identity in select(vec![None, Some(IDENTITIES[0]), Some(IDENTITIES[1])]),
    ) {
        let simple = rules.iter().all(|rule| rule.action != Action::Deny && rule.to.is_empty())
            && rules.iter().all(|rule| rule.route.is_none());
        let default = DefaultRule {
            access,
            meta: Meta::Default(access.as_str().into()),
            cluster: Arc::new(["10.0.0.0/8".parse().unwrap()]),
        };
        let authz = PortAuthz { rules: rules.into(), default, probes: Arc::new([]) };
        let client = client.parse().unwrap();
        let let_in = for_others(&authz).iter().any(|a| permits(a, client, identity));
        for path in [None, Some("/"), Some("/a/b"), Some("/a/../b")] {
            let uri: Option<Uri> = path.map(|path| path.parse().unwrap());
            let headers = http::HeaderMap::new();
            let http = uri.as_ref().map(|uri| HttpRequest { method: &Method::GET, uri, headers: &headers });
            let allowed = decide(&authz, &AuthzRequest { client, identity, http }).allowed;
            prop_assert!(!let_in || allowed, "{:?}", path);
            if simple {
                prop_assert_eq!(let_in, allowed, "what can be said is said");
            }
        }
    }
}
