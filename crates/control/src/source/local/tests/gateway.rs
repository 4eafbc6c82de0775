//! Gateways in manifests, and what the proxy at the edge is told of them.

use http::Request;
use mesh_api::Wire;
use mesh_model::gateway::{GatewayConfig, GatewayPort};
use mesh_model::matching;
use mesh_model::outbound::{BackendKind, OutboundPolicy, Protocol};
use mesh_model::route::{Filter, HostMatch, InjectedFailure};

use super::Local;
use crate::index::gateway::{Conflict, GRPC_IDLE_TIMEOUT, IDLE_TIMEOUT, NoCertificate};
use crate::index::object::{GatewayRef, Kind, Name};
use crate::source::Severity;

const SERVICES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: bank, namespace: bank}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: bank, labels: {edge: 'yes'}}
";

/// A Gateway of the mesh in `shop`.
fn gateway(name: &str, listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  gatewayClassName: mesh\n  listeners: [{listeners}]\n---\n"
    )
}

/// A route of everything to the service that is called as its namespace or it.
fn route(kind: &str, of: &str, parent: &str, more: &str) -> String {
    let (namespace, name) = of.split_once('/').unwrap();
    let backend = if namespace == "bank" { "bank" } else { name };
    let matches = "";
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  parentRefs: [{{namespace: shop, {parent}}}]\n  {more}\n  \
         rules: [{{{matches}backendRefs: [{{name: {backend}, port: 80}}]}}]\n---\n"
    )
}

fn secret(name: &str, host: &str) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
    let chain = params.self_signed(&key).unwrap().pem();
    let indent = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         type: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}---\n",
        indent(&chain),
        indent(&key.serialize_pem())
    )
}

/// The mesh of some documents.
fn local(documents: &[String]) -> Local {
    let mut local = Local::new();
    local.write("services.yaml", SERVICES);
    local.write("edge.yaml", &documents.concat());
    local.scan();
    local
}

fn config(local: &Local) -> GatewayConfig {
    local.index.objects().gateway_config()
}

fn port(local: &Local, number: u16) -> GatewayPort {
    let ports = config(local).ports;
    ports.into_iter().find(|port| port.port == number).expect("the port")
}

/// The service that answers a request, or the status.
fn answer(policy: Option<&OutboundPolicy>, host: &str, path: &str) -> String {
    let Some(Protocol::Http1(http)) = policy.map(|policy| &policy.protocol) else {
        return "nobody".into();
    };
    let request = Request::get(path).header("host", host).body(()).unwrap();
    let (parts, ()) = request.into_parts();
    let Some(found) = matching::find(&http.routes, &parts) else { return "404".into() };
    let backend = found.rule_ref.action.backends.backends().next();
    let filters = backend.map(|backend| backend.filters.first());
    if let Some(Filter::Fail(fail)) = filters.flatten().or(found.rule_ref.filters.first()) {
        let InjectedFailure::Http(status) = fail.failure else { panic!("{fail:?}") };
        return status.as_u16().to_string();
    }
    let backend = backend.unwrap();
    let BackendKind::Balance(balance) = &backend.backend.kind else { panic!() };
    balance.path.split('.').next().unwrap().to_owned()
}

#[test]
fn requests_find_the_routes_of_the_listener_with_the_closest_host() {
    let local = local(&[
        gateway(
            "edge",
            "{name: all, port: 80, protocol: HTTP},
             {name: wild, port: 80, protocol: HTTP, hostname: '*.example'},
             {name: api, port: 80, protocol: HTTP, hostname: api.example}",
        ),
        route("HTTPRoute", "shop/web", "name: edge, sectionName: wild", ""),
        route("HTTPRoute", "shop/api", "name: edge, sectionName: api", ""),
    ]);
    let port = port(&local, 80);
    let to = |host| answer(port.http.as_ref(), host, "/");
    assert_eq!(to("shop.example"), "web");
    assert_eq!(to("a.b.example:80"), "web");
    assert_eq!(to("API.example"), "api");
    assert_eq!(to("other.test"), "404");
    assert!(port.https.is_none() && port.bytes.is_none());
}

#[test]
fn a_listener_does_not_lend_its_routes_to_a_narrower_one() {
    let local = local(&[
        gateway(
            "edge",
            "{name: wild, port: 80, protocol: HTTP, hostname: '*.example'},
             {name: api, port: 80, protocol: HTTP, hostname: api.example}",
        ),
        route("HTTPRoute", "shop/web", "name: edge, sectionName: wild", "hostnames: [api.example]"),
        route("HTTPRoute", "shop/api", "name: edge, sectionName: wild", ""),
    ]);
    let port = port(&local, 80);
    assert_eq!(answer(port.http.as_ref(), "api.example", "/"), "404");
    assert_eq!(answer(port.http.as_ref(), "shop.example", "/"), "api");
}

