//! Clients that others made, at the edge: curl, WebSocket and gRPC over TLS, a scanner, and a mesh as
//! users have it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use http_body_util::{BodyExt, Collected};
use hyper::body::Incoming;
use mesh_integration::address::Network;
use mesh_integration::app::HttpApp;
use mesh_integration::client::http::full;
use mesh_integration::edge::{self, Authority};
use mesh_integration::local_mesh::{LocalMesh, objects};
use mesh_integration::mesh::{Mesh, Pod, Service};
use mesh_integration::process::Process;
use mesh_integration::python::{self, Python};
use mesh_integration::{programs, wait};
use serde_json::json;

use super::{at, described, telling};

/// The gateway with HTTPS for a host, in front of the application at an address.
async fn secured(host: &str, app: SocketAddr, folder: &Path) -> (Mesh, Authority) {
    let authority = Authority::new(folder);
    let mesh = Mesh::builder()
        .pod(Pod::gateway())
        .pod(Pod::new("web").port(8080, app))
        .service(Service::new("web", 8080))
        .manifest(edge::gateway("edge", &[edge::https(443, host)]))
        .manifest(authority.secret(host))
        .manifest(edge::route("HTTPRoute", "edge", "web", &[]))
        .start()
        .await;
    (mesh, authority)
}

/// Runs a command to its end; whether it succeeded, and what it printed.
async fn run(name: &str, command: Command, logs: &Path) -> (bool, String) {
    let mut process = Process::start(name, command, logs);
    let status = process.end().await;
    (status.success(), process.log())
}

