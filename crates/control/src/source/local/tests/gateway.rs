//! Gateways in manifests, and what the proxy at the edge is told of them.

use http::Request;
use mesh_model::gateway::{GatewayConfig, GatewayPort};
use mesh_model::matching;
use mesh_model::outbound::{BackendKind, OutboundPolicy, Protocol};
use mesh_model::route::{Filter, InjectedFailure};

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
    if let Some(Filter::Fail(fail)) = found.rule_ref.filters.first() {
        let InjectedFailure::Http(status) = fail.failure else { panic!("{fail:?}") };
        return status.as_u16().to_string();
    }
    let backend = found.rule_ref.action.backends.backends().next().unwrap();
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
        objects.attach(Kind::HttpRoute, &route.head, &route.hosts, &route.head.gateways[0])
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
        let attached = objects.attach(Kind::HttpRoute, &route.head, &route.hosts, &to);
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
