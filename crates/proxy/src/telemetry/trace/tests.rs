use std::sync::Arc;

use opentelemetry::Value;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::SpanExporter;
use tokio::sync::{Notify, Semaphore};

use super::*;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

fn client() -> SocketAddr {
    "10.0.0.9:40000".parse().unwrap()
}

fn request(traceparent: Option<&str>) -> Request {
    let mut request = http::Request::get("/cart?secret=1").header("host", "shop:8080");
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent).header("tracestate", "a=1");
    }
    request.body(mesh_layers::Body::empty()).unwrap()
}

fn end() -> SpanEnd<'static> {
    SpanEnd {
        duration: Duration::from_millis(5),
        route: None,
        backend: None,
        endpoint: None,
        attempts: 1,
        status: 200,
        grpc_status: None,
        success: Some(true),
        reason: None,
    }
}

/// The span of a request that ends so.
fn span(direction: Direction, mut request: Request, end: &SpanEnd<'_>) -> SpanData {
    let (tracer, mut spans) = Tracer::new(SampleShare(1.0), 1);
    tracer.finish(*tracer.begin(direction, client(), &mut request).unwrap(), end);
    spans.try_recv().unwrap()
}

fn value(span: &SpanData, key: &str) -> Option<String> {
    let mut found = span.attributes.iter().filter(|pair| pair.key.as_str() == key);
    let value = found.next().map(|pair| match &pair.value {
        Value::I64(number) => number.to_string(),
        other => other.as_str().into_owned(),
    });
    assert!(found.next().is_none(), "{key} twice");
    value
}

#[test]
fn whoever_began_the_trace_decides() {
    for (traceparent, share, sampled) in [
        (Some(PARENT), 0.0, true),
        (Some(UNSAMPLED), 1.0, false),
        (Some("nonsense"), 1.0, true),
        (Some("nonsense"), 0.0, false),
        (None, 1.0, true),
        (None, 0.0, false),
    ] {
        let (tracer, _spans) = Tracer::new(SampleShare(share), 1);
        let mut asked = request(traceparent);
        let before = asked.headers().clone();
        let span = tracer.begin(Direction::Outbound, client(), &mut asked);
        assert_eq!(span.is_some(), sampled, "{traceparent:?} {share}");
        // What is not sampled here is passed on as it came.
        assert_eq!(*asked.headers() == before, !sampled, "{traceparent:?} {share}");
    }
}

#[test]
fn a_chain_of_proxies_is_a_chain_of_spans() {
    let (tracer, mut spans) = Tracer::new(SampleShare(0.0), 2);
    let mut request = request(Some(PARENT));
    let outbound = tracer.begin(Direction::Outbound, client(), &mut request).unwrap();
    let inbound = tracer.begin(Direction::Inbound, client(), &mut request).unwrap();
    tracer.finish(*inbound, &end());
    tracer.finish(*outbound, &end());
    let (inbound, outbound) = (spans.try_recv().unwrap(), spans.try_recv().unwrap());
    assert_eq!(outbound.parent_span_id.to_string(), "00f067aa0ba902b7");
    assert_eq!(inbound.parent_span_id, outbound.span_context.span_id());
    assert_eq!(inbound.span_context.trace_id(), outbound.span_context.trace_id());
    assert_eq!(inbound.span_context.trace_state().header(), "a=1");
    assert_eq!(request.headers()["tracestate"], "a=1");
    let last = inbound.span_context.span_id();
    let traceparent = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{last}-01");
    assert_eq!(request.headers()["traceparent"], traceparent.as_str());
}

#[test]
fn a_span_tells_of_its_request() {
    let inbound = span(Direction::Inbound, request(None), &end());
    assert_eq!((inbound.name.as_ref(), inbound.span_kind.clone()), ("GET", SpanKind::Server));
    assert_eq!(inbound.parent_span_id, SpanId::INVALID);
    assert_eq!(inbound.end_time, inbound.start_time + Duration::from_millis(5));
    for (key, wanted) in [
        ("http.request.method", "GET"),
        ("url.path", "/cart"),
        ("server.address", "shop"),
        ("server.port", "8080"),
        ("network.peer.address", "10.0.0.9"),
        ("http.response.status_code", "200"),
        ("mesh.attempts", "1"),
    ] {
        assert_eq!(value(&inbound, key).as_deref(), Some(wanted), "{key}");
    }
    let endpoint = Some("10.0.0.7:80".parse().unwrap());
    let route = Meta::Default("http".to_owned());
    let end = SpanEnd { endpoint, route: Some(&route), backend: Some("service/a/b:80"), ..end() };
    let outbound = span(Direction::Outbound, request(None), &end);
    assert_eq!((outbound.name.as_ref(), outbound.span_kind.clone()), ("GET", SpanKind::Client));
    assert_eq!(value(&outbound, "network.peer.address").as_deref(), Some("10.0.0.7"));
    assert_eq!(value(&outbound, "mesh.route").as_deref(), Some("default/http"));
    assert_eq!(value(&outbound, "mesh.backend").as_deref(), Some("service/a/b:80"));
}

