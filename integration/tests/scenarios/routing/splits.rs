//! Shares of traffic, and routes that change while requests come in.

use std::collections::HashMap;

use http::{Request, Response};
use hyper::body::Incoming;
use mesh_integration::app::HttpApp;
use mesh_integration::client::http::{Body, Way, empty, full};
use mesh_integration::mesh::{Mesh, Pod, Service};
use mesh_integration::steady::{Load, Outcome, Plan, assert_none_failed};
use mesh_integration::wait;
use serde_json::{Value, json};

use super::{PORT, route};

/// Names itself to [`Load`].
async fn named(name: &'static str) -> HttpApp {
    HttpApp::start(move |_: Request<Incoming>| async move {
        Response::builder().header("x-pod", name).body(full("")).unwrap()
    })
    .await
}

/// Of `v1` and `v2`.
fn weights(v1: u32, v2: u32) -> Value {
    let canary = json!([{ "name": "x-canary", "value": "yes" }]);
    let backends = json!([
        { "name": "v1", "port": 80, "weight": v1 },
        { "name": "v2", "port": 80, "weight": v2 },
    ]);
    let rules = json!([
        { "matches": [{ "headers": canary }], "backendRefs": [{ "name": "v2", "port": 80 }] },
        { "backendRefs": backends },
    ]);
    route("HTTPRoute", "web", rules)
}

async fn mesh(v1: &HttpApp, v2: &HttpApp, route: Value) -> Mesh {
    Mesh::builder()
        .pod(Pod::new("client").upstream("web:80"))
        .pod(Pod::new("v1").port(PORT, v1.addr()))
        .pod(Pod::new("v2").port(PORT, v2.addr()))
        .service(Service::new("web", PORT).before("v1"))
        .service(Service::new("v1", PORT))
        .service(Service::new("v2", PORT))
        .manifest(route)
        .start()
        .await
}

fn plan(mesh: &Mesh, rate: u32) -> Plan {
    let way = Way::Http1(mesh.pod("client").upstream(0));
    Plan { way, authority: "web:80".to_owned(), rate }
}

fn plain(_: u64) -> Request<Body> {
    Request::get("/").body(empty()).unwrap()
}

fn shares(outcomes: &[Outcome]) -> HashMap<String, usize> {
    let mut shares = HashMap::new();
    for outcome in outcomes {
        *shares.entry(outcome.answer.as_ref().unwrap().pod.clone()).or_default() += 1;
    }
    shares
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_quarters_and_a_quarter_are_that_and_a_canary_gets_what_is_marked() {
    const REQUESTS: u64 = 12_000;
    let (v1, v2) = (named("v1").await, named("v2").await);
    let mesh = mesh(&v1, &v2, weights(75, 25)).await;
    // Every sixth is marked.
    let request = |number: u64| {
        let mut request = plain(number);
        if number.is_multiple_of(6) {
            request.headers_mut().insert("x-canary", "yes".parse().unwrap());
        }
        request
    };
    let outcomes = Load::start(plan(&mesh, 1500), request).up_to(REQUESTS).await;
    assert_none_failed(&outcomes);
    let (marked, plain): (Vec<_>, Vec<_>) =
        outcomes.into_iter().partition(|outcome| outcome.number.is_multiple_of(6));
    assert_eq!(shares(&marked), HashMap::from([("v2".to_owned(), marked.len())]));
    let share = shares(&plain)["v1"] as f64 / plain.len() as f64;
    assert!((share - 0.75).abs() < 0.005, "{share}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_changes_under_load_fails_nothing_and_is_soon_everywhere() {
    let (v1, v2) = (named("v1").await, named("v2").await);
    let mesh = mesh(&v1, &v2, weights(1, 0)).await;
    let mut load = Load::start(plan(&mesh, 1000), plain);
    load.more(1000).await;
    for (weight, pod) in [(weights(0, 1), "v2"), (weights(1, 0), "v1"), (weights(0, 1), "v2")] {
        let before = load.outcomes().len();
        mesh.apply(&weight);
        wait::until("the new route to be in force", async || {
            let outcomes = load.outcomes();
            let new = outcomes[before..].iter().rev().take(20);
            let all = new.clone().count() == 20
                && new.clone().all(|outcome| outcome.answer.as_ref().is_ok_and(|a| a.pod == pod));
            all.then_some(())
        })
        .await;
        load.more(500).await;
    }
    assert_none_failed(&load.stop().await);
}
