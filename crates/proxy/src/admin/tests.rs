//! The admin port over real connections.

use http_body_util::Empty;
use hyper::client::conn::http1::{SendRequest, handshake};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;
use crate::telemetry::TelemetryConfig;
use crate::telemetry::log::{LogFormat, build};

struct Admin {
    addr: SocketAddr,
    ready: watch::Sender<Readiness>,
    shutdown: mpsc::Receiver<()>,
    log: LogHandle,
    drain: CancellationToken,
    serving: JoinHandle<()>,
    _logger: tracing::Dispatch,
}

async fn admin() -> Admin {
    let (ready, is_ready) = watch::channel(Readiness::NotReady("no certificate yet".into()));
    let (ask, shutdown) = mpsc::channel(1);
    let (logger, log) = build("info", LogFormat::Plain, std::io::sink).unwrap();
    let state = AdminState {
        ready: is_ready,
        config: Arc::new(|| serde_json::json!({"targets": ["tax"]})),
        shutdown: ask,
        log: log.clone(),
        telemetry: Telemetry::new(&TelemetryConfig::default()),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, drain) = (listener.local_addr().unwrap(), CancellationToken::new());
    let serving = tokio::spawn(serve(listener, state, drain.clone()));
    Admin { addr, ready, shutdown, log, drain, serving, _logger: logger }
}

impl Admin {
    async fn ask(&self, method: &str, path: &str, body: &str) -> (StatusCode, String) {
        let (status, _, body) = self.ask_whole(method, path, body).await;
        (status, body)
    }

    async fn ask_whole(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> (StatusCode, http::HeaderMap, String) {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "admin");
        let request = request.header(ACCEPT, "application/openmetrics-text");
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        drop(sender);
        connection.await.unwrap().unwrap();
        (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
    }
}

#[tokio::test]
async fn ready_says_why_not() {
    let admin = admin().await;
    assert_eq!(admin.ask("GET", "/live", "").await, (StatusCode::OK, "live\n".into()));
    let not_ready = (StatusCode::SERVICE_UNAVAILABLE, "no certificate yet\n".into());
    assert_eq!(admin.ask("GET", "/ready", "").await, not_ready);
    admin.ready.send_replace(Readiness::Ready);
    assert_eq!(admin.ask("GET", "/ready", "").await, (StatusCode::OK, "ready\n".into()));
    assert_eq!(admin.ask("HEAD", "/ready?verbose", "").await, (StatusCode::OK, String::new()));
}

#[tokio::test]
async fn metrics_come_in_the_format_asked_for() {
    let admin = admin().await;
    let (status, headers, body) = admin.ask_whole("GET", "/metrics", "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers[CONTENT_TYPE], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(body.contains("proxy_build_info{") && body.ends_with("# EOF\n"));
}

#[tokio::test]
async fn the_configuration_is_what_its_owner_says() {
    let admin = admin().await;
    let (status, headers, body) = admin.ask_whole("GET", "/config", "").await;
    assert_eq!((status, headers[CONTENT_TYPE].to_str().unwrap()), (StatusCode::OK, JSON));
    let value: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(value, serde_json::json!({"targets": ["tax"]}));
}

#[tokio::test]
async fn the_log_level_changes_or_the_answer_says_why_not() {
    let admin = admin().await;
    let path = "/proxy-log-level";
    assert_eq!(admin.ask("GET", path, "").await, (StatusCode::OK, "info\n".into()));
    let (status, body) = admin.ask("PUT", path, "warn,mesh_proxy=debug\n").await;
    assert_eq!((status, body.as_str()), (StatusCode::NO_CONTENT, ""));
    let before = admin.log.current().unwrap();
    assert!(before.contains("mesh_proxy=debug"), "{before}");

    let (status, body) = admin.ask("PUT", path, "lound").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.contains("`lound` is no level"), "{body}");
    let (status, body) = admin.ask("PUT", path, &"x".repeat(MAX_BODY + 1)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    assert_eq!(admin.log.current().unwrap(), before);
}

#[tokio::test]
async fn shutdown_is_passed_on_once() {
    let mut admin = admin().await;
    for _ in 0..3 {
        let (status, _) = admin.ask("POST", "/shutdown", "").await;
        assert_eq!(status, StatusCode::ACCEPTED);
    }
    assert_eq!(admin.shutdown.recv().await, Some(()));
    assert!(admin.shutdown.try_recv().is_err());
}

#[test]
fn who_is_of_the_same_pod() {
    for (peer, local, expected) in [
        ("10.0.0.1", "10.0.0.2", false),
        ("2001:db8::1", "2001:db8::2", false),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", false),
        ("10.0.0.1", "127.0.0.1", false),
        ("127.3.2.1", "127.0.0.1", true),
        ("::1", "::1", true),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", true),
        ("::ffff:10.0.0.2", "10.0.0.2", true),
    ] {
        assert_eq!(is_near(peer.parse().unwrap(), local.parse().unwrap()), expected, "{peer}");
    }
}

/// The address of an interface, if this machine has one besides loopback. Nothing is sent.
fn other_address() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback())
}

/// Strangers are played by a connection whose ends have different addresses, neither the client's of
/// loopback: from an interface's address to loopback.
#[tokio::test]
async fn strangers_see_whether_it_is_well_and_no_more() {
    let Some(other) = other_address() else {
        return eprintln!("SKIPPED: this machine has no address besides loopback");
    };
    let mut admin = admin().await;
    let ask = async |method: &str, path: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(other, 0)).unwrap();
        let stream = socket.connect(admin.addr).await.unwrap();
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "admin");
        let request = request.body(Full::new(Bytes::from_static(b"trace"))).unwrap();
        sender.send_request(request).await.unwrap().status()
    };
    for (method, path, expected) in [
        ("GET", "/live", StatusCode::OK),
        ("GET", "/ready", StatusCode::SERVICE_UNAVAILABLE),
        ("GET", "/metrics", StatusCode::OK),
        ("GET", "/config", StatusCode::FORBIDDEN),
        ("GET", "/env.json", StatusCode::FORBIDDEN),
        ("GET", "/proxy-log-level", StatusCode::FORBIDDEN),
        ("PUT", "/proxy-log-level", StatusCode::FORBIDDEN),
        ("POST", "/shutdown", StatusCode::FORBIDDEN),
        ("GET", "/nothing", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(ask(method, path).await, expected, "{method} {path}");
    }
    assert_eq!(admin.log.current().unwrap(), "info");
    assert!(admin.shutdown.try_recv().is_err());
}

