//! Faults on purpose: as many as were asked for, where they were asked for, and no longer.

use std::time::Duration;

use mesh_integration::client::http::{Client, empty};
use mesh_integration::local_mesh::{LocalMesh, objects};
use mesh_integration::wait;
use serde_json::{Value, json};
use tokio::time::Instant;

/// Whole rounds of the deck that a proxy deals its shares by, so that no share depends on luck.
const REQUESTS: usize = 16 * 64;

#[tokio::test]
async fn faults_hit_their_share_and_end_by_themselves() {
    let mesh = LocalMesh::default();
    let scratch = mesh.scratch();
    let web = objects::app("web", 1, &scratch);
    mesh.up(&[web, objects::service("web"), objects::app("client", 1, &scratch)]).await;
    let add = async |args: &[&str]| {
        let args = [&["fault", "add", "svc/web"], args].concat();
        let said = mesh.meshctl(&args).await.succeeded().stdout;
        said.split_whitespace().next().unwrap().to_owned()
    };
    let mut asking = Asking::of(&mesh).await;
    let mut failed = async |count, marked| asking.failed("/after/0/200", count, marked).await;
    assert_eq!(failed(20, false).await, 0);

    let name = add(&["--abort", "503", "--percent", "10", "--for", "1h"]).await;
    in_force(&mesh, true).await;
    let hit = failed(REQUESTS, false).await;
    assert!((92..=113).contains(&hit), "{hit} of {REQUESTS}");
    wait::until("the figures to name the reason", async || {
        let told = mesh.json(&["stat", "svc/web"]).await;
        (told["rows"][0]["reasons"]["fault-injected"].as_u64()? > 0).then_some(())
    })
    .await;
    let listed = mesh.json(&["fault", "ls"]).await;
    assert_eq!(listed["faults"][0]["name"], Value::from(name.as_str()));
    assert_eq!(listed["faults"][0]["percent"], 10);
    mesh.meshctl(&["fault", "rm", &name]).await.succeeded();
    in_force(&mesh, false).await;
    assert_eq!(failed(100, false).await, 0);

    // Only marked requests; and both kinds at a time.
    add(&["--abort", "503", "--header", "x-chaos=1"]).await;
    add(&["--delay", "50ms"]).await;
    in_force(&mesh, true).await;
    let began = Instant::now();
    assert_eq!((failed(5, true).await, failed(5, false).await), (5, 0));
    assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
    mesh.meshctl(&["fault", "rm", "--all"]).await.succeeded();
    in_force(&mesh, false).await;

    // Whoever forgets it: here even the control plane is gone.
    add(&["--abort", "503", "--for", "3s"]).await;
    in_force(&mesh, true).await;
    rustix::process::kill_process(mesh.control().await, rustix::process::Signal::STOP).unwrap();
    wait::until("the fault to end", async || (failed(1, false).await == 0).then_some(())).await;
    rustix::process::kill_process(mesh.control().await, rustix::process::Signal::CONT).unwrap();
    let listed = mesh.json(&["fault", "ls"]).await;
    assert_eq!(listed["faults"][0]["over"], true, "{listed}");
}

