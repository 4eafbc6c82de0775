//! Who speaks first, and what it costs those who do not.

use std::time::{Duration, Instant};

use mesh_integration::app::TcpApp;
use mesh_integration::client::Connection;
use mesh_integration::mesh::{Mesh, Pod, Service};
use mesh_integration::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// As MySQL greets: protocol version 10, server version, thread, salt.
const GREETING: &[u8] = b"\x2c\0\0\0\x0a8.4.2\0\x0b\0\0\0saltsalt\0\xff\xf7\xff\x02\0\xff\xdf\x15";

/// Greets, then repeats.
async fn database() -> TcpApp {
    TcpApp::start(|mut stream| async move {
        // A connection opened on suspicion may be gone again.
        if stream.write_all(GREETING).await.is_ok() {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    })
    .await
}

/// Connects, hears the greeting, says something; returns how long the first byte took.
async fn converse(addr: std::net::SocketAddr) -> Duration {
    let started = Instant::now();
    let mut connection = Connection::open(addr).await;
    assert_eq!(connection.bytes(1).await, GREETING[..1]);
    let first_byte = started.elapsed();
    assert_eq!(connection.bytes(GREETING.len() - 1).await, GREETING[1..]);
    connection.send("login").await;
    assert_eq!(connection.bytes(5).await, b"login");
    first_byte
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_at_once() {
    const SERVICES: u16 = 7;
    let app = database().await;
    let mut client = Pod::new("client");
    let mut db = Pod::new("db");
    let mut builder = Mesh::builder();
    for number in 0..SERVICES {
        client = client.upstream(&format!("db-{number}:80"));
        db = db.port(5000 + number, app.addr());
        builder =
            builder.service(Service::new(&format!("db-{number}"), 5000 + number).before("db"));
    }
    let mesh = builder.pod(client).pod(db).start().await;
    let client = mesh.pod("client");
    // Each is new to the proxies; nothing was configured.
    let mut first = Vec::new();
    for number in 0..SERVICES {
        first.push(converse(client.upstream(number.into())).await);
    }
    first.sort();
    let median = first[first.len() / 2];
    assert!(median < Duration::from_millis(100), "{first:?}");
    // Known by now: nobody waits for the client any more.
    let mut again = Vec::new();
    for number in 0..SERVICES {
        again.push(converse(client.upstream(number.into())).await);
    }
    again.sort();
    assert!(again[again.len() / 2] < median / 2, "{again:?} after {first:?}");
}

#[tokio::test]
async fn silent_clients_cost_others_nothing() {
    const SILENT: usize = 300;
    // Speaks only when spoken to, so that nothing ends the silence.
    let app = TcpApp::start(|mut stream| async move {
        let mut question = [0; 64];
        while let Ok(read @ 1..) = stream.read(&mut question).await {
            stream.write_all(&question[..read]).await.unwrap();
        }
    })
    .await;
    let mesh = super::mesh(&app).await;
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(super::connect(&mesh).await);
    }
    // Each may be one whose server speaks first.
    wait::until("the server to be waiting for all", async || {
        (app.accepted() >= SILENT).then_some(())
    })
    .await;
    let started = Instant::now();
    let mut connection = super::connect(&mesh).await;
    connection.send(b"\x01question").await;
    assert_eq!(connection.bytes(9).await, b"\x01question");
    let among_silent = started.elapsed();
    assert!(among_silent < Duration::from_secs(2), "{among_silent:?}");
    // They may begin whenever they like.
    for connection in silent.iter_mut().step_by(50) {
        connection.send(b"\x02late").await;
        assert_eq!(connection.bytes(5).await, b"\x02late");
    }
}

#[tokio::test]
async fn a_client_that_takes_its_time_is_still_understood() {
    let app = TcpApp::start(|mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                // Opened on the suspicion that the server speaks first, and closed again.
                Err(_) => return,
            }
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        stream.write_all(answer).await.unwrap();
    })
    .await;
    let mesh = super::mesh(&app).await;
    let mut connection = super::connect(&mesh).await;
    // Both proxies have lost their patience and have given the server a chance to speak.
    wait::until("a connection to the application", async || (app.accepted() > 0).then_some(()))
        .await;
    connection.send("GET / HTTP/1.1\r\nHost: db\r\n\r\n").await;
    assert_eq!(connection.response().await.text(), "ok");
    for (pod, direction) in [("client", "outbound"), ("db", "inbound")] {
        let labels = [&*format!("direction=\"{direction}\""), "status_code=\"200\""];
        assert_eq!(mesh.pod(pod).metric("response_total", &labels).await, 1.0, "{pod}");
    }
}
