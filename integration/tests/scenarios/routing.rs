//! Routes of Gateway API, as a mesh has them, through real proxies: what a request is matched by, and
//! what its application and its client see of what was done to it.
//!
//! The features are those of the conformance suite for meshes, named in the rows; besides, what that
//! suite does not look at.

mod sessions;
mod splits;

use http::{Method, Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_integration::app::HttpApp;
use mesh_integration::client::http::{Body, Client, Way, empty, full};
use mesh_integration::mesh::{Mesh, NAMESPACE, Pod, Service};
use mesh_integration::wait;
use serde_json::{Value, json};

const PORT: u16 = 8080;

/// Answers with what it was asked, and who it is.
async fn echo(name: &'static str) -> HttpApp {
    HttpApp::start(move |request: Request<Incoming>| async move {
        let (head, body) = request.into_parts();
        let host = head.uri.authority().map(ToString::to_string);
        let text =
            |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let host = host.or_else(|| head.headers.get(header::HOST).map(text)).unwrap_or_default();
        let mut headers = serde_json::Map::new();
        for name in head.headers.keys() {
            let values: Vec<_> = head.headers.get_all(name).iter().map(text).collect();
            headers.insert(name.to_string(), values.join(",").into());
        }
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let said = json!({
            "app": name,
            "method": head.method.as_str(),
            "path": head.uri.path_and_query().map(ToString::to_string),
            "host": host,
            "headers": headers,
            "body": String::from_utf8_lossy(&body),
        });
        let response = Response::builder().header("x-app", name).header("x-secret", "of the app");
        response.body(full(said.to_string())).unwrap()
    })
    .await
}

/// `v1` and `v2` behind services of their names, and `web`, which is in front of `v1`.
async fn mesh(v1: &HttpApp, v2: &HttpApp, rules: Value) -> Mesh {
    Mesh::builder()
        .pod(Pod::new("client").upstream("web:80").upstream("v2:80"))
        .pod(Pod::new("v1").port(PORT, v1.addr()))
        .pod(Pod::new("v2").port(PORT, v2.addr()))
        .service(Service::new("web", PORT).before("v1"))
        .service(Service::new("v1", PORT))
        .service(Service::new("v2", PORT))
        .manifest(route("HTTPRoute", "web", rules))
        .start()
        .await
}

fn route(kind: &str, parent: &str, rules: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": kind,
        "metadata": { "namespace": NAMESPACE, "name": "the-route" },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": parent, "port": 80 }],
            "rules": rules,
        },
    })
}

fn to(name: &str) -> Value {
    json!([{ "name": name, "port": 80 }])
}

fn path(kind: &str, value: &str) -> Value {
    json!({ "path": { "type": kind, "value": value } })
}

fn filter(kind: &str, field: &str, value: Value) -> Value {
    json!({ "type": kind, field: value })
}

/// What a request came to.
struct Seen {
    status: u16,
    headers: http::HeaderMap,
    /// What the application was asked; null when it was not.
    asked: Value,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    fn app(&self) -> &str {
        self.header("x-app")
    }
}

