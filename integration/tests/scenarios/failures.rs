//! One of three endpoints fails under load, in every way it can, and the control plane goes away: clients notice
//! nothing, and `stat` and `edges` tell what happened.

use std::fs;
use std::time::Duration;

use http::Request;
use mesh_integration::client::http::{Client, Way, empty};
use mesh_integration::local_mesh::{LocalMesh, LocalPod, objects};
use mesh_integration::steady::{Load, Outcome, Plan, assert_none_failed};
use mesh_integration::wait;
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tokio::time::Instant;

mod control_plane;

const RATE: u32 = 100;
/// How long the application takes when it is well.
const WORK: Duration = Duration::from_millis(50);
const TRY_TIMEOUT: &str = "300ms";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_application_goes_unnoticed() {
    let mut scene = Scene::start().await;
    scene.keep_down(true);
    scene.has_a_request_in_hand().await;
    scene.victim.signal_app(Signal::KILL);
    scene.is_out().await;
    scene.keep_down(false);
    scene.is_back().await;

    let told = scene.end().await;
    assert!(told.retries() > 0.0, "{told:#?}");
    // Its own proxy had these requests in hand, and says so.
    assert!(told.has_reason(&told.server, &["connection-closed"]), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_pod_goes_unnoticed() {
    let mut scene = Scene::start().await;
    scene.keep_down(true);
    scene.has_a_request_in_hand().await;
    scene.victim.signal_proxy(Signal::KILL);
    scene.victim.signal_app(Signal::KILL);
    scene.is_out().await;
    scene.keep_down(false);
    scene.is_back().await;

    let told = scene.end().await;
    assert!(told.retries() > 0.0, "{told:#?}");
    // Nobody but the clients can tell.
    assert!(told.has_reason(&told.client, &["connection-closed"]), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_application_is_left_alone_until_it_thaws() {
    let mut scene = Scene::start().await;
    scene.victim.signal_app(Signal::STOP);
    scene.is_ejected().await;
    scene.load.more(RATE as usize).await;
    scene.victim.signal_app(Signal::CONT);
    scene.is_back().await;
    let told = scene.end().await;
    assert!(told.retries() > 0.0, "{told:#?}");
    assert!(told.has_reason(&told.client, &["try-timeout"]), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_pod_is_left_alone_until_it_thaws() {
    let mut scene = Scene::start().await;
    scene.victim.signal_proxy(Signal::STOP);
    scene.victim.signal_app(Signal::STOP);
    scene.is_ejected().await;
    scene.load.more(RATE as usize).await;
    scene.victim.signal_app(Signal::CONT);
    scene.victim.signal_proxy(Signal::CONT);
    scene.is_back().await;
    let told = scene.end().await;
    assert!(told.retries() > 0.0, "{told:#?}");
    assert!(told.has_reason(&told.client, &["try-timeout"]), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_application_costs_others_a_try_at_most() {
    let mut scene = Scene::start().await;
    scene.slow_down(500).await;
    scene.is_ejected().await;
    scene.load.more(RATE as usize).await;
    scene.slow_down(0).await;
    scene.is_back().await;
    let told = scene.end().await;
    assert!(told.retries() > 0.0, "{told:#?}");
    assert!(told.has_reason(&told.client, &["try-timeout"]), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_killed_while_the_control_plane_is_frozen_goes_unnoticed() {
    let mut scene = Scene::start().await;
    scene.keep_down(true);
    let control = scene.mesh.control().await;
    kill_process(control, Signal::STOP).unwrap();
    scene.has_a_request_in_hand().await;
    scene.victim.signal_proxy(Signal::KILL);
    scene.victim.signal_app(Signal::KILL);
    // Nobody tells the client that the endpoint is gone; it has to find out.
    scene.load.more(3 * RATE as usize).await;
    kill_process(control, Signal::CONT).unwrap();
    scene.is_out().await;
    scene.keep_down(false);
    scene.is_back().await;
    assert_eq!(scene.mesh.control().await, control, "the control plane was restarted");
    let told = scene.end().await;
    assert!(told.retries() > 0.0, "{told:#?}");
    assert!(told.has_reason(&told.client, &["connection-closed", "connect-refused"]), "{told:#?}");
}

/// Three pods behind a service with retries, under load.
struct Scene {
    mesh: LocalMesh,
    load: Load,
    /// The pod that something happens to.
    victim: LocalPod,
}

/// What meshctl says after all.
#[derive(Debug)]
struct Told {
    /// The client's view of the workload.
    client: Value,
    /// The workload's own.
    server: Value,
}

impl Scene {
    async fn start() -> Self {
        let mesh = LocalMesh::default();
        let scratch = mesh.scratch();
        mesh.up(&[
            objects::app("web", 3, &scratch),
            objects::service("web"),
            objects::retried("web", TRY_TIMEOUT),
            objects::app("client", 1, &scratch),
        ])
        .await;
        let way = mesh.way("client").await;
        let plan = Plan { way, authority: "web:8080".to_owned(), rate: RATE };
        let path = format!("/after/{}/200", WORK.as_millis());
        let load = Load::start(plan, move |_| Request::get(&path).body(empty()).unwrap());
        let victim = mesh.pods("web").await.swap_remove(0);
        let mut scene = Self { mesh, load, victim };
        scene.is_back().await;
        scene
    }

    /// Whether the application is to fail to start.
    fn keep_down(&self, down: bool) {
        let file = self.mesh.scratch().join("stay-down").join(&self.victim.name);
        match down {
            true => fs::write(file, "").unwrap(),
            false => fs::remove_file(file).unwrap(),
        }
    }

    /// So that one is lost when it ends.
    async fn has_a_request_in_hand(&self) {
        self.tell("/hold").await;
        let file = self.mesh.scratch().join("holding").join(&self.victim.name);
        wait::until("a request in hand", async || file.exists().then_some(())).await;
    }

    async fn slow_down(&self, millis: u64) {
        self.tell(&format!("/slow/{millis}")).await;
    }

    /// Past its proxy.
    async fn tell(&self, path: &str) {
        let mut direct = Client::open(Way::Http1(self.victim.app_addr), "app").await;
        let response = direct.send(Request::put(path).body(empty()).unwrap()).await;
        assert_eq!(response.unwrap().status(), 200);
    }

    /// Waits until the control plane has taken the victim out, and for some more requests.
    async fn is_out(&mut self) {
        wait::until("the pod to be unready", async || {
            let pods = self.mesh.pods("web").await;
            let victim = pods.iter().find(|pod| pod.name == self.victim.name)?;
            (!victim.ready).then_some(())
        })
        .await;
        self.load.more(RATE as usize).await;
    }

    /// Waits until the client's breaker for the victim is open.
    async fn is_ejected(&self) {
        wait::until("the breaker to open", async || {
            let told = self.mesh.json(&["stat", "deploy/web"]).await;
            let endpoint = Value::from(format!("{}:{}", self.victim.ip, objects::PORT));
            let breakers = told["rows"][0]["breakers"].as_array()?.iter();
            breakers.into_iter().any(|breaker| breaker["endpoint"] == endpoint).then_some(())
        })
        .await;
    }

    /// Waits until the victim answers requests that are sent from now on.
    async fn is_back(&mut self) {
        let now = Instant::now();
        let name = self.victim.name.clone();
        let answered =
            |o: &Outcome| o.begin > now && o.answer.as_ref().is_ok_and(|answer| answer.pod == name);
        wait::until("answers of the pod", async || {
            self.load.outcomes().iter().any(answered).then_some(())
        })
        .await;
    }

    /// Ends the load, of which nothing failed.
    async fn end(self) -> Told {
        let Self { mesh, load, victim } = self;
        let outcomes = load.stop().await;
        assert_none_failed(&outcomes);
        let all = outcomes.len() as u64;
        let client = wait::until("stat to know of every request", async || {
            let view = ["stat", "deploy/web", "--from", "deploy/client", "-t", "5m"];
            let row = mesh.json(&view).await["rows"][0].clone();
            (row["requests"].as_u64()? >= all).then_some(row)
        })
        .await;
        assert_eq!(client["requests"], all, "{client:#}");
        assert_eq!(client["success"], 1.0, "{client:#}");

        let edges = mesh.json(&["edges", "deploy/web", "-t", "5m"]).await;
        let edges = edges["edges"].as_array().unwrap();
        let edge = edges.iter().find(|edge| edge["source"]["name"] == "client").unwrap();
        assert_eq!(edge["success"], 1.0, "{edge:#}");
        assert_eq!(edge["requests"], all, "{edge:#}");

        // The victim's own account may have gone with its proxy.
        let others = mesh.pods("web").await.into_iter().filter(|pod| pod.name != victim.name);
        tells_where_requests_went(&mesh, others, &outcomes).await;
        let server = mesh.json(&["stat", "deploy/web", "-t", "5m"]).await["rows"][0].clone();
        Told { client, server }
    }
}

/// Each pod's own account has all that it answered; tries that were given up may come on top.
async fn tells_where_requests_went(
    mesh: &LocalMesh,
    pods: impl Iterator<Item = LocalPod>,
    outcomes: &[Outcome],
) {
    for pod in pods {
        let by_pod = |o: &&Outcome| o.answer.as_ref().is_ok_and(|answer| answer.pod == pod.name);
        let answered = outcomes.iter().filter(by_pod).count() as u64;
        assert!(answered > 0, "{} did not answer anything", pod.name);
        wait::until(&format!("stat to tell of {answered} requests to {}", pod.name), async || {
            let told = mesh.json(&["stat", "deploy/web", "--by", "pod", "-t", "5m"]).await;
            let row = told["rows"].as_array()?.iter().find(|row| row["by"] == pod.name)?.clone();
            (row["requests"].as_u64()? >= answered).then_some(())
        })
        .await;
    }
}

impl Told {
    fn retries(&self) -> f64 {
        self.client["retries_rate"].as_f64().unwrap()
    }

    fn has_reason(&self, view: &Value, any: &[&str]) -> bool {
        any.iter().any(|reason| view["reasons"][reason].as_u64() > Some(0))
    }
}