#[test]
fn hostnames_are_those_of_both() {
    let local = local(&[
        gateway("edge", "{name: wild, port: 80, protocol: HTTP, hostname: '*.example'}"),
        route("HTTPRoute", "shop/web", "name: edge", "hostnames: [shop.example, other.test]"),
        route("HTTPRoute", "shop/api", "name: edge", "hostnames: [other.test]"),
    ]);
    let port = port(&local, 80);
    assert_eq!(answer(port.http.as_ref(), "shop.example", "/"), "web");
    assert_eq!(answer(port.http.as_ref(), "other.test", "/"), "404");
    let objects = local.index.objects();
    let attach = |name| {
        let route = objects.http_route(&Name::new("shop", name)).unwrap();
        let placed = objects.placed_listeners();
        objects.attach(&placed, Kind::HttpRoute, &route.head, &route.hosts, &route.head.gateways[0])
    };
    assert_eq!(attach("web"), Ok(()));
    assert_eq!(attach("api").unwrap_err().reason(), "NoMatchingListenerHostname");
    let placed = objects.placed_listeners();
    assert_eq!(objects.attached_routes(&placed[0]), 1);
}

#[test]
fn listeners_say_whose_routes_they_take() {
    for (allowed, bank) in [
        ("", false),
        ("allowedRoutes: {namespaces: {from: Same}}", false),
        ("allowedRoutes: {namespaces: {from: All}}", true),
        (
            "allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {edge: 'yes'}}}}",
            true,
        ),
        (
            "allowedRoutes: {namespaces: {from: Selector, selector: {matchExpressions: \
             [{key: kubernetes.io/metadata.name, operator: In, values: [other]}]}}}",
            false,
        ),
        ("allowedRoutes: {namespaces: {from: All}, kinds: [{kind: GRPCRoute}]}", false),
    ] {
        let local = local(&[
            gateway("edge", &format!("{{name: all, port: 80, protocol: HTTP, {allowed}}}")),
            route("HTTPRoute", "bank/route", "name: edge", ""),
        ]);
        let wanted = if bank { "bank" } else { "404" };
        let port = port(&local, 80);
        assert_eq!(answer(port.http.as_ref(), "shop", "/"), wanted, "{allowed}");
        let objects = local.index.objects();
        let route = objects.http_route(&Name::new("bank", "route")).unwrap();
        let to = GatewayRef { gateway: Name::new("shop", "edge"), ..GatewayRef::default() };
        let placed = objects.placed_listeners();
        let attached = objects.attach(&placed, Kind::HttpRoute, &route.head, &route.hosts, &to);
        assert_eq!(attached.is_ok(), bank, "{allowed}: {attached:?}");
    }
}

#[test]
fn what_is_not_ours_is_not_served() {
    let of_class = |class: &str| {
        gateway("edge", "{name: all, port: 80, protocol: HTTP}")
            .replace("gatewayClassName: mesh", &format!("gatewayClassName: {class}"))
    };
    let class = |name: &str, controller: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\n\
             metadata: {{name: {name}}}\nspec: {{controllerName: {controller}}}\n---\n"
        )
    };
    assert_eq!(config(&local(&[of_class("mesh")])).ports.len(), 1);
    assert_eq!(config(&local(&[of_class("other")])).ports.len(), 0);
    let other = [of_class("other"), class("other", "meshctl.dev/gateway")];
    assert_eq!(config(&local(&other)).ports.len(), 1);
    let taken = [of_class("mesh"), class("mesh", "somebody.else/gateway")];
    assert_eq!(config(&local(&taken)).ports.len(), 0);
}

