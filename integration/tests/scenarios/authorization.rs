//! Who may do what: policies as users write them, decided by a real proxy, changed while it runs.

use http::{Request, header};
use mesh_integration::app::{HttpApp, TcpApp};
use mesh_integration::client::Connection;
use mesh_integration::client::http::{Client, Way, empty, full};
use mesh_integration::mesh::{Builder, Mesh, NAMESPACE, Pod, Service, id_of};
use mesh_integration::wait;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HTTP: u16 = 8080;
const BYTES: u16 = 5000;

/// `web` answers HTTP, and says back bytes on another port; `client` uses both.
async fn mesh(http: &HttpApp, bytes: &TcpApp) -> Mesh {
    started(http, bytes, Mesh::builder()).await
}

async fn started(http: &HttpApp, bytes: &TcpApp, builder: Builder) -> Mesh {
    let web = Pod::new("web").port(HTTP, http.addr()).port(BYTES, bytes.addr());
    builder
        .pod(Pod::new("client").upstream("web:80").upstream("db:80"))
        .pod(web.probe(HTTP, "/healthz"))
        .service(Service::new("web", HTTP))
        .service(Service::new("db", BYTES).before("web").app_protocol("tcp"))
        .start()
        .await
}

async fn apps() -> (HttpApp, TcpApp) {
    let http = HttpApp::start(async |_| http::Response::new(full("served"))).await;
    let bytes = TcpApp::start(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        // Whichever side ends it.
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await;
    (http, bytes)
}

fn default_access(access: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "annotations": { "config.meshctl.dev/default-inbound-policy": access },
        },
    })
}

fn policy(spec: Value) -> Value {
    json!({
        "apiVersion": "policy.meshctl.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": { "namespace": NAMESPACE, "name": "the-policy" },
        "spec": spec,
    })
}

/// Waits until the proxy of `web` believes something about all of its ports.
async fn believed(mesh: &Mesh, words: &[&str]) {
    let web = mesh.pod("web");
    wait::until(&format!("web to believe {words:?}"), async || {
        let config = web.config().await;
        let ports = config["inbound"]["ports"].as_array().expect("a list of ports");
        let told = |port: &Value| {
            let text = port["authorization"].to_string();
            words.iter().all(|word| text.contains(word))
        };
        (!ports.is_empty() && ports.iter().all(told)).then_some(())
    })
    .await;
}

/// What the policy of a row does, and to whom.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    None,
    Here(&'static str),
    Elsewhere(&'static str),
}

/// How clients are told apart.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Network,
    Identity,
}

#[tokio::test]
async fn every_action_with_every_default_for_http_grpc_and_bytes_by_network() {
    let (http, bytes) = apps().await;
    let mesh = started(&http, &bytes, Mesh::builder().in_the_clear()).await;
    every_action_with_every_default(&mesh, By::Network).await;
}

#[tokio::test]
async fn every_action_with_every_default_for_http_grpc_and_bytes_by_identity() {
    let (http, bytes) = apps().await;
    every_action_with_every_default(&mesh(&http, &bytes).await, By::Identity).await;
}

async fn every_action_with_every_default(mesh: &Mesh, by: By) {
    use Rule::{Elsewhere, Here};
    let authenticated = by == By::Identity;
    let from = |name: &str, ip: &str| match by {
        By::Network => json!({ "networks": [ip] }),
        By::Identity => json!({ "identities": [id_of(name)] }),
    };
    let client_ip = mesh.pod("client").ip().to_string();
    let table = [
        ("all-unauthenticated", Rule::None, true),
        ("all-authenticated", Rule::None, authenticated),
        ("cluster-unauthenticated", Rule::None, true),
        ("cluster-authenticated", Rule::None, authenticated),
        ("deny", Rule::None, false),
        ("audit", Rule::None, true),
        ("all-unauthenticated", Here("Allow"), true),
        ("all-unauthenticated", Elsewhere("Allow"), false),
        ("deny", Here("Allow"), true),
        ("audit", Elsewhere("Allow"), false),
        ("all-unauthenticated", Here("Deny"), false),
        ("all-unauthenticated", Elsewhere("Deny"), true),
        ("audit", Here("Deny"), false),
        ("deny", Elsewhere("Deny"), false),
        ("all-unauthenticated", Here("Audit"), true),
        ("deny", Here("Audit"), false),
    ];
    let http1 = Way::Http1(mesh.pod("client").upstream(0));
    let http2 = Way::Http2(mesh.pod("client").upstream(0));
    let mut http = Client::open(http1, "web:80").await;
    let mut grpc = Client::open(http2, "web:80").await;
    for (number, (access, rule, allowed)) in table.into_iter().enumerate() {
        let row = format!("{access} {rule:?}");
        // Tells this row's policy from the one before.
        let marker = format!("198.51.100.{number}");
        let marked = json!({ "networks": [marker] });
        let (action, whom) = match rule {
            Rule::None => ("Audit", marked.clone()),
            Here(action) => (action, from("client", &client_ip)),
            Elsewhere(action) => (action, from("other", "192.0.2.1")),
        };
        mesh.apply(&default_access(access));
        mesh.apply(&policy(json!({ "action": action, "from": [whom, marked] })));
        believed(mesh, &[&marker, &format!("\"default\":\"{access}\"")]).await;

        let response = http.send(Request::get("/").body(empty()).unwrap()).await.unwrap();
        let told = format!("{:?}", response.headers());
        assert!(!told.contains("the-policy"), "the client learns nothing: {told}");
        assert_eq!(response.status(), if allowed { 200 } else { 403 }, "{row}");
        let reason = response.headers().get("x-mesh-reason");
        assert_eq!(reason.map(|r| r.to_str().unwrap()), (!allowed).then_some("unauthorized"));

        let call = Request::post("/a.B/C").header(header::CONTENT_TYPE, "application/grpc");
        let response = grpc.send(call.body(empty()).unwrap()).await.unwrap();
        let status = response.headers().get("grpc-status").map(|s| s.to_str().unwrap());
        assert_eq!(status, (!allowed).then_some("7"), "{row}");

        let mut connection = Connection::open(mesh.pod("client").upstream(1)).await;
        let _ = connection.try_send("\0hello").await;
        if allowed {
            assert_eq!(connection.bytes(6).await, b"\0hello", "{row}");
        } else {
            assert_eq!(connection.rest().await, b"", "{row}");
        }
    }
    let web = mesh.pod("web");
    for protocol in ["http", "tcp"] {
        let metric = async |verdict: &str, name: &str| {
            let name = format!("authz_name=\"{name}\"");
            web.metric(&format!("inbound_{protocol}_authz_{verdict}_total"), &[&name]).await
        };
        let calls = if protocol == "http" { 2.0 } else { 1.0 };
        assert_eq!(metric("deny", "the-policy").await, 4.0 * calls, "{protocol}");
        assert_eq!(metric("allow", "the-policy").await, 2.0 * calls, "{protocol}");
        assert_eq!(metric("audit", "the-policy").await, 2.0 * calls, "{protocol}");
        assert_eq!(metric("audit", "audit").await, calls, "{protocol}");
        assert_eq!(metric("deny", "deny").await, 3.0 * calls, "{protocol}");
    }
}

