//! Every pod of a workload is replaced while requests come in: none fails, none is done twice.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use http::Request;
use mesh_integration::client::http::{Body, Way, empty, full};
use mesh_integration::local_mesh::{LocalMesh, objects};
use mesh_integration::steady::{Load, Outcome, Plan, assert_none_failed};

const REQUESTS: u64 = 10_000;
const RATE: u32 = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_see_nothing_of_a_rollout() {
    let mesh = mesh().await;
    let get = |_| Request::get("/after/2/200").body(empty()).unwrap();
    let Way::Absolute(proxy) = mesh.way("client").await else { unreachable!() };
    restart_under_load(&mesh, Way::AbsoluteHttp2(proxy), get).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_orders_are_taken_once_each_across_a_rollout() {
    let mesh = mesh().await;
    let order = |number| {
        let body = format!("order {number}");
        Request::post(format!("/orders/{number}")).body(full(body)).unwrap()
    };
    let way = mesh.way("client").await;
    let outcomes = restart_under_load(&mesh, way, order).await;
    for outcome in &outcomes {
        let body = &outcome.answer.as_ref().unwrap().body;
        assert_eq!(*body, format!("order {}", outcome.number));
    }
    let mut taken: HashMap<u64, u32> = HashMap::new();
    for file in fs::read_dir(mesh.scratch().join("orders")).unwrap() {
        let ids = fs::read_to_string(file.unwrap().path()).unwrap();
        ids.lines().for_each(|id| *taken.entry(id.parse().unwrap()).or_default() += 1);
    }
    let twice: Vec<_> = taken.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "taken more than once: {twice:?}");
    assert_eq!(taken.len(), outcomes.len());
}

async fn mesh() -> LocalMesh {
    let mesh = LocalMesh::default();
    let scratch = mesh.scratch();
    let web = objects::app("web", 3, &scratch);
    mesh.up(&[web, objects::service("web"), objects::app("client", 1, &scratch)]).await;
    mesh
}

/// None of the requests fails.
async fn restart_under_load(
    mesh: &LocalMesh,
    way: Way,
    request: impl Fn(u64) -> Request<Body> + Send + 'static,
) -> Vec<Outcome> {
    let former = names(mesh).await;
    let plan = Plan { way, authority: "web:8080".to_owned(), rate: RATE };
    let mut load = Load::start(plan, request);
    load.more(RATE as usize).await;
    mesh.meshctl(&["local", "restart", "deploy/web"]).await.succeeded();
    load.more(RATE as usize).await;
    let outcomes = load.up_to(REQUESTS).await;
    assert_none_failed(&outcomes);
    // More, if the rollout took longer.
    assert!(outcomes.len() as u64 >= REQUESTS);

    let replaced = names(mesh).await;
    assert!(
        replaced.len() == 3 && replaced.iter().all(|pod| !former.contains(pod)),
        "{replaced:?}"
    );
    let mut answers: BTreeMap<&str, usize> = BTreeMap::new();
    for answer in outcomes.iter().flat_map(|outcome| &outcome.answer) {
        *answers.entry(&answer.pod).or_default() += 1;
    }
    let all = former.iter().chain(&replaced);
    assert!(all.clone().all(|pod| answers.contains_key(pod.as_str())), "{answers:?}");
    outcomes
}

async fn names(mesh: &LocalMesh) -> Vec<String> {
    mesh.pods("web").await.into_iter().map(|pod| pod.name).collect()
}
