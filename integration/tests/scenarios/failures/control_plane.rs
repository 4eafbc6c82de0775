//! The control plane is gone for a while: what runs goes on, what is new waits, and all recovers by itself.

use http::Request;
use mesh_integration::app::HttpApp;
use mesh_integration::client::http::{Way, empty};
use mesh_integration::mesh::{Mesh, Pod, Service};
use mesh_integration::steady::{Load, Plan, assert_none_failed};
use mesh_integration::wait;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_goes_on_without_the_control_plane() {
    let (old, new) = (named("old").await, named("new").await);
    let client = || Pod::new("client").upstream("web:80");
    let mut mesh = Mesh::builder()
        .pod(client())
        .pod(Pod::new("old").port(8080, old.addr()))
        .service(Service::new("web", 8080).before("old"))
        .start()
        .await;
    let way = Way::Http1(mesh.pod("client").upstream(0));
    let plan = Plan { way, authority: "web:80".to_owned(), rate: 100 };
    let mut load = Load::start(plan, |_| Request::get("/").body(empty()).unwrap());
    load.more(50).await;

    mesh.crash_control().await;
    mesh.add(Pod::new("new").port(8080, new.addr()));
    load.more(300).await;
    assert!(!mesh.pod("new").is_ready().await, "ready without having been told anything");

    mesh.restart_control().await;
    mesh.ready("new").await;
    mesh.apply(&Service::new("web", 8080).before("new").object());
    wait::until("the change of endpoints to arrive", async || {
        let answers = load.outcomes();
        let answer = answers.last()?.answer.as_ref().ok()?;
        (answer.pod == "new").then_some(())
    })
    .await;
    assert_none_failed(&load.stop().await);
}

async fn named(name: &'static str) -> HttpApp {
    HttpApp::start(move |_| async move {
        http::Response::builder().header("x-pod", name).body(empty()).unwrap()
    })
    .await
}
