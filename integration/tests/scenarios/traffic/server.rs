//! ServerPolicy: rates and requests in flight, refused with their reason.

use std::time::Duration;

use http::{Request, StatusCode, header};
use mesh_integration::app::HttpApp;
use mesh_integration::client::Connection;
use mesh_integration::client::http::{Client, Way, empty, full};
use mesh_integration::local_mesh::{LocalMesh, objects};
use mesh_integration::mesh::{Mesh, NAMESPACE, Pod, Service, id_of};
use mesh_integration::steady::{Load, Plan};
use mesh_integration::wait;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

const PORT: u16 = 8080;

fn policy(mut spec: Value) -> Value {
    spec["targetRef"] = json!({ "kind": "Deployment", "name": "web", "port": PORT });
    json!({
        "apiVersion": "policy.meshctl.dev/v1alpha1",
        "kind": "ServerPolicy",
        "metadata": { "namespace": NAMESPACE, "name": "limits" },
        "spec": spec,
    })
}

async fn app() -> HttpApp {
    HttpApp::start(async |_| http::Response::new(full("served"))).await
}

async fn mesh(app: &HttpApp, spec: Value) -> Mesh {
    Mesh::builder()
        .pod(Pod::new("a").upstream("web:80"))
        .pod(Pod::new("b").upstream("web:80"))
        .pod(Pod::new("web").port(PORT, app.addr()))
        .service(Service::new("web", PORT))
        .manifest(policy(spec))
        .start()
        .await
}

fn get() -> Request<mesh_integration::client::http::Body> {
    Request::get("/").body(empty()).unwrap()
}

