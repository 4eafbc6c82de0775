use http::Request;
use http::request::Parts;
use proptest::prelude::*;

use super::*;
use crate::route::{PathMatch, QueryMatch, ValueMatch};

fn meta(name: &str) -> Meta {
    Meta::Default(name.into())
}

fn rule(action: Action, name: &str) -> AuthorizationRule {
    AuthorizationRule { meta: meta(name), action, route: None, from: vec![], to: vec![] }
}

fn authz(access: DefaultAccess, rules: Vec<AuthorizationRule>) -> PortAuthz {
    PortAuthz {
        rules: rules.into(),
        default: DefaultRule {
            access,
            meta: meta(access.as_str()),
            cluster: Arc::new(["10.0.0.0/8".parse().unwrap()]),
        },
        probes: Arc::new([]),
    }
}

fn network(text: &str) -> Network {
    Network { net: text.parse().unwrap(), except: vec![] }
}

fn from(client: ClientMatch, networks: &[&str]) -> Vec<Source> {
    vec![Source { client, networks: networks.iter().map(|n| network(n)).collect() }]
}

fn among(identities: &[&str]) -> ClientMatch {
    ClientMatch::Among(identities.iter().map(|i| i.parse().unwrap()).collect())
}

fn to(methods: &[Method], paths: &[&str]) -> Vec<Operation> {
    vec![Operation {
        paths: paths.iter().map(|path| PathPattern::new(path).unwrap()).collect(),
        methods: methods.to_vec(),
        headers: vec![],
    }]
}

fn get(path: &str) -> Parts {
    let uri = http::Uri::builder().path_and_query(path).build().unwrap();
    Request::get(uri).body(()).unwrap().into_parts().0
}

const INSIDE: &str = "10.1.2.3";
const WEB: &str = "web.shop.serviceaccount.identity.mesh-system.cluster.local";

fn request<'a>(
    client: &str,
    identity: Option<&'a str>,
    head: Option<&'a Parts>,
) -> AuthzRequest<'a> {
    AuthzRequest {
        client: client.parse().unwrap(),
        identity,
        http: head.map(|head| HttpRequest {
            method: &head.method,
            uri: &head.uri,
            headers: &head.headers,
        }),
    }
}

fn allowed(authz: &PortAuthz, path: &str) -> bool {
    decide(authz, &request(INSIDE, Some(WEB), Some(&get(path)))).allowed
}

#[test]
fn defaults_decide_where_no_rule_does() {
    let outside = "192.0.2.1";
    for (access, expected) in [
        // outside, outside with identity, inside, inside with identity
        (DefaultAccess::AllUnauthenticated, [true, true, true, true]),
        (DefaultAccess::AllAuthenticated, [false, true, false, true]),
        (DefaultAccess::ClusterUnauthenticated, [false, false, true, true]),
        (DefaultAccess::ClusterAuthenticated, [false, false, false, true]),
        (DefaultAccess::Deny, [false; 4]),
        (DefaultAccess::Audit, [true; 4]),
    ] {
        let authz = authz(access, vec![]);
        let clients = [(outside, None), (outside, Some(WEB)), (INSIDE, None), (INSIDE, Some(WEB))];
        for ((client, identity), expected) in clients.into_iter().zip(expected) {
            let verdict = decide(&authz, &request(client, identity, None));
            assert_eq!(verdict.allowed, expected, "{access:?} {client} {identity:?}");
            assert_eq!((verdict.basis, verdict.decided), (Basis::Default, &meta(access.as_str())));
            assert_eq!(verdict.audits.len(), usize::from(access == DefaultAccess::Audit));
        }
        assert_eq!(DefaultAccess::from_name(access.as_str()), Some(access));
    }
}