async fn send(client: &mut Client, request: Request<Body>) -> Seen {
    let (head, body) = client.send(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let asked = serde_json::from_slice(&body).unwrap_or_default();
    Seen { status: head.status.as_u16(), headers: head.headers, asked }
}

async fn get(client: &mut Client, path: &str, headers: &[(&str, &str)]) -> Seen {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(client, request.body(empty()).unwrap()).await
}

/// One client for each version of HTTP.
async fn clients(mesh: &Mesh, upstream: usize, authority: &str) -> [Client; 2] {
    let addr = mesh.pod("client").upstream(upstream);
    [
        Client::open(Way::Http1(addr), authority).await,
        Client::open(Way::Http2(addr), authority).await,
    ]
}

#[tokio::test]
async fn requests_go_by_the_most_specific_match() {
    let (v1, v2) = (echo("v1").await, echo("v2").await);
    let query = |name: &str| json!([{ "type": "Exact", "name": name, "value": "1" }]);
    let header = |name: &str| json!([{ "name": name, "value": "1" }]);
    let set = |to: &str| {
        let header = json!([{ "name": "x-rule", "value": to }]);
        filter("ResponseHeaderModifier", "responseHeaderModifier", json!({ "set": header }))
    };
    let rule = |name: &str, found: Value, backend: &str| json!({ "name": name, "matches": [found], "filters": [set(name)], "backendRefs": to(backend) });
    let mesh = mesh(
        &v1,
        &v2,
        json!([
            rule("prefix", path("PathPrefix", "/a"), "v1"),
            rule("longer", path("PathPrefix", "/a/b"), "v2"),
            rule("exact", path("Exact", "/a/b"), "v1"),
            rule("regex", path("RegularExpression", "/r[0-9]+"), "v2"),
            rule("method", json!({ "path": { "value": "/m" }, "method": "POST" }), "v2"),
            rule("headers", json!({ "path": { "value": "/m" }, "headers": header("x-one") }), "v1"),
            rule("query", json!({ "path": { "value": "/m" }, "queryParams": query("one") }), "v1"),
            rule("anything-there", path("PathPrefix", "/m"), "v1"),
            json!({ "matches": [path("Exact", "/broken")], "backendRefs": to("nowhere") }),
            json!({ "matches": [path("Exact", "/empty")], "backendRefs": [] }),
            json!({
                "matches": [path("Exact", "/unweighted")],
                "backendRefs": [{ "name": "v1", "port": 80, "weight": 0 }],
            }),
        ]),
    )
    .await;
    // Path, what else, and the rule and application that it comes to.
    type Row<'a> = (Method, &'a str, &'a [(&'a str, &'a str)], u16, &'a str, &'a str);
    let table: &[Row<'_>] = &[
        (Method::GET, "/a", &[], 200, "prefix", "v1"),
        (Method::GET, "/a/", &[], 200, "prefix", "v1"),
        (Method::GET, "/ab", &[], 404, "", ""),
        (Method::GET, "/a/b", &[], 200, "exact", "v1"),
        (Method::GET, "/a/b/c", &[], 200, "longer", "v2"),
        (Method::GET, "/r12", &[], 200, "regex", "v2"),
        (Method::GET, "/r12/x", &[], 404, "", ""),
        (Method::POST, "/m", &[("x-one", "1")], 200, "method", "v2"),
        (Method::GET, "/m?one=1", &[("x-one", "1")], 200, "headers", "v1"),
        (Method::GET, "/m?two=2&one=1", &[], 200, "query", "v1"),
        (Method::GET, "/m?one=2&one=1", &[], 200, "anything-there", "v1"),
        (Method::GET, "/", &[], 404, "", ""),
        (Method::GET, "/broken", &[], 500, "", ""),
        (Method::GET, "/empty", &[], 500, "", ""),
        (Method::GET, "/unweighted", &[], 500, "", ""),
    ];
    for mut client in clients(&mesh, 0, "web:80").await {
        for (method, path, headers, status, rule, app) in table {
            let mut request = Request::builder().method(method).uri(*path);
            for (name, value) in *headers {
                request = request.header(*name, *value);
            }
            let seen = send(&mut client, request.body(empty()).unwrap()).await;
            let row = format!("{method} {path} {headers:?}");
            assert_eq!(
                (seen.status, seen.header("x-rule"), seen.app()),
                (*status, *rule, *app),
                "{row}"
            );
        }
    }
    // Another service's traffic is not this route's, and a pod's neither.
    let [mut other, _] = clients(&mesh, 1, "v2:80").await;
    let seen = get(&mut other, "/a", &[]).await;
    assert_eq!((seen.status, seen.header("x-rule"), seen.app()), (200, "", "v2"));
    let pod = format!("{}:{PORT}", mesh.pod("v1").ip());
    let proxy = mesh.pod("client").forward_proxy();
    let mut direct = Client::open(Way::Absolute(proxy), &pod).await;
    let seen = get(&mut direct, "/a", &[]).await;
    assert_eq!((seen.status, seen.header("x-rule"), seen.app()), (200, "", "v1"));
}

#[tokio::test]
async fn requests_are_rewritten_and_the_application_sees_it() {
    let (v1, v2) = (echo("v1").await, echo("v2").await);
    let rewrite = |value: Value| filter("URLRewrite", "urlRewrite", value);
    let full =
        |path: &str| json!({ "path": { "type": "ReplaceFullPath", "replaceFullPath": path } });
    let prefix = |path: &str| json!({ "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": path } });
    let headers = json!({
        "set": [{ "name": "X-Set", "value": "set" }],
        "add": [{ "name": "X-Add", "value": "two" }],
        "remove": ["X-Remove"],
    });
    let modify = filter("RequestHeaderModifier", "requestHeaderModifier", headers);
    let hide = json!({ "remove": ["x-secret"], "set": [{ "name": "x-app", "value": "hidden" }] });
    let hide = filter("ResponseHeaderModifier", "responseHeaderModifier", hide);
    let rule = |at: &str, filters: Value| json!({ "matches": [path("PathPrefix", at)], "filters": filters, "backendRefs": to("v1") });
    let mesh = mesh(
        &v1,
        &v2,
        json!([
            rule("/prefix/one", json!([rewrite(prefix("/one"))])),
            rule("/strip", json!([rewrite(prefix("/"))])),
            rule("/nothing", json!([rewrite(prefix(""))])),
            rule("/full", json!([rewrite(full("/one"))])),
            rule("/host", json!([rewrite(json!({ "hostname": "other.example" }))])),
            rule("/both", json!([rewrite(prefix("/new")), modify])),
            rule("/hide", json!([hide])),
            json!({
                "matches": [path("PathPrefix", "/backend")],
                "backendRefs": [{
                    "name": "v1",
                    "port": 80,
                    "filters": [modify, rewrite(prefix("/of-backend"))],
                }],
            }),
        ]),
    )
    .await;
    let table = [
        ("/prefix/one/two?q=1", "/one/two?q=1", "web:80"),
        ("/strip/three", "/three", "web:80"),
        ("/strip", "/", "web:80"),
        ("/nothing/left", "/left", "web:80"),
        ("/full/one/two?q=1", "/one?q=1", "web:80"),
        ("/host/x", "/host/x", "other.example"),
        ("/both/x", "/new/x", "web:80"),
        ("/backend/x", "/of-backend/x", "web:80"),
    ];
    for mut client in clients(&mesh, 0, "web:80").await {
        for (path, wanted, host) in table {
            let seen =
                get(&mut client, path, &[("x-add", "one"), ("x-remove", "1"), ("x-set", "0")])
                    .await;
            assert_eq!(seen.status, 200, "{path}");
            assert_eq!(seen.asked["path"], wanted, "{path}");
            assert_eq!(seen.asked["host"], host, "{path}");
            let headers = &seen.asked["headers"];
            let modified = path.starts_with("/both") || path.starts_with("/backend");
            let (add, set) = if modified { ("one,two", "set") } else { ("one", "0") };
            assert_eq!(
                (&headers["x-add"], &headers["x-set"]),
                (&json!(add), &json!(set)),
                "{path}"
            );
            assert_eq!(headers.get("x-remove").is_none(), modified, "{path}");
        }
        let seen = get(&mut client, "/hide", &[]).await;
        assert_eq!((seen.app(), seen.header("x-secret")), ("hidden", ""));
    }
}