#[tokio::test]
async fn curl_is_served_over_https() {
    let test = "edge::foreign::curl_is_served_over_https";
    if programs::command("curl", test).is_none() {
        return;
    }
    let (app, folder) = (telling("web").await, tempfile::tempdir().unwrap());
    let (mesh, authority) = secured("shop.test", app.addr(), folder.path()).await;
    let gateway = at(&mesh, 443);
    for (number, (options, http)) in [
        (&["--http1.1"][..], "1.1"),
        (&["--http2"], "2"),
        (&["--http2", "--tls-max", "1.2"], "2"),
        (&["--http1.1", "--tlsv1.3"], "1.1"),
        (&["--http1.1", "--no-alpn"], "1.1"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut command = programs::command("curl", test).unwrap();
        command.args(["--silent", "--show-error", "--fail", "--cacert"]).arg(authority.file());
        command.args(["--resolve", &format!("shop.test:443:{}", gateway.ip())]).args(options);
        command.args(["--write-out", "HTTP/%{http_version}", "https://shop.test/"]);
        let (success, told) = run(&format!("curl-{number}"), command, &mesh.logs()).await;
        assert!(success, "{options:?}: {told}");
        assert!(told.contains("web: GET "), "{told}");
        assert!(told.contains(&format!("HTTP/{http}")), "{options:?}: {told}");
    }
    let mut command = programs::command("curl", test).unwrap();
    command.args(["--silent", "--insecure", "--resolve"]);
    command.arg(format!("other.test:443:{}", gateway.ip())).arg("https://other.test/");
    let (success, told) = run("curl-unknown", command, &mesh.logs()).await;
    assert!(!success, "a name that nobody has is refused: {told}");
}

/// What the page says of itself when it has been answered: the protocol of each, and the echo's length.
const PAGE: &str = "<!doctype html><title>shop</title><body>waiting<script>
const told = entry => entry.nextHopProtocol;
fetch('/echo', {method: 'POST', body: 'x'.repeat(100000)}).then(answer => answer.text()).then(text => {
  const [page] = performance.getEntriesByType('navigation');
  const [echo] = performance.getEntriesByType('resource').filter(entry => entry.name.endsWith('/echo'));
  document.body.textContent = `page ${told(page)} echo ${told(echo)} ${text.length}`;
}, error => document.body.textContent = `failed: ${error}`);
</script>";

#[tokio::test]
async fn a_browser_is_served_over_https() {
    let test = "edge::foreign::a_browser_is_served_over_https";
    if programs::command("chromium", test).is_none() {
        return;
    }
    let app = HttpApp::start(async |request: http::Request<Incoming>| {
        if request.uri().path() == "/echo" {
            let body = request.into_body().collect().await.map(Collected::to_bytes);
            return http::Response::new(full(body.unwrap_or_default()));
        }
        let mut page = http::Response::new(full(PAGE));
        page.headers_mut().insert("content-type", "text/html".parse().unwrap());
        page
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let (mesh, _authority) = secured("shop.test", app.addr(), folder.path()).await;
    let gateway = at(&mesh, 443);
    for (options, protocol) in [(&[][..], "h2"), (&["--disable-http2"], "http/1.1")] {
        let mut command = programs::command("chromium", test).unwrap();
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
        // The authority is not among those of the browser, which has no option to add one.
        command.args(["--ignore-certificate-errors", "--no-first-run", "--disable-extensions"]);
        command.args(["--disable-background-networking", "--disable-component-update"]);
        command.arg(format!("--user-data-dir={}", folder.path().join(&protocol[..2]).display()));
        // No other name is anywhere.
        let rules = format!("MAP shop.test {}, MAP * ~NOTFOUND, EXCLUDE {0}", gateway.ip());
        command.arg(format!("--host-resolver-rules={rules}")).args(options);
        command.args(["--timeout=20000", "--virtual-time-budget=10000", "--dump-dom"]);
        command.arg("https://shop.test/");
        let (success, told) =
            run(&format!("chromium-{}", &protocol[..2]), command, &mesh.logs()).await;
        assert!(success, "{told}");
        let wanted = format!("page {protocol} echo {protocol} 100000");
        assert!(told.contains(&wanted), "{told}");
    }
}

#[tokio::test]
async fn websockets_pass_over_https() {
    let Some(python) = Python::find("edge::foreign::websockets_pass_over_https") else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut command = python.script("http/websocket.py");
    command.arg("server");
    let mut server = Process::start("websocket-server", command, folder.path());
    let port = python::port(&mut server).await;
    let (mesh, authority) =
        secured("shop.test", ([127, 0, 0, 1], port).into(), folder.path()).await;
    let mut command = python.script("http/websocket.py");
    command.env("CA", authority.file()).env("CONNECT", at(&mesh, 443).to_string());
    command.args(["client", "wss://shop.test/chat?a=b"]);
    Python::run("websocket-client", command, &mesh.logs()).await;
}

#[tokio::test]
async fn grpc_passes_over_https() {
    let Some(python) = Python::find("edge::foreign::grpc_passes_over_https") else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut server = Process::start("server", python.script("grpc/server.py"), folder.path());
    let port = python::port(&mut server).await;
    let authority = Authority::new(folder.path());
    let mesh = Mesh::builder()
        .pod(Pod::gateway())
        .pod(Pod::new("echo").port(8080, ([127, 0, 0, 1], port).into()))
        .service(Service::new("echo", 8080).app_protocol("grpc"))
        .manifest(edge::gateway("edge", &[edge::https(443, "echo.test")]))
        .manifest(authority.secret("echo.test"))
        .manifest(edge::route("GRPCRoute", "edge", "echo", &["echo.test"]))
        .start()
        .await;
    let mut command = python.script("grpc/client.py");
    command.env("CA", authority.file()).arg(at(&mesh, 443).to_string());
    Python::run("grpc-client", command, &mesh.logs()).await;
}

#[tokio::test]
async fn a_scanner_finds_nothing() {
    let test = "edge::foreign::a_scanner_finds_nothing";
    let Some(mut command) = programs::command("sslyze", test) else { return };
    let (app, folder) = (telling("web").await, tempfile::tempdir().unwrap());
    let (mesh, authority) = secured("shop.test", app.addr(), folder.path()).await;
    // It asks without a name, too.
    let mut all = edge::https(443, "shop.test");
    all.as_object_mut().unwrap().remove("hostname");
    mesh.apply(&edge::gateway("edge", &[all]));
    wait::until("clients without a name to be served", async || {
        let port = described(&mesh, 443).await;
        (port["certificates"][0]["host"] == "*").then_some(())
    })
    .await;
    let report = folder.path().join("report.json");
    command.arg("--json_out").arg(&report).arg("--certinfo_ca_file").arg(authority.file());
    command.args(["--certinfo", "--tlsv1_3", "--tlsv1_2", "--tlsv1_1", "--tlsv1", "--sslv3"]);
    command.args(["--sslv2", "--heartbleed", "--openssl_ccs", "--robot", "--compression"]);
    command.args(["--reneg", "--fallback", "--elliptic_curves", "--early_data", "--resum"]);
    command.args(["--mozilla_config", "intermediate"]);
    command.arg(format!("shop.test:443{{{}}}", at(&mesh, 443).ip()));
    let (_, told) = run("sslyze", command, &mesh.logs()).await;
    let (_, compliance) = told.split_once("COMPLIANCE AGAINST").unwrap_or_else(|| panic!("{told}"));
    assert!(!compliance.contains("ERROR"), "{compliance}");
    // Of the authority of this test nobody else has heard.
    let found = compliance.lines().filter(|line| line.trim_start().starts_with("* "));
    let found: Vec<_> =
        found.filter(|line| !line.contains("certificate_path_validation")).collect();
    assert!(found.is_empty(), "{found:#?}");
    assert!(!told.contains("VULNERABLE -"), "{told}");
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    let result = &report["server_scan_results"][0]["scan_result"];
    for (suites, accepted) in [
        ("ssl_2_0_cipher_suites", false),
        ("ssl_3_0_cipher_suites", false),
        ("tls_1_0_cipher_suites", false),
        ("tls_1_1_cipher_suites", false),
        ("tls_1_2_cipher_suites", true),
        ("tls_1_3_cipher_suites", true),
    ] {
        let found = result[suites]["result"]["accepted_cipher_suites"].as_array().unwrap();
        assert_eq!(!found.is_empty(), accepted, "{suites}: {found:?}");
    }
    for (scan, field) in [
        ("heartbleed", "is_vulnerable_to_heartbleed"),
        ("openssl_ccs_injection", "is_vulnerable_to_ccs_injection"),
        ("session_renegotiation", "is_vulnerable_to_client_renegotiation_dos"),
        ("tls_compression", "supports_compression"),
        ("tls_1_3_early_data", "supports_early_data"),
    ] {
        assert_eq!(result[scan]["result"][field], false, "{scan}: {}", result[scan]);
    }
}

#[tokio::test]
async fn a_local_mesh_serves_its_gateways() {
    let network = Network::claim();
    let ip = network.address(1).to_string();
    let mesh = LocalMesh::default().with_env("MESH_PROXY_GATEWAY_LISTEN", ip.clone());
    let (scratch, folder) = (mesh.scratch(), mesh.scratch());
    let authority = Authority::new(&folder);
    let mut route = edge::route("HTTPRoute", "edge", "web", &[]);
    route["spec"]["rules"][0]["backendRefs"][0]["port"] = objects::PORT.into();
    mesh.up(&[
        objects::app("web", 1, &scratch),
        objects::service("web"),
        edge::gateway("edge", &[edge::http(8000), edge::https(8443, "shop.test")]),
        authority.secret("shop.test"),
        route,
    ])
    .await;
    let http: SocketAddr = format!("{ip}:8000").parse().unwrap();
    wait::until("an answer of the gateway", async || {
        mesh_integration::client::get(http, "/after/0/200")
            .await
            .filter(|answer| answer.status == 200)
    })
    .await;
    let https = format!("{ip}:8443").parse().unwrap();
    let mut connection = authority.open(https, "shop.test", true).await.unwrap();
    let request = http::Request::get("https://shop.test/after/0/200");
    let request = request.body(mesh_integration::client::http::empty()).unwrap();
    assert_eq!(connection.send(request).await.unwrap().status(), 200);

    let stat = mesh.json(&["stat", "deploy/mesh-gateway", "-n", "mesh-system"]).await;
    assert!(stat.to_string().contains("mesh-gateway"), "{stat}");
    // Figures are of whole seconds.
    wait::until("the edge from the gateway", async || {
        drop(mesh_integration::client::get(http, "/after/0/200").await);
        let edges = mesh.meshctl(&["edges", "-A"]).await.succeeded().stdout;
        (edges.contains("mesh-gateway") && edges.contains("web")).then_some(())
    })
    .await;
    let status = mesh.meshctl(&["proxy", "status", "-A"]).await.succeeded().stdout;
    assert!(status.contains("mesh-gateway-1"), "{status}");
    let pods = mesh.json(&["local", "ps"]).await;
    let gateway = pods["pods"].as_array().unwrap().iter();
    let gateway = gateway.filter(|pod| pod["name"] == json!("mesh-gateway-1"));
    assert_eq!(gateway.count(), 1, "{pods}");

    // Without Gateways there is none.
    let file = mesh.file("mesh.yaml", &[objects::app("web", 1, &scratch), objects::service("web")]);
    mesh.meshctl(&["local", "apply", "-f", &file.display().to_string()]).await.succeeded();
    wait::until("the gateway to leave", async || {
        let pods = mesh.json(&["local", "ps"]).await;
        (!pods.to_string().contains("mesh-gateway")).then_some(())
    })
    .await;
}
