//! Connections that leave HTTP: Upgrade and CONNECT.

use http::{Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use mesh_integration::app::{HttpApp, TcpApp};
use mesh_integration::client::Connection;
use mesh_integration::client::http::empty;
use mesh_integration::process::Process;
use mesh_integration::python::{self, Python};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{app, mesh};

/// Agrees to speak `shouting`: what is said comes back in capitals.
async fn shouting() -> HttpApp {
    HttpApp::start(|mut request| async move {
        let mut response = Response::new(empty());
        if request.headers().get(header::UPGRADE).is_none_or(|value| value != "shouting") {
            *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
            return response;
        }
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut buffer = [0; 1024];
            while let Ok(read @ 1..) = io.read(&mut buffer).await {
                io.write_all(buffer[..read].to_ascii_uppercase().as_slice()).await.unwrap();
            }
            io.write_all(b"BYE").await.unwrap();
            io.shutdown().await.unwrap();
        });
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        for (name, value) in [(header::CONNECTION, "upgrade"), (header::UPGRADE, "shouting")] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    })
    .await
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let app = shouting().await;
    let mesh = mesh(app.addr()).await;
    let request = "GET / HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, Upgrade\r\n\
                   Upgrade: shouting\r\n\r\n";
    let mut connection = Connection::open(mesh.pod("client").upstream(0)).await;
    // The first words may come with the request.
    connection.send(format!("{request}hel")).await;
    let response = connection.response().await;
    assert_eq!(response.status, 101);
    assert_eq!(response.header("upgrade"), Some("shouting"));
    assert_eq!(connection.bytes(3).await, b"HEL");
    connection.send("lo").await;
    assert_eq!(connection.bytes(2).await, b"LO");
    connection.finish().await;
    assert_eq!(connection.rest().await, b"BYE", "the other direction has its own end");
}

#[tokio::test]
async fn an_upgrade_that_is_refused_leaves_the_connection_usable() {
    let app = shouting().await;
    let mesh = mesh(app.addr()).await;
    let mut connection = Connection::open(mesh.pod("client").upstream(0)).await;
    for _ in 0..2 {
        let request = "GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
        connection.send(request).await;
        assert_eq!(connection.response().await.status, 426);
    }
}

#[tokio::test]
async fn a_tunnel_carries_what_it_is_given() {
    let echo = TcpApp::start(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    })
    .await;
    let mesh = mesh(echo.addr()).await;
    let mut connection = Connection::open(mesh.pod("client").forward_proxy()).await;
    connection.send("CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n").await;
    assert_eq!(connection.response_to_head().await.status, 200);
    connection.send(b"\0\x01\x02 anything").await;
    assert_eq!(connection.bytes(12).await, b"\0\x01\x02 anything");
    connection.finish().await;
    assert_eq!(connection.rest().await, b"");
}

#[tokio::test]
async fn http_in_a_tunnel_is_seen_as_http() {
    let app = app::start().await;
    let mesh = mesh(app.addr()).await;
    let mut connection = Connection::open(mesh.pod("client").forward_proxy()).await;
    connection.send("CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n").await;
    assert_eq!(connection.response_to_head().await.status, 200);
    connection.send("GET /seen HTTP/1.1\r\nHost: web\r\n\r\n").await;
    assert_eq!(connection.response().await.status, 200);
    let counted = ["direction=\"outbound\"", "status_code=\"200\""];
    assert_eq!(mesh.pod("client").metric("response_total", &counted).await, 1.0);
}

#[tokio::test]
async fn websockets_pass() {
    let Some(python) = Python::find("http::upgrade::websockets_pass") else { return };
    let logs = tempfile::tempdir().unwrap();
    let mut command = python.script("http/websocket.py");
    command.arg("server");
    let mut server = Process::start("websocket-server", command, logs.path());
    let port = python::port(&mut server).await;
    let mesh = mesh(([127, 0, 0, 1], port).into()).await;
    let client = mesh.pod("client");
    for (uri, proxy) in [
        (format!("ws://{}/chat?a=b", client.upstream(0)), None),
        // Through a tunnel, as programs do that know of their proxy.
        ("ws://web.test/chat?a=b".to_owned(), Some(format!("http://{}", client.forward_proxy()))),
    ] {
        let mut command = python.script("http/websocket.py");
        command.args(["client", &uri]).args(proxy);
        Python::run("websocket-client", command, &mesh.logs()).await;
    }
}
