//! The tap service, as a controller of the ecosystem uses it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use http::{HeaderMap, HeaderValue, Method};
use linkerd2_proxy_api::http_types::http_method;
use linkerd2_proxy_api::net::IpAddress;
use linkerd2_proxy_api::tap::observe_request::r#match::{
    Http, Match, Seq, Tcp, http as on_http, tcp,
};
use linkerd2_proxy_api::tap::observe_request::{Extract, Match as PbMatch, extract};
use linkerd2_proxy_api::tap::tap_client::TapClient;
use linkerd2_proxy_api::tap::tap_event::http::Event;
use linkerd2_proxy_api::tap::tap_event::{self, ProxyDirection};
use linkerd2_proxy_api::tap::{self as pb, ObserveRequest};
use mesh_api::client::ControlClient;
use mesh_api::tap::{
    StreamEnd, StringMatch, TapEvent, TapMatch, TapMessage, TapSource, TapSubscription, TcpMatch,
    tap_routes,
};
use mesh_model::Direction;
use mesh_model::inbound::Cidr;
use tonic::{Code, Status};

use crate::serve::{PATIENCE, Serving};

/// Notes what was asked for, and answers with one request.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Option<TapSubscription>>>);

impl TapSource for Fake {
    fn tap(&self, request: TapSubscription) -> BoxStream<'static, TapMessage> {
        *self.0.lock().unwrap() = Some(request);
        stream::iter(one_request()).boxed()
    }
}

fn one_request() -> [TapMessage; 3] {
    let headers: HeaderMap =
        [(http::header::ACCEPT, HeaderValue::from_static("*/*"))].into_iter().collect();
    let millis = Duration::from_millis;
    let message = |event| TapMessage {
        id: 7,
        direction: Direction::Outbound,
        source: SocketAddr::from(([10, 0, 0, 1], 4000)),
        source_labels: Arc::default(),
        destination: Some(SocketAddr::from(([10, 0, 0, 2], 80))),
        destination_labels: Arc::new([("pod".to_owned(), "tax-1".to_owned())].into()),
        route_labels: Arc::new([("route".to_owned(), "tax".to_owned())].into()),
        event,
    };
    [
        message(TapEvent::RequestInit {
            method: Method::PUT,
            scheme: "https".into(),
            authority: "tax.shop".into(),
            path: "/rates".into(),
            headers,
        }),
        message(TapEvent::ResponseInit {
            since_request: millis(5),
            status: 200,
            headers: HeaderMap::new(),
        }),
        message(TapEvent::ResponseEnd {
            since_request: millis(9),
            since_response: millis(4),
            response_bytes: 120,
            end: StreamEnd::Grpc(14),
            trailers: HeaderMap::new(),
        }),
    ]
}

async fn observe(request: ObserveRequest) -> Result<(TapSubscription, Vec<pb::TapEvent>), Status> {
    let fake = Fake::default();
    let serving = Serving::new(tap_routes(fake.clone()));
    let mut client = TapClient::new(ControlClient::lazy_channel(serving.addr));
    let events = client.observe(request).await?.into_inner().map(|event| event.unwrap());
    let events = tokio::time::timeout(PATIENCE, events.collect::<Vec<_>>()).await.unwrap();
    let subscription = fake.0.lock().unwrap().take().unwrap();
    Ok((subscription, events))
}

fn http_event(event: &pb::TapEvent) -> &Event {
    let Some(tap_event::Event::Http(http)) = &event.event else { panic!("{event:?}") };
    http.event.as_ref().unwrap()
}

