//! Pods prove to each other who they are, and what passes between them is nobody else's to read.

mod renewal;
mod strangers;
mod wire;

use mesh_integration::app::HttpApp;
use mesh_integration::client::Connection;
use mesh_integration::client::http::full;
use mesh_integration::mesh::{Mesh, Pod, Service, id_of};

/// An application that says who the caller is, as its proxy told it.
async fn who_calls() -> HttpApp {
    HttpApp::start(|request| async move {
        let said = request.headers().get_all("l5d-client-id").iter();
        let said: Vec<_> = said.map(|id| id.to_str().unwrap().to_owned()).collect();
        http::Response::new(full(said.join(",")))
    })
    .await
}

async fn mesh(app: &HttpApp) -> Mesh {
    let client = Pod::new("client").upstream("web:80");
    let web = Pod::new("web").port(8080, app.addr());
    Mesh::builder().pod(client).pod(web).service(Service::new("web", 8080)).start().await
}

#[tokio::test]
async fn applications_learn_who_calls_and_cannot_be_lied_to() {
    let app = who_calls().await;
    let mesh = mesh(&app).await;
    let mut connection = Connection::open(mesh.pod("client").upstream(0)).await;
    connection.send("GET / HTTP/1.1\r\nHost: web\r\nl5d-client-id: admin\r\n\r\n").await;
    assert_eq!(connection.response().await.text(), id_of("client"));
    // Whoever is not of the mesh proves nothing.
    let mut stranger = Connection::open(mesh.pod("web").inbound(8080)).await;
    stranger.send("GET / HTTP/1.1\r\nHost: web\r\nl5d-client-id: admin\r\n\r\n").await;
    assert_eq!(stranger.response().await.text(), "");
}

#[tokio::test]
async fn figures_say_with_whom() {
    let app = who_calls().await;
    let mesh = mesh(&app).await;
    let mut connection = Connection::open(mesh.pod("client").upstream(0)).await;
    connection.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    connection.response().await;
    for (pod, label, id) in
        [("client", "server_id", id_of("web")), ("web", "client_id", id_of("client"))]
    {
        let labels = [r#"tls="true""#, &format!("{label}=\"{id}\"")];
        assert_eq!(mesh.pod(pod).metric("response_total", &labels).await, 1.0, "{pod}");
    }
    let identity = &mesh.pod("web").config().await["identity"];
    assert_eq!(identity["id"], id_of("web"));
    assert!(identity["certificate"]["not_after"].as_u64() > Some(0), "{identity}");
    assert_eq!(identity["roots"].as_array().unwrap().len(), 1, "{identity}");
}