/// How many of so many requests in a row were let through; the others were refused as they should be.
async fn admitted(
    client: &mut Client,
    requests: usize,
    request: impl Fn() -> Request<mesh_integration::client::http::Body>,
) -> f64 {
    let mut admitted = 0.0;
    for _ in 0..requests {
        let response = client.send(request()).await.unwrap();
        match response.status() {
            StatusCode::OK => admitted += 1.0,
            status => {
                assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
                assert_eq!(response.headers()["x-mesh-reason"], "rate-limited");
            }
        }
    }
    admitted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_is_kept_under_ten_times_as_much() {
    const RATE: u32 = 40;
    const SECONDS: u32 = 11;
    let app = app().await;
    // A second's worth at once, so that a busy machine that stops for a moment changes nothing.
    let total = json!({ "requestsPerSecond": RATE });
    let mesh = mesh(&app, json!({ "rateLimit": { "total": total } })).await;
    let web = mesh.pod("web");
    let way = Way::Http1(web.inbound(PORT));
    let plan = Plan { way, authority: "web".to_owned(), rate: 10 * RATE };
    let load = Load::start(plan, |_| get());
    let outcomes = load.up_to(u64::from(10 * RATE * SECONDS)).await;

    let answers = || outcomes.iter().map(|outcome| outcome.answer.as_ref().unwrap());
    let (served, refused): (Vec<_>, Vec<_>) = answers().partition(|a| a.status == StatusCode::OK);
    assert!(refused.iter().all(|a| a.status == 429 && a.reason == "rate-limited"), "{refused:#?}");
    let begin = outcomes.iter().map(|outcome| outcome.begin).min().unwrap();
    let end = outcomes.iter().map(|outcome| outcome.end).max().unwrap();
    let took = (end - begin).as_secs_f64();
    assert!(took >= 10.0, "{took}");
    // All there is of a full allowance goes at once; from then on, the rate.
    let at_the_rate = served.len() as f64 - f64::from(RATE);
    let rate = at_the_rate / took;
    assert!((rate / f64::from(RATE) - 1.0).abs() <= 0.02, "{rate} a second, over {took} s");
    assert_eq!(app.requests(), served.len(), "what is refused does not reach the application");

    let counted =
        web.metric("inbound_http_local_ratelimit_total", &["authz_name=\"limits\""]).await;
    assert_eq!(counted, refused.len() as f64);
}

#[tokio::test]
async fn clients_are_told_apart_by_identity_and_by_a_header() {
    let app = app().await;
    let rate = |rate: u32, burst: u32| json!({ "requestsPerSecond": rate, "burst": burst });
    let mut named = rate(1, 20);
    named["identities"] = json!([id_of("b")]);
    let spec = json!({ "rateLimit": { "perIdentity": rate(1, 5), "overrides": [named] } });
    let mesh = mesh(&app, spec).await;
    let start = Instant::now();
    for (name, burst) in [("a", 5.0), ("b", 20.0)] {
        let mut client = Client::open(Way::Http1(mesh.pod(name).upstream(0)), "web:80").await;
        let admitted = admitted(&mut client, 30, get).await;
        let most = burst + start.elapsed().as_secs_f64() + 1.0;
        assert!((burst..=most).contains(&admitted), "{name}: {admitted}");
    }
    let of = |name: &'static str| format!("client_id=\"{}\"", id_of(name));
    let refused = mesh.pod("web").metric("inbound_http_local_ratelimit_total", &[&of("a")]).await;
    assert!(refused > 0.0);

    let mut by_header = rate(1, 5);
    by_header["name"] = "x-tenant".into();
    mesh.apply(&policy(json!({ "rateLimit": { "perHeader": by_header } })));
    believed(&mesh, "x-tenant").await;
    let mut client = Client::open(Way::Http1(mesh.pod("a").upstream(0)), "web:80").await;
    let start = Instant::now();
    for tenant in ["one", "two"] {
        let request = || Request::get("/").header("x-tenant", tenant).body(empty()).unwrap();
        let admitted = admitted(&mut client, 20, request).await;
        let most = 5.0 + start.elapsed().as_secs_f64() + 1.0;
        assert!((5.0..=most).contains(&admitted), "{tenant}: {admitted}");
    }
}

#[tokio::test]
async fn grpc_calls_beyond_the_rate_are_told_so_in_grpc() {
    let app = app().await;
    let total = json!({ "requestsPerSecond": 1, "burst": 1 });
    let spec = json!({ "protocol": "gRPC", "rateLimit": { "total": total } });
    let mesh = mesh(&app, spec).await;
    let mut client = Client::open(Way::Http2(mesh.pod("a").upstream(0)), "web:80").await;
    // Far more in a row than seconds that they could take.
    for number in 0.. {
        assert!(number < 1_000, "not one was refused");
        let call = Request::post("/a.B/C").header(header::CONTENT_TYPE, "application/grpc");
        let response = client.send(call.body(empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let Some(status) = response.headers().get("grpc-status") else { continue };
        assert_eq!(
            (status.as_bytes(), response.headers()["x-mesh-reason"].as_bytes()),
            (&b"8"[..], &b"rate-limited"[..])
        );
        break;
    }
    // The port speaks gRPC, so bytes that are none get nowhere.
    let mut connection = Connection::open(mesh.pod("web").inbound(PORT)).await;
    connection.send("\0\x01\x02").await;
    assert_eq!(connection.rest().await, b"");
}

#[tokio::test]
async fn more_requests_than_may_be_in_flight_are_refused_at_once() {
    let gate: &'static Semaphore = Box::leak(Box::new(Semaphore::new(0)));
    let app = HttpApp::start(async |_| {
        gate.acquire().await.unwrap().forget();
        http::Response::new(full("served"))
    })
    .await;
    let mesh = mesh(&app, json!({ "concurrency": 2 })).await;
    let way = Way::Http1(mesh.pod("a").upstream(0));
    let held: Vec<_> = (0..2)
        .map(|_| tokio::spawn(async move { Client::open(way, "web:80").await.send(get()).await }))
        .collect();
    let in_flight = async |number: u64| {
        wait::until(&format!("{number} requests in flight"), async || {
            let config = mesh.pod("web").config().await;
            let ports = config["inbound"]["ports"].as_array()?.clone();
            let of = |port: &Value| port["limits"]["concurrency"]["in_flight"].as_u64();
            ports.iter().any(|port| of(port) == Some(number)).then_some(())
        })
        .await;
    };
    in_flight(2).await;
    let mut client = Client::open(way, "web:80").await;
    let response = client.send(get()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["x-mesh-reason"], "overloaded");

    // What is in flight counts on when the bound changes.
    mesh.apply(&policy(json!({ "concurrency": 3 })));
    believed(&mesh, "\"max_in_flight\":3").await;
    let third = tokio::spawn(async move { Client::open(way, "web:80").await.send(get()).await });
    in_flight(3).await;
    assert_eq!(client.send(get()).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    gate.add_permits(4);
    for held in held.into_iter().chain([third]) {
        assert_eq!(held.await.unwrap().unwrap().status(), StatusCode::OK);
    }
    in_flight(0).await;
    assert_eq!(client.send(get()).await.unwrap().status(), StatusCode::OK);
}

/// Waits until the proxy of `web` believes something of its port's limits.
async fn believed(mesh: &Mesh, words: &str) {
    wait::until(&format!("web to believe {words}"), async || {
        let config = mesh.pod("web").config().await;
        let ports = config["inbound"]["ports"].as_array()?.clone();
        ports.iter().any(|port| port["limits"].to_string().contains(words)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stat_tells_of_refused_requests_on_both_sides() {
    let mesh = LocalMesh::default();
    let scratch = mesh.scratch();
    let total = json!({ "requestsPerSecond": 1, "burst": 1 });
    let limits = policy(json!({ "rateLimit": { "total": total } }));
    let mut younger = policy(json!({ "concurrency": 5 }));
    younger["metadata"]["name"] = "younger".into();
    let (web, client) = (objects::app("web", 1, &scratch), objects::app("client", 1, &scratch));
    mesh.up(&[web, objects::service("web"), client, limits, younger]).await;
    let way = mesh.way("client").await;
    let mut refused = 0;
    let mut client = Client::open(way, "web:8080").await;
    let end = Instant::now() + Duration::from_secs(20);
    while refused < 5 && Instant::now() < end {
        let request = Request::get("/after/0/200").body(empty()).unwrap();
        refused += u64::from(client.send(request).await.unwrap().status() == 429);
    }
    assert_eq!(refused, 5);
    for view in [&["stat", "deploy/web"][..], &["stat", "deploy/web", "--from", "deploy/client"]] {
        wait::until(&format!("{view:?} to tell of them"), async || {
            let told = mesh.json(&[view, &["-t", "5m"]].concat()).await;
            let count = told["rows"][0]["reasons"]["rate-limited"].as_u64();
            (count == Some(refused)).then_some(())
        })
        .await;
    }
    let checked = mesh.meshctl(&["check"]).await;
    let told = checked.stdout + &checked.stderr;
    assert!(told.contains("ServerPolicy/test/younger"), "{told}");
}

#[tokio::test]
async fn faults_of_a_port_hit_their_share_of_what_is_allowed() {
    // Whole rounds of the deck that a proxy deals its shares by, so that no share depends on luck.
    const REQUESTS: usize = 8 * 64;
    let app = app().await;
    let abort = json!({ "abort": { "httpStatus": 503 }, "percent": 50 });
    let slow = json!({ "delay": "150ms", "headers": [{ "name": "x-slow", "value": "1" }] });
    let mesh = mesh(&app, json!({ "faults": [abort] })).await;
    let web = mesh.pod("web");
    // The workload's proxy does it, whoever the client is.
    let mut client = Client::open(Way::Http1(web.inbound(PORT)), "web").await;
    let mut hit = async |request: fn() -> Request<_>| {
        let response = client.send(request()).await.unwrap();
        let reason = response.headers().get("x-mesh-reason").cloned();
        let hit = response.status() == StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(hit, reason.is_some_and(|reason| reason == "fault-injected"));
        // Its connection is wanted again.
        http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        hit
    };
    let mut failed = 0;
    for _ in 0..REQUESTS {
        failed += usize::from(hit(get).await);
    }
    assert_eq!(failed, REQUESTS / 2);
    assert_eq!(app.requests(), REQUESTS / 2, "what is hit does not reach the application");
    let labels = ["direction=\"inbound\"", "error=\"fault-injected\""];
    assert_eq!(web.metric("response_total", &labels).await, failed as f64);

    // Only marked requests, and later; it is in force at once.
    mesh.apply(&policy(json!({ "faults": [slow] })));
    let marked = || Request::get("/").header("x-slow", "1").body(empty()).unwrap();
    wait::until("the delay to be in force", async || {
        let began = Instant::now();
        let failed = hit(marked).await;
        (!failed && began.elapsed() >= Duration::from_millis(150)).then_some(())
    })
    .await;
    assert!(!hit(get).await);

    // Who may not is told so, and nothing else.
    let always = json!({ "abort": { "grpcCode": 14 } });
    mesh.apply(&policy(json!({ "defaultAccess": "deny", "faults": [always] })));
    let mut client = Client::open(Way::Http1(web.inbound(PORT)), "web").await;
    wait::until("the port to be closed", async || {
        let response = client.send(get()).await.unwrap();
        let reason = response.headers().get("x-mesh-reason").cloned();
        // Other reasons than those of the policies before and after would be wrong.
        let reason = reason.map(|reason| reason.to_str().unwrap().to_owned());
        assert!(matches!(reason.as_deref(), None | Some("unauthorized")), "{reason:?}");
        (response.status() == StatusCode::FORBIDDEN).then_some(())
    })
    .await;
}