#[tokio::test]
async fn redirects_change_what_they_name_and_nobody_is_asked() {
    let (v1, v2) = (echo("v1").await, echo("v2").await);
    let rule = |at: &str, redirect: Value| {
        let redirect = filter("RequestRedirect", "requestRedirect", redirect);
        json!({ "matches": [path("PathPrefix", at)], "filters": [redirect] })
    };
    let prefix = json!({ "type": "ReplacePrefixMatch", "replacePrefixMatch": "/new" });
    let full = json!({ "type": "ReplaceFullPath", "replaceFullPath": "/all" });
    let mesh = mesh(
        &v1,
        &v2,
        json!([
            rule("/host", json!({ "hostname": "example.org" })),
            rule("/scheme", json!({ "scheme": "https", "statusCode": 301 })),
            rule("/port", json!({ "port": 8083 })),
            rule("/prefix", json!({ "path": prefix, "hostname": "example.org" })),
            rule("/full", json!({ "path": full, "statusCode": 303 })),
            rule("/307", json!({ "statusCode": 307, "hostname": "example.org" })),
            rule("/308", json!({ "statusCode": 308, "hostname": "example.org" })),
        ]),
    )
    .await;
    let table = [
        ("/host/x?q=1", 302, "http://example.org/host/x?q=1"),
        ("/scheme", 301, "https://web/scheme"),
        ("/port", 302, "http://web:8083/port"),
        ("/prefix/lemon", 302, "http://example.org/new/lemon"),
        ("/full/original", 303, "http://web/all"),
        ("/307", 307, "http://example.org/307"),
        ("/308", 308, "http://example.org/308"),
    ];
    for mut client in clients(&mesh, 0, "web").await {
        for (path, status, location) in table {
            let seen = get(&mut client, path, &[]).await;
            assert_eq!((seen.status, seen.header("location")), (status, location), "{path}");
        }
    }
    assert_eq!(v1.requests() + v2.requests(), 0);
}

