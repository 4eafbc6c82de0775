//! What `meshctl` asks besides figures: resources, routes, endpoints, proxies, tap.

use std::collections::BTreeSet;

use mesh_api::ext::mesh_tap_event::{Event, TapStatus};

use super::*;
use crate::source::{Problem, Severity};

const WEB: &str = "127.77.2.1";
const TAX: &str = "127.77.2.2";

fn event(id: u64, direction: ext::Direction, source: &str, destination: &str) -> ext::TapEvent {
    ext::TapEvent {
        id,
        direction: direction.into(),
        source: format!("{source}:40000"),
        destination: format!("{destination}:8080"),
        method: "GET".into(),
        status: 200,
        ..ext::TapEvent::default()
    }
}

const CONFIG: &str = r#"{"version": "9.9.9", "uptime_seconds": 5, "ready": true, "rss_bytes": 1000,
    "control": {"streams_up": 2, "streams_wanted": 3, "config_rejected": 1},
    "identity": {"id": "web.shop", "roots": ["ab"], "renewals": 2, "failures": 1, "last_error": null,
        "certificate": {"serial": "0a", "issuer": "mesh issuer", "not_before": 10, "not_after": 90}},
    "outbound": {"backends": [
        {"backend": "Service/shop/tax:8080", "endpoints": [
            {"address": "127.77.2.2:8080", "state": "ready", "rtt_ms": 2.5, "in_flight": 1}]},
        {"backend": "Service/shop/tax:8080", "endpoints": [
            {"address": "127.77.2.2:8080", "state": "ejected", "rtt_ms": 1.5, "in_flight": 2}]}]}}"#;

/// web and tax with proxies of which only web's answers, unless told otherwise.
async fn world(events: Vec<ext::TapEvent>) -> (World, u16, DropGuard) {
    let web = FakeProxy { events, config: CONFIG.into(), ..FakeProxy::default() };
    let (port, web) = fake(WEB, 0, web).await;
    let world = World::start(port).await;
    world.apply(service("tax"));
    world.apply(Object::Pod(pod("web-1", WEB)));
    world.apply(Object::Pod(pod("tax-1", TAX)));
    world.apply(slice("tax", &[("tax-1", TAX)]));
    (world, port, web)
}

#[tokio::test]
async fn info_counts_and_tells_problems() {
    let (world, _port, _web) = world(Vec::new()).await;
    world.shared.set_problems(vec![Problem {
        severity: Severity::Error,
        object: "HTTPRoute/shop/tax".into(),
        file: Some("a.yaml".into()),
        line: 3,
        field: "spec".into(),
        message: "is wrong".into(),
    }]);
    let info = world.client().await.info(ext::InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.source.as_str(), info.services, info.pods), ("local", 1, 2));
    let problem = &info.problems[0];
    assert_eq!(
        (problem.severity.as_str(), problem.file.as_str(), problem.line),
        ("error", "a.yaml", 3)
    );
}