#[test]
fn deny_goes_before_allow_and_allow_before_the_default() {
    use Action::{Allow, Audit, Deny};
    use DefaultAccess::{AllUnauthenticated, Deny as DenyAll};
    let here = |action| AuthorizationRule {
        from: from(ClientMatch::Anyone, &["10.0.0.0/8"]),
        ..rule(action, "here")
    };
    let elsewhere = |action| AuthorizationRule {
        from: from(ClientMatch::Anyone, &["192.0.2.0/24"]),
        ..rule(action, "elsewhere")
    };
    for (access, rules, expected, basis) in [
        (DenyAll, vec![here(Allow)], true, Basis::Allowed),
        (AllUnauthenticated, vec![elsewhere(Allow)], false, Basis::NoneMatched),
        (AllUnauthenticated, vec![here(Allow), here(Deny)], false, Basis::Denied),
        (DenyAll, vec![elsewhere(Deny), elsewhere(Allow), here(Allow)], true, Basis::Allowed),
        (AllUnauthenticated, vec![elsewhere(Deny)], true, Basis::Default),
        (AllUnauthenticated, vec![here(Audit)], true, Basis::Default),
        (DenyAll, vec![here(Audit)], false, Basis::Default),
        (DenyAll, vec![elsewhere(Audit)], false, Basis::Default),
        (AllUnauthenticated, vec![here(Audit), here(Deny)], false, Basis::Denied),
    ] {
        let text = format!("{access:?} {rules:?}");
        let audited = rules.iter().any(|rule| *rule == here(Audit));
        let authz = authz(access, rules);
        let head = get("/");
        for head in [None, Some(&head)] {
            let verdict = decide(&authz, &request(INSIDE, None, head));
            assert_eq!((verdict.allowed, verdict.basis), (expected, basis), "{text}");
            assert_eq!(verdict.audits.len(), usize::from(audited), "{text}");
        }
    }
}

#[test]
fn identities_are_whole_and_suffixes_whole_labels() {
    for (pattern, identity, expected) in [
        (WEB, WEB, true),
        (WEB, &WEB.to_uppercase(), true),
        (WEB, "api.shop.serviceaccount.identity.mesh-system.cluster.local", false),
        ("*.shop.serviceaccount.identity.mesh-system.cluster.local", WEB, true),
        ("*.cluster.local", WEB, true),
        ("*.op.serviceaccount.identity.mesh-system.cluster.local", WEB, false),
        ("*.cluster.local", "cluster.local", false),
        ("*.cluster.local", ".cluster.local", false),
        ("*.b.c", "é.b.c", true),
        ("*.bbbbbb", "éa", false),
    ] {
        let pattern: IdentityPattern = pattern.parse().unwrap();
        assert_eq!(pattern.matches(identity), expected, "{pattern} {identity}");
    }
    for text in ["", "*", "*.", "a*.b", "*.*.a", "a b", "a..b", ".a"] {
        assert!(text.parse::<IdentityPattern>().is_err(), "{text}");
    }
}

#[test]
fn an_identity_never_takes_anything_away() {
    let of = |action| AuthorizationRule {
        from: from(ClientMatch::Unauthenticated, &[]),
        ..rule(action, "x")
    };
    let allow = authz(DefaultAccess::Deny, vec![of(Action::Allow)]);
    let deny = authz(DefaultAccess::AllUnauthenticated, vec![of(Action::Deny)]);
    for (identity, denied) in [(None, true), (Some(WEB), false)] {
        let request = request(INSIDE, identity, None);
        assert!(decide(&allow, &request).allowed);
        assert_eq!(decide(&deny, &request).allowed, !denied);
    }
}

#[test]
fn a_source_needs_both_its_client_and_its_network() {
    let only = AuthorizationRule {
        from: from(among(&[WEB]), &["10.0.0.0/8"]),
        ..rule(Action::Allow, "x")
    };
    let authz = authz(DefaultAccess::AllUnauthenticated, vec![only]);
    for (client, identity, expected) in [
        (INSIDE, Some(WEB), true),
        ("::ffff:10.1.2.3", Some(WEB), true),
        (INSIDE, None, false),
        ("192.0.2.1", Some(WEB), false),
    ] {
        assert_eq!(decide(&authz, &request(client, identity, None)).allowed, expected);
    }
}

