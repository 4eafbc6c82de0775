//! The edge: clients outside of the mesh, the gateway, and what stands behind it. That hostile clients
//! are refused there, too, is among [`super::hostile`].

mod foreign;
mod ports;
mod secured;

use std::fmt::Write;
use std::net::SocketAddr;

use http::{Request, Response, header};
use mesh_integration::app::HttpApp;
use mesh_integration::client::Connection;
use mesh_integration::client::http::full;
use mesh_integration::mesh::{Builder, GATEWAY, MESH_NAMESPACE, Mesh, Pod, Service, id_in};
use mesh_integration::{edge, wait};
use serde_json::{Value, json};

/// The gateway, and the pods `web` and `api` with services of their names.
fn world(web: SocketAddr, api: SocketAddr) -> Builder {
    Mesh::builder()
        .pod(Pod::gateway())
        .pod(Pod::new("web").port(8080, web))
        .pod(Pod::new("api").port(8080, api))
        .service(Service::new("web", 8080))
        .service(Service::new("api", 8080))
}

/// That world with a listener of HTTP, whose requests all go to `web`.
async fn with_one_listener(web: SocketAddr) -> Mesh {
    let world = world(web, web).manifest(edge::gateway("edge", &[edge::http(80)]));
    world.manifest(edge::route("HTTPRoute", "edge", "web", &[])).start().await
}

/// Tells the request it got, and things that are nobody's business outside.
async fn telling(name: &'static str) -> HttpApp {
    HttpApp::start(move |request: Request<_>| async move {
        let mut told = format!("{name}: {} {}\n", request.method(), request.uri());
        let mut headers: Vec<_> = request.headers().iter().collect();
        headers.sort_by_key(|(name, _)| name.as_str());
        for (name, value) in headers {
            writeln!(told, "{name}: {}", value.to_str().unwrap()).unwrap();
        }
        let mut response = Response::new(full(told));
        for name in ["l5d-secret", "x-mesh-secret", "x-public"] {
            response.headers_mut().insert(name, "1".parse().unwrap());
        }
        response
    })
    .await
}

/// The gateway's listener at a port.
fn at(mesh: &Mesh, port: u16) -> SocketAddr {
    mesh.pod(GATEWAY).inbound(port)
}

async fn get(addr: SocketAddr, host: &str, more: &str) -> mesh_integration::client::Response {
    let mut connection = Connection::open(addr).await;
    connection.send(format!("GET /path HTTP/1.1\r\nHost: {host}\r\n{more}\r\n")).await;
    connection.response().await
}

#[tokio::test]
async fn a_gateway_routes_by_host_and_proves_who_it_is() {
    let (web, api) = (telling("web").await, telling("api").await);
    let listener = |name: &str, host: &str| json!({ "name": name, "port": 80, "protocol": "HTTP", "hostname": host });
    let only_the_gateway = json!({
        "apiVersion": "policy.meshctl.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "web", "namespace": "test" },
        "spec": {
            "targetRef": { "kind": "Service", "name": "web" },
            "from": [{ "serviceAccounts": [format!("{MESH_NAMESPACE}/{GATEWAY}")] }],
        },
    });
    let nobody = json!({
        "apiVersion": "policy.meshctl.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "api", "namespace": "test" },
        "spec": {
            "targetRef": { "kind": "Service", "name": "api" },
            "from": [{ "serviceAccounts": ["nobody"] }],
        },
    });
    let mesh = world(web.addr(), api.addr())
        .manifest(edge::gateway("edge", &[listener("wild", "*.test"), listener("api", "api.test")]))
        .manifest(edge::route("HTTPRoute", "edge", "web", &["*.test"]))
        .manifest(edge::route("HTTPRoute", "edge", "api", &["api.test"]))
        .manifest(only_the_gateway)
        .manifest(nobody)
        .start()
        .await;
    let web = get(at(&mesh, 80), "shop.test", "").await;
    assert_eq!(web.status, 200, "{}", web.text());
    let client = format!("l5d-client-id: {}", id_in(MESH_NAMESPACE, GATEWAY));
    assert!(web.text().starts_with("web: GET /path\n") && web.text().contains(&client));
    for (host, status) in [("api.test", 403), ("other.example", 404)] {
        let refused = get(at(&mesh, 80), host, "").await;
        assert_eq!(refused.status, status, "{host}");
        // Why is told to those inside.
        assert_eq!(refused.header("x-mesh-reason"), None);
        assert_eq!(refused.header("l5d-proxy-error"), None);
        let reason = http::StatusCode::from_u16(status).unwrap();
        assert_eq!(refused.text(), format!("{reason}\n"));
    }
    let denied = ["classification=\"failure\"", "status_code=\"403\""];
    assert_eq!(mesh.pod(GATEWAY).metric("response_total", &denied).await, 1.0);
}

