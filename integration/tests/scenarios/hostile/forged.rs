//! Requests that a stranger wants to have taken for bytes, so that the proxy does not look at them: the
//! application would believe the caller's name in them.

use std::sync::Arc;
use std::time::Duration;

use mesh_integration::app::TcpApp;
use mesh_integration::client::Connection;
use mesh_integration::mesh::{Mesh, Pod};
use mesh_integration::scripted::{self, ScriptedControlPlane};
use mesh_integration::sidecar::Sidecar;
use mesh_integration::wait;
use mesh_model::inbound::{ServerPolicy, ServerProtocol};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PORT: u16 = 8080;
const FORGED: &str = "Host: web\r\nConnection: close\r\nl5d-client-id: admin\r\n\r\n";

/// Keeps all that it hears, and answers each piece.
async fn recorder() -> (TcpApp, Arc<Mutex<Vec<u8>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&heard);
    let app = TcpApp::start(move |mut stream| {
        let all = Arc::clone(&all);
        async move {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut piece).await {
                all.lock().extend_from_slice(&piece[..read]);
                if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.is_err()
                {
                    return;
                }
            }
        }
    })
    .await;
    (app, heard)
}

/// The pod `web` whose port has this policy.
async fn mesh(app: &TcpApp, protocol: ServerProtocol) -> (Mesh, ScriptedControlPlane) {
    let control = ScriptedControlPlane::start().await;
    control.server(PORT, ServerPolicy { protocol, ..scripted::open() });
    let web = Pod::new("web").port(PORT, app.addr()).setting("HEADER_TIMEOUT", "1s");
    let mesh = Mesh::builder().controlled_by(control.addr()).pod(web).start().await;
    (mesh, control)
}

fn detect(timeout: Duration) -> ServerProtocol {
    ServerProtocol::Detect { timeout, routes: Arc::new([]), limit: None }
}

async fn detected(web: &Sidecar) -> f64 {
    web.metric("protocol_detection_total", &["direction=\"inbound\""]).await
}