#[test]
fn of_listeners_in_conflict_the_first_counts() {
    let local = local(&[
        gateway("a", "{name: http, port: 80, protocol: HTTP, hostname: shop.example}"),
        gateway(
            "b",
            "{name: http, port: 80, protocol: HTTP, hostname: SHOP.example},
             {name: tcp, port: 80, protocol: TCP},
             {name: fine, port: 80, protocol: HTTP}",
        ),
        route("HTTPRoute", "shop/web", "name: a", ""),
        route("HTTPRoute", "shop/api", "name: b", ""),
    ]);
    let placed = local.index.objects().placed_listeners();
    let conflicts: Vec<_> = placed.iter().map(|placed| placed.conflict).collect();
    assert_eq!(conflicts, [None, Some(Conflict::Host), Some(Conflict::Protocol), None]);
    let port = port(&local, 80);
    assert_eq!(answer(port.http.as_ref(), "shop.example", "/"), "web");
    assert_eq!(answer(port.http.as_ref(), "other.example", "/"), "api");
    assert!(port.bytes.is_none());
}

#[test]
fn nobody_takes_a_part_of_the_hosts_of_strangers() {
    let first = "creationTimestamp: '2026-01-01T00:00:00Z'";
    let of = |namespace: &str, age: &str, listener: &str| {
        gateway("edge", listener)
            .replace("namespace: shop}", &format!("namespace: {namespace}, {age}}}"))
    };
    let wild = |allowed: &str| {
        format!("{{name: wild, port: 80, protocol: HTTP, hostname: '*.shop.example'{allowed}}}")
    };
    let api = "{name: api, port: 80, protocol: HTTP, hostname: api.shop.example}";
    let later = "creationTimestamp: '2026-02-01T00:00:00Z'";
    let conflicts = |documents: &[String]| -> Vec<_> {
        let local = local(documents);
        let placed = local.index.objects().placed_listeners();
        placed.iter().map(|placed| placed.conflict).collect()
    };
    assert_eq!(
        conflicts(&[of("shop", first, &wild("")), of("bank", later, api)]),
        [None, Some(Conflict::Host)]
    );
    let any = "{name: any, port: 80, protocol: HTTP}";
    assert_eq!(
        conflicts(&[of("shop", first, any), of("bank", later, api)]),
        [None, Some(Conflict::Host)],
        "one without a hostname has all of them"
    );
    let allowed = ", allowedRoutes: {namespaces: {from: All}}";
    for (older, younger) in [
        // Whose routes it takes, whose listeners, too.
        (of("shop", first, &wild(allowed)), of("bank", later, api)),
        (of("shop", first, &wild("")), of("shop", later, api).replace("name: edge", "name: other")),
        (of("shop", first, any), of("shop", later, api).replace("name: edge", "name: other")),
        // What was there before stays.
        (of("bank", first, api), of("shop", later, any)),
        (of("bank", first, api), of("shop", later, &wild(""))),
    ] {
        assert_eq!(conflicts(&[older.clone(), younger.clone()]), [None, None], "{older}{younger}");
    }
}

#[test]
fn what_is_too_much_for_one_gateway_is_the_youngest() {
    let older = route("HTTPRoute", "shop/web", "name: edge", "hostnames: [old.example]").replace(
        "name: web, namespace",
        "creationTimestamp: '2026-01-01T00:00:00Z', name: web, namespace",
    );
    let mut documents = vec![gateway("edge", "{name: all, port: 80, protocol: HTTP}")];
    let younger = |n| {
        route("HTTPRoute", "shop/api", "name: edge", &format!("hostnames: [n{n}.example]")).replace(
            "name: api, namespace: shop}",
            &format!("creationTimestamp: '2026-02-01T00:00:00Z', name: r{n:04}, namespace: shop}}"),
        )
    };
    documents.extend((0..1100).map(younger));
    documents.push(older);
    let local = local(&documents);
    let config = config(&local);
    config.encode().unwrap();
    let policy = config.ports[0].http.as_ref();
    let to = |host: &str| answer(policy, host, "/");
    assert_eq!(to("old.example"), "web");
    assert_eq!(
        (to("n0.example"), to("n997.example"), to("n998.example")),
        ("api".into(), "api".into(), "404".into())
    );
}

#[test]
fn regular_expressions_are_so_many() {
    let with = |name: &str, created: &str, patterns: usize| {
        let of = |n| format!("{{path: {{type: RegularExpression, value: '/{name}{n}.*'}}}}");
        let matches = (0..patterns).map(of).collect::<Vec<_>>().join(", ");
        route("HTTPRoute", "shop/web", "name: edge", "")
            .replace("rules: [{", &format!("rules: [{{matches: [{matches}], "))
            .replace(
                "name: web, namespace",
                &format!(
                    "creationTimestamp: '2026-{created}-01T00:00:00Z', name: {name}, namespace"
                ),
            )
    };
    let many = (1..=9).map(|n| with(&format!("r{n}"), &format!("0{n}"), 120));
    let mut documents = vec![gateway("edge", "{name: all, port: 80, protocol: HTTP}")];
    documents.extend(many);
    let policy = port(&local(&documents), 80).http;
    let to = |path: &str| answer(policy.as_ref(), "a", path);
    assert_eq!((to("/r8119").as_str(), to("/r90").as_str()), ("web", "404"));
}