#[test]
fn failures_are_errors_for_whom_they_concern() {
    let failed = |direction, end| {
        let span = span(direction, request(None), &end);
        (value(&span, "error.type"), span.status != Status::Unset)
    };
    let missing = || SpanEnd { status: 404, ..end() };
    assert_eq!(failed(Direction::Inbound, missing()), (None, false));
    assert_eq!(failed(Direction::Outbound, missing()), (Some("404".into()), true));
    let reason = Some(Reason::NoEndpoints);
    let refused = SpanEnd { status: 503, success: Some(false), reason, ..end() };
    assert_eq!(failed(Direction::Outbound, refused), (Some("no-endpoints".into()), true));
    let grpc = SpanEnd { grpc_status: Some(14), success: Some(false), ..end() };
    assert_eq!(failed(Direction::Inbound, grpc), (Some("14".into()), true));
    let left = SpanEnd { status: 0, success: None, ..end() };
    assert_eq!(failed(Direction::Inbound, left), (None, false));
}

#[test]
fn what_clients_choose_is_bounded() {
    let mut long = request(None);
    *long.uri_mut() = format!("/{}", "x".repeat(MAX_TEXT)).parse().unwrap();
    *long.method_mut() = "BREW".repeat(MAX_TEXT).parse().unwrap();
    let span = span(Direction::Inbound, long, &end());
    assert_eq!(span.name, "HTTP");
    assert_eq!(value(&span, "http.request.method").as_deref(), Some("_OTHER"));
    for key in ["url.path", "http.request.method_original"] {
        assert!(value(&span, key).unwrap().len() <= MAX_TEXT, "{key}");
    }
    // Cut between characters.
    assert_eq!(text(&format!("a{}", "é".repeat(MAX_TEXT))).len(), MAX_TEXT - 1);
}

/// A collector that takes a batch for each permit.
#[derive(Clone, Debug)]
struct Slow {
    asked: Arc<Notify>,
    permits: Arc<Semaphore>,
}

impl SpanExporter for Slow {
    async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
        self.asked.notify_one();
        self.permits.acquire().await.unwrap().forget();
        Ok(())
    }
}

fn send(tracer: &Tracer) {
    let span = tracer.begin(Direction::Inbound, client(), &mut request(None)).unwrap();
    tracer.finish(*span, &end());
}

#[tokio::test(start_paused = true)]
async fn a_slow_collector_costs_spans_and_nothing_else() {
    let (tracer, spans) = Tracer::new(SampleShare(1.0), 2);
    let collector = Slow { asked: Arc::default(), permits: Arc::new(Semaphore::new(0)) };
    let exporter = Exporter::spawn(collector.clone(), spans, &tracer.counts);
    send(&tracer);
    // Time passes on its own, so the batch of one is not waited for.
    collector.asked.notified().await;
    for _ in 0..5 {
        send(&tracer);
    }
    assert_eq!(tracer.counts.queue_full.get(), 3);
    // The first batch was given up, the second is the one at the end.
    collector.asked.notified().await;
    assert_eq!(tracer.counts.failed.get(), 1);
    collector.permits.add_permits(1);
    exporter.flush().await;
    assert_eq!(tracer.counts.exported.get(), 2);
    send(&tracer);
    assert_eq!(tracer.counts.queue_full.get(), 4);
}

#[tokio::test(start_paused = true)]
async fn the_end_waits_for_a_collector_within_bounds() {
    let (tracer, spans) = Tracer::new(SampleShare(1.0), 2);
    let collector = Slow { asked: Arc::default(), permits: Arc::new(Semaphore::new(0)) };
    let exporter = Exporter::spawn(collector, spans, &tracer.counts);
    send(&tracer);
    let started = tokio::time::Instant::now();
    exporter.flush().await;
    assert!(started.elapsed() <= Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(tracer.counts.exported.get(), 0);
}

#[test]
fn endpoints_and_shares_are_checked() {
    for wrong in ["collector:4317", "https://c:4317", "http://c", "http://c:4317/v1/traces", ""] {
        assert!(wrong.parse::<OtlpEndpoint>().is_err(), "{wrong}");
    }
    for right in ["http://collector:4317", "http://[::1]:4317/"] {
        assert!(right.parse::<OtlpEndpoint>().is_ok(), "{right}");
    }
    for wrong in ["NaN", "-0.1", "1.1", "inf", "half"] {
        assert!(wrong.parse::<SampleShare>().is_err(), "{wrong}");
    }
}
