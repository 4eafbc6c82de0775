//! Peers that mean harm, or are broken: they are rejected or survived, in bounded memory, and
//! nobody else notices.

mod connections;
mod forged;
mod frames;
mod heads;
mod http2;
mod readers;
mod servers;
mod slow;
mod smuggling;

use std::net::SocketAddr;

use mesh_integration::app::HttpApp;
use mesh_integration::client::Connection;
use mesh_integration::client::http::full;
use mesh_integration::edge;
use mesh_integration::mesh::{GATEWAY, Mesh, Pod, Service};
use mesh_integration::sidecar::Sidecar;

/// The pods `client` and `web`, and the gateway, whose proxies have these settings; the service is known to be HTTP.
async fn mesh(app: SocketAddr, settings: &[(&str, &str)]) -> Mesh {
    let set = |pod: Pod| settings.iter().fold(pod, |pod, (name, value)| pod.setting(name, value));
    Mesh::builder()
        .pod(set(Pod::new("client").upstream("web:80")))
        .pod(set(Pod::new("web").port(8080, app)))
        .pod(set(Pod::gateway()))
        .service(Service::new("web", 8080).app_protocol("http"))
        .manifest(edge::gateway("edge", &[edge::http(80)]))
        .manifest(edge::route("HTTPRoute", "edge", "web", &[]))
        .start()
        .await
}

/// Says `ok` to everything.
async fn app() -> HttpApp {
    HttpApp::start(|_| async { http::Response::new(full("ok")) }).await
}

/// Where a peer can get at each proxy: from the application's side, from the mesh's, and from outside.
fn doors(mesh: &Mesh) -> [(&Sidecar, SocketAddr); 3] {
    let (client, web, gateway) = (mesh.pod("client"), mesh.pod("web"), mesh.pod(GATEWAY));
    [(client, client.upstream(0)), (web, web.inbound(8080)), (gateway, gateway.inbound(80))]
}

/// A well-behaved client is served.
async fn assert_served(addr: SocketAddr) {
    let mut connection = Connection::open(addr).await;
    connection.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    assert_eq!(connection.response().await.text(), "ok");
}

/// Notes how much memory a proxy has, to tell how much more it came to.
struct Memory<'a> {
    sidecar: &'a Sidecar,
    before: u64,
}

impl<'a> Memory<'a> {
    fn of(sidecar: &'a Sidecar) -> Self {
        Self { sidecar, before: sidecar.resident() }
    }

    fn growth(&self) -> u64 {
        self.sidecar.resident().saturating_sub(self.before)
    }

    fn assert_grew_less_than(&self, megabytes: u64) {
        let grew = self.growth();
        assert!(grew < megabytes << 20, "{} grew by {} KiB", self.sidecar.name(), grew >> 10);
    }
}
