//! Spans of a real request through both halves of the program, as a collector gets them.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::process::Stdio;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tonic::transport::server::TcpIncoming;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.try_send(request.into_inner()).unwrap();
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector() -> (SocketAddr, mpsc::Receiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (sender, received) = mpsc::channel(16);
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Collector(sender)))
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(server);
    (addr, received)
}

/// An application that answers with the trace context it was called with.
async fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                let traceparent = request.headers().get("traceparent");
                let traceparent = traceparent.map(|value| value.to_str().unwrap().to_owned());
                Ok::<_, std::convert::Infallible>(http::Response::new(
                    traceparent.unwrap_or_default(),
                ))
            });
            let serving = hyper::server::conn::http1::Builder::new();
            tokio::spawn(serving.serve_connection(TokioIo::new(stream), service));
        }
    });
    addr
}

/// An address that only this test of this process uses: it must be known before it is bound.
fn own_addr(port: u16) -> SocketAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    SocketAddr::from(([127, 91, high, low.max(1)], port))
}

/// A proxy that takes connections. Its log is read to the end, so that it never waits for a reader.
async fn proxy(collector: SocketAddr, app: SocketAddr) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-proxy"));
    let server = own_addr(8080);
    for (name, value) in [
        ("POD_NAMESPACE", "shop".to_owned()),
        ("POD_NAME", "cart-7d9f8c6b5d-x2x4z".to_owned()),
        ("OUTBOUND_ADDR", own_addr(4140).to_string()),
        ("INBOUND_ADDR", own_addr(4143).to_string()),
        ("CONTROL_LISTEN", own_addr(4190).to_string()),
        ("ADMIN_ADDR", own_addr(4191).to_string()),
        ("OUTBOUND_UPSTREAMS", format!("{}={server}", own_addr(15001))),
        ("INBOUND_PORTS", format!("{server}={app}")),
        ("OTLP_ENDPOINT", format!("http://{collector}")),
        ("TRACE_SAMPLE", "0".to_owned()),
    ] {
        command.env(format!("MESH_PROXY_{name}"), value);
    }
    let mut proxy = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut log = BufReader::new(proxy.stderr.take().unwrap()).lines();
    let mut started = false;
    while !started {
        let line = log.next_line().await.unwrap().expect("the proxy starts");
        started = line.contains("started");
    }
    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    proxy
}

async fn ask(traceparent: &str) -> Bytes {
    let stream = TcpStream::connect(own_addr(15001)).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request =
        http::Request::get("/cart").header("host", "cart").header("traceparent", traceparent);
    let response = client.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap().to_bytes()
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

#[tokio::test]
async fn a_request_is_a_span_of_each_half_and_the_last_ones_are_sent_at_the_end() {
    let (addr, mut received) = collector().await;
    let mut proxy = proxy(addr, application().await).await;
    let unsampled = PARENT.replace("-01", "-00");
    assert_eq!(ask(&unsampled).await, unsampled);
    let seen_by_app = ask(PARENT).await;

    let pid = i32::try_from(proxy.id().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(proxy.wait().await.unwrap().success());

    let mut spans: Vec<Span> = Vec::new();
    while let Ok(request) = received.try_recv() {
        for of_resource in request.resource_spans {
            let resource = of_resource.resource.unwrap().attributes;
            assert_eq!(text(&resource, "service.name"), Some("cart"));
            assert_eq!(text(&resource, "k8s.pod.name"), Some("cart-7d9f8c6b5d-x2x4z"));
            assert_eq!(text(&resource, "k8s.namespace.name"), Some("shop"));
            spans.extend(of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    let of = |kind: SpanKind| spans.iter().find(|span| span.kind == kind as i32).unwrap();
    let (outbound, inbound) = (of(SpanKind::Client), of(SpanKind::Server));
    assert_eq!(spans.len(), 2, "{spans:#?}");
    assert_eq!(hex(&outbound.parent_span_id), PARENT[36..52]);
    assert_eq!(inbound.parent_span_id, outbound.span_id);
    for span in [outbound, inbound] {
        assert_eq!(hex(&span.trace_id), PARENT[3..35]);
        assert_eq!(text(&span.attributes, "url.path"), Some("/cart"));
    }
    let own = own_addr(8080).ip().to_string();
    assert_eq!(text(&outbound.attributes, "network.peer.address"), Some(own.as_str()));
    let last = format!("00-{}-{}-01", &PARENT[3..35], hex(&inbound.span_id));
    assert_eq!(seen_by_app, last);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
