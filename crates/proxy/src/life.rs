//! Derives `docs/life-of-a-request.md` from the spans of a real request, so that it cannot say
//! anything else than what happens. `MESH_BLESS=1 cargo test -p mesh-proxy life` renews it.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use http_body_util::{BodyExt, Empty};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use crate::config::Config;
use crate::discovery::Discovery;
use crate::exchange::Recorder;
use crate::identity::Identity;
use crate::telemetry::{AccessLog, Telemetry, TelemetryConfig};
use crate::worker::Worker;

/// What each span is about. A span without a line here fails the test, and so does a line whose
/// span never came.
const STORY: &[(&str, &str)] = &[
    (
        "outbound.connection",
        "The application connects. What the connection is for is known from its original destination, \
         from the listener it came to, or (forward proxy) from each request.",
    ),
    (
        "outbound.discover",
        "The proxy does not know the target yet and asks the control plane; later requests find the \
         answer in place. The wait is bounded (`discovery-timeout`).",
    ),
    (
        "outbound.detect",
        "The first bytes tell the protocol. A client that is silent for 30 ms gets its server \
         connected, which may speak first. A hint of the control plane skips this.",
    ),
    (
        "outbound.request",
        "A record of the request begins, which is closed exactly once however it ends: figures, tap \
         and access log come from it. Errors from below become responses here. Requests beyond the \
         limit in flight are shed (`overloaded`).",
    ),
    (
        "outbound.route",
        "The most specific rule of the target's routes is found (`no-route`). Its stack: filters, \
         deadline, retry, split.",
    ),
    (
        "outbound.try",
        "One try: a backend is drawn by weight, an endpoint picked by its balancer, which leaves out \
         endpoints whose breaker is open and those tried before. Without one the try waits, within \
         bounds (`no-endpoints`, `all-ejected`, `queue-full`).",
    ),
    (
        "outbound.endpoint",
        "The request gets the form the endpoint wants and a pooled connection. A far proxy that did \
         not reach its application says so, and the try counts as never sent.",
    ),
    (
        "connect",
        "No pooled connection is free: one is opened (`connect-refused`, `connect-timeout`).",
    ),
    (
        "inbound.connection",
        "The proxy of the server accepts. Nobody gets in before there is a policy for the port.",
    ),
    ("inbound.detect", "The same detection as outbound."),
    (
        "inbound.request",
        "The server's record of the request begins; the same limit and the same table of errors.",
    ),
    (
        "inbound.authorize",
        "The request is matched to the port's routes and authorised (`unauthorized`), its rate \
         limited (`rate-limited`), its injected faults answered.",
    ),
    (
        "inbound.forward",
        "The application gets the request over a pooled connection (`local-refused`).",
    ),
];

/// A span as it was opened.
#[derive(Clone, Debug)]
struct Seen {
    name: &'static str,
    parents: Vec<&'static str>,
    file: String,
}

#[derive(Clone, Debug, Default)]
struct Spans(Arc<Mutex<Vec<Seen>>>);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, cx: Context<'_, S>) {
        let Some(span) = cx.span(id) else { return };
        let metadata = span.metadata();
        if !metadata.target().starts_with("mesh_proxy") {
            return;
        }
        let parents = span.scope().skip(1).map(|parent| parent.name());
        let mut parents: Vec<_> = parents.collect();
        parents.reverse();
        let file = metadata.file().unwrap_or_default();
        let file = file.rsplit_once("crates/").map_or(file, |(_, rest)| rest);
        self.0.lock().push(Seen { name: metadata.name(), parents, file: format!("crates/{file}") });
    }
}

/// An address that only this test of this process uses: it must be known before it is bound, and a
/// port that was free a moment ago may be somebody else's by then.
fn own_addr(port: u16) -> SocketAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    SocketAddr::from(([127, 90, high, low.max(1)], port))
}

async fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(|_| async {
                Ok::<_, std::convert::Infallible>(http::Response::new("hello".to_owned()))
            });
            let serving = hyper::server::conn::http1::Builder::new();
            tokio::spawn(serving.serve_connection(TokioIo::new(stream), service));
        }
    });
    addr
}

/// One request through both halves of a proxy, whose spans are returned.
async fn one_request() -> Vec<Seen> {
    let spans = Spans::default();
    let subscriber = tracing_subscriber::registry().with(spans.clone());
    let _guard = tracing::subscriber::set_default(subscriber);

    let (app, server, upstream) = (application().await, own_addr(8080), own_addr(15001));
    let (outbound, inbound) = (own_addr(4140), own_addr(4143));
    let vars = [
        ("OUTBOUND_ADDR", outbound.to_string()),
        ("INBOUND_ADDR", inbound.to_string()),
        ("OUTBOUND_UPSTREAMS", format!("{upstream}={server}")),
        ("INBOUND_PORTS", format!("{server}={app}")),
    ];
    let vars = vars.map(|(name, value)| (format!("{}{name}", crate::config::PREFIX), value));
    let config = Arc::new(Config::from_vars(vars).unwrap());
    let telemetry = Telemetry::new(&TelemetryConfig::default());
    let runtime = tokio::runtime::Handle::current();
    let discovery =
        Discovery::new(None, crate::resolve::Resolver::default(), runtime, Arc::clone(&telemetry));
    let recorder = Arc::new(Recorder { telemetry, access_log: AccessLog::default(), tracer: None });
    let drain = CancellationToken::new();
    let worker =
        Worker::bind(&config, &discovery, &recorder, &Identity::default(), None, &drain).unwrap();
    let worker = tokio::spawn(worker.run());

    let stream = TcpStream::connect(upstream).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request =
        http::Request::get("/").header("host", "server").body(Empty::<bytes::Bytes>::new());
    let response = client.send_request(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    drop(client);
    drain.cancel();
    worker.await.unwrap().unwrap();
    std::mem::take(&mut spans.0.lock())
}

fn document(spans: &[Seen]) -> String {
    let mut text = String::from(
        "# The life of a request\n\n\
         What happens to one HTTP/1 request between two pods, in order. This page is derived from the\n\
         spans of a real request by a test (`crates/proxy/src/life.rs`); the same spans are in the\n\
         proxy's log at `MESH_PROXY_LOG=debug`. Codes in parentheses are reasons, see\n\
         [troubleshooting](troubleshooting.md).\n",
    );
    let mut told: Vec<(&str, &[&str])> = Vec::new();
    for span in spans {
        let key = (span.name, span.parents.as_slice());
        if told.contains(&key) {
            continue;
        }
        told.push(key);
        let story = STORY.iter().find(|(name, _)| *name == span.name);
        let story = story.unwrap_or_else(|| panic!("`{}` has no line in STORY", span.name)).1;
        let inside = match span.parents.as_slice() {
            [] => String::new(),
            parents => format!(" · in {}", parents.last().unwrap()),
        };
        let _ = write!(
            text,
            "\n## {}. {}{inside}\n\n{story}\n\n`{}`\n",
            told.len(),
            span.name,
            span.file
        );
    }
    for (name, _) in STORY {
        let told = told.iter().any(|(told, _)| told == name);
        // Who knows the target from a lookup without control plane need not wait for it.
        assert!(told || name.ends_with("discover"), "`{name}` never came");
    }
    text
}

#[tokio::test]
async fn the_document_tells_what_happens() {
    let document = document(&one_request().await);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/life-of-a-request.md");
    if std::env::var_os("MESH_BLESS").is_some() {
        std::fs::write(&path, &document).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(committed, document, "renew it with MESH_BLESS=1 cargo test -p mesh-proxy life");
}