#[tokio::test]
async fn no_way_of_writing_a_request_makes_bytes_of_it() {
    let (app, heard) = recorder().await;
    let (mesh, _control) = mesh(&app, detect(Duration::from_millis(200))).await;
    let web = mesh.pod("web");
    let forms = [
        "GET / HTTP/1.1\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\n",
        " GET / HTTP/1.1\r\n",
        "get / HTTP/1.1\r\n",
        "GET\t/ HTTP/1.1\r\n",
        "GET / HTTP/1.1 \r\n",
        "GET / HTTP/1.2\r\n",
        "GET /\r\n",
        &format!("{} / HTTP/1.1\r\n", "M".repeat(40)),
        &format!("GET /{} HTTP/1.1\r\n", "x".repeat(20_000)),
    ];
    for form in forms {
        let mut connection = Connection::open(web.inbound(PORT)).await;
        connection.send(format!("{form}{FORGED}")).await;
        connection.finish().await;
        connection.rest().await;
    }
    // With a pause that is longer than detection waits, at each place where it could matter.
    let forms = [
        ("G", "ET / HTTP/1.1\r\n"),
        ("GET", " / HTTP/1.1\r\n"),
        ("GET ", "/ HTTP/1.1\r\n"),
        ("GET /a", "b HTTP/1.1\r\n"),
        ("GET / HTTP/1.1", "\r\n"),
        ("\r\n", "GET / HTTP/1.1\r\n"),
        ("g", "et / HTTP/1.1\r\n"),
        ("PRI * HT", "TP/2.0\r\n\r\nSM\r\n\r\n"),
        ("P", "RI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ];
    for (before, after) in forms {
        let detections = detected(web).await;
        let mut connection = Connection::open(web.inbound(PORT)).await;
        connection.send(before).await;
        wait::until("detection to give up", async || {
            (detected(web).await > detections).then_some(())
        })
        .await;
        let _ = connection.try_send(format!("{after}{FORGED}")).await;
        // If nobody has closed the connection, the application's answer ends the test.
        connection.rest().await;
    }
    // Who looks finds out why.
    wait::until("the cut in the log", async || web.log().contains("connection cut").then_some(()))
        .await;
    let heard = String::from_utf8_lossy(&heard.lock()).into_owned();
    assert!(heard.starts_with("GET / HTTP/1.1\r\n"), "good requests come through: {heard}");
    assert!(!heard.contains("admin"), "{heard}");
}

#[tokio::test]
async fn where_http_is_declared_nothing_else_is_carried() {
    let policies = [
        ServerProtocol::Http1 { routes: Arc::new([]), limit: None },
        ServerProtocol::Http2 { routes: Arc::new([]), limit: None },
        ServerProtocol::Grpc { routes: Arc::new([]) },
    ];
    for protocol in policies {
        let (app, _) = recorder().await;
        let (mesh, _control) = mesh(&app, protocol).await;
        let web = mesh.pod("web");
        // The beginning of a request of TLS, which is the application's own.
        for words in ["\x01question", "EHLO host\r\n", "\x16\x03\x01\0\x01\x02"] {
            let mut connection = Connection::open(web.inbound(PORT)).await;
            connection.send(words).await;
            assert_eq!(connection.rest().await, b"", "{words:?}");
        }
        assert_eq!(app.accepted(), 0);
    }
}

/// A client may be silent for as long as it likes; one that has begun may not stop in the middle.
#[tokio::test]
async fn a_request_that_begins_late_has_to_end_as_well() {
    let (app, _) = recorder().await;
    let (mesh, _control) = mesh(&app, detect(Duration::from_millis(200))).await;
    let web = mesh.pod("web");
    let mut late = Connection::open(web.inbound(PORT)).await;
    let given_up = ["direction=\"inbound\"", "peer=\"dst\""];
    wait::until("the chance of the application to speak first to be over", async || {
        (web.metric("tcp_close_total", &given_up).await >= 1.0).then_some(())
    })
    .await;
    late.send("GET /begun").await;
    assert!(!late.rest().await.starts_with(b"HTTP/1.1 200"));
    let mut silent = Connection::open(web.inbound(PORT)).await;
    wait::until("another chance to be over", async || {
        (web.metric("tcp_close_total", &given_up).await >= 2.0).then_some(())
    })
    .await;
    silent.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    assert_eq!(silent.response().await.status, 200);
}

/// What the application says to a client that is silent.
async fn out_of_turn(said: &'static [u8]) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&heard);
    let app = TcpApp::start(move |mut stream| {
        let all = Arc::clone(&all);
        async move {
            let mut piece = [0; 4096];
            let waited = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut piece));
            let Ok(read) = waited.await else {
                let _ = stream.write_all(said).await;
                // As one that serves the connection all the same would.
                while let Ok(read @ 1..) = stream.read(&mut piece).await {
                    all.lock().extend_from_slice(&piece[..read]);
                }
                return;
            };
            all.lock().extend_from_slice(&piece[..read.unwrap_or(0)]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    })
    .await;
    let (mesh, _control) = mesh(&app, detect(Duration::from_secs(10))).await;
    let web = mesh.pod("web");
    let mut silent = Connection::open(web.inbound(PORT)).await;
    let untimely = ["direction=\"inbound\"", "peer=\"dst\""];
    wait::until("the application to have spoken, and its connection to be closed", async || {
        let closed = web.metric("tcp_close_total", &untimely).await;
        let opaque = detected(web).await;
        (closed + opaque >= 1.0).then_some(())
    })
    .await;
    silent.send(format!("GET / HTTP/1.1\r\n{FORGED}")).await;
    assert_eq!(silent.response().await.status, 200);
    // Nobody else is carried as bytes after that, either.
    let mut other = Connection::open(web.inbound(PORT)).await;
    other.send(format!("GET / HTTP/1.1\r\n{FORGED}")).await;
    assert_eq!(other.response().await.status, 200);
    let heard = String::from_utf8_lossy(&heard.lock()).into_owned();
    assert!(!heard.contains("admin"), "{heard}");
    let labels = ["direction=\"inbound\"", "status_code=\"200\""];
    assert_eq!(web.metric("response_total", &labels).await, 2.0);
}

#[tokio::test]
async fn http2_settings_do_not_make_a_port_opaque() {
    out_of_turn(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x80").await;
}

#[tokio::test]
async fn an_answer_to_silence_does_not_make_a_port_opaque() {
    out_of_turn(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n").await;
}