#[test]
fn rules_about_requests_never_allow_bytes_and_deny_them() {
    for to in [to(&[Method::GET], &[]), to(&[], &["/*"]), vec![Operation::default()]] {
        let requests = |action| AuthorizationRule { to: to.clone(), ..rule(action, "x") };
        let allow = authz(DefaultAccess::AllUnauthenticated, vec![requests(Action::Allow)]);
        assert!(allowed(&allow, "/"));
        let verdict = decide(&allow, &request(INSIDE, None, None));
        assert_eq!((verdict.allowed, verdict.basis), (false, Basis::NoneMatched));
        let deny = authz(DefaultAccess::AllUnauthenticated, vec![requests(Action::Deny)]);
        assert!(!allowed(&deny, "/"));
        assert!(!decide(&deny, &request(INSIDE, None, None)).allowed, "{to:?}");
        let audit = authz(DefaultAccess::AllUnauthenticated, vec![requests(Action::Audit)]);
        assert_eq!(explain(&audit, &request(INSIDE, None, None)), [Outcome::NotHttp]);
    }
}

#[test]
fn no_way_of_writing_a_path_gets_around_a_rule() {
    let deny = AuthorizationRule { to: to(&[], &["/admin/*"]), ..rule(Action::Deny, "x") };
    let deny = authz(DefaultAccess::AllUnauthenticated, vec![deny]);
    let allow = AuthorizationRule { to: to(&[], &["/public/*"]), ..rule(Action::Allow, "x") };
    let allow = authz(DefaultAccess::AllUnauthenticated, vec![allow]);
    for path in [
        "/admin",
        "/admin/",
        "/admin/x",
        "//admin/x",
        "/admin//x",
        "/./admin",
        "/%61dmin",
        "/%61DMIN/../admin",
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/..%2fadmin",
        "/public%2f..%2fadmin",
        "/public/%252e%252e/admin",
        "/public/..;/admin",
        "/admin;x",
        "/x/..\\admin",
        "/admin%00",
        "/admin/../public",
        "/public/%c0%ae%c0%ae/admin",
        "/admin%5cx",
    ] {
        assert!(!allowed(&deny, path), "deny {path}");
        assert!(!allowed(&allow, path), "allow {path}");
    }
    for path in ["/public", "/public/x", "/public//x", "/%70ublic/./x?a=/../admin"] {
        assert!(allowed(&deny, path), "deny {path}");
        assert!(allowed(&allow, path), "allow {path}");
    }
    assert!(allowed(&deny, "/administrator"));
    let anything = authz(DefaultAccess::Deny, vec![rule(Action::Allow, "x")]);
    assert!(allowed(&anything, "/a/../b"), "nothing is compared, so nothing is ambiguous");
}

#[test]
fn repeated_headers_do_not_hide_one_that_is_denied() {
    let header = HeaderMatch {
        name: http::HeaderName::from_static("x-role"),
        value: ValueMatch::Exact(b"guest".to_vec()),
    };
    let to = vec![Operation { headers: vec![header], ..Operation::default() }];
    let of = |action| AuthorizationRule { to: to.clone(), ..rule(action, "x") };
    let deny = authz(DefaultAccess::AllUnauthenticated, vec![of(Action::Deny)]);
    let allow = authz(DefaultAccess::Deny, vec![of(Action::Allow)]);
    for (values, denied, let_in) in
        [(vec!["guest"], true, true), (vec!["guest", "x"], true, false), (vec![], false, false)]
    {
        let mut head = get("/");
        for value in values {
            head.headers.append("x-role", value.parse().unwrap());
        }
        let request = request(INSIDE, None, Some(&head));
        assert_eq!(decide(&deny, &request).allowed, !denied);
        assert_eq!(decide(&allow, &request).allowed, let_in);
    }
}