#[test]
fn ports_and_listeners_are_so_many() {
    let listeners = |from: u16| {
        let of = |port| format!("{{name: p{port}, port: {port}, protocol: HTTP}}");
        (from..from + 64).map(of).collect::<Vec<_>>().join(", ")
    };
    let documents: Vec<_> =
        (0..5).map(|n| gateway(&format!("g{n}"), &listeners(1000 + 64 * n))).collect();
    let ports = local(&documents);
    let config = config(&ports);
    config.encode().unwrap();
    assert_eq!(config.ports.len(), 256);
    let placed = ports.index.objects().placed_listeners();
    let refused: Vec<_> = placed.iter().filter(|placed| placed.conflict.is_some()).collect();
    assert_eq!(refused.len(), 64);
    assert!(refused.iter().all(|p| p.gateway.name.name == "g4"));
    assert!(refused.iter().all(|p| p.conflict == Some(Conflict::TooMany)));

    let hosts = |gateway: usize| {
        let of =
            |n| format!("{{name: h{n}, port: 80, protocol: HTTP, hostname: h{n}.g{gateway}.test}}");
        (0..64).map(of).collect::<Vec<_>>().join(", ")
    };
    let documents: Vec<_> = (0..16).map(|n| gateway(&format!("g{n:02}"), &hosts(n))).collect();
    let placed_of = local(&documents);
    let placed = placed_of.index.objects().placed_listeners();
    let refused: Vec<_> = placed.iter().filter(|placed| placed.conflict.is_some()).collect();
    assert_eq!(refused.len(), 16 * 64 - 1000);
    self::config(&placed_of).encode().unwrap();
}

#[test]
fn a_route_at_a_gateway_sends_to_other_namespaces_with_a_grant_only() {
    // Its own parent, whose traffic it has anyway: but not what comes through the edge.
    let parents = "parentRefs: [{namespace: shop, name: edge}, \
                   {group: '', kind: Service, namespace: bank, name: bank, port: 80}]";
    let stranger = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: open, namespace: shop}}\nspec:\n  {parents}\n  \
         rules: [{{backendRefs: [{{name: bank, namespace: bank, port: 80}}]}}]\n---\n"
    );
    let grant = "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\n\
                 metadata: {name: edge, namespace: bank}\n\
                 spec:\n  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]\n  \
                 to: [{group: '', kind: Service}]\n---\n";
    let listener = gateway("edge", "{name: all, port: 80, protocol: HTTP}");
    let to = |documents: &[String]| answer(port(&local(documents), 80).http.as_ref(), "a", "/");
    assert_eq!(to(&[listener.clone(), stranger.clone()]), "500");
    assert_eq!(to(&[listener, stranger, grant.to_owned()]), "bank");
}

const HTTPS: &str = "{name: https, port: 443, protocol: HTTPS, hostname: shop.example, \
                      tls: {certificateRefs: [{name: shop}]}}";

#[test]
fn https_has_the_certificates_of_secrets() {
    let documents = [
        gateway("edge", HTTPS),
        secret("shop/shop", "shop.example"),
        route("HTTPRoute", "shop/web", "name: edge", ""),
    ];
    let mut local = local(&documents);
    let https = port(&local, 443).https.unwrap();
    assert_eq!(answer(Some(&https.policy), "shop.example", "/"), "web");
    let [certificate] = https.certificates.as_slice() else { panic!("{https:?}") };
    assert_eq!(certificate.host.as_ref().unwrap().to_string(), "shop.example");
    assert!(certificate.chain.contains("BEGIN CERTIFICATE"));
    assert!(!format!("{https:?}").contains("PRIVATE KEY"));

    let mut watched = local.index.watch_gateway();
    watched.mark_unchanged();
    local.write("edge.yaml", &[&documents[0], &documents[2]].map(String::as_str).concat());
    local.scan();
    assert!(watched.has_changed().unwrap());
    assert!(config(&local).ports.is_empty(), "there is no certificate");
}

