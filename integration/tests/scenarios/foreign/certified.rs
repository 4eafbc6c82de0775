//! A control plane in Python certifies our proxies, which then trust each other and nobody else.

use mesh_integration::app::HttpApp;
use mesh_integration::client::http::full;
use mesh_integration::mesh::{Mesh, Pod, id_of};
use mesh_integration::python::Python;

use super::{Foreign, ask};

#[tokio::test]
async fn a_control_plane_in_python_certifies_both_proxies() {
    let test = "foreign::certified::a_control_plane_in_python_certifies_both_proxies";
    let Some(python) = Python::find(test) else { return };
    let control = Foreign::start_with_identity(&python).await;
    let app = HttpApp::start(|request| async move {
        let client = request.headers().get("l5d-client-id").cloned();
        let client = client.map(|id| id.to_str().unwrap().to_owned());
        http::Response::new(full(client.unwrap_or_default()))
    })
    .await;
    let certified = |pod: Pod, name: &str| {
        let file = |file: &str| control.dir.path().join(file).display().to_string();
        pod.setting("IDENTITY_NAME", &id_of(name))
            .setting("IDENTITY_TOKEN_FILE", &file("token"))
            .setting("IDENTITY_TRUST_BUNDLE_FILE", &file("roots.pem"))
    };
    let mesh = Mesh::builder()
        .controlled_by(control.addr)
        .pod(certified(Pod::new("client"), "client"))
        .pod(certified(Pod::new("web").port(8080, app.addr()), "web"))
        .start()
        .await;
    control.tell_endpoints(Some(mesh.pod("web").inbound(8080)));
    let response = ask(&mesh, "meshed:80").await;
    assert_eq!((response.status, response.text()), (200, id_of("client")));
    let labels = [r#"tls="true""#, r#"direction="inbound""#];
    assert_eq!(mesh.pod("web").metric("response_total", &labels).await, 1.0);
}
