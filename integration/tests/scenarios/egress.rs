//! What leaves the mesh: named, counted, and let out or not by policies as users write them, changed
//! while a real proxy runs.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::{Request, header};
use http_body_util::BodyExt;
use mesh_integration::app::{HttpApp, TcpApp};
use mesh_integration::client::Connection;
use mesh_integration::client::http::{Client, Way, empty, full};
use mesh_integration::local_mesh::{LocalMesh, objects};
use mesh_integration::mesh::{MESH_NAMESPACE, Mesh, NAMESPACE, Pod};
use mesh_integration::wait;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

/// An address of this machine that is neither a pod's nor what a proxy takes for its own.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Says which host it was asked for.
async fn web() -> HttpApp {
    HttpApp::start_at(OUTSIDE, async |request: Request<_>| {
        let host = request.headers().get(header::HOST).map(|host| host.as_bytes().to_vec());
        http::Response::new(full(host.unwrap_or_default()))
    })
    .await
}

/// Says back what it hears.
async fn echo() -> TcpApp {
    TcpApp::start_at(OUTSIDE, |mut stream| async move {
        let (mut read, mut write) = stream.split();
        // Whichever side ends it.
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

async fn mesh(outside: SocketAddr) -> Mesh {
    let client = Pod::new("client").upstream(&outside.to_string());
    Mesh::builder().pod(client).in_the_clear().start().await
}

fn policy(namespace: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "policy.meshctl.dev/v1alpha1",
        "kind": "EgressPolicy",
        "metadata": { "namespace": namespace, "name": format!("of-{namespace}") },
        "spec": spec,
    })
}

/// Applies a policy, and waits until the client's proxy goes by so many rules.
async fn applied(mesh: &Mesh, namespace: &str, spec: Value, rules: usize) {
    mesh.apply(&policy(namespace, spec));
    wait::until("the client to know of the policy", async || {
        let config = mesh.pod("client").config().await;
        let targets = config["outbound"]["targets"].as_array().expect("a list of targets");
        targets.iter().any(|target| target["policy"]["rules"] == rules).then_some(())
    })
    .await;
}

/// The first bytes of a client that asks for a server.
fn hello(server: &'static str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(server).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// A connection that says something, which comes back.
async fn passes(at: SocketAddr, bytes: &[u8]) -> Connection {
    let mut connection = Connection::open(at).await;
    connection.send(bytes).await;
    assert_eq!(connection.bytes(bytes.len()).await, bytes);
    connection
}

/// Says something on a connection that ends without a word.
async fn is_closed(at: SocketAddr, bytes: &[u8], why: &str) {
    let mut connection = Connection::open(at).await;
    // It may be closed before it is read.
    let _ = connection.try_send(bytes).await;
    assert_eq!(connection.rest().await, b"", "{why}");
}

#[tokio::test]
async fn http_leaves_by_the_host_of_each_request() {
    let web = web().await;
    let mesh = mesh(web.addr()).await;
    let client = mesh.pod("client");
    let mut connection = Connection::open(client.upstream(0)).await;
    let mut get = async |target: &str, host: &str| {
        connection.send(format!("GET {target} HTTP/1.1\r\n{host}\r\n")).await;
        let answer = connection.response().await;
        let reason = answer.header("x-mesh-reason").unwrap_or_default().to_owned();
        (answer.status, if reason.is_empty() { answer.text() } else { reason })
    };
    let denied = || (403, "egress-denied".to_owned());
    let served = |host: &str| (200, host.to_owned());

    assert_eq!(get("/", "host: any.test\r\n").await, served("any.test"), "without a policy");

    let allow = json!([{ "name": "apis", "hosts": ["api.test", "*.api.test"] }]);
    let spec =
        json!({ "default": "Deny", "allow": allow, "deny": [{ "hosts": ["bad.api.test"] }] });
    applied(&mesh, NAMESPACE, spec, 2).await;
    for (target, host, expected) in [
        ("/", "host: api.test\r\n", served("api.test")),
        ("/", "host: other.test\r\n", denied()),
        ("/", "host: API.test.:80\r\n", served("API.test.:80")),
        ("/", "host: v1.api.test\r\n", served("v1.api.test")),
        ("/", "host: bad.api.test\r\n", denied()),
        ("/", "host: api.test.evil.test\r\n", denied()),
        ("/", "host: 127.0.0.2\r\n", denied()),
        ("/", "host: \r\n", denied()),
        // What stands in the request line is what is sent on, and what counts.
        ("http://other.test/", "host: api.test\r\n", denied()),
        ("http://api.test/", "host: other.test\r\n", served("api.test")),
        ("/", "host: api.test\r\n", served("api.test")),
    ] {
        assert_eq!(get(target, host).await, expected, "{target} {host}");
    }
    let mut grpc = Client::open(Way::Http2(client.upstream(0)), "other.test").await;
    let call = Request::post("/a.B/C").header(header::CONTENT_TYPE, "application/grpc");
    let response = grpc.send(call.body(empty()).unwrap()).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "7");

    // The mesh may deny what the namespace allows.
    applied(&mesh, MESH_NAMESPACE, json!({ "deny": [{ "hosts": ["v1.api.test"] }] }), 3).await;
    assert_eq!(get("/", "host: v1.api.test\r\n").await, denied());
    assert_eq!(get("/", "host: api.test\r\n").await, served("api.test"));

    // Figures name the host and what decided.
    let count = async |verdict: &str, host: &str, item: &str| {
        let name = format!("outbound_http_egress_{verdict}_total");
        let host = format!("parent_name=\"{host}\"");
        let item = format!("authz_section_name=\"{item}\"");
        client.metric(&name, &[&host, &item, "authz_kind=\"EgressPolicy\""]).await
    };
    assert_eq!(count("allow", "api.test", "apis").await, 5.0);
    assert_eq!(count("deny", "other.test", "default").await, 3.0);
    assert_eq!(count("deny", "v1.api.test", "deny[0]").await, 1.0);
    assert_eq!(count("deny", "127.0.0.2", "default").await, 2.0, "without a name, by address");
    let labels =
        ["parent_kind=\"Egress\"", "parent_name=\"api.test\"", "route_kind=\"EgressPolicy\""];
    let counted = client.metric("outbound_http_route_request_statuses_total", &labels).await;
    assert_eq!(counted, 5.0);
}

#[tokio::test]
async fn tls_leaves_by_server_name_and_bytes_by_address() {
    let echo = echo().await;
    let mesh = mesh(echo.addr()).await;
    let client = mesh.pod("client");
    let at = client.upstream(0);
    let bytes = b"\0\x01hello";
    // Without a policy.
    passes(at, bytes).await;
    passes(at, &hello("any.test")).await;

    let by_name = json!({ "hosts": ["*.test"] });
    let deny = json!([{ "hosts": ["bad.test"] }]);
    let spec = json!({ "default": "Deny", "allow": [by_name.clone()], "deny": deny.clone() });
    applied(&mesh, NAMESPACE, spec, 2).await;
    let before = echo.accepted();
    is_closed(at, &hello("bad.test"), "denied").await;
    is_closed(at, &hello("good.example"), "not named").await;
    is_closed(at, &hello("127.0.0.2"), "no server name").await;
    is_closed(at, bytes, "a rule by host lets no bytes out").await;
    assert_eq!(echo.accepted(), before, "nobody was asked");
    let mut tls = passes(at, &hello("good.test")).await;

    let by_address = json!({ "networks": ["127.0.0.0/24"], "ports": [echo.addr().port()] });
    let elsewhere = json!({ "networks": ["127.0.0.0/24"], "ports": [1] });
    let allow = json!([by_name, by_address, elsewhere]);
    let spec = json!({ "default": "Deny", "allow": allow, "deny": deny });
    applied(&mesh, NAMESPACE, spec, 4).await;
    let mut opaque = passes(at, bytes).await;
    is_closed(at, &hello("bad.test"), "denied goes before allowed").await;
    tls.send("still").await;
    assert_eq!(tls.bytes(5).await, b"still", "other changes leave it alone");

    // What is not allowed any more is cut.
    applied(&mesh, NAMESPACE, json!({ "default": "Deny" }), 0).await;
    assert_eq!(tls.rest().await, b"");
    assert_eq!(opaque.rest().await, b"");
    for (host, cut) in [("good.test", 1.0), ("127.0.0.2", 1.0), ("bad.test", 0.0)] {
        let labels = [&*format!("parent_name=\"{host}\""), "authz_name=\"of-test\""];
        let found = client.metric("outbound_tcp_egress_terminate_total", &labels).await;
        assert_eq!(found, cut, "{host}");
    }
    let denied = async |host: &str| {
        let labels = [&*format!("parent_name=\"{host}\"")];
        client.metric("outbound_tcp_egress_deny_total", &labels).await
    };
    assert_eq!((denied("bad.test").await, denied("127.0.0.2").await), (2.0, 2.0));
}

#[tokio::test]
async fn an_upgraded_connection_is_cut_as_well() {
    let app = TcpApp::start_at(OUTSIDE, |mut stream| async move {
        let mut connection = tokio::io::BufStream::new(&mut stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            tokio::io::AsyncBufReadExt::read_line(&mut connection, &mut line).await.unwrap();
        }
        let agreed =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
        connection.write_all(agreed.as_bytes()).await.unwrap();
        connection.flush().await.unwrap();
        let (mut read, mut write) = tokio::io::split(connection.into_inner());
        // Whichever side ends it.
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let mesh = mesh(app.addr()).await;
    let mut connection = Connection::open(mesh.pod("client").upstream(0)).await;
    let request = "GET / HTTP/1.1\r\nhost: feed.test\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    connection.send(request).await;
    assert_eq!(connection.response_to_head().await.status, 101);
    let deny = |host: &str| json!({ "deny": [{ "hosts": [host] }] });
    applied(&mesh, NAMESPACE, deny("other.test"), 1).await;
    connection.send("hello").await;
    assert_eq!(connection.bytes(5).await, b"hello");
    mesh.apply(&policy(NAMESPACE, deny("feed.test")));
    assert_eq!(connection.rest().await, b"");
}

#[tokio::test]
async fn rules_stay_while_the_control_plane_is_away() {
    let web = web().await;
    let mut mesh = mesh(web.addr()).await;
    let at = mesh.pod("client").upstream(0);
    let status = async |host: &str| {
        let mut connection = Connection::open(at).await;
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        connection.send(request).await;
        connection.response().await.status
    };
    assert_eq!(status("any.test").await, 200);
    let allow = json!([{ "hosts": ["api.test"] }]);
    applied(&mesh, NAMESPACE, json!({ "default": "Deny", "allow": allow }), 1).await;
    mesh.crash_control().await;
    assert_eq!((status("api.test").await, status("other.test").await), (200, 403));
    mesh.apply(&policy(NAMESPACE, json!({ "deny": allow })));
    assert_eq!((status("api.test").await, status("other.test").await), (200, 403));
    mesh.restart_control().await;
    wait::until("what changed meanwhile", async || {
        (status("other.test").await == 200 && status("api.test").await == 403).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn meshctl_tells_what_leaves() {
    let (web, mesh) = (web().await, LocalMesh::default());
    let scratch = mesh.scratch();
    mesh.up(&[objects::app("client", 1, &scratch)]).await;
    let spec = json!({ "allow": [{ "name": "apis", "hosts": ["api.test"] }], "default": "Deny" });
    let file = mesh.file("egress.yaml", &[policy(NAMESPACE, spec)]).display().to_string();
    mesh.meshctl(&["local", "apply", "-f", &file]).await.succeeded();

    let Way::Absolute(proxy) = mesh.way("client").await else { panic!() };
    let get = async |host: &str| {
        let mut tunnel = Client::open(Way::Tunnel(proxy), &web.addr().to_string()).await;
        let request = Request::get("/").header(header::HOST, host).body(empty()).unwrap();
        let response = tunnel.send(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    let (status, said) = wait::until("the policy", async || {
        let answer = get("other.test").await;
        (answer.0 == 403).then_some(answer)
    })
    .await;
    assert!(said.contains("EgressPolicy/test/of-test#default"), "{status}: {said}");
    assert_eq!(get("api.test").await, (200, "api.test".to_owned()));

    let row = wait::until("the figures", async || {
        let ran = mesh.meshctl(&["stat", "egress", "--by", "route", "-o", "json"]).await;
        // Nothing is said while there is nothing.
        let told: Value = serde_json::from_str(&ran.succeeded().stdout).ok()?;
        let rows = told["rows"].as_array().unwrap().clone();
        let of = |host: &str, by: &str| {
            rows.iter().find(|row| row["name"] == host && row["by"] == by).cloned()
        };
        of("api.test", "EgressPolicy/test/of-test#apis")?;
        of("other.test", "EgressPolicy/test/of-test#default")
    })
    .await;
    assert_eq!((&row["namespace"], &row["kind"]), (&json!(NAMESPACE), &json!("egress")));
    assert_eq!(row["reasons"]["egress-denied"], row["failures"], "{row:#}");
    mesh.meshctl(&["stat", "egress/api.test", "--from", "deploy/client"]).await.succeeded();

    let edges = mesh.json(&["edges", "deploy"]).await;
    let text = edges.to_string();
    assert!(text.contains("api.test") && text.contains("other.test"), "{edges:#}");

    let last = mesh.json(&["explain", "--last-errors", "deploy/client", "--limit", "1"]).await;
    let denied = &last["requests"][0];
    assert_eq!(denied["policy"], "EgressPolicy/test/of-test#default", "{last:#}");
    let reason = &denied["reason"];
    assert_eq!((&denied["notable"], reason), (&json!("denied"), &json!("egress-denied")));
    mesh.meshctl(&["explain", "egress-denied"]).await.succeeded();

    // The answer before is the answer itself.
    for (host, code) in [("api.test", 0), ("other.test", 1)] {
        let (to, line) = (format!("egress/{host}:443"), "GET /");
        let asked = ["explain", "--what-if", line, "--from", "deploy/client", "--to", &to];
        let ran = mesh.meshctl(&asked).await;
        assert_eq!(ran.code, Some(code), "{ran:#?}");
        assert!(ran.stdout.contains("EgressPolicy/test/of-test#"), "{ran:#?}");
    }
}
