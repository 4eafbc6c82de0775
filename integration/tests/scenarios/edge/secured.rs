//! HTTPS: whose certificate clients see, what happens when it is replaced, and TLS that is passed on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use http::Request;
use http_body_util::BodyExt;
use mesh_api::client::ControlClient;
use mesh_api::{Update, Workload};
use mesh_integration::client::http::empty;
use mesh_integration::edge::{self, Authority};
use mesh_integration::mesh::{GATEWAY, MESH_NAMESPACE, Mesh, Pod};
use mesh_integration::wait::{self, within};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::Code;

use super::{at, described, telling, told, world};

/// A request by a connection of its own kind: the status, and what was answered.
async fn ask(
    authority: &Authority,
    addr: SocketAddr,
    (sni, host): (&str, &str),
    http2: bool,
) -> std::io::Result<(u16, String)> {
    let mut connection = authority.open(addr, sni, http2).await?;
    let request = Request::get(format!("https://{host}/path")).header("host", host);
    let mut request = request.body(empty()).unwrap();
    if http2 {
        request.headers_mut().remove("host");
    } else {
        *request.uri_mut() = "/path".parse().unwrap();
    }
    let response = connection.send(request).await.map_err(std::io::Error::other)?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(std::io::Error::other)?;
    Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
}

async fn shop() -> (Mesh, Authority, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let (web, api) = (telling("web").await, telling("api").await);
    let mesh = world(web.addr(), api.addr())
        .manifest(edge::gateway(
            "edge",
            &[edge::https(443, "*.web.test"), edge::https(443, "api.test"), edge::http(80)],
        ))
        .manifest(authority.secret("*.web.test"))
        .manifest(authority.secret("api.test"))
        .manifest(edge::route("HTTPRoute", "edge", "web", &["*.web.test"]))
        .manifest(edge::route("HTTPRoute", "edge", "api", &["api.test"]))
        .start()
        .await;
    // They live as long as the test.
    std::mem::forget((web, api));
    (mesh, authority, folder)
}

#[tokio::test]
async fn each_host_has_its_own_certificate_and_routes() {
    let (mesh, authority, _folder) = shop().await;
    let addr = at(&mesh, 443);
    for http2 in [false, true] {
        let (status, text) =
            ask(&authority, addr, ("a.web.test", "a.web.test"), http2).await.unwrap();
        assert_eq!(status, 200, "{text}");
        assert!(text.starts_with("web: GET "), "{text}");
        let proto = http::HeaderName::from_static("x-forwarded-proto");
        assert_eq!(told(&text, proto).as_deref(), Some("https"));
        // Of the same listener, which a browser may well ask for by the same connection.
        let (status, _) = ask(&authority, addr, ("a.web.test", "b.web.test"), http2).await.unwrap();
        assert_eq!(status, 200);
        for (sni, host, wanted) in [
            ("a.web.test", "api.test", 421),
            ("api.test", "a.web.test", 421),
            ("api.test", "other.example", 404),
            ("API.test", "api.TEST", 200),
        ] {
            let (status, _) = ask(&authority, addr, (sni, host), http2).await.unwrap();
            assert_eq!(status, wanted, "{sni} asked for {host}");
        }
    }
    // No listener has the name.
    let error = ask(&authority, addr, ("other.example", "other.example"), false).await.unwrap_err();
    assert!(!error.to_string().contains("certificate"), "nothing was shown: {error}");
    let labels = ["reason=\"handshake\""];
    let refused = mesh.pod(GATEWAY).metric("gateway_refused_connections_total", &labels).await;
    assert_eq!(refused, 1.0);
    // Requests in the clear are not for ports of TLS.
    let plain = mesh_integration::client::get(addr, "/").await;
    assert!(plain.is_none_or(|answer| answer.status >= 400));
}