#[test]
fn a_secret_of_another_namespace_has_to_be_granted() {
    let listener = HTTPS.replace("{name: shop}", "{name: shop, namespace: bank}");
    let grant = "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\n\
                 metadata: {name: edge, namespace: bank}\n\
                 spec:\n  from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}]\n  \
                 to: [{group: '', kind: Secret, name: shop}]\n---\n";
    let mut documents = vec![gateway("edge", &listener), secret("bank/shop", "shop.example")];
    let refused = local(&documents);
    assert!(config(&refused).ports.is_empty());
    let objects = refused.index.objects();
    let placed = objects.placed_listeners();
    let of = &placed[0].listener.certificates[0];
    let why = objects.certificate(&placed[0].gateway.name, of).unwrap_err();
    assert!(matches!(&why, NoCertificate::NotPermitted(_)), "{why}");
    documents.push(grant.to_owned());
    assert_eq!(config(&local(&documents)).ports.len(), 1);
}

#[test]
fn a_certificate_that_is_none_is_a_problem_with_its_place() {
    let broken = secret("shop/shop", "shop.example").replace("BEGIN CERT", "BEGIN PERT");
    let local = local(&[gateway("edge", HTTPS), broken]);
    let problems = local.problems();
    let told = problems.iter().find(|problem| problem.severity == Severity::Error).unwrap();
    assert_eq!(told.object, "Secret/shop/shop");
    assert!(!told.to_string().contains("PRIVATE"), "{told}");
}

#[test]
fn a_certificate_that_is_too_large_is_a_problem() {
    let large = secret("shop/shop", "shop.example");
    let end = large.find("  tls.key").unwrap();
    let line = format!("    {}\n", "#".repeat(1000));
    let large = format!("{}{}{}", &large[..end], line.repeat(300), &large[end..]);
    let local = local(&[gateway("edge", HTTPS), large]);
    let problems = local.problems();
    let told = problems.iter().find(|problem| problem.object == "Secret/shop/shop").unwrap();
    assert!(told.to_string().contains("more than 262144"), "{told}");
}

#[test]
fn tls_is_passed_on_by_name_beside_https() {
    let local = local(&[
        gateway(
            "edge",
            &format!(
                "{HTTPS}, {{name: tls, port: 443, protocol: TLS, hostname: '*.example', \
                 tls: {{mode: Passthrough}}}}"
            ),
        ),
        secret("shop/shop", "shop.example"),
        route("TLSRoute", "shop/api", "name: edge", "hostnames: [api.example, shop.example]"),
    ]);
    let port = port(&local, 443);
    assert!(port.https.is_some());
    let Some(Protocol::Tls(tls)) = port.bytes.map(|policy| policy.protocol) else { panic!() };
    let snis: Vec<_> = tls.routes[0].snis.iter().map(ToString::to_string).collect();
    assert_eq!(snis, ["api.example"], "the other host is the narrower listener's");
}

#[test]
fn a_listener_of_tls_does_not_lend_its_routes_either() {
    let tls = |name: &str, host: &str| {
        format!(
            "{{name: {name}, port: 443, protocol: TLS, hostname: '{host}', tls: {{mode: Passthrough}}}}"
        )
    };
    let listeners = format!("{}, {}", tls("wild", "*.example"), tls("api", "api.example"));
    let local = local(&[
        gateway("edge", &listeners),
        route("TLSRoute", "shop/api", "name: edge, sectionName: wild", "hostnames: ['*.example']"),
    ]);
    let Some(Protocol::Tls(tls)) = port(&local, 443).bytes.map(|policy| policy.protocol) else {
        panic!()
    };
    let of = |sni| {
        let fit = |snis: &[HostMatch]| snis.iter().filter_map(|of| of.match_host(sni)).max();
        let fits = tls.routes.iter().filter_map(|route| Some((fit(&route.snis)?, route)));
        let found = fits.max_by_key(|(fit, _)| *fit);
        found.map(|(_, route)| route.backends.backends().count())
    };
    assert_eq!((of("shop.example"), of("api.example"), of("other.test")), (Some(1), Some(0), None));
}

#[test]
fn a_port_of_bytes_has_one_route() {
    let local = local(&[
        gateway(
            "edge",
            "{name: tcp, port: 5432, protocol: TCP}, {name: none, port: 5433, protocol: TCP}",
        ),
        route("TCPRoute", "shop/api", "name: edge, port: 5432", ""),
    ]);
    let routes = |number| {
        let bytes = port(&local, number).bytes.unwrap().protocol;
        let Protocol::Opaque(tcp) = bytes else { panic!("{bytes:?}") };
        tcp.routes
    };
    assert_eq!(routes(5432)[0].backends.backends().count(), 1);
    assert_eq!(routes(5433)[0].backends.backends().count(), 0, "closed at once");
}

