//! A request sets its own limits, where its service lets it.

use http::{Request, Response, StatusCode};
use mesh_integration::app::HttpApp;
use mesh_integration::client::http::{Client, empty};
use mesh_integration::mesh::{Mesh, Pod, Service};

use super::{AUTHORITY, http1};

#[tokio::test]
async fn requests_set_their_own_limits_where_they_may() {
    // It always fails, or never answers.
    let app = HttpApp::start(|request: Request<hyper::body::Incoming>| async move {
        if request.uri().path() == "/silent" {
            std::future::pending::<()>().await;
        }
        let wishes = request.headers().keys().filter(|name| name.as_str().starts_with("l5d-retry"));
        let response = Response::builder().header("x-wishes", wishes.count());
        response.status(StatusCode::SERVICE_UNAVAILABLE).body(empty()).unwrap()
    })
    .await;
    for (allowed, tries) in [("true", 3), ("false", 1)] {
        let before = app.requests();
        let service = Service::new("web", 8080).annotated("allow-request-headers", allowed);
        let mesh = Mesh::builder()
            .pod(Pod::new("client").upstream(AUTHORITY))
            .pod(Pod::new("web").port(8080, app.addr()))
            .service(service)
            .start()
            .await;
        let mut client = Client::open(http1(&mesh), AUTHORITY).await;
        let request =
            Request::get("/").header("l5d-retry-http", "503").header("l5d-retry-limit", "2");
        let answer = client.send(request.body(empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(app.requests() - before, tries, "{allowed}");
        assert_eq!(answer.headers()["x-wishes"], if allowed == "true" { "0" } else { "2" });
        if allowed == "true" {
            let silent = Request::get("/silent").header("l5d-timeout", "100ms");
            let answer = client.send(silent.body(empty()).unwrap()).await.unwrap();
            assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
            assert_eq!(answer.headers()["x-mesh-reason"], "request-timeout");
        }
    }
}
