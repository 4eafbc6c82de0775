//! BackendTrafficPolicy: breakers, limits, budgets and balancers as users set them.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use http::{Request, StatusCode};
use mesh_integration::app::HttpApp;
use mesh_integration::client::http::{Client, Way, empty, full};
use mesh_integration::local_mesh::{LocalMesh, objects};
use mesh_integration::mesh::{Mesh, NAMESPACE, Pod, Service};
use mesh_integration::steady::{Load, Plan};
use mesh_integration::wait;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

const PORT: u16 = 8080;

fn policy(mut spec: Value) -> Value {
    spec["targetRef"] = json!({ "kind": "Service", "name": "web" });
    json!({
        "apiVersion": "policy.meshctl.dev/v1alpha1",
        "kind": "BackendTrafficPolicy",
        "metadata": { "namespace": NAMESPACE, "name": "traffic" },
        "spec": spec,
    })
}

async fn mesh(app: &HttpApp, spec: Value) -> Mesh {
    Mesh::builder()
        .pod(Pod::new("client").upstream("web:80"))
        .pod(Pod::new("web").port(PORT, app.addr()))
        .service(Service::new("web", PORT))
        .manifest(policy(spec))
        .start()
        .await
}

fn get() -> Request<mesh_integration::client::http::Body> {
    Request::get("/").body(empty()).unwrap()
}