#[test]
fn grpc_routes_share_a_listener_with_those_of_http() {
    let grpc = route("GRPCRoute", "shop/api", "name: edge", "").replace(
        "rules: [{",
        "rules: [{matches: [{method: {service: shop.Cart, method: Add}}, \
         {method: {service: shop.Stock}}, {method: {method: 'a.b'}}], ",
    );
    let listener = gateway("edge", "{name: all, port: 80, protocol: HTTP}");
    let alone = port(&local(&[listener.clone(), grpc.clone()]), 80).http;
    assert_eq!(answer(alone.as_ref(), "shop", "/any.thing/a.b"), "api");
    assert_eq!(answer(alone.as_ref(), "shop", "/any.thing/aXb"), "404");
    let web = route("HTTPRoute", "shop/web", "name: edge", "");
    let local = local(&[listener, web, grpc]);
    let policy = port(&local, 80).http.unwrap();
    for (path, wanted) in [
        ("/shop.Cart/Add", "api"),
        ("/shop.Cart/Remove", "web"),
        ("/shop.Stock/Any", "api"),
        // A pattern comes after all paths, as everywhere.
        ("/any.thing/a.b", "web"),
        ("/", "web"),
    ] {
        assert_eq!(answer(Some(&policy), "shop", path), wanted, "{path}");
    }
    let Protocol::Http1(http) = &policy.protocol else { panic!() };
    let idle: Vec<_> = http.routes.iter().map(|r| r.rules[0].action.timeouts.idle).collect();
    assert_eq!(idle, [Some(GRPC_IDLE_TIMEOUT), Some(IDLE_TIMEOUT)]);
}

#[test]
fn what_a_gateway_cannot_do_is_told() {
    for (listener, field) in [
        ("{name: a, port: 0, protocol: HTTP}", "spec.listeners[0].port"),
        ("{name: a, port: 53, protocol: UDP}", "spec.listeners[0].protocol"),
        ("{name: a, port: 80, protocol: HTTP, hostname: 'a b..c'}", "spec.listeners[0].hostname"),
        ("{name: a, port: 443, protocol: HTTPS}", "spec.listeners[0].tls.certificateRefs"),
        ("{name: a, port: 443, protocol: TLS}", "spec.listeners[0].tls.mode"),
        (
            "{name: a, port: 80, protocol: HTTP}, {name: a, port: 81, protocol: HTTP}",
            "spec.listeners[1].name",
        ),
    ] {
        let local = local(&[gateway("edge", listener)]);
        let problems = local.problems();
        let told = problems.iter().find(|problem| problem.severity == Severity::Error);
        assert_eq!(told.unwrap().field, field, "{listener}");
    }
}

#[test]
fn faults_of_a_route_are_for_its_requests_at_the_edge_too() {
    let policy = |kind: &str, name: &str| {
        format!(
            "apiVersion: policy.meshctl.dev/v1alpha1\nkind: BackendTrafficPolicy\n\
             metadata: {{name: {}-{name}, namespace: shop}}\n\
             spec: {{targetRef: {{kind: {kind}, name: {name}}}, faults: [{{delay: 1s}}]}}\n---\n",
            kind.to_ascii_lowercase(),
        )
    };
    let local = local(&[
        gateway("edge", "{name: http, port: 80, protocol: HTTP}"),
        route("HTTPRoute", "shop/web", "name: edge", "hostnames: [web.example]"),
        route("GRPCRoute", "shop/api", "name: edge", "hostnames: [api.example]"),
        policy("HTTPRoute", "web"),
        policy("GRPCRoute", "api"),
        // Clients of a Service are others than those of the edge.
        policy("Service", "api"),
    ]);
    let Some(Protocol::Http1(http)) = port(&local, 80).http.map(|policy| policy.protocol) else {
        panic!("HTTP at the edge")
    };
    let by = |filter: &Filter| match filter {
        Filter::Fault(fault) => fault.meta.to_string(),
        other => panic!("{other:?}"),
    };
    let rules = http.routes.iter().flat_map(|route| &route.rules);
    let mut found: Vec<_> = rules.flat_map(|rule| rule.filters.iter().map(by)).collect();
    found.sort();
    let of = |name: &str| format!("BackendTrafficPolicy/shop/{name}");
    assert_eq!(found, [of("grpcroute-api"), of("httproute-web")]);
}
