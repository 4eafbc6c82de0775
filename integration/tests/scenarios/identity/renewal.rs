//! Certificates and roots change under load, and nobody notices.

use std::time::Duration;

use http::Request;
use mesh_integration::client::Connection;
use mesh_integration::client::http::{Way, empty};
use mesh_integration::mesh::{Mesh, Pod, Service};
use mesh_integration::steady::{Load, Plan, assert_none_failed};
use mesh_integration::wait;

/// Renewals to see; the first certificate counts as one. `MESH_RENEWALS` asks for more.
fn renewals() -> u64 {
    std::env::var("MESH_RENEWALS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_certificates_fail_no_request_and_cut_no_connection() {
    let app = super::who_calls().await;
    let client = Pod::new("client").upstream("web:80");
    let mesh = Mesh::builder()
        .pod(client)
        .pod(Pod::new("web").port(8080, app.addr()))
        .service(Service::new("web", 8080))
        .certificate_lifetime("14s")
        .start()
        .await;
    let way = Way::Http1(mesh.pod("client").upstream(0));
    let plan = Plan { way, authority: "web:80".to_owned(), rate: 100 };
    let load = Load::start(plan, |_| Request::get("/").body(empty()).unwrap());
    // Open throughout.
    let mut kept = Connection::open(mesh.pod("client").upstream(0)).await;
    let patience = wait::PATIENCE + Duration::from_secs(14 * renewals());
    wait::until_within("certificates to be renewed", patience, async || {
        kept.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert_eq!(kept.response().await.status, 200);
        let mut all = true;
        for pod in ["client", "web"] {
            let identity = mesh.pod(pod).config().await["identity"].clone();
            assert_eq!(identity["failures"], 0, "{identity}");
            all &= identity["renewals"].as_u64() >= Some(renewals());
        }
        all.then_some(())
    })
    .await;
    let outcomes = load.stop().await;
    assert_none_failed(&outcomes);
    let unknown = outcomes.iter().filter(|o| o.answer.as_ref().unwrap().body.is_empty()).count();
    assert_eq!(unknown, 0, "requests came in the clear");
}
