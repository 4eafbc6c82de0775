//! Commands against an API server that knows pods and port-forwards and nothing else.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use kube::config::Kubeconfig;
use mesh_api::ext;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::KubeFiles;
use crate::error::Kind;
use crate::testing::{FakeMesh, Ran, run_in};

/// What the API server knows.
#[derive(Clone, Debug)]
struct Api {
    pods: Value,
    /// The status of port-forwards that are refused.
    forwards_refused: Option<StatusCode>,
    forwarded: mpsc::Sender<DuplexStream>,
}

fn pod(ready: bool) -> Value {
    json!({
        "metadata": {"name": "mesh-control-1", "namespace": "mesh-system"},
        "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    })
}

impl Api {
    /// Serves on loopback, with the mesh behind port-forwards.
    async fn start(pods: Vec<Value>, refused: Option<StatusCode>) -> KubeFiles {
        let (forwarded, streams) = mpsc::channel(4);
        let mesh = FakeMesh {
            info: ext::InfoReply { version: "9.9.9".into(), ..Default::default() },
            ..FakeMesh::default()
        };
        let incoming = ReceiverStream::new(streams).map(Ok::<_, Infallible>);
        let routes = tonic::service::Routes::new(mesh.server());
        let server = tonic::transport::Server::builder().add_routes(routes);
        tokio::spawn(server.serve_with_incoming(incoming));
        let api = Arc::new(Self { pods: json!(pods), forwards_refused: refused, forwarded });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let api = Arc::clone(&api);
                let service = hyper::service::service_fn(move |request| {
                    let api = Arc::clone(&api);
                    async move { Ok::<_, Infallible>(api.answer(request)) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                tokio::spawn(connection);
            }
        });
        files(&format!("http://{address}"))
    }

    fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        if path.ends_with("/portforward") {
            return match self.forwards_refused {
                Some(status) => Response::builder().status(status).body(Full::default()).unwrap(),
                None => self.forward(request),
            };
        }
        let (status, body) = match path.as_str() {
            "/api/v1/namespaces/mesh-system/pods" => {
                let metadata = json!({"resourceVersion": "1"});
                (
                    200,
                    json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": self.pods}),
                )
            }
            _ => {
                let message = format!("there is no {path}");
                (
                    404,
                    json!({"kind": "Status", "apiVersion": "v1", "code": 404, "message": message}),
                )
            }
        };
        Response::builder().status(status).body(Full::from(body.to_string())).unwrap()
    }

    /// The subprotocol of Kubernetes: a byte for the channel, then the bytes; the first message of each is the port.
    fn forward(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        assert_eq!(request.uri().query(), Some("&ports=8085"));
        let key = derive_accept_key(request.headers()[header::SEC_WEBSOCKET_KEY].as_bytes());
        let forwarded = self.forwarded.clone();
        tokio::spawn(async move {
            let upgraded = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
            let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, None).await;
            let [low, high] = 8085_u16.to_le_bytes();
            for channel in [0, 1] {
                socket.send_now(vec![channel, low, high]).await;
            }
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            forwarded.send(theirs).await.unwrap();
            let (mut read, mut write) = tokio::io::split(ours);
            let mut buffer = vec![0; 16 << 10];
            loop {
                tokio::select! {
                    message = socket.next() => match message {
                        Some(Ok(Message::Binary(bytes))) => write.write_all(&bytes[1..]).await.unwrap(),
                        Some(Ok(_)) => {}
                        _ => return,
                    },
                    count = read.read(&mut buffer) => match count {
                        Ok(count) if count > 0 => {
                            socket.send_now([&[0], &buffer[..count]].concat()).await;
                        }
                        _ => return,
                    },
                }
            }
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_ACCEPT, key)
            .header(header::SEC_WEBSOCKET_PROTOCOL, "v4.channel.k8s.io")
            .body(Full::default())
            .unwrap()
    }
}

trait SendNow {
    async fn send_now(&mut self, bytes: Vec<u8>);
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> SendNow for WebSocketStream<S> {
    async fn send_now(&mut self, bytes: Vec<u8>) {
        futures_util::SinkExt::send(self, Message::Binary(bytes.into())).await.unwrap();
    }
}

fn files(server: &str) -> KubeFiles {
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: dev, contexts: [{{name: dev, context: {{cluster: c}}}}], \
         clusters: [{{name: c, cluster: {{server: '{server}'}}}}]}}"
    );
    KubeFiles::Given(Box::new(Kubeconfig::from_yaml(&text).unwrap()))
}

async fn run(line: &str, kube: KubeFiles) -> Ran {
    run_in(line, &tempfile::tempdir().unwrap(), kube).await
}

#[tokio::test]
async fn a_command_reaches_the_control_plane_by_a_port_forward() {
    let ran = run("version --verbose", Api::start(vec![pod(false), pod(true)], None).await).await;
    assert!(ran.out.contains("9.9.9"), "{} {}", ran.out, ran.err);
    assert!(ran.err.starts_with("mesh: cluster \"dev\" at http://127.0.0.1:"), "{}", ran.err);
}

#[tokio::test]
async fn who_may_not_forward_is_told_which_right_is_lacking() {
    let kube = Api::start(vec![pod(true)], Some(StatusCode::FORBIDDEN)).await;
    let error = run("edges", kube).await.result.unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable);
    assert!(error.message.contains("pods/portforward in mesh-system"), "{}", error.message);
    assert!(error.hint.unwrap().contains("auth can-i"));
}

#[tokio::test]
async fn where_there_is_no_mesh_it_says_so() {
    let error = run("edges", Api::start(vec![], None).await).await.result.unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable);
    assert!(error.hint.unwrap().contains("meshctl install"));
    let error = run("edges", Api::start(vec![pod(false)], None).await).await.result.unwrap_err();
    assert!(error.message.contains("none of the 1 control-plane pods"), "{}", error.message);
}

#[tokio::test]
async fn without_an_api_server_every_command_says_so_in_one_line() {
    let lines = [
        "edges",
        "stat deploy",
        "tap deploy",
        "top deploy",
        "routes svc",
        "describe pod/a",
        "proxy status",
    ];
    let more = [
        "identity",
        "endpoints a.b:1",
        "authz pod",
        "diff",
        "upgrade -y",
        "install -y",
        "uninstall -y",
    ];
    for line in lines.iter().chain(&more) {
        let begun = std::time::Instant::now();
        let error = run(line, files("http://127.0.0.1:1")).await.result.unwrap_err();
        assert_eq!(error.kind, Kind::Unreachable, "{line}: {}", error.message);
        assert!(
            error.message.contains("the API server of the kube context \"dev\""),
            "{line}: {error}"
        );
        assert!(!error.message.contains('\n') && begun.elapsed().as_secs() < 5, "{line}");
    }
    let ran = run("check", files("http://127.0.0.1:1")).await;
    assert_eq!(ran.result.unwrap(), std::process::ExitCode::from(3));
}
