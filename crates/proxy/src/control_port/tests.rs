//! The control port as its clients see it.

use mesh_api::ext::proxy_client::ProxyClient;
use mesh_api::stats::read_series;
use mesh_api::tap::{StringMatch, TapMatch};
use mesh_model::ResourceRef;
use mesh_model::stats::{SeriesKey, StatProtocol};
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::telemetry::{BalancerView, Finished, HttpLabels, SeriesSpec, TelemetryConfig};

struct Served {
    client: ProxyClient<Channel>,
    telemetry: Arc<Telemetry>,
    drain: CancellationToken,
    serving: JoinHandle<()>,
}

async fn served() -> Served {
    let telemetry = Telemetry::new(&TelemetryConfig { max_taps: 2, ..Default::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let drain = CancellationToken::new();
    let config: ConfigFn = Arc::new(|| serde_json::json!({"targets": []}));
    let serving = tokio::spawn(serve(
        listener,
        Arc::clone(&telemetry),
        config,
        Identity::default(),
        drain.clone(),
    ));
    let channel = Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
    Served { client: ProxyClient::new(channel), telemetry, drain, serving }
}

fn record(path: &str) -> Record {
    Record {
        id: 7,
        started_unix_ms: 1_700_000_000_000,
        direction: Direction::Inbound,
        source: "10.0.0.1:4000".parse().unwrap(),
        destination: Some("127.0.0.1:8080".parse().unwrap()),
        method: "POST".into(),
        scheme: "http".into(),
        authority: "tax.shop:8080".into(),
        path: path.into(),
        parent: String::new(),
        route: "HTTPRoute/shop/tax".into(),
        backend: String::new(),
        status: 200,
        grpc_status: None,
        reason: None,
        attempts: 1,
        request_bytes: 10,
        response_bytes: 20,
        first_byte: Some(Duration::from_millis(3)),
        duration: Duration::from_millis(5),
        tls: Some("web.shop".into()),
        policy: None,
        request_headers: Vec::new(),
        response_headers: Vec::new(),
    }
}

fn tap_request(path: &str) -> TapRequest {
    let filter = ext::TapFilter { path: path.into(), with_headers: true, ..Default::default() };
    TapRequest { filter: Some(filter), max_rps: 0 }
}

fn headers() -> Option<HeaderMap> {
    let secret = (http::header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
    Some([secret].into_iter().collect())
}

#[tokio::test]
async fn figures_arrive_as_they_were_counted() {
    let mut served = served().await;
    let key = SeriesKey {
        direction: Direction::Outbound,
        protocol: StatProtocol::Http,
        peer: Some("10.0.0.2".parse().unwrap()),
        port: 8080,
        parent: "Service/shop/tax:8080".into(),
        route: "default/http".into(),
        backend: "Service/shop/tax:8080".into(),
        identity: None,
    };
    let spec = SeriesSpec { key: key.clone(), labels: HttpLabels::default() };
    let series = served.telemetry.stats.series(spec);
    series.opened();
    series.response(&Finished {
        status: 504,
        grpc_status: None,
        success: false,
        first_byte: None,
        total: Duration::from_millis(10),
        request_bytes: 1,
        response_bytes: 2,
        reason: Some(Reason::RequestTimeout),
        attempts: 1,
    });
    served.telemetry.balancers.set_view(|| {
        let meta = Meta::Resource(ResourceRef::service("shop", "tax", 8080));
        let endpoints = [EndpointState::Ready, EndpointState::Probing, EndpointState::Ejected];
        let endpoints = (1..).map(|port| ([10, 0, 0, 2], port).into()).zip(endpoints).collect();
        vec![BalancerView { parent: meta.clone(), backend: meta, endpoints }]
    });
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(2)).await;
    tokio::time::resume();

    let reply = served.client.stats(StatsRequest { window_seconds: 60 }).await.unwrap();
    let reply = reply.into_inner();
    assert!((2..60).contains(&reply.covered_seconds), "{}", reply.covered_seconds);
    let [row] = &reply.series[..] else { panic!("{reply:?}") };
    let (told, totals, tcp_open) = read_series(row.clone()).unwrap();
    assert_eq!((told, tcp_open), (key, 1));
    assert_eq!((totals.failure, totals.tcp_opened), (1, 1));
    assert_eq!(totals.reasons, [(Reason::RequestTimeout, 1)]);
    let breaker = |endpoint: &str, state: &str| ext::Breaker {
        backend: "Service/shop/tax:8080".into(),
        endpoint: endpoint.into(),
        state: state.into(),
    };
    let expected = [breaker("10.0.0.2:2", "probing"), breaker("10.0.0.2:3", "ejected")];
    assert_eq!(reply.breakers, expected);
}

#[tokio::test]
async fn a_window_of_nothing_is_refused() {
    let mut served = served().await;
    let status = served.client.stats(StatsRequest { window_seconds: 0 }).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    served.client.stats(StatsRequest { window_seconds: u32::MAX }).await.unwrap();
}

#[tokio::test]
async fn the_configuration_is_what_its_owner_says() {
    let mut served = served().await;
    let reply = served.client.config(ConfigRequest {}).await.unwrap();
    assert_eq!(reply.into_inner().json, r#"{"targets":[]}"#);
}

#[tokio::test]
async fn requests_are_shown_as_they_finish() {
    let mut served = served().await;
    let mut events = served.client.tap(tap_request("/rates")).await.unwrap().into_inner();
    assert!(served.telemetry.tap.active());
    served.telemetry.tap.publish(record("/other"), headers(), None);
    served.telemetry.tap.publish(record("/rates/7"), headers(), None);
    let event = events.message().await.unwrap().unwrap();
    assert_eq!((event.path.as_str(), event.skipped), ("/rates/7", 0));
    let hidden = ext::Header { name: "authorization".into(), value: "[redacted]".into() };
    assert_eq!(event.request_headers, [hidden]);
    let told = Record::try_from(event).unwrap();
    assert_eq!(Record { request_headers: Vec::new(), ..told }, record("/rates/7"));
}

#[tokio::test]
async fn a_tap_ends_with_its_reader() {
    let mut served = served().await;
    // As many as there may be at a time, again and again: each makes room for the next.
    for _ in 0..10 {
        let first = served.client.tap(tap_request("")).await.unwrap();
        let second = served.client.tap(tap_request("")).await;
        drop((first, second));
        while served.telemetry.tap.active() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn bad_filters_and_too_many_taps_are_refused() {
    let mut served = served().await;
    let filter = ext::TapFilter { status: "9xx".into(), ..Default::default() };
    let request = TapRequest { filter: Some(filter), max_rps: 0 };
    let status = served.client.tap(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("9xx"), "{status}");

    let _first = served.client.tap(tap_request("")).await.unwrap();
    let _second = served.client.tap(tap_request("")).await.unwrap();
    let status = served.client.tap(tap_request("")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn draining_ends_taps_and_the_server() {
    let mut served = served().await;
    let mut events = served.client.tap(tap_request("")).await.unwrap().into_inner();
    served.drain.cancel();
    assert!(events.message().await.unwrap().is_none());
    served.serving.await.unwrap();
}

fn control_port() -> ControlPort {
    ControlPort {
        telemetry: Telemetry::new(&TelemetryConfig::default()),
        config: Arc::new(|| serde_json::Value::Null),
        drain: CancellationToken::new(),
    }
}

#[tokio::test]
async fn controllers_of_the_ecosystem_are_told_the_stages_of_a_request() {
    let port = control_port();
    let filter = TapMatch::Path(StringMatch::Prefix("/rates".into()));
    let subscription = TapSubscription { limit: 1, filter: Some(filter), with_headers: true };
    let told = TapSource::tap(&port, subscription);
    let tap = &port.telemetry.tap;
    tap.publish(record("/other"), None, None);
    tap.publish(Record { method: String::new(), ..record("/rates/tcp") }, None, None);
    tap.publish(record("/rates/7"), headers(), None);
    tap.publish(record("/rates/8"), headers(), None);
    let messages: Vec<TapMessage> = told.collect().await;
    let [init, response, end] = &messages[..] else { panic!("{messages:?}") };
    assert_eq!(init.source_labels["client_id"], "web.shop");
    assert_eq!(init.route_labels["route"], "HTTPRoute/shop/tax");
    assert!(messages.iter().all(|message| message.id == 7));
    let tap::TapEvent::RequestInit { method, path, headers, .. } = &init.event else {
        panic!("{init:?}")
    };
    assert_eq!((method, path.as_str()), (&Method::POST, "/rates/7"));
    assert_eq!(headers["authorization"], "[redacted]");
    let millis = Duration::from_millis;
    let head = tap::TapEvent::ResponseInit {
        since_request: millis(3),
        status: 200,
        headers: HeaderMap::new(),
    };
    assert_eq!(response.event, head);
    let ended = tap::TapEvent::ResponseEnd {
        since_request: millis(5),
        since_response: millis(2),
        response_bytes: 20,
        end: StreamEnd::Complete,
        trailers: HeaderMap::new(),
    };
    assert_eq!(end.event, ended);
}

#[test]
fn how_a_response_ended_is_told() {
    let ended = |record: Record| match messages(record).pop().unwrap().event {
        tap::TapEvent::ResponseEnd { end, .. } => end,
        event => panic!("{event:?}"),
    };
    let grpc = Record { grpc_status: Some(14), ..record("/") };
    assert_eq!(ended(grpc.clone()), StreamEnd::Grpc(14));
    let broken = Record { reason: Some(Reason::StreamReset), ..grpc };
    assert_eq!(ended(broken), StreamEnd::Reset(2));
    let nothing = Record { status: 0, first_byte: None, ..record("/") };
    assert_eq!(messages(nothing.clone()).len(), 2, "there was no response to tell of");
    assert_eq!(ended(nothing), StreamEnd::Reset(2));
}