#[tokio::test]
async fn strangers_are_not_believed() {
    let web = telling("web").await;
    let mesh = with_one_listener(web.addr()).await;
    let lies = "l5d-client-id: admin\r\nL5D-Orig-Proto: HTTP/1.0\r\nx-mesh-reason: none\r\n\
                X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: 10.0.0.2\r\n\
                X-Forwarded-Proto: https\r\nX-Forwarded-Host: bank\r\nX-Forwarded-Port: 443\r\n\
                X-Forwarded-Prefix: /admin\r\nX-Real-IP: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\n\
                X-Mine: 1\r\n";
    let answer = get(at(&mesh, 80), "shop.test:80", lies).await;
    let text = answer.text();
    let lines: Vec<_> =
        text.lines().skip(1).filter(|line| !line.starts_with("l5d-client")).collect();
    let told = [
        "host: shop.test:80",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: shop.test:80",
        "x-forwarded-proto: http",
        "x-mine: 1",
    ];
    assert_eq!(lines, told);
    assert!(!text.contains("admin"), "{text}");
    assert_eq!(answer.header("x-public"), Some("1"));
    for inside in ["l5d-secret", "x-mesh-secret"] {
        assert_eq!(answer.header(inside), None, "{inside}");
    }
    // It is no forward proxy.
    let mut connection = Connection::open(at(&mesh, 80)).await;
    connection.send("CONNECT web.test:80 HTTP/1.1\r\nHost: web.test:80\r\n\r\n").await;
    assert_eq!(connection.response().await.status, 400);
}

#[tokio::test]
async fn what_clients_can_take_is_bounded() {
    let web = telling("web").await;
    let gateway = Pod::gateway()
        .setting("GATEWAY_MAX_CLIENT_CONNECTIONS", "3")
        .setting("GATEWAY_MAX_BODY_BYTES", "1000");
    let mesh = Mesh::builder()
        .pod(gateway)
        .pod(Pod::new("web").port(8080, web.addr()))
        .service(Service::new("web", 8080))
        .manifest(edge::gateway("edge", &[edge::http(80)]))
        .manifest(edge::route("HTTPRoute", "edge", "web", &[]))
        .start()
        .await;
    let addr = at(&mesh, 80);
    let large = "x".repeat(2000);
    for (framing, body) in [
        ("Content-Length: 2000", large.clone()),
        ("Transfer-Encoding: chunked", format!("7d0\r\n{large}\r\n0\r\n\r\n")),
    ] {
        let mut connection = Connection::open(addr).await;
        connection.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}")).await;
        assert_eq!(connection.response().await.status, 413, "{framing}");
    }
    let served = async || {
        let mut connection = Connection::open(addr).await;
        // One without a place is closed before a word.
        drop(connection.try_send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await);
        connection.try_response().await.is_ok().then_some(connection)
    };
    let mut held = Vec::new();
    while held.len() < 3 {
        // The connections before these give their places back when the gateway sees their end.
        held.push(wait::until("a place", &served).await);
    }
    assert!(served().await.is_none(), "a fourth place");
    let labels = ["reason=\"too-many-connections\""];
    let refused = mesh.pod(GATEWAY).metric("gateway_refused_connections_total", &labels).await;
    assert!(refused >= 1.0, "{refused}");
}

/// What `/config` of the gateway says of a port.
async fn described(mesh: &Mesh, port: u16) -> Value {
    let config = mesh.pod(GATEWAY).config().await;
    let ports = config["gateway"]["ports"].as_array().unwrap().clone();
    ports.into_iter().find(|of| of["port"] == port).unwrap_or(Value::Null)
}

/// The value of a header in what [`telling`] told.
fn told(text: &str, name: header::HeaderName) -> Option<String> {
    let begin = format!("{name}: ");
    text.lines().find_map(|line| line.strip_prefix(&begin)).map(str::to_owned)
}