#[test]
fn a_rule_of_a_route_governs_its_requests_only() {
    let scope = RouteScope {
        route: meta("route"),
        hosts: vec![],
        matches: vec![HttpMatch {
            path: Some(PathMatch::Prefix("/buy".into())),
            ..HttpMatch::default()
        }],
    };
    let of = |action, client| AuthorizationRule {
        route: Some(scope.clone()),
        from: from(client, &[]),
        ..rule(action, "x")
    };
    let other = || among(&["api.shop.serviceaccount.identity.mesh-system.cluster.local"]);
    let allow = authz(DefaultAccess::AllUnauthenticated, vec![of(Action::Allow, other())]);
    assert!(
        !allowed(&allow, "/buy/x") && !allowed(&allow, "//buy") && !allowed(&allow, "/b/../buy")
    );
    assert!(allowed(&allow, "/buyer"), "other requests are for the default");
    assert!(!decide(&allow, &request(INSIDE, None, None)).allowed, "bytes could be such requests");
    let deny = authz(DefaultAccess::AllUnauthenticated, vec![of(Action::Deny, among(&[WEB]))]);
    assert!(!allowed(&deny, "/buy") && !allowed(&deny, "/%62uy") && allowed(&deny, "/sell"));
}

#[test]
fn repetition_does_not_take_a_request_out_of_its_route() {
    let header =
        |value: ValueMatch| HeaderMatch { name: http::HeaderName::from_static("x-role"), value };
    let exact = |text: &str| ValueMatch::Exact(text.as_bytes().to_vec());
    let by_query = HttpMatch {
        query: vec![QueryMatch { name: "kind".into(), value: exact("admin") }],
        ..HttpMatch::default()
    };
    let by_header = HttpMatch { headers: vec![header(exact("admin"))], ..HttpMatch::default() };
    let pattern = ValueMatch::Regex(crate::matching::Pattern::new(".*admin.*").unwrap());
    let by_pattern = HttpMatch { headers: vec![header(pattern)], ..HttpMatch::default() };
    for (matched, path, headers, may_be, must_be) in [
        (&by_query, "/?kind=admin", vec![], true, true),
        (&by_query, "/?kind=admin&kind=admin", vec![], true, true),
        (&by_query, "/?kind=x&kind=admin", vec![], true, false),
        (&by_query, "/?kind=admin&kind=x", vec![], true, false),
        (&by_query, "/?kind=x&k%69nd=admin", vec![], true, false),
        (&by_query, "/?a=1;kind=admin", vec![], true, false),
        (&by_query, "/?kind=admin;a=1", vec![], true, false),
        (&by_query, "/?kind=x&a=admin", vec![], false, false),
        (&by_query, "/", vec![], false, false),
        (&by_header, "/", vec!["admin"], true, true),
        (&by_header, "/", vec!["admin", "x"], true, false),
        (&by_header, "/", vec!["x", "admin"], true, false),
        (&by_header, "/", vec!["x"], false, false),
        (&by_pattern, "/", vec!["admin", "x"], true, false),
        (&by_pattern, "/", vec!["admin", "admins"], true, true),
    ] {
        let scope =
            RouteScope { route: meta("route"), hosts: vec![], matches: vec![matched.clone()] };
        let of = |action, client| AuthorizationRule {
            route: Some(scope.clone()),
            from: from(client, &[]),
            ..rule(action, "x")
        };
        let mut head = get(path);
        for value in &headers {
            head.headers.append("x-role", value.parse().unwrap());
        }
        let judge = |action, client, access| {
            let authz = authz(access, vec![of(action, client)]);
            decide(&authz, &request(INSIDE, Some(WEB), Some(&head))).allowed
        };
        let open = DefaultAccess::AllUnauthenticated;
        let text = format!("{path} {headers:?}");
        assert_eq!(judge(Action::Deny, ClientMatch::Anyone, open), !may_be, "deny {text}");
        // Governed by a rule that lets others in, or by the default.
        assert_eq!(judge(Action::Allow, among(&["other.id"]), open), !may_be, "governs {text}");
        let allowed = judge(Action::Allow, ClientMatch::Anyone, DefaultAccess::Deny);
        assert_eq!(allowed, must_be, "allow {text}");
    }
}