#[tokio::test]
async fn mirrors_get_the_whole_request_and_nobody_hears_of_them() {
    let (v1, v2) = (echo("v1").await, echo("v2").await);
    let mirror = |at: &str, share: Value| {
        let mut mirror = share;
        mirror["backendRef"] = json!({ "name": "shadow", "port": 80 });
        let mirror = filter("RequestMirror", "requestMirror", mirror);
        json!({ "matches": [path("PathPrefix", at)], "filters": [mirror], "backendRefs": to("v1") })
    };
    let (heard, mut hears) = tokio::sync::mpsc::channel(16);
    let shadow = HttpApp::start(move |request: Request<Incoming>| {
        let heard = heard.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            heard.send((head.method, head.uri.path().to_owned(), body)).await.unwrap();
            Response::builder().status(500).body(full("nobody reads this")).unwrap()
        }
    })
    .await;
    let rules = json!([mirror("/all", json!({})), mirror("/none", json!({ "percent": 0 }))]);
    let mesh = Mesh::builder()
        .pod(Pod::new("client").upstream("web:80"))
        .pod(Pod::new("v1").port(PORT, v1.addr()))
        .pod(Pod::new("shadow").port(PORT, shadow.addr()))
        .service(Service::new("web", PORT).before("v1"))
        .service(Service::new("v1", PORT))
        .service(Service::new("shadow", PORT))
        .manifest(route("HTTPRoute", "web", rules))
        .start()
        .await;
    let large = "x".repeat(200_000);
    for mut client in clients(&mesh, 0, "web:80").await {
        for (at, body) in [("/all/small", "small"), ("/all/large", large.as_str())] {
            let request = Request::post(at).body(full(body.to_owned())).unwrap();
            let seen = send(&mut client, request).await;
            assert_eq!((seen.status, seen.app()), (200, "v1"));
            assert_eq!(seen.asked["body"], body);
            let copy = wait::within("the mirrored request", hears.recv()).await.unwrap();
            assert_eq!((copy.0, copy.1.as_str()), (Method::POST, at));
            assert_eq!(copy.2, body);
        }
        assert_eq!(get(&mut client, "/none", &[]).await.status, 200);
    }
    assert_eq!(v1.requests(), 6);
    assert_eq!(shadow.requests(), 4);
    assert_eq!(v2.requests(), 0);
}

