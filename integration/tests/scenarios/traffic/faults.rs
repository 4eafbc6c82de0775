//! Faults on purpose: as many as were asked for, where they were asked for, and no longer.

use std::time::Duration;

use mesh_integration::client::http::Client;
use mesh_integration::local_mesh::{LocalMesh, objects};
use mesh_integration::wait;
use serde_json::Value;
use tokio::time::Instant;

const REQUESTS: usize = 1_000;

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
    let mut client = Client::open(mesh.way("client").await, "web:8080").await;
    let mut failed = async |count: usize, marked: bool| {
        let mut failed = 0;
        for _ in 0..count {
            let mut request = http::Request::get("/after/0/200");
            if marked {
                request = request.header("x-chaos", "1");
            }
            let request = request.body(mesh_integration::client::http::empty()).unwrap();
            let response = client.send(request).await.unwrap();
            let hit = response.status() == 503;
            assert_eq!(
                hit,
                response.headers().get("x-mesh-reason").is_some_and(|r| r == "fault-injected")
            );
            failed += usize::from(hit);
            // Its connection is wanted again.
            http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        }
        failed
    };
    assert_eq!(failed(20, false).await, 0);

    let name = add(&["--abort", "503", "--percent", "10", "--for", "1h"]).await;
    in_force(&mesh, true).await;
    let hit = failed(REQUESTS, false).await;
    assert!((90..=110).contains(&hit), "{hit} of {REQUESTS}");
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

/// Waits until the client's proxy has heard of faults, or of there being none.
async fn in_force(mesh: &LocalMesh, wanted: bool) {
    wait::until("the client's proxy to hear of it", async || {
        let pods = mesh.pods("client").await;
        let config = mesh.json(&["proxy", "config", "routes", &pods[0].name]).await;
        (config.to_string().contains("\"fault\"") == wanted).then_some(())
    })
    .await;
}
