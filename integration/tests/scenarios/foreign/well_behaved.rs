//! A careful control plane in Python.

use mesh_integration::app::HttpApp;
use mesh_integration::client::Connection;
use mesh_integration::client::http::full;
use mesh_integration::mesh::{Mesh, Pod};
use mesh_integration::python::Python;

use super::{Foreign, ask};

#[tokio::test]
async fn a_control_plane_in_python_drives_both_proxies() {
    let Some(python) = Python::find("foreign::a_control_plane_in_python_drives_both_proxies")
    else {
        return;
    };
    let control = Foreign::start(&python).await;
    let app = HttpApp::start(|request| async move {
        let policy = request.headers().get("x-policy").cloned();
        let policy = policy.map(|value| value.to_str().unwrap().to_owned());
        http::Response::new(full(format!("{:?} {:?}", request.version(), policy)))
    })
    .await;
    let mesh = Mesh::builder()
        .controlled_by(control.addr)
        .pod(Pod::new("client").upstream("meshed:80"))
        .pod(
            Pod::new("web")
                .port(8080, app.addr())
                .port(8001, app.addr())
                .port(8002, app.addr())
                .setting("DISCOVERY_TIMEOUT", "300ms"),
        )
        .start()
        .await;
    let web = mesh.pod("web");
    control.tell_endpoints(Some(web.inbound(8080)));

    let response = ask(&mesh, "meshed:80").await;
    assert_eq!(response.text(), "HTTP/1.1 Some(\"python\")", "filtered; restored from HTTP/2");
    assert_eq!(response.header("x-policy"), Some("python"), "filtered on the way back");
    let mut connection = Connection::open(mesh.pod("client").upstream(0)).await;
    connection.send("GET / HTTP/1.1\r\nHost: meshed\r\n\r\n").await;
    assert_eq!(connection.response().await.status, 200);
    let labels = ["direction=\"inbound\"", "srv_name=\"python\"", "status_code=\"200\""];
    assert_eq!(web.metric("response_total", &labels).await, 2.0);

    // Ports of which nobody may use the one, and nobody says who may use the other.
    let mut connection = Connection::open(web.inbound(8001)).await;
    connection.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let response = connection.response().await;
    assert_eq!((response.status, response.header("x-mesh-reason")), (403, Some("unauthorized")));
    let mut connection = Connection::open(web.inbound(8002)).await;
    connection.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    assert_eq!(connection.rest().await, b"", "closed when nothing is said in time");
}
