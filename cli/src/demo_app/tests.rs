//! The whole shop in one process on loopback, without a mesh.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::client::{BaseUrl, HttpClient};
use super::env::Upstream;
use super::lifecycle::{Lifecycle, Terminator};
use super::{checkout, ledger, load, shipping, tax, web};

/// All services but the load generator; what each was bound to, and how to stop them.
struct Shop {
    web: BaseUrl,
    roles: Vec<(Terminator, JoinHandle<std::io::Result<()>>)>,
}

impl Shop {
    async fn open(tax_fails: u8) -> Self {
        let mut shop = Self { web: url("127.0.0.1:1"), roles: Vec::new() };
        let pod = "pod-0".to_owned();

        let (tax_at, listener) = listener().await;
        let lifecycle = shop.lifecycle();
        shop.spawn(
            lifecycle.0,
            tax::serve(tax::Config { fail_percent: tax_fails }, listener, lifecycle.1),
        );

        let (ledger_at, listener) = self::listener().await;
        let lifecycle = shop.lifecycle();
        shop.spawn(
            lifecycle.0,
            ledger::serve(ledger::Config { pod: pod.clone() }, listener, lifecycle.1),
        );

        let (_, http) = self::listener().await;
        let (shipping_at, grpc) = self::listener().await;
        let config = shipping::Config { delay: Duration::ZERO, pod: pod.clone() };
        let lifecycle = shop.lifecycle();
        shop.spawn(lifecycle.0, shipping::serve(config, http, grpc, lifecycle.1));

        let (checkout_at, listener) = self::listener().await;
        let config = checkout::Config {
            tax: url(&tax_at),
            proxy: None,
            shipping: Upstream {
                authority: "shipping:7000".parse().unwrap(),
                connect: shipping_at,
            },
            ledger: Upstream { authority: "ledger:7100".parse().unwrap(), connect: ledger_at },
            version: "v2".parse().unwrap(),
            pod,
        };
        let lifecycle = shop.lifecycle();
        shop.spawn(lifecycle.0, checkout::serve(config, listener, lifecycle.1));

        let (web_at, listener) = self::listener().await;
        let config = web::Config { checkout: url(&checkout_at), proxy: None };
        let lifecycle = shop.lifecycle();
        shop.spawn(lifecycle.0, web::serve(config, listener, lifecycle.1));
        shop.web = url(&web_at);
        shop
    }

    fn lifecycle(&self) -> (Terminator, Lifecycle) {
        Lifecycle::new(Duration::ZERO)
    }

    fn spawn(
        &mut self,
        terminator: Terminator,
        role: impl Future<Output = std::io::Result<()>> + Send + 'static,
    ) {
        self.roles.push((terminator, tokio::spawn(role)));
    }

    async fn post(&self, path: &str, key: &str, body: &str) -> (StatusCode, Value) {
        let request = Request::post(self.web.join(path)).header("idempotency-key", key);
        exchange(request.body(Full::new(body.to_owned().into())).unwrap()).await
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        exchange(Request::get(self.web.join(path)).body(Full::default()).unwrap()).await
    }

    /// Stops every role and expects each to end well.
    async fn close(self) {
        for (terminator, role) in self.roles {
            terminator.terminate().await;
            role.await.unwrap().unwrap();
        }
    }
}

async fn exchange(request: Request<Full<Bytes>>) -> (StatusCode, Value) {
    let client = HttpClient::new(None, Duration::from_secs(10));
    let (status, body) = client.call(request).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

async fn listener() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap().to_string(), listener)
}

fn url(authority: &str) -> BaseUrl {
    format!("http://{authority}").parse().unwrap()
}

#[tokio::test]
async fn a_purchase_passes_every_service() {
    let shop = Shop::open(0).await;
    let (status, order) = shop.post("/buy", "order-1", r#"{"product":1,"quantity":2}"#).await;
    assert_eq!(status, StatusCode::OK, "{order}");
    assert_eq!(order["tax_cents"], 1482);
    assert_eq!(order["shipping_cents"], 590);
    assert_eq!(order["cents"], 7800 + 1482 + 590);
    assert_eq!(order["checkout"], "v2");
    assert_eq!(order["order_id"], "order-1");
    assert_eq!(order["route"], serde_json::json!(["packed", "on its way", "delivered"]));

    let (_, other) = shop.post("/buy", "order-2", r#"{"product":1,"quantity":2}"#).await;
    let (_, again) = shop.post("/buy", "order-1", r#"{"product":1,"quantity":2}"#).await;
    assert_eq!(again["ledger_entry"], order["ledger_entry"]);
    assert_ne!(other["ledger_entry"], order["ledger_entry"]);
    shop.close().await;
}

#[tokio::test]
async fn a_failing_upstream_is_named_in_a_502() {
    let shop = Shop::open(100).await;
    let (status, answer) = shop.post("/buy", "order-1", r#"{"product":1,"quantity":1}"#).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(answer["error"].as_str().unwrap().starts_with("tax: answered 500"), "{answer}");
    shop.close().await;
}

#[tokio::test]
async fn pages_carts_and_mistakes() {
    let shop = Shop::open(0).await;
    assert_eq!(shop.get("/").await.1["products"][0]["name"], "kettle");
    assert_eq!(shop.get("/product/2").await.1["cents"], 2450);
    assert_eq!(shop.get("/readyz-not").await.0, StatusCode::NOT_FOUND);
    assert_eq!(shop.get("/product/99").await.0, StatusCode::NOT_FOUND);
    let (status, cart) = shop.post("/cart", "k", r#"{"product":3,"quantity":3}"#).await;
    assert_eq!((status, &cart["cents"]), (StatusCode::OK, &Value::from(2100)));
    for (body, expected) in [
        ("{", StatusCode::BAD_REQUEST),
        (r#"{"product":9,"quantity":1}"#, StatusCode::UNPROCESSABLE_ENTITY),
        (r#"{"product":1,"quantity":0}"#, StatusCode::UNPROCESSABLE_ENTITY),
        (&" ".repeat(17 * 1024), StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        assert_eq!(shop.post("/cart", "k", body).await.0, expected);
    }
    assert_eq!(shop.post("/buy", "has space", "{}").await.0, StatusCode::BAD_REQUEST);
    shop.close().await;
}

#[tokio::test]
async fn the_load_generator_sends_its_count_and_counts_failures_exactly() {
    let shop = Shop::open(50).await;
    let config = load::Config {
        target: shop.web.clone(),
        proxy: None,
        rps: load::MAX_RPS,
        concurrency: 4,
        count: Some(200),
    };
    let (_terminator, lifecycle) = Lifecycle::new(Duration::ZERO);
    let summary = load::run(config, &lifecycle).await;
    // A fifth buys, and the tax of every second purchase fails.
    assert_eq!((summary.requests, summary.success, summary.failures), (200, 180, 20));
    assert!(summary.p99_ms >= summary.p50_ms);
    shop.close().await;
}