#[tokio::test]
async fn the_story_of_a_request_arrives() {
    let (subscription, events) = observe(ObserveRequest::default()).await.unwrap();
    assert_eq!(subscription, TapSubscription { limit: 0, filter: None, with_headers: false });

    let [first, second, third] = &events[..] else { panic!("{events:?}") };
    assert_eq!(first.proxy_direction(), ProxyDirection::Outbound);
    assert_eq!(first.destination_meta.as_ref().unwrap().labels["pod"], "tax-1");
    assert_eq!(first.route_meta.as_ref().unwrap().labels["route"], "tax");
    let Event::RequestInit(init) = http_event(first) else { panic!("{first:?}") };
    assert_eq!((&*init.authority, &*init.path), ("tax.shop", "/rates"));
    let put = http_method::Type::Registered(http_method::Registered::Put.into());
    assert_eq!(init.method.as_ref().unwrap().r#type, Some(put));
    assert_eq!(init.headers.as_ref().unwrap().headers[0].name, "accept");

    let Event::ResponseInit(head) = http_event(second) else { panic!("{second:?}") };
    assert_eq!((head.http_status, &head.id), (200, &init.id));
    let Event::ResponseEnd(end) = http_event(third) else { panic!("{third:?}") };
    assert_eq!(end.response_bytes, 120);
    assert_eq!(end.since_response_init.unwrap().nanos, 4_000_000);
    assert_eq!(end.eos.unwrap().end, Some(pb::eos::End::GrpcStatusCode(14)));
}

fn on(matched: Match) -> PbMatch {
    PbMatch { r#match: Some(matched) }
}

#[tokio::test]
async fn conditions_are_understood() {
    let netmask = tcp::Netmask { ip: Some(IpAddress::from([10, 0, 0, 0])), mask: 8 };
    let ports = tcp::PortRange { min: 80, max: 0 };
    let path = on_http::StringMatch {
        r#match: Some(on_http::string_match::Match::Prefix("/rates".into())),
    };
    let conditions = vec![
        on(Match::Source(Tcp { r#match: Some(tcp::Match::Netmask(netmask)) })),
        on(Match::Not(Box::new(on(Match::Destination(Tcp {
            r#match: Some(tcp::Match::Ports(ports)),
        }))))),
        on(Match::Http(Http { r#match: Some(on_http::Match::Path(path)) })),
        on(Match::Http(Http { r#match: Some(on_http::Match::Method(Method::GET.into())) })),
    ];
    let headers =
        extract::Http { extract: Some(extract::http::Extract::Headers(extract::http::Headers {})) };
    let request = ObserveRequest {
        limit: 5,
        r#match: Some(on(Match::All(Seq { matches: conditions }))),
        extract: Some(Extract { extract: Some(extract::Extract::Http(headers)) }),
    };
    let (subscription, _) = observe(request).await.unwrap();
    let net = Cidr { addr: "10.0.0.0".parse().unwrap(), prefix: 8 };
    let expected = TapMatch::All(vec![
        TapMatch::Source(TcpMatch::Net(net)),
        TapMatch::Not(Box::new(TapMatch::Destination(TcpMatch::Ports(80..=80)))),
        TapMatch::Path(StringMatch::Prefix("/rates".into())),
        TapMatch::Method(Method::GET),
    ]);
    let expected = TapSubscription { limit: 5, filter: Some(expected), with_headers: true };
    assert_eq!(subscription, expected);
}

#[tokio::test]
async fn conditions_that_cannot_be_meant_are_refused() {
    let unknown = on(Match::Any(Seq { matches: vec![PbMatch { r#match: None }] }));
    let netmask = tcp::Netmask { ip: Some(IpAddress::from([10, 0, 0, 0])), mask: 33 };
    let mask = on(Match::Source(Tcp { r#match: Some(tcp::Match::Netmask(netmask)) }));
    let mut deep = on(Match::All(Seq::default()));
    for _ in 0..20 {
        deep = on(Match::Not(Box::new(deep)));
    }
    let wide = on(Match::Any(Seq { matches: vec![on(Match::All(Seq::default())); 65] }));
    for (condition, message) in [
        (unknown, "match.any[0].match: is missing"),
        (mask, "match.source.netmask: 10.0.0.0/33 is no network"),
        (deep, "conditions are nested more than 16 deep"),
        (wide, "match.any: has 65 items"),
    ] {
        let request = ObserveRequest { r#match: Some(condition), ..Default::default() };
        let status = observe(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(message), "{}", status.message());
    }
}
