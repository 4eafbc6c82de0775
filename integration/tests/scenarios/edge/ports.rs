//! Ports that come and go, and those that carry bytes.

use mesh_integration::app::TcpApp;
use mesh_integration::client::Connection;
use mesh_integration::edge;
use mesh_integration::mesh::{Mesh, Pod, Service};
use mesh_integration::wait;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::{at, described, get, telling, with_one_listener};

#[tokio::test]
async fn listeners_open_and_close_as_gateways_say() {
    let web = telling("web").await;
    let mesh = with_one_listener(web.addr()).await;
    assert_eq!(get(at(&mesh, 80), "a.test", "").await.status, 200);
    let mut open = Connection::open(at(&mesh, 80)).await;
    open.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(open.response().await.status, 200);

    mesh.apply(&edge::gateway("edge", &[edge::http(8000)]));
    wait::until("the new port", async || {
        let answer = mesh_integration::client::get(at(&mesh, 8000), "/").await?;
        (answer.status == 200).then_some(())
    })
    .await;
    wait::until("the old port to be closed", async || {
        Connection::try_open(at(&mesh, 80)).await.is_err().then_some(())
    })
    .await;
    // Who is in finds nothing any more.
    open.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(open.response().await.status, 404);
}

#[tokio::test]
async fn a_port_that_somebody_else_has_is_told_and_tried_again() {
    let web = telling("web").await;
    let mesh = with_one_listener(web.addr()).await;
    let taken = TcpListener::bind(at(&mesh, 8000)).await.unwrap();
    mesh.apply(&edge::gateway("edge", &[edge::http(80), edge::http(8000)]));
    let port = wait::until("the failure to be told", async || {
        let port = described(&mesh, 8000).await;
        port["error"].is_string().then_some(port)
    })
    .await;
    assert_eq!(port["listening"], false, "{port}");
    let failures = mesh.pod("mesh-gateway").metric("gateway_listen_failures_total", &[]).await;
    assert!(failures >= 1.0);
    assert_eq!(get(at(&mesh, 80), "a.test", "").await.status, 200, "the others are served");
    drop(taken);
    wait::until("the port", async || {
        mesh_integration::client::get(at(&mesh, 8000), "/").await.filter(|a| a.status == 200)
    })
    .await;
    assert_eq!(described(&mesh, 8000).await["listening"], true);
}

#[tokio::test]
async fn bytes_pass_and_servers_may_speak_first() {
    let greeting = TcpApp::start(|mut stream| async move {
        stream.write_all(b"hello\n").await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    })
    .await;
    let mesh = Mesh::builder()
        .pod(Pod::gateway())
        .pod(Pod::new("db").port(5432, greeting.addr()))
        .service(Service::new("db", 5432))
        .manifest(edge::gateway(
            "edge",
            &[
                json!({ "name": "db", "port": 5432, "protocol": "TCP" }),
                json!({ "name": "none", "port": 5433, "protocol": "TCP" }),
            ],
        ))
        .manifest({
            let mut route = edge::route("TCPRoute", "edge", "db", &[]);
            route["spec"]["parentRefs"][0]["sectionName"] = "db".into();
            route
        })
        .start()
        .await;
    let mut connection = Connection::open(at(&mesh, 5432)).await;
    assert_eq!(connection.bytes(6).await, b"hello\n");
    connection.send(b"\0\x01 anything").await;
    assert_eq!(connection.bytes(11).await, b"\0\x01 anything");
    connection.finish().await;
    assert_eq!(connection.rest().await, b"", "each direction ends by itself");
    let mut nobody = Connection::open(at(&mesh, 5433)).await;
    assert_eq!(nobody.rest().await, b"", "closed");
}
