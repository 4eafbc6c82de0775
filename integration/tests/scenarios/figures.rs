//! What `meshctl stat` says is what a client measured.

use std::time::Duration;

use http::Request;
use mesh_integration::client::http::empty;
use mesh_integration::local_mesh::{LocalMesh, objects};
use mesh_integration::steady::{Load, Outcome, Plan};
use mesh_integration::wait;
use serde_json::Value;
use tokio::time::Instant;

const RATE: u32 = 100;
const WINDOW: Duration = Duration::from_secs(10);

/// Of a hundred requests, ten fail; ninety take 1 s, seven 2 s and three 4 s: P50, P95 and P99 lie well inside these
/// groups. They come well mixed, and take long compared with what a busy machine adds on the way to the proxy.
fn request(number: u64) -> Request<mesh_integration::client::http::Body> {
    let turn = (number * 37) % 100;
    let millis = match turn {
        0..90 => 1_000,
        90..97 => 2_000,
        _ => 4_000,
    };
    let status = if turn % 10 == 3 { 500 } else { 200 };
    Request::get(format!("/after/{millis}/{status}")).body(empty()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stat_agrees_with_what_the_client_counted() {
    let mesh = LocalMesh::default();
    let scratch = mesh.scratch();
    let web = objects::app("web", 2, &scratch);
    mesh.up(&[web, objects::service("web"), objects::app("client", 1, &scratch)]).await;

    let way = mesh.way("client").await;
    let plan = Plan { way, authority: "web:8080".to_owned(), rate: RATE };
    let mut load = Load::start(plan, request);
    load.more(RATE as usize * 13).await;

    // The same span of time, while the load goes on.
    let before = Instant::now();
    let answer = mesh.json(&["stat", "deploy/web", "--from", "deploy/client", "-t", "10s"]).await;
    let after = Instant::now();
    assert_eq!(answer["view"], "client");
    same_span(&Figures::said(&answer["rows"][0]), &load.outcomes(), before, after);

    // The same requests: all there were.
    let outcomes = load.stop().await;
    assert!(outcomes.iter().all(|outcome| outcome.answer.is_ok()), "{outcomes:#?}");
    let failed = outcomes.iter().filter(|outcome| !outcome.succeeded()).count();
    let expected = Some((outcomes.len() as u64, failed as u64));
    for view in [&["stat", "deploy/web", "--from", "deploy/client"][..], &["stat", "deploy/web"]] {
        let counted = wait::until("stat to know of every request", async || {
            let answer = mesh.json(&[view, &["-t", "5m"]].concat()).await;
            let row = &answer["rows"][0];
            let counted = Some((row["requests"].as_u64()?, row["failures"].as_u64()?));
            // The running second is not told yet.
            (counted >= expected).then_some(counted)
        });
        assert_eq!(counted.await, expected, "{view:?}");
    }
}

#[derive(Debug)]
struct Figures {
    success: f64,
    rps: f64,
    /// P50, P95 and P99 in milliseconds.
    latency: [f64; 3],
}

impl Figures {
    fn said(row: &Value) -> Self {
        let number =
            |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("no {name}: {row:#}"));
        Self {
            success: number("success"),
            rps: number("rps"),
            latency: ["latency_ms_p50", "latency_ms_p95", "latency_ms_p99"].map(number),
        }
    }

    /// Of the requests that ended in the window that ends here.
    fn measured(outcomes: &[Outcome], end: Instant) -> Self {
        let inside = |at: Instant| at < end && at >= end - WINDOW;
        let inside: Vec<_> = outcomes.iter().filter(|outcome| inside(outcome.end)).collect();
        let mut millis: Vec<_> =
            inside.iter().map(|outcome| outcome.latency().as_secs_f64() * 1e3).collect();
        millis.sort_by(f64::total_cmp);
        let quantile = |q: f64| millis[(q * millis.len() as f64).ceil() as usize - 1];
        let succeeded = inside.iter().filter(|outcome| outcome.succeeded()).count();
        Self {
            success: succeeded as f64 / inside.len() as f64,
            rps: inside.len() as f64 / WINDOW.as_secs_f64(),
            latency: [0.5, 0.95, 0.99].map(quantile),
        }
    }

    fn agrees(&self, measured: &Self) -> bool {
        let near = |said: f64, true_: f64| {
            let off = (said - true_).abs();
            off <= 1.0 || off <= true_ * 0.05
        };
        (self.success - measured.success).abs() <= 0.005
            && (self.rps - measured.rps).abs() <= measured.rps * 0.03
            && self.latency.iter().zip(measured.latency).all(|(said, true_)| near(*said, true_))
    }
}

/// A proxy counts by its own whole seconds, so the span it told of ended at most a second before it was asked.
fn same_span(said: &Figures, outcomes: &[Outcome], before: Instant, after: Instant) {
    let step = Duration::from_millis(20);
    let first = before - Duration::from_secs(1);
    let ends = (0..).map(|n| first + step * n).take_while(|end| *end <= after);
    let measured: Vec<_> = ends.map(|end| Figures::measured(outcomes, end)).collect();
    let agreed = measured.iter().any(|measured| said.agrees(measured));
    assert!(
        agreed,
        "stat: {said:#?}\nclient: {:#?}",
        measured.iter().step_by(10).collect::<Vec<_>>()
    );
}
