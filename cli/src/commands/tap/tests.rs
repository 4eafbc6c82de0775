//! Taps against a scripted control plane.

use mesh_api::ext;
use mesh_api::ext::mesh_tap_event::{Event, TapStatus, Tapped};

use crate::error::Kind;
use crate::testing::{FakeMesh, golden, object};

/// The request of the documentation.
pub(crate) fn sample() -> Tapped {
    let millis = |ms: i32| prost_types::Duration { seconds: 0, nanos: ms * 100_000 };
    Tapped {
        pod: "books".into(),
        namespace: "shop".into(),
        source: Some(object("pod", "shop", "web-1")),
        destination: Some(object("pod", "shop", "books")),
        event: Some(ext::TapEvent {
            id: 7,
            started_unix_ms: 1_767_268_801_123,
            direction: ext::Direction::Inbound.into(),
            source: "127.101.0.2:40001".into(),
            destination: "127.101.0.3:7001".into(),
            method: "GET".into(),
            scheme: "http".into(),
            authority: "books:7001".into(),
            path: "/authors/7".into(),
            route: "HTTPRoute/shop/books".into(),
            status: 200,
            attempts: 1,
            response_bytes: 1536,
            first_byte: Some(millis(100)),
            duration: Some(millis(124)),
            tls: "web.shop".into(),
            policy: "AuthorizationPolicy/shop/books".into(),
            ..Default::default()
        }),
    }
}

fn status(pods: u32, tapped: u32) -> Event {
    let unreachable = (tapped..pods).map(|at| ext::Unreachable {
        pod: format!("web-{at}"),
        namespace: "shop".into(),
        error: "connection refused".into(),
    });
    Event::Status(TapStatus { pods, tapped, unreachable: unreachable.collect() })
}

fn mesh(events: Vec<Event>) -> FakeMesh {
    FakeMesh { tap: events, ..FakeMesh::default() }
}

#[tokio::test]
async fn count_stops_it_and_stderr_tells_how_it_went() {
    let mut second = sample();
    second.event.as_mut().unwrap().skipped = 3;
    let events = vec![
        status(3, 2),
        Event::Request(sample()),
        Event::Request(second),
        Event::Request(sample()),
    ];
    let ran = mesh(events).run("tap deploy/web --count 2").await;
    assert!(ran.result.is_ok(), "{:?}", ran.result);
    assert_eq!(ran.out.lines().count(), 2);
    assert_eq!(
        ran.err,
        "tapping 2/3 pods; 1 unreachable: shop/web-2: connection refused\n2 requests from 2 pods; 3 more left out, see \
         --max-rps\n"
    );
}

#[tokio::test]
async fn json_joins_the_reference_events() {
    let mut tapped = sample();
    let event = tapped.event.as_mut().unwrap();
    event.grpc_status = Some(0);
    event.request_headers = vec![ext::Header { name: "x-user".into(), value: "7".into() }];
    let ran = mesh(vec![status(1, 1), Event::Request(tapped)])
        .run("tap deploy/web --count 1 -o json --headers")
        .await;
    golden("tap.json", &ran.out);
    assert!(ran.out.ends_with("}\n") && ran.out.lines().count() == 1);
}

#[tokio::test]
async fn har_is_one_document() {
    let ran = mesh(vec![status(1, 1), Event::Request(sample()), Event::Request(sample())])
        .run("tap deploy/web --count 2 -o har")
        .await;
    let har: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(har["log"]["entries"].as_array().unwrap().len(), 2);
    golden("tap.har", &ran.out);
}

#[tokio::test]
async fn filters_reach_the_control_plane() {
    let ran = mesh(vec![status(1, 1), Event::Request(sample())])
        .run("tap deploy/web --count 1 --to svc/tax -n shop --method post --path /a --status 5xx --direction out \
              --header x-a=1 --max-rps 7 --authority tax")
        .await;
    let asked = ran.asked.tap.clone().unwrap();
    let filter = asked.filter.clone().unwrap();
    assert_eq!(asked.max_rps, 7);
    assert_eq!(asked.to.unwrap().kind, "service");
    assert_eq!(asked.selectors[0].namespace, "shop");
    assert_eq!(filter.direction(), ext::Direction::Outbound);
    assert_eq!(
        (filter.path.as_str(), filter.status.as_str(), filter.authority.as_str()),
        ("/a", "5xx", "tax")
    );
    assert_eq!(filter.headers[0].name, "x-a");
    assert!(!filter.with_headers);
}

#[tokio::test]
async fn nobody_to_tap_is_an_error_that_says_who_is_there() {
    let mut fake = mesh(vec![status(0, 0)]);
    fake.workloads = vec![crate::testing::workload("deployment", "shop", "web", 1)];
    let ran = fake.run("tap deploy/wbe").await;
    let error = ran.result.unwrap_err();
    assert_eq!(error.kind, Kind::Missing);
    assert_eq!(error.message, "there is no deployment/wbe");
    assert_eq!(error.hint.as_deref(), Some("deploy/web -n shop"));
}

#[tokio::test]
async fn a_control_plane_that_goes_away_is_said_to() {
    let ran = mesh(vec![status(1, 1), Event::Request(sample())]).run("tap deploy/web").await;
    assert_eq!(ran.result.unwrap_err().kind, Kind::Unreachable);
}