#[tokio::test]
async fn other_paths_and_methods_are_told_what_there_is() {
    let admin = admin().await;
    let (status, body) = admin.ask("GET", "/stats", "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body.contains("/metrics") && body.contains("/shutdown"), "{body}");
    for (method, path, allow) in [
        ("POST", "/ready", "GET, HEAD"),
        ("GET", "/shutdown", "POST"),
        ("DELETE", "/proxy-log-level", "GET, HEAD, PUT"),
    ] {
        let (status, headers, _) = admin.ask_whole(method, path, "").await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert_eq!(headers[ALLOW], allow);
    }
}

#[test]
fn only_own_variables_that_are_no_secrets_are_shown() {
    let variables = [
        ("MESH_PROXY_LOG", "info"),
        ("MESH_PROXY_IDENTITY_TOKEN_FILE", "/var/run/token"),
        ("MESH_PROXY_api_key", "k"),
        ("DATABASE_URL", "postgres://user:password@db"),
        ("PATH", "/bin"),
    ];
    let variables = variables.map(|(name, value)| (name.into(), value.into()));
    let expected = serde_json::json!({
        "MESH_PROXY_LOG": "info",
        "MESH_PROXY_IDENTITY_TOKEN_FILE": "[redacted]",
        "MESH_PROXY_api_key": "[redacted]",
        "DATABASE_URL": "[redacted]",
        "PATH": "[redacted]",
    });
    assert_eq!(environment(variables.into_iter()), expected);
}

#[tokio::test]
async fn the_environment_is_an_object() {
    let (status, body) = admin().await.ask("GET", "/env.json", "").await;
    assert_eq!(status, StatusCode::OK);
    let value: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(value["PATH"], "[redacted]");
}

/// The clock is tokio's, which goes on by itself when everybody waits.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_ask_is_cut_off() {
    let admin = admin().await;
    let before = tokio::time::Instant::now();
    let mut stream = TcpStream::connect(admin.addr).await.unwrap();
    stream.write_all(b"GET /live HTTP/1.1\r\nhost: x").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(before.elapsed() >= HEAD_TIMEOUT);
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn more_connections_than_the_limit_are_closed() {
    let admin = admin().await;
    let mut held = Vec::new();
    for _ in 0..ports::MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(admin.addr).await.unwrap();
        // Each has an answer, and so is known to be accepted.
        stream.write_all(b"HEAD /live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        held.push(stream);
    }
    let mut one_more = TcpStream::connect(admin.addr).await.unwrap();
    assert!(matches!(one_more.read(&mut [0; 1]).await, Ok(0) | Err(_)));

    held.clear();
    // The places are free when the server has noticed, which the next answer shows.
    loop {
        let mut stream = TcpStream::connect(admin.addr).await.unwrap();
        let asked = stream.write_all(b"HEAD /live HTTP/1.1\r\nhost: x\r\n\r\n").await.is_ok();
        if asked && matches!(stream.read(&mut [0; 1024]).await, Ok(read) if read > 0) {
            break;
        }
    }
}

#[tokio::test]
async fn draining_ends_idle_connections_and_the_listener() {
    let admin = admin().await;
    let stream = TcpStream::connect(admin.addr).await.unwrap();
    let (mut sender, connection): (SendRequest<Empty<Bytes>>, _) =
        handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::builder().uri("/live").header("host", "x").body(Empty::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    answer.into_body().collect().await.unwrap();

    admin.drain.cancel();
    admin.serving.await.unwrap();
    connection.await.unwrap().unwrap();
    assert!(TcpStream::connect(admin.addr).await.is_err());
}