#[tokio::test]
async fn keys_are_told_to_the_gateway_only_and_shown_to_nobody() {
    let (mesh, _authority, _folder) = shop().await;
    let channel = ControlClient::lazy_channel(mesh.control_addr());
    let workload = Workload { namespace: MESH_NAMESPACE.into(), pod: GATEWAY.into() };
    let client = ControlClient::new(channel, workload);
    let token = |namespace: &str, pod: &str| {
        std::fs::read_to_string(mesh.token_file(namespace, pod)).unwrap()
    };
    for token in [String::new(), "nonsense".into(), token("test", "web")] {
        let Err(refused) = client.watch_gateway(&token).await else { panic!("it was told") };
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    let mut told = client.watch_gateway(&token(MESH_NAMESPACE, GATEWAY)).await.unwrap();
    let first = futures_util::StreamExt::next(&mut told).await.unwrap().unwrap();
    let Update::Valid(config) = first else { panic!("{first:?}") };
    assert_eq!(config.ports.len(), 2);
    let https = config.ports[1].https.as_ref().unwrap();
    assert_eq!(https.certificates.len(), 2);
    let secrets: Vec<_> =
        https.certificates.iter().map(|of| of.key.0.lines().nth(1).unwrap().to_owned()).collect();
    let shown = described(&mesh, 443).await;
    assert_eq!(shown["certificates"].as_array().map(Vec::len), Some(2), "{shown}");
    let gateway = mesh.pod(GATEWAY);
    let all = [gateway.config().await.to_string(), gateway.log(), mesh.control_log()].concat();
    assert!(secrets.iter().all(|secret| !all.contains(secret)));
}

#[tokio::test]
async fn a_certificate_is_replaced_without_a_failed_request() {
    let (mesh, authority, _folder) = shop().await;
    let (authority, addr) = (Arc::new(authority), at(&mesh, 443));
    let mut kept = authority.open(addr, "api.test", true).await.unwrap();
    let first = kept.leaf.clone();
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = JoinSet::new();
    for number in 0..8 {
        let (authority, stop, done) =
            (Arc::clone(&authority), Arc::clone(&stop), Arc::clone(&done));
        clients.spawn(async move {
            while !stop.load(Relaxed) {
                let host = ("api.test", "api.test");
                let (status, text) = ask(&authority, addr, host, number % 2 == 0).await.unwrap();
                assert_eq!(status, 200, "{text}");
                done.fetch_add(1, Relaxed);
            }
        });
    }
    for _ in 0..5 {
        let before = done.load(Relaxed);
        let leaf = authority.open(addr, "api.test", false).await.unwrap().leaf;
        mesh.apply(&authority.secret("api.test"));
        wait::until("the new certificate", async || {
            let now = authority.open(addr, "api.test", false).await.unwrap().leaf;
            (now != leaf).then_some(())
        })
        .await;
        wait::until("more requests", async || (done.load(Relaxed) >= before + 50).then_some(()))
            .await;
    }
    stop.store(true, Relaxed);
    while let Some(client) = within("the clients", clients.join_next()).await {
        client.unwrap();
    }
    assert_ne!(authority.open(addr, "api.test", false).await.unwrap().leaf, first);
    // Who was in before all that still is.
    let request = Request::get("https://api.test/").body(empty()).unwrap();
    assert_eq!(kept.send(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_certificate_that_is_of_no_use_leaves_the_last_one_in_force() {
    let (mesh, authority, _folder) = shop().await;
    let addr = at(&mesh, 443);
    let before = authority.open(addr, "api.test", false).await.unwrap().leaf;
    let mut broken: Value = authority.secret("api.test");
    broken["stringData"]["tls.key"] = "nonsense".into();
    mesh.apply(&broken);
    wait::until("the problem to be told", async || {
        mesh.control_log().contains("Secret/test/api").then_some(())
    })
    .await;
    assert_eq!(authority.open(addr, "api.test", false).await.unwrap().leaf, before);
}

#[tokio::test]
async fn tls_is_passed_on_by_its_name_beside_https() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, inside) = (Authority::new(folder.path()), folder.path().join("inside"));
    std::fs::create_dir(&inside).unwrap();
    let web = telling("web").await;
    // What the application presents itself is another authority's: the gateway of another mesh.
    let own = Authority::new(&inside);
    let behind = Mesh::builder()
        .pod(Pod::gateway())
        .pod(Pod::new("web").port(8080, web.addr()))
        .service(mesh_integration::mesh::Service::new("web", 8080))
        .manifest(edge::gateway("edge", &[edge::https(443, "own.wild.test")]))
        .manifest(own.secret("own.wild.test"))
        .manifest(edge::route("HTTPRoute", "edge", "web", &[]))
        .start()
        .await;
    let mesh = world(web.addr(), at(&behind, 443))
        .manifest(edge::gateway(
            "edge",
            &[
                edge::https(443, "*.wild.test"),
                json!({
                    "name": "tls", "port": 443, "protocol": "TLS", "hostname": "own.wild.test",
                    "tls": { "mode": "Passthrough" },
                }),
            ],
        ))
        .manifest(authority.secret("*.wild.test"))
        .manifest(edge::route("HTTPRoute", "edge", "web", &[]))
        .manifest(edge::route("TLSRoute", "edge", "api", &["own.wild.test"]))
        .start()
        .await;
    let addr = at(&mesh, 443);
    let (status, _) = ask(&own, addr, ("own.wild.test", "own.wild.test"), true).await.unwrap();
    assert_eq!(status, 200, "the application's own certificate");
    let (status, _) = ask(&authority, addr, ("a.wild.test", "a.wild.test"), true).await.unwrap();
    assert_eq!(status, 200, "the gateway's");
    assert!(ask(&authority, addr, ("own.wild.test", "own.wild.test"), true).await.is_err());
}
