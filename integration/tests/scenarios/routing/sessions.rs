//! Sessions stay at their endpoint while others come and go.

use std::collections::HashSet;

use mesh_integration::client::http::{Client, Way};
use mesh_integration::local_mesh::{LocalMesh, objects};
use mesh_integration::wait;
use serde_json::{Value, json};

use super::get;

const CLIENTS: usize = 20;
const ROUNDS: usize = 10;

#[tokio::test]
async fn sessions_by_cookie_and_header_stay_while_endpoints_are_added() {
    let mesh = LocalMesh::default();
    let scratch = mesh.scratch();
    let route = |persistence: Value| {
        let backends = json!([{ "name": "web", "port": objects::PORT }]);
        objects::route("web", json!({ "sessionPersistence": persistence, "backendRefs": backends }))
    };
    let web = |replicas| objects::app("web", replicas, &scratch);
    let by_cookie = route(json!({ "sessionName": "shop" }));
    let client = objects::app("client", 1, &scratch);
    mesh.up(&[web(3), objects::service("web"), client, by_cookie]).await;
    let way = mesh.way("client").await;
    let cookies = sessions(way, "set-cookie").await;

    apply(&mesh, "web", web(5)).await;
    assert_eq!(moved(way, "cookie", &cookies).await, 0);
    let strange = [("cookie", "shop=1.2.3.4")];
    let anew = get(&mut Client::open(way, "web:8080").await, "/", &strange).await;
    let told = anew.header("set-cookie");
    assert!(told.starts_with("shop="), "a session that is not there begins anew: {told}");

    let by_header = route(json!({ "sessionName": "x-session", "type": "Header" }));
    apply(&mesh, "route", by_header).await;
    let headers = sessions(way, "x-session").await;
    assert_eq!(moved(way, "x-session", &headers).await, 0);
}

async fn apply(mesh: &LocalMesh, name: &str, object: Value) {
    let file = mesh.file(&format!("{name}.yaml"), &[object]);
    mesh.meshctl(&["local", "apply", "-f", &file.display().to_string()]).await.succeeded();
}

/// What each client was told, and the pod that told it. They are not all the same.
async fn sessions(way: Way, told: &str) -> Vec<(String, String)> {
    let ask = async || get(&mut Client::open(way, "web:8080").await, "/", &[]).await;
    // The proxy hears of a route a moment after the control plane.
    wait::until(told, async || (!ask().await.header(told).is_empty()).then_some(())).await;
    let mut sessions = Vec::new();
    for _ in 0..CLIENTS {
        let seen = ask().await;
        let token = seen.header(told).split(';').next().unwrap().to_owned();
        sessions.push((token, seen.header("x-pod").to_owned()));
    }
    let pods: HashSet<_> = sessions.iter().map(|(_, pod)| pod).collect();
    assert!(pods.len() > 1, "{sessions:?}");
    sessions
}

/// Requests that went elsewhere than their session.
async fn moved(way: Way, tells: &str, sessions: &[(String, String)]) -> usize {
    let mut moved = 0;
    for _ in 0..ROUNDS {
        for (token, pod) in sessions {
            let seen = get(&mut Client::open(way, "web:8080").await, "/", &[(tells, token)]).await;
            moved += usize::from(seen.header("x-pod") != pod);
        }
    }
    moved
}