#[tokio::test]
async fn whoever_asks_before_the_mesh_is_known_waits() {
    let world = World::begun(0, Shared::default()).await;
    let mut client = world.client().await;
    let asked = tokio::spawn(async move { client.proxies(selector("pod", "")).await });
    // How far it has come is told all the same.
    world.client().await.info(ext::InfoRequest {}).await.unwrap();
    world.apply(Object::Pod(pod("tax-1", TAX)));
    assert!(!asked.is_finished());
    world.shared.set_ready();
    let rows = asked.await.unwrap().unwrap().into_inner().proxies;
    assert_eq!(rows.len(), 1, "{rows:?}");
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_does_not_wait_for_ever() {
    let service = MeshService::new(Arc::new(Shared::default()), "local");
    let refused =
        mesh_api::ext::mesh_server::Mesh::proxies(&service, Request::new(selector("pod", "")));
    assert_eq!(refused.await.unwrap_err().code(), tonic::Code::Unavailable);
}

#[tokio::test]
async fn resources_of_every_kind() {
    let (world, _port, _web) = world(Vec::new()).await;
    let empty = Workload {
        kind: Kind::Deployment,
        name: Name::new("shop", "idle"),
        labels: Labels::default(),
        annotations: Labels::default(),
    };
    world.apply(Object::Workload(empty));
    let names = async |selector: Selector| {
        let reply = world.client().await.resources(selector).await.unwrap().into_inner();
        let name = |workload: &ext::Workload| {
            let of = workload.r#ref.clone().unwrap();
            format!("{}/{} {}", of.kind, of.name, workload.pods.len())
        };
        reply.workloads.iter().map(name).collect::<Vec<_>>()
    };
    assert_eq!(
        names(selector("deployment", "")).await,
        ["deployment/idle 0", "deployment/tax 1", "deployment/web 1"]
    );
    assert_eq!(names(selector("pod", "web-1")).await, ["pod/web-1 1"]);
    assert_eq!(names(selector("service", "")).await, ["service/tax 1"]);
    assert_eq!(names(selector("namespace", "")).await, ["namespace/shop 2"]);
    assert_eq!(names(selector("job", "")).await, [""; 0]);
    let elsewhere = Selector { namespace: "bank".into(), ..selector("pod", "") };
    assert_eq!(names(elsewhere).await, [""; 0]);

    let reply =
        world.client().await.resources(selector("service", "tax")).await.unwrap().into_inner();
    assert_eq!(reply.workloads[0].cluster_ip, "10.0.0.1");
    assert_eq!(reply.workloads[0].ports[0].port, 8080);
    assert_eq!(reply.workloads[0].pods[0].owner.as_ref().unwrap().kind, "deployment");
}

#[tokio::test]
async fn endpoints_of_the_index_and_of_the_proxies() {
    let (world, _port, _web) = world(Vec::new()).await;
    let ask = async |authority: &str| {
        let request = ext::EndpointsRequest { authority: authority.into(), from_proxies: true };
        world.client().await.endpoints(request).await.map(tonic::Response::into_inner)
    };
    let reply = ask("tax.shop:8080").await.unwrap();
    assert_eq!(reply.service, "Service/shop/tax:8080");
    let row = &reply.endpoints[0];
    assert_eq!(
        (row.address.as_str(), row.pod.as_str(), row.hint.as_str()),
        ("127.77.2.2:8080", "tax-1", "h2")
    );
    let [holder] = &reply.proxies[..] else { panic!("{:?}", reply.proxies) };
    let held = &holder.endpoints[0];
    assert_eq!((holder.pod.as_str(), held.state.as_str(), held.in_flight), ("web-1", "ejected", 3));

    assert_eq!(ask("10.0.0.1:8080").await.unwrap().service, "Service/shop/tax:8080");
    assert_eq!(ask("127.77.2.2:9").await.unwrap().endpoints[0].pod, "tax-1");
    for unknown in ["other.shop:80", "tax.shop:1", "192.0.2.1:80", "www.example.com"] {
        assert_eq!(ask(unknown).await.unwrap_err().code(), tonic::Code::NotFound, "{unknown}");
    }
    assert_eq!(ask("a b").await.unwrap_err().code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn proxies_that_answer_and_that_do_not() {
    let (world, _port, _web) = world(Vec::new()).await;
    let mut client = world.client().await;
    let rows = client.proxies(selector("pod", "")).await.unwrap().into_inner().proxies;
    let [tax, web] = &rows[..] else { panic!("{rows:?}") };
    assert!(!tax.reachable && !tax.error.is_empty());
    assert_eq!(tax.version, "0.1.0", "as the pod says");
    assert!(web.reachable && web.ready);
    assert_eq!(
        (web.version.as_str(), web.streams_up, web.streams_wanted, web.config_rejected),
        ("9.9.9", 2, 3, 1)
    );
    let identity = web.identity.as_ref().unwrap();
    assert_eq!((identity.id.as_str(), &identity.roots[..]), ("web.shop", &["ab".to_owned()][..]));
    assert_eq!((identity.renewals, identity.failures, identity.last_error.as_str()), (2, 1, ""));
    let certificate = identity.certificate.as_ref().unwrap();
    assert_eq!((certificate.serial.as_str(), certificate.not_after), ("0a", 90));

    let ask = |pod: &str| ext::ProxyConfigRequest { pod: pod.into(), namespace: "shop".into() };
    assert_eq!(client.proxy_config(ask("web-1")).await.unwrap().into_inner().json, CONFIG);
    let code = client.proxy_config(ask("tax-1")).await.unwrap_err().code();
    assert_eq!(code, tonic::Code::Unavailable);
    assert_eq!(client.proxy_config(ask("gone")).await.unwrap_err().code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn routes_in_words() {
    let (world, _port, _web) = world(Vec::new()).await;
    let parent = ServiceRef { service: Name::new("shop", "tax"), ..ServiceRef::default() };
    let backend = |name: &str, weight| BackendRef {
        target: BackendTarget::Service { service: Name::new("shop", name), port: 8080 },
        weight,
        filters: Vec::new(),
    };
    let ask = async |of: Selector| {
        let rows = world.client().await.routes(of).await.unwrap().into_inner().routes;
        let text = |r: ext::RouteRow| {
            format!(
                "{} {} | {} | {} | {} | {}",
                r.route, r.parent, r.r#match, r.backends, r.policy, r.status
            )
        };
        rows.into_iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(
        ask(selector("service", "tax")).await,
        ["default/http Service/shop/tax:8080 | any request | tax:8080 100% |  | Accepted"]
    );

    let prefix = mesh_model::route::PathMatch::Prefix("/v2".into());
    let special = mesh_model::route::HttpMatch {
        path: Some(prefix),
        method: Some(http::Method::GET),
        ..Default::default()
    };
    let rules = vec![
        RouteRule { backends: vec![backend("tax", 3), backend("gone", 1)], ..RouteRule::default() },
        RouteRule {
            matches: vec![special],
            backends: vec![backend("tax", 1)],
            ..RouteRule::default()
        },
    ];
    let head = RouteHead {
        name: Name::new("shop", "r"),
        created: None,
        parents: vec![parent],
        ..RouteHead::default()
    };
    world.apply(Object::HttpRoute(HttpRoute { head, hosts: Vec::new(), rules }));
    let why = "ResolvedRefs is false: Service shop/gone does not exist";
    let rows = [
        format!(
            "HTTPRoute/shop/r Service/shop/tax:8080 | PathPrefix /v2 GET | tax:8080 100% |  | {why}"
        ),
        format!(
            "HTTPRoute/shop/r Service/shop/tax:8080 | any request | \
             tax:8080 75%, gone:8080 25% (fails with 500) |  | {why}"
        ),
    ];
    assert_eq!(ask(selector("service", "tax")).await, rows);
    assert_eq!(ask(selector("deployment", "tax")).await, rows, "of the services in front of it");
    assert_eq!(ask(selector("namespace", "shop")).await, rows);
    assert_eq!(ask(selector("deployment", "web")).await, [""; 0]);
}

type Tap = tonic::Streaming<ext::MeshTapEvent>;

async fn tap(world: &World, request: ext::MeshTapRequest) -> Tap {
    world.client().await.tap(request).await.unwrap().into_inner()
}

async fn tapped(tap: &mut Tap) -> Event {
    next(tap).await.unwrap().unwrap().event.unwrap()
}

async fn status(tap: &mut Tap) -> TapStatus {
    match tapped(tap).await {
        Event::Status(status) => status,
        Event::Request(request) => panic!("{request:?}"),
    }
}

fn all() -> ext::MeshTapRequest {
    ext::MeshTapRequest { selectors: vec![selector("pod", "")], ..Default::default() }
}

#[tokio::test]
async fn a_tap_begins_with_how_many_and_goes_on_without_the_lost() {
    let events = vec![
        event(1, ext::Direction::Outbound, "127.0.0.1", TAX),
        event(2, ext::Direction::Inbound, "192.0.2.1", "127.0.0.1"),
    ];
    let (world, _port, _web) = world(events).await;
    let mut tap = tap(&world, all()).await;
    let first = status(&mut tap).await;
    assert_eq!((first.pods, first.tapped, first.unreachable.len()), (2, 1, 1));
    assert_eq!(first.unreachable[0].pod, "tax-1");
    let mut ends = Vec::new();
    for _ in 0..2 {
        let Event::Request(request) = tapped(&mut tap).await else { panic!() };
        assert_eq!((request.pod.as_str(), request.namespace.as_str()), ("web-1", "shop"));
        let name = |end: Option<ext::ObjectRef>| end.map(|end| end.name).unwrap_or_default();
        ends.push(format!("{}>{}", name(request.source), name(request.destination)));
    }
    assert_eq!(ends, ["web-1>tax-1", ">web-1"]);
}

#[tokio::test]
async fn pods_that_come_are_tapped_and_those_that_go_are_not() {
    let (world, port, _web) = world(Vec::new()).await;
    world.shared.index.write().delete(&Object::Pod(pod("tax-1", TAX)).key());
    let mut tap = tap(&world, all()).await;
    assert_eq!(status(&mut tap).await.tapped, 1);

    let events = vec![event(7, ext::Direction::Inbound, WEB, "127.0.0.1")];
    let (_, _tax) = fake(TAX, port, FakeProxy { events, ..FakeProxy::default() }).await;
    world.apply(Object::Pod(pod("tax-1", TAX)));
    let mut seen = BTreeSet::new();
    // One word that it is wanted, one that it is there, and its event; the last two in any order.
    while !(seen.contains("tapped") && seen.contains("event")) {
        match tapped(&mut tap).await {
            Event::Status(status) if status.tapped == 2 => seen.insert("tapped"),
            Event::Status(_) => false,
            Event::Request(request) => {
                assert_eq!(request.event.unwrap().id, 7);
                seen.insert("event")
            }
        };
    }
    world.shared.index.write().delete(&Object::Pod(pod("tax-1", TAX)).key());
    let last = status(&mut tap).await;
    assert_eq!((last.pods, last.tapped), (1, 1));
}

#[tokio::test]
async fn a_filter_that_cannot_be_used_is_refused_at_once() {
    let (world, _port, _web) = world(Vec::new()).await;
    let filter = ext::TapFilter { status: "many".into(), ..ext::TapFilter::default() };
    let request = ext::MeshTapRequest { filter: Some(filter), ..all() };
    let status = world.client().await.tap(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let nobody = ext::MeshTapRequest { to: Some(selector("deployment", "nobody")), ..all() };
    let status = world.client().await.tap(nobody).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound);
}