#[tokio::test]
async fn faults_of_a_route_spare_the_others_of_its_service() {
    let mesh = LocalMesh::default();
    let scratch = mesh.scratch();
    let to_web = json!([{ "name": "web", "port": objects::PORT }]);
    let prefix = json!({ "type": "PathPrefix", "value": "/after/0" });
    let marked = json!([{ "path": prefix, "headers": [{ "name": "x-chaos", "value": "1" }] }]);
    let mut some = objects::route("web", json!({}));
    some["metadata"]["name"] = "some".into();
    some["spec"]["rules"] = json!([
        { "matches": [{ "path": prefix }], "backendRefs": to_web },
        { "name": "marked", "matches": marked, "backendRefs": to_web },
    ]);
    mesh.up(&[
        objects::app("web", 1, &scratch),
        objects::service("web"),
        objects::app("client", 1, &scratch),
        some,
        objects::route("web", json!({ "backendRefs": to_web })),
    ])
    .await;
    let mut asking = Asking::of(&mesh).await;
    let (of_some, of_others) = ("/after/0/200", "/after/1/200");
    // From now on its proxy follows what is said about the Service.
    assert_eq!(asking.failed(of_some, 1, false).await, 0);

    let add = ["fault", "add", "--to", "httproute/some", "--abort", "503", "--percent", "50"];
    mesh.meshctl(&add).await.succeeded();
    in_force(&mesh, true).await;
    let hit = asking.failed(of_some, REQUESTS, false).await;
    assert!((502..=522).contains(&hit), "{hit} of {REQUESTS}");
    assert_eq!(asking.failed(of_others, 200, false).await, 0);
    let question = ["explain", "--what-if", "GET /after/0/200", "--from", "deploy/client"];
    let told = mesh.json(&[&question[..], &["--to", "web.test:8080"]].concat()).await.to_string();
    assert!(told.contains("50% of the requests: BackendTrafficPolicy/test/fault-some-"), "{told}");
    mesh.meshctl(&["fault", "rm", "--all"]).await.succeeded();
    in_force(&mesh, false).await;

    // One rule of it.
    mesh.meshctl(&["fault", "add", "--to", "httproute/some:marked", "--abort", "503"])
        .await
        .succeeded();
    in_force(&mesh, true).await;
    assert_eq!(asking.failed(of_some, 20, true).await, 20);
    assert_eq!(asking.failed(of_some, 20, false).await, 0);
    assert_eq!(asking.failed(of_others, 20, true).await, 0);
    let listed = mesh.json(&["fault", "ls"]).await;
    assert_eq!(listed["faults"][0]["target"], "HTTPRoute/some:marked", "{listed}");

    let wrong = mesh.meshctl(&["fault", "add", "--to", "httproute/sume", "--abort", "503"]).await;
    assert_ne!(wrong.code, Some(0));
    assert!(wrong.stderr.contains("there is no httproute/sume"), "{wrong:#?}");
    assert!(wrong.stderr.contains("httproute/some"), "{wrong:#?}");
    for (to, why) in [
        ("httproute/some:market", "HTTPRoute some has no rule named market"),
        ("svc/web:81", "Service web has no such port"),
    ] {
        let to: &[&str] = if to.starts_with("svc") { &[to] } else { &["--to", to] };
        let wrong = mesh.meshctl(&[&["fault", "add", "--abort", "503"], to].concat()).await;
        assert_eq!(wrong.code, Some(2), "{wrong:#?}");
        assert!(wrong.stderr.contains(why), "{wrong:#?}");
    }
    assert_eq!(mesh.json(&["fault", "ls"]).await["faults"].as_array().map(Vec::len), Some(1));
}

/// The client's requests to `web`.
struct Asking(Client);

impl Asking {
    async fn of(mesh: &LocalMesh) -> Self {
        Self(Client::open(mesh.way("client").await, "web:8080").await)
    }

    /// How many of `count` requests were answered by a fault.
    async fn failed(&mut self, path: &str, count: usize, marked: bool) -> usize {
        let mut failed = 0;
        for _ in 0..count {
            let mut request = http::Request::get(path);
            if marked {
                request = request.header("x-chaos", "1");
            }
            let response = self.0.send(request.body(empty()).unwrap()).await.unwrap();
            let hit = response.status() == 503;
            let reason = response.headers().get("x-mesh-reason");
            assert_eq!(hit, reason.is_some_and(|reason| reason == "fault-injected"));
            failed += usize::from(hit);
            // Its connection is wanted again.
            http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        }
        failed
    }
}

/// Waits until the client's proxy has heard of faults, or of there being none.
async fn in_force(mesh: &LocalMesh, wanted: bool) {
    wait::until("the client's proxy to hear of it", async || {
        let pods = mesh.pods("client").await;
        let config = mesh.json(&["proxy", "config", "routes", &pods[0].name]).await;
        (config.to_string().contains("\"fault\"") == wanted).then_some(())
    })
    .await;
}