#[tokio::test]
async fn connections_are_cut_when_a_policy_stops_allowing_them() {
    let (http, bytes) = apps().await;
    let mesh = mesh(&http, &bytes).await;
    let mut connection = Connection::open(mesh.pod("client").upstream(1)).await;
    connection.send("\0hello").await;
    assert_eq!(connection.bytes(6).await, b"\0hello");

    let of = |networks: &[&str]| json!({ "action": "Deny", "from": [{ "networks": networks }] });
    mesh.apply(&policy(of(&["192.0.2.1"])));
    believed(&mesh, &["192.0.2.1"]).await;
    connection.send("still").await;
    assert_eq!(connection.bytes(5).await, b"still", "other changes leave it alone");

    mesh.apply(&policy(of(&["127.0.0.0/8"])));
    assert_eq!(connection.rest().await, b"");
    let labels = ["authz_name=\"the-policy\""];
    let web = mesh.pod("web");
    assert_eq!(web.metric("inbound_tcp_authz_terminate_total", &labels).await, 1.0);
}

#[tokio::test]
async fn an_upgraded_connection_is_cut_as_well() {
    let app = TcpApp::start(|mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let agreed =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
        stream.write_all(agreed.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        // Whichever side ends it.
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let web = Pod::new("web").port(HTTP, app.addr());
    let mesh = Mesh::builder().pod(web).service(Service::new("web", HTTP)).start().await;
    let mut connection = Connection::open(mesh.pod("web").inbound(HTTP)).await;
    let request = "GET /feed HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    connection.send(request).await;
    assert_eq!(connection.response_to_head().await.status, 101);
    connection.send("hello").await;
    assert_eq!(connection.bytes(5).await, b"hello");

    let to = |path: &str| json!({ "action": "Deny", "to": [{ "paths": [path] }] });
    mesh.apply(&policy(to("/other")));
    believed(&mesh, &["/other"]).await;
    connection.send("still").await;
    assert_eq!(connection.bytes(5).await, b"still");
    mesh.apply(&policy(to("/feed")));
    assert_eq!(connection.rest().await, b"");
}

#[tokio::test]
async fn paths_decide_however_they_are_written_and_probes_pass() {
    let (http, bytes) = apps().await;
    let mesh = mesh(&http, &bytes).await;
    mesh.apply(&policy(json!({
        "targetRef": { "kind": "Deployment", "name": "web", "port": HTTP },
        "to": [{ "paths": ["/public/*"], "methods": ["GET"] }],
    })));
    wait::until("the policy", async || {
        let config = mesh.pod("web").config().await;
        config.to_string().contains("the-policy").then_some(())
    })
    .await;
    let mut connection = Connection::open(mesh.pod("web").inbound(HTTP)).await;
    for (line, status) in [
        ("GET /public/x", 200),
        ("GET //public", 403),
        ("GET /%70ublic", 200),
        ("POST /public", 403),
        ("GET /admin", 403),
        ("GET /public/../admin", 403),
        ("GET /public/%2e%2E/admin", 403),
        ("GET /public/..%2fadmin", 403),
        ("GET /public/..;/admin", 403),
        ("GET /healthz", 200),
        ("GET /healthz/../admin", 403),
        ("POST /healthz", 403),
    ] {
        connection.send(format!("{line} HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\n\r\n")).await;
        assert_eq!(connection.response().await.status, status, "{line}");
    }
    // Bytes that are no HTTP are no request that the policy allows.
    let mut connection = Connection::open(mesh.pod("web").inbound(HTTP)).await;
    connection.send("\0\x01\x02").await;
    assert_eq!(connection.rest().await, b"");
}