#[tokio::test]
async fn pages_of_allowed_origins_may_read_and_others_not() {
    let (v1, v2) = (echo("v1").await, echo("v2").await);
    let cors = json!({
        "allowOrigins": ["https://*.example"],
        "allowMethods": ["GET", "PUT"],
        "allowHeaders": ["x-one"],
        "exposeHeaders": ["x-app"],
        "allowCredentials": true,
        "maxAge": 60,
    });
    let cors = filter("CORS", "cors", cors);
    let rules = json!([{ "filters": [cors], "backendRefs": to("v1") }]);
    let mesh = mesh(&v1, &v2, rules).await;
    let preflight = |origin: &str| {
        let request = Request::options("/x").header("origin", origin);
        let request = request.header("access-control-request-method", "PUT");
        request.body(empty()).unwrap()
    };
    for mut client in clients(&mesh, 0, "web:80").await {
        let seen = send(&mut client, preflight("https://www.example")).await;
        assert_eq!(seen.status, 204);
        assert_eq!(seen.header("access-control-allow-origin"), "https://www.example");
        assert_eq!(seen.header("access-control-allow-methods"), "GET, PUT");
        assert_eq!(seen.header("access-control-allow-headers"), "x-one");
        assert_eq!(seen.header("access-control-allow-credentials"), "true");
        assert_eq!(seen.header("access-control-max-age"), "60");
        let seen = send(&mut client, preflight("https://evil.test")).await;
        assert_eq!((seen.status, seen.header("access-control-allow-origin")), (204, ""));

        let seen = get(&mut client, "/x", &[("origin", "https://www.example")]).await;
        assert_eq!((seen.status, seen.app()), (200, "v1"));
        assert_eq!(seen.header("access-control-allow-origin"), "https://www.example");
        assert_eq!(seen.header("access-control-expose-headers"), "x-app");
        let seen = get(&mut client, "/x", &[("origin", "https://evil.test")]).await;
        assert_eq!((seen.status, seen.header("access-control-allow-origin")), (200, ""));
    }
    assert_eq!(v1.requests(), 4, "preflights are not the application's");
}

#[tokio::test]
async fn grpc_goes_by_service_and_method() {
    let (v1, v2) = (echo("v1").await, echo("v2").await);
    let method =
        |service: &str, method: &str| json!({ "method": { "service": service, "method": method } });
    let set = json!({ "set": [{ "name": "x-rule", "value": "modified" }] });
    let rules = json!([
        { "matches": [{ "method": { "service": "shop.Orders" } }], "backendRefs": to("v1") },
        {
            "matches": [method("shop.Orders", "Cancel")],
            "filters": [
                filter("RequestHeaderModifier", "requestHeaderModifier", set.clone()),
                filter("ResponseHeaderModifier", "responseHeaderModifier", set),
            ],
            "backendRefs": to("v2"),
        },
        { "matches": [method("shop.Orders", "Gone")], "backendRefs": to("nowhere") },
    ]);
    let mesh = Mesh::builder()
        .pod(Pod::new("client").upstream("web:80"))
        .pod(Pod::new("v1").port(PORT, v1.addr()))
        .pod(Pod::new("v2").port(PORT, v2.addr()))
        .service(Service::new("web", PORT).before("v1").app_protocol("kubernetes.io/h2c"))
        .service(Service::new("v1", PORT))
        .service(Service::new("v2", PORT))
        .manifest(route("GRPCRoute", "web", rules))
        .start()
        .await;
    let [_, mut client] = clients(&mesh, 0, "web:80").await;
    let mut call = async |method: &str| {
        let request =
            Request::post(format!("/{method}")).header("content-type", "application/grpc");
        send(&mut client, request.body(empty()).unwrap()).await
    };
    let seen = call("shop.Orders/Place").await;
    assert_eq!((seen.app(), seen.header("x-rule")), ("v1", ""));
    let seen = call("shop.Orders/Cancel").await;
    assert_eq!((seen.app(), seen.header("x-rule")), ("v2", "modified"));
    assert_eq!(seen.asked["headers"]["x-rule"], "modified");
    let seen = call("shop.Orders/Gone").await;
    assert_eq!((seen.status, seen.header("grpc-status")), (200, "14"));
    let seen = call("shop.Other/Any").await;
    assert_eq!((seen.status, seen.header("grpc-status")), (200, "12"));
}
