//! HTTP from an application through both proxies to another application.

mod app;
mod every_way;
mod http1;
mod upgrade;
mod wishes;

use std::net::SocketAddr;

use mesh_integration::client::http::Way;
use mesh_integration::mesh::{Mesh, Pod, Service};

/// The service's authority, as the client's namespace knows it.
const AUTHORITY: &str = "web:80";

/// A pod `client` that reaches the service `web` by its first named upstream.
async fn mesh(app: SocketAddr) -> Mesh {
    let client = Pod::new("client").upstream(AUTHORITY);
    let web = Pod::new("web").port(8080, app);
    Mesh::builder().pod(client).pod(web).service(Service::new("web", 8080)).start().await
}

fn http1(mesh: &Mesh) -> Way {
    Way::Http1(mesh.pod("client").upstream(0))
}
