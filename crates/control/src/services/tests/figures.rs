//! `stat` and `edges`: whose figures are taken, and how they merge.

use std::net::IpAddr;
use std::time::Duration;

use mesh_api::ext::stat_request::ClientSide;
use mesh_api::stats::write_series;
use mesh_model::Direction;
use mesh_model::stats::{SeriesKey, StatProtocol, Totals};

use super::*;

fn series(direction: Direction, peer: &str, names: [&str; 3], good: u64, bad: u64) -> ext::Series {
    let [parent, route, backend] = names;
    let key = SeriesKey {
        direction,
        protocol: StatProtocol::Http,
        peer: peer.parse::<IpAddr>().ok(),
        port: 8080,
        parent: parent.into(),
        route: route.into(),
        backend: backend.into(),
        identity: None,
    };
    let mut totals = Totals::default();
    for n in 0..good + bad {
        let (status, ok) = if n < good { (200, true) } else { (503, false) };
        totals.add_response(status, ok, Duration::from_millis(1), Duration::from_millis(2));
    }
    write_series(&key, &totals, 1)
}

const WEB: &str = "127.77.1.1";
const TAX_1: &str = "127.77.1.2";
const TAX_2: &str = "127.77.1.3";
/// Has no proxy.
const CRON: &str = "127.77.1.4";
const TAX: &str = "Service/shop/tax:8080";
const V2: &str = "Service/shop/tax-v2:8080";
const ROUTE: &str = "HTTPRoute/shop/tax";

/// web sends to tax, whose second pod is also behind tax-v2; cron sends to tax without a proxy.
async fn world() -> (World, Vec<DropGuard>) {
    let web = FakeProxy {
        series: vec![
            series(Direction::Outbound, TAX_1, [TAX, ROUTE, TAX], 10, 0),
            series(Direction::Outbound, TAX_2, [TAX, ROUTE, V2], 4, 2),
            series(Direction::Outbound, "", [TAX, ROUTE, V2], 0, 1),
            series(Direction::Inbound, "192.0.2.7", ["", "default/http", ""], 5, 0),
        ],
        breakers: vec![ext::Breaker {
            backend: V2.into(),
            endpoint: format!("{TAX_2}:8080"),
            state: "ejected".into(),
        }],
        ..FakeProxy::default()
    };
    let tax_1 = FakeProxy {
        series: vec![
            series(Direction::Inbound, WEB, ["", "default/http", ""], 10, 0),
            series(Direction::Inbound, CRON, ["", "default/http", ""], 3, 0),
        ],
        ..FakeProxy::default()
    };
    let tax_2 = FakeProxy {
        series: vec![series(Direction::Inbound, WEB, ["", "default/http", ""], 4, 2)],
        ..FakeProxy::default()
    };
    let (port, web) = fake(WEB, 0, web).await;
    let (_, tax_1) = fake(TAX_1, port, tax_1).await;
    let (_, tax_2) = fake(TAX_2, port, tax_2).await;
    let world = World::start(port).await;
    for name in ["tax", "tax-v2"] {
        world.apply(service(name));
    }
    world.apply(Object::Pod(pod("web-1", WEB)));
    world.apply(Object::Pod(pod("tax-1", TAX_1)));
    world.apply(Object::Pod(pod("tax-2", TAX_2)));
    world.apply(Object::Pod(Pod { proxy: None, ..pod("cron-1", CRON) }));
    world.apply(slice("tax", &[("tax-1", TAX_1), ("tax-2", TAX_2)]));
    world.apply(slice("tax-v2", &[("tax-2", TAX_2)]));
    (world, vec![web, tax_1, tax_2])
}

async fn stat(world: &World, of: Selector, side: Option<ClientSide>, by: &str) -> ext::StatReply {
    let request = ext::StatRequest {
        selectors: vec![of],
        window_seconds: 60,
        by: by.into(),
        client_side: side,
    };
    world.client().await.stat(request).await.unwrap().into_inner()
}

/// `by`, successes, failures of each row.
fn counts(reply: &ext::StatReply) -> Vec<(String, u64, u64)> {
    let of = |row: &ext::StatRow| {
        let totals = row.totals.clone().unwrap_or_default();
        (row.by.clone(), totals.success, totals.failure)
    };
    reply.rows.iter().map(of).collect()
}

fn row(by: &str, success: u64, failure: u64) -> (String, u64, u64) {
    (by.to_owned(), success, failure)
}