#[test]
fn declared_probes_are_always_allowed() {
    let path = PathPattern::new("/healthz").unwrap();
    let mut authz = authz(DefaultAccess::Deny, vec![rule(Action::Deny, "x")]);
    authz.probes = Arc::new([Probe { method: Method::GET, path }]);
    let head = get("/healthz?full");
    assert_eq!(decide(&authz, &request(INSIDE, None, Some(&head))).basis, Basis::Probe);
    assert!(!allowed(&authz, "/healthz/../admin") && !allowed(&authz, "/healthz/x"));
    let mut post = get("/healthz");
    post.method = Method::POST;
    assert!(!decide(&authz, &request(INSIDE, None, Some(&post))).allowed);
    assert!(!decide(&authz, &request(INSIDE, None, None)).allowed);
}

#[test]
fn rules_are_told_in_words() {
    let told = AuthorizationRule {
        from: [
            from(among(&[WEB, "*.x"]), &["10.0.0.0/8"]),
            from(ClientMatch::Unauthenticated, &[]),
        ]
        .concat(),
        to: to(&[Method::GET, Method::HEAD], &["/v1/*"]),
        ..rule(Action::Allow, "x")
    };
    assert_eq!(told.describe_from(), format!("{WEB}, *.x in 10.0.0.0/8; unauthenticated"));
    assert_eq!(told.describe_to(), "GET,HEAD /v1/*");
    let all = rule(Action::Allow, "x");
    assert_eq!((all.describe_from(), all.describe_to()), ("anyone".into(), "everything".into()));
}

fn any_rule() -> impl Strategy<Value = AuthorizationRule> {
    let client = prop_oneof![
        Just(ClientMatch::Anyone),
        Just(ClientMatch::Unauthenticated),
        Just(ClientMatch::Authenticated),
        Just(among(&[WEB])),
        Just(among(&["*.cluster.local"])),
        Just(among(&["other.id"])),
    ];
    let networks =
        prop_oneof![Just(vec![]), Just(vec![network("10.0.0.0/8")]), Just(vec![network("::/0")])];
    let source = (client, networks).prop_map(|(client, networks)| Source { client, networks });
    let operation = prop_oneof![
        Just(to(&[], &["/a/*"])),
        Just(to(&[Method::GET], &[])),
        Just(to(&[Method::POST], &["/"])),
        Just(vec![]),
    ];
    let action = prop::sample::select(Action::ALL.to_vec());
    (action, prop::collection::vec(source, 0..3), operation)
        .prop_map(|(action, from, to)| AuthorizationRule { from, to, ..rule(action, "x") })
}

proptest! {
    /// More deny rules never let more in, more audit rules change nothing, order does not matter,
    /// and an identity never takes anything away.
    #[test]
    fn laws(access in prop::sample::select(DefaultAccess::ALL.to_vec()),
            rules in prop::collection::vec(any_rule(), 0..5),
            extra in any_rule(),
            path in "(/[ab.%2e]{0,3}){1,3}",
            bytes in any::<bool>(),
            identity in prop::option::of(Just(WEB))) {
        let Ok(uri) = path.parse::<Uri>() else { return Ok(()) };
        let head = Request::get(uri).body(()).unwrap().into_parts().0;
        let head = (!bytes).then_some(&head);
        let judge = |rules: &[AuthorizationRule], identity| {
            decide(&authz(access, rules.to_vec()), &request(INSIDE, identity, head)).allowed
        };
        let before = judge(&rules, identity);
        let mut reversed = rules.clone();
        reversed.reverse();
        prop_assert_eq!(judge(&reversed, identity), before);
        let mut more = rules.clone();
        more.push(extra.clone());
        let after = judge(&more, identity);
        match extra.action {
            Action::Deny => prop_assert!(before || !after),
            Action::Audit => prop_assert_eq!(before, after),
            Action::Allow => {}
        }
        let harmless = |rule: &AuthorizationRule| {
            let names_it = |s: &Source| matches!(s.client, ClientMatch::Authenticated | ClientMatch::Among(_));
            rule.action != Action::Deny || !rule.from.iter().any(names_it)
        };
        if rules.iter().all(harmless) {
            prop_assert!(!judge(&rules, None) || judge(&rules, Some(WEB)));
        }
    }
}