/// Waits until the proxy of `client` believes something of the backend `web`.
async fn believed(mesh: &Mesh, words: &str) {
    wait::until(&format!("client to believe {words}"), async || {
        let config = mesh.pod("client").config().await;
        config["outbound"].to_string().contains(words).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_breaker_opens_after_so_many_failures_and_closes_after_a_probe() {
    let broken: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
    let app = HttpApp::start(async |_| {
        let mut response = http::Response::new(full("served"));
        if broken.load(Relaxed) {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
        response
    })
    .await;
    let breaker = json!({
        "consecutiveFailures": 3,
        "minReadyEndpoints": 0,
        "backoff": { "min": "2s", "max": "2s" },
    });
    let mesh = mesh(&app, json!({ "circuitBreaker": breaker })).await;
    let mut client = Client::open(Way::Http1(mesh.pod("client").upstream(0)), "web:80").await;
    assert_eq!(client.send(get()).await.unwrap().status(), StatusCode::OK);
    broken.store(true, Relaxed);
    for number in 0..3 {
        let response = client.send(get()).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR, "{number}");
    }
    believed(&mesh, "\"state\":\"ejected\"").await;
    broken.store(false, Relaxed);
    // Waits for the end of the term, and is the probe.
    assert_eq!(client.send(get()).await.unwrap().status(), StatusCode::OK);
    assert_eq!(app.requests(), 5, "nothing came to it in between");
    believed(&mesh, "\"state\":\"ready\"").await;

    // None at all.
    mesh.apply(&policy(json!({ "circuitBreaker": { "disabled": true } })));
    wait::until("the breaker to be gone", async || {
        let config = mesh.pod("client").config().await["outbound"].to_string();
        (!config.contains("\"breaker\"")).then_some(())
    })
    .await;
    broken.store(true, Relaxed);
    for number in 0..20 {
        let response = client.send(get()).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR, "{number}");
    }
}

#[tokio::test]
async fn retries_never_cost_more_than_their_budget_in_an_outage() {
    const REQUESTS: usize = 300;
    let app = HttpApp::start(async |_| {
        let mut response = http::Response::new(full("broken"));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response
    })
    .await;
    let budget = json!({ "percent": 20, "minPerSecond": 0 });
    let spec = json!({ "retryBudget": budget, "circuitBreaker": { "disabled": true } });
    let mut route = objects::retried("web", "10s");
    route["spec"]["parentRefs"][0]["port"] = 80.into();
    route["spec"]["rules"][0]["backendRefs"][0]["port"] = 80.into();
    let mesh = Mesh::builder()
        .pod(Pod::new("client").upstream("web:80"))
        .pod(Pod::new("web").port(PORT, app.addr()))
        .service(Service::new("web", PORT))
        .manifest(policy(spec))
        .manifest(route)
        .start()
        .await;
    let mut client = Client::open(Way::Http1(mesh.pod("client").upstream(0)), "web:80").await;
    // Until the policy is known, the default budget lets more through.
    client.send(get()).await.unwrap();
    believed(&mesh, "\"min_per_second\":0").await;
    let (before, already) = (app.requests(), mesh.pod("client"));
    let overflow = "outbound_http_route_retry_overflow_total";
    for _ in 0..REQUESTS {
        let response = client.send(get()).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    let amplification = (app.requests() - before) as f64 / REQUESTS as f64;
    assert!(amplification <= 1.2, "{amplification}");
    assert!(amplification > 1.1, "the budget is used: {amplification}");
    assert!(already.metric(overflow, &[]).await > 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_refuse_with_their_reason() {
    let gate: &'static Semaphore = Box::leak(Box::new(Semaphore::new(0)));
    let app = HttpApp::start(async |_| {
        gate.acquire().await.unwrap().forget();
        http::Response::new(full("served"))
    })
    .await;
    let mesh = mesh(&app, json!({ "limits": { "requestsInFlight": 2 } })).await;
    let way = Way::Http1(mesh.pod("client").upstream(0));
    // One that passes, so that the policy is asked for.
    gate.add_permits(1);
    Client::open(way, "web:80").await.send(get()).await.unwrap();
    believed(&mesh, "\"max_in_flight\":2").await;
    let hold = |count: usize| -> Vec<_> {
        let one =
            || tokio::spawn(async move { Client::open(way, "web:80").await.send(get()).await });
        (0..count).map(|_| one()).collect()
    };
    let mut held = hold(2);
    believed(&mesh, "\"in_flight\":2,\"max_connections\"").await;
    let mut client = Client::open(way, "web:80").await;
    let response = client.send(get()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["x-mesh-reason"], "overloaded");

    // Between proxies a connection carries 64 requests; one more may wait.
    let limits = json!({
        "connectionsPerEndpoint": 1, "pendingRequests": 1, "requestsInFlight": 1_000,
    });
    gate.add_permits(2);
    for held in held.drain(..) {
        assert_eq!(held.await.unwrap().unwrap().status(), StatusCode::OK);
    }
    mesh.apply(&policy(json!({ "limits": limits })));
    wait::until("the bounds to be there", async || {
        // What a policy says is built for the next request.
        gate.add_permits(1);
        assert_eq!(client.send(get()).await.unwrap().status(), StatusCode::OK);
        let told = mesh.pod("client").config().await["outbound"].to_string();
        (told.contains("\"max_pending\":1,") && told.contains("\"max_connections\":1,"))
            .then_some(())
    })
    .await;
    held = hold(65);
    // All are the endpoint's by then, and no longer on their way to it.
    believed(&mesh, "\"in_flight\":65,\"rtt_ms\"").await;
    let response = client.send(get()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["x-mesh-reason"], "queue-full");
    gate.add_permits(66);
    for held in held {
        assert_eq!(held.await.unwrap().unwrap().status(), StatusCode::OK);
    }
    assert_eq!(client.send(get()).await.unwrap().status(), StatusCode::OK);
    // Neither is the endpoint's fault.
    believed(&mesh, "\"consecutive_failures\":0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stat_shows_a_breaker_that_opens_for_latency_until_it_closes() {
    let mesh = LocalMesh::default();
    let scratch = mesh.scratch();
    let breaker = json!({
        "latency": "250ms",
        "consecutiveFailures": 3,
        "backoff": { "min": "500ms", "max": "1s" },
    });
    let hash = json!({ "type": "RoundRobin" });
    let spec = json!({ "circuitBreaker": breaker, "loadBalancer": hash });
    let (web, client) = (objects::app("web", 3, &scratch), objects::app("client", 1, &scratch));
    mesh.up(&[web, objects::service("web"), client, policy(spec)]).await;
    let way = mesh.way("client").await;
    let plan = Plan { way, authority: "web:8080".to_owned(), rate: 60 };
    let request = |_| Request::get("/after/1/200").body(empty()).unwrap();
    let mut load = Load::start(plan, request);
    load.more(60).await;
    let victim = mesh.pods("web").await.swap_remove(0);
    let slow = async |millis: u32| {
        let mut direct = Client::open(Way::Http1(victim.app_addr), "app").await;
        let put = Request::put(format!("/slow/{millis}")).body(empty()).unwrap();
        assert_eq!(direct.send(put).await.unwrap().status(), StatusCode::OK);
    };
    let told =
        async || mesh.meshctl(&["stat", "deploy/web", "-o", "wide"]).await.succeeded().stdout;
    slow(600).await;
    let is_open = async || {
        let told = told().await;
        told.contains("1 ejected") || told.contains("1 probing")
    };
    assert!(!is_open().await);
    slow(600).await;
    wait::until("the breaker to open", async || is_open().await.then_some(())).await;
    slow(0).await;
    wait::until("the breaker to close", async || (!is_open().await).then_some(())).await;
    mesh_integration::steady::assert_none_failed(&load.stop().await);

    // Another policy, while all of it runs: one session, one pod.
    let hash = json!({ "type": "RingHash", "hashHeader": "x-user" });
    let file = mesh.file("hash.yaml", &[policy(json!({ "loadBalancer": hash }))]);
    mesh.meshctl(&["local", "apply", "-f", &file.display().to_string()]).await.succeeded();
    let mut client = Client::open(way, "web:8080").await;
    let mut pods = async |user: u32| {
        let mut pods = std::collections::BTreeSet::new();
        for _ in 0..12 {
            let request = Request::get("/after/0/200").header("x-user", user);
            let response = client.send(request.body(empty()).unwrap()).await.unwrap();
            pods.insert(response.headers()["x-pod"].to_str().unwrap().to_owned());
        }
        pods
    };
    wait::until("each user to have a pod", async || (pods(1).await.len() == 1).then_some(())).await;
    let mut all = std::collections::BTreeSet::new();
    for user in 0..30 {
        let of_user = pods(user).await;
        assert_eq!(of_user.len(), 1, "{user}: {of_user:?}");
        all.extend(of_user);
    }
    assert_eq!(all.len(), 3, "all pods have users");
}