#[tokio::test]
async fn a_workload_is_seen_from_the_server_side() {
    let (world, _proxies) = world().await;
    let reply = stat(&world, selector("deployment", "tax"), None, "").await;
    assert_eq!(reply.view, "server");
    assert_eq!(counts(&reply), [row("", 17, 2)]);
    let first = &reply.rows[0];
    assert_eq!((first.meshed_pods, first.ready_pods, first.running_pods), (2, 2, 2));
    assert_eq!(first.covered_seconds, 30);
    assert_eq!(first.totals.as_ref().unwrap().tcp_open, 3);
    assert_eq!(first.breakers.len(), 1, "as its clients see it");
    assert!(reply.unreachable.is_empty());

    let by_pod = stat(&world, selector("deployment", "tax"), None, "pod").await;
    assert_eq!(counts(&by_pod), [row("tax-1", 13, 0), row("tax-2", 4, 2)]);
    let by_route = stat(&world, selector("deployment", "tax"), None, "route").await;
    assert_eq!(counts(&by_route), [row("default/http", 17, 2)]);
}

#[tokio::test]
async fn a_service_is_seen_from_its_clients() {
    let (world, _proxies) = world().await;
    let reply = stat(&world, selector("service", "tax"), None, "").await;
    assert_eq!(reply.view, "client");
    assert_eq!(counts(&reply), [row("", 14, 3)], "with the failure that chose no endpoint");
    let reply = stat(&world, selector("service", "tax"), None, "backend").await;
    assert_eq!(counts(&reply), [row(V2, 4, 3), row(TAX, 10, 0)]);
    let reply = stat(&world, selector("service", "tax-v2"), None, "").await;
    assert_eq!(counts(&reply), [row("", 4, 3)], "what a route sent there");
    let reply = stat(&world, selector("service", "tax"), None, "pod").await;
    assert_eq!(counts(&reply), [row("", 0, 1), row("tax-1", 10, 0), row("tax-2", 4, 2)]);
}

#[tokio::test]
async fn both_client_sides() {
    let (world, _proxies) = world().await;
    let to = |kind: &str, name: &str| Some(ClientSide::To(selector(kind, name)));
    let from = |kind: &str, name: &str| Some(ClientSide::From(selector(kind, name)));
    let web = || selector("deployment", "web");

    let reply = stat(&world, web(), to("service", "tax-v2"), "").await;
    assert_eq!((reply.view.as_str(), counts(&reply)), ("client", vec![row("", 4, 3)]));
    assert_eq!(reply.rows[0].r#ref.as_ref().unwrap().name, "web");
    let reply = stat(&world, web(), to("pod", "tax-1"), "").await;
    assert_eq!(counts(&reply), [row("", 10, 0)]);

    let reply = stat(&world, selector("deployment", "tax"), from("deployment", "web"), "").await;
    assert_eq!(counts(&reply), [row("", 14, 3)]);
    assert_eq!(reply.rows[0].r#ref.as_ref().unwrap().name, "tax");
    let reply = stat(&world, selector("deployment", "web"), from("deployment", "tax"), "").await;
    assert_eq!(reply.rows[0].no_data, "no traffic");
}

#[tokio::test]
async fn by_pod_those_without_figures_have_a_row_that_says_why() {
    let (world, mut proxies) = world().await;
    world.apply(Object::Pod(Pod { proxy: None, ..pod("tax-3", "127.77.1.5") }));
    drop(proxies.pop());
    let reply = stat(&world, selector("deployment", "tax"), None, "pod").await;
    let why = |reply: &ext::StatReply| -> Vec<(String, String)> {
        reply.rows.iter().map(|row| (row.by.clone(), row.no_data.clone())).collect()
    };
    let row = |by: &str, why: &str| (by.to_owned(), why.to_owned());
    assert_eq!(
        why(&reply),
        [row("tax-1", ""), row("tax-2", "not reachable"), row("tax-3", "not meshed")]
    );
    assert_eq!(reply.rows[1].totals, None, "nothing is known, which is not 0");

    let reply = stat(&world, selector("service", "tax-v2"), None, "pod").await;
    assert_eq!(why(&reply), [row("", ""), row("tax-2", "")]);
    world.apply(slice("tax-v2", &[("tax-1", TAX_1), ("tax-2", TAX_2)]));
    let reply = stat(&world, selector("service", "tax-v2"), None, "pod").await;
    assert_eq!(why(&reply), [row("", ""), row("tax-2", ""), row("tax-1", "no traffic")]);

    let reply = stat(&world, selector("deployment", "cron"), None, "pod").await;
    assert_eq!(why(&reply), [row("cron-1", "not meshed")]);
    let reply = stat(&world, selector("deployment", "tax"), None, "route").await;
    assert_eq!(reply.rows.len(), 1, "of pods only");
}

#[tokio::test]
async fn nothing_says_why() {
    let (world, mut proxies) = world().await;
    let reply = stat(&world, selector("deployment", "cron"), None, "").await;
    assert_eq!(reply.rows[0].no_data, "not meshed");
    assert_eq!(reply.rows[0].totals, None);

    drop(proxies.remove(0));
    let reply = stat(&world, selector("deployment", "web"), None, "").await;
    assert_eq!(reply.rows[0].no_data, "not reachable");
    assert_eq!(reply.unreachable.len(), 1);
    assert_eq!(reply.unreachable[0].pod, "web-1");
    assert!(!reply.unreachable[0].error.is_empty());
    let reply = stat(&world, selector("deployment", "tax"), None, "").await;
    assert!(reply.unreachable.is_empty(), "others are not its business");

    let request = |of: Selector, by: &str| ext::StatRequest {
        selectors: vec![of],
        by: by.into(),
        ..ext::StatRequest::default()
    };
    let mut client = world.client().await;
    let mut code = async |request| client.stat(request).await.unwrap_err().code();
    assert_eq!(code(request(selector("deployment", "nobody"), "")).await, tonic::Code::NotFound);
    assert_eq!(code(request(selector("widget", ""), "")).await, tonic::Code::InvalidArgument);
    assert_eq!(code(request(selector("pod", ""), "colour")).await, tonic::Code::InvalidArgument);
    assert_eq!(code(request(selector("pod", ""), "backend")).await, tonic::Code::InvalidArgument);
    assert_eq!(code(ext::StatRequest::default()).await, tonic::Code::InvalidArgument);
}

async fn edges(world: &World, kind: &str, name: &str) -> Vec<String> {
    let request = ext::EdgesRequest { selectors: vec![selector(kind, name)], window_seconds: 60 };
    let reply = world.client().await.edges(request).await.unwrap().into_inner();
    let end = |end: &Option<ext::ObjectRef>| end.clone().unwrap_or_default().name;
    let edges = reply.edges.iter().map(|edge| {
        let totals = edge.totals.clone().unwrap_or_default();
        let (good, bad, why) = (totals.success, totals.failure, &edge.no_tls_reason);
        format!(
            "{}>{} {} {good}+{bad} {why}",
            end(&edge.source),
            end(&edge.destination),
            edge.service
        )
    });
    edges.collect()
}

#[tokio::test]
async fn edges_are_the_clients_and_those_that_no_client_accounts_for() {
    let (world, _proxies) = world().await;
    assert_eq!(
        edges(&world, "deployment", "tax").await,
        ["cron>tax  3+0 source-not-meshed", "web>tax Service/shop/tax:8080 14+2 no-identity",]
    );
    assert_eq!(
        edges(&world, "deployment", "web").await,
        [
            "web>tax Service/shop/tax:8080 14+2 no-identity",
            "web>tax-v2 Service/shop/tax:8080 0+1 not-connected",
            "192.0.2.7>web  5+0 source-not-meshed",
        ]
    );
    assert_eq!(
        edges(&world, "pod", "tax-2").await,
        ["web-1>tax-2 Service/shop/tax:8080 4+2 no-identity"]
    );
    assert_eq!(edges(&world, "namespace", "shop").await.len(), 4);
}

#[tokio::test]
async fn edges_tell_what_both_ends_proved() {
    let id =
        |account: &str| format!("{account}.shop.serviceaccount.identity.mesh-system.cluster.local");
    let secured = |direction, peer: &str, identity: &str| ext::Series {
        identity: identity.to_owned(),
        ..series(direction, peer, ["", "default/http", ""], 1, 0)
    };
    let web = FakeProxy {
        series: vec![
            secured(Direction::Outbound, "127.77.8.2", &id("tax")),
            secured(Direction::Outbound, "127.77.8.3", ""),
        ],
        ..FakeProxy::default()
    };
    // Its client is somewhere else, with an identity of its own.
    let tax = FakeProxy {
        series: vec![secured(Direction::Inbound, "192.0.2.7", &id("far"))],
        ..FakeProxy::default()
    };
    let (port, _web) = fake("127.77.8.1", 0, web).await;
    let (_, _tax) = fake("127.77.8.2", port, tax).await;
    let world = World::with_identity(port).await;
    world.apply(Object::Pod(pod("web-1", "127.77.8.1")));
    world.apply(Object::Pod(pod("tax-1", "127.77.8.2")));
    world.apply(Object::Pod(Pod { proxy: None, ..pod("old-1", "127.77.8.3") }));
    let selectors = vec![selector("deployment", "")];
    let request = ext::EdgesRequest { selectors, window_seconds: 60 };
    let reply = world.client().await.edges(request).await.unwrap().into_inner();
    let mut told: Vec<_> = reply
        .edges
        .into_iter()
        .map(|edge| (edge.client_identity, edge.server_identity, edge.no_tls_reason))
        .collect();
    told.sort();
    let none = String::new;
    let expected = [
        (none(), none(), "destination-not-meshed".to_owned()),
        (id("far"), id("tax"), none()),
        (id("web"), id("tax"), none()),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn hosts_outside_of_the_mesh_are_told_by_name() {
    let (api, other) = ("Egress/api.test:443", "Egress/other.test:443");
    let (allow, deny) = ("EgressPolicy/shop/web#allow[0]", "EgressPolicy/shop/web#default");
    let web = FakeProxy {
        series: vec![
            series(Direction::Outbound, "192.0.2.1", [api, allow, api], 5, 0),
            series(Direction::Outbound, "192.0.2.2", [api, allow, api], 2, 1),
            series(Direction::Outbound, "", [other, deny, ""], 0, 4),
            series(Direction::Outbound, TAX_1, [TAX, ROUTE, TAX], 10, 0),
        ],
        ..FakeProxy::default()
    };
    let (port, _web) = fake(WEB, 0, web).await;
    let world = World::start(port).await;
    world.apply(service("tax"));
    world.apply(Object::Pod(pod("web-1", WEB)));

    let names = |reply: &ext::StatReply| {
        let name = |row: &ext::StatRow| {
            let of = row.r#ref.clone().unwrap();
            format!("{} {}/{}", of.namespace, of.kind, of.name)
        };
        reply.rows.iter().map(name).collect::<Vec<_>>()
    };
    let reply = stat(&world, selector("egress", ""), None, "").await;
    assert_eq!(names(&reply), ["shop egress/api.test", "shop egress/other.test"]);
    assert_eq!(counts(&reply), [row("", 7, 1), row("", 0, 4)]);
    assert_eq!(reply.view, "client");
    let reply = stat(&world, selector("egress", "other.test"), None, "route").await;
    assert_eq!(counts(&reply), [row(deny, 0, 4)]);
    let from = Some(ClientSide::From(selector("deployment", "web")));
    let reply = stat(&world, selector("egress", "api.test"), from, "pod").await;
    assert_eq!(counts(&reply), [row("web-1", 7, 1)]);
    let elsewhere = Selector { namespace: "bank".into(), ..selector("egress", "") };
    assert!(stat(&world, elsewhere, None, "").await.rows.is_empty());

    let refused = async |of: Selector, side: Option<ClientSide>, by: &str| {
        let request = ext::StatRequest {
            selectors: vec![of],
            window_seconds: 60,
            by: by.into(),
            client_side: side,
        };
        world.client().await.stat(request).await.unwrap_err().code()
    };
    let to = Some(ClientSide::To(selector("service", "tax")));
    let labelled = Selector { labels: "a=b".into(), ..selector("egress", "") };
    for code in [
        refused(selector("egress", ""), to, "").await,
        refused(selector("egress", ""), None, "backend").await,
        refused(labelled, None, "").await,
    ] {
        assert_eq!(code, tonic::Code::InvalidArgument);
    }

    let request =
        ext::EdgesRequest { selectors: vec![selector("deployment", "web")], window_seconds: 60 };
    let edges = world.client().await.edges(request).await.unwrap().into_inner().edges;
    let ends: Vec<_> = edges
        .iter()
        .map(|edge| {
            let to = edge.destination.clone().unwrap();
            (format!("{}/{}", to.kind, to.name), edge.no_tls_reason.clone())
        })
        .collect();
    let end = |to: &str, why: &str| (to.to_owned(), why.to_owned());
    assert!(ends.contains(&end("egress/api.test", "destination-not-meshed")), "{ends:?}");
    assert!(ends.contains(&end("egress/other.test", "not-connected")), "{ends:?}");
}
