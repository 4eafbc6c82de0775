//! `web`, the storefront: pages, carts, and purchases, which it hands to checkout.
//!
//! A cart lives with the client, so any replica serves any request. Next: `checkout.rs`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpListener;

use super::catalog::{Item, PRODUCTS, product};
use super::client::{BaseUrl, CallError, HttpClient};
use super::lifecycle::Lifecycle;
use super::server::{self, Reply, body, json, json_body, not_found, problem};

/// More than checkout allows itself, so that its answer is seen and not our deadline.
const CHECKOUT_DEADLINE: Duration = Duration::from_secs(10);
const MAX_ORDER_ID: usize = 64;

#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) checkout: BaseUrl,
    pub(super) proxy: Option<Authority>,
}

struct Web {
    checkout: BaseUrl,
    client: HttpClient,
    /// Begins the order ids made here, apart from those of other replicas and earlier runs.
    run: String,
    orders: AtomicU64,
}

pub(super) async fn serve(
    config: Config,
    listener: TcpListener,
    lifecycle: Lifecycle,
) -> io::Result<()> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let web = Arc::new(Web {
        checkout: config.checkout,
        client: HttpClient::new(config.proxy, CHECKOUT_DEADLINE),
        run: format!("web-{}-{}", since_epoch.as_micros(), std::process::id()),
        orders: AtomicU64::new(0),
    });
    server::serve(listener, lifecycle, move |request| {
        let web = web.clone();
        async move { web.answer(request).await }
    })
    .await
}

impl Web {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let path = request.uri().path();
        match (request.method(), path) {
            (&Method::GET, "/") => front_page(&request),
            (&Method::GET, _) => product_page(path),
            (&Method::POST, "/cart") => cart(request).await,
            (&Method::POST, "/buy") => self.buy(request).await,
            _ => not_found(),
        }
    }

    async fn buy(&self, request: Request<Incoming>) -> Reply {
        let Some(order_id) = self.order_id(&request) else {
            let error = "an Idempotency-Key has 1 to 64 visible ASCII characters";
            return problem(StatusCode::BAD_REQUEST, error);
        };
        let item: Item = match json_body(request.into_body()).await {
            Ok(item) => item,
            Err(reply) => return reply,
        };
        let order = match order(&self.checkout, &order_id, &item) {
            Ok(order) => order,
            Err(error) => return problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        };
        match self.client.call(order).await {
            Ok((status, content)) => body(status, "application/json", content),
            Err(error @ CallError::Deadline { .. }) => {
                problem(StatusCode::GATEWAY_TIMEOUT, &error.to_string())
            }
            Err(error) => problem(StatusCode::BAD_GATEWAY, &error.to_string()),
        }
    }

    /// The client's `Idempotency-Key`, so that a repeated purchase stays one, else a new id.
    fn order_id(&self, request: &Request<Incoming>) -> Option<HeaderValue> {
        let new = || {
            let number = self.orders.fetch_add(1, Ordering::Relaxed);
            HeaderValue::try_from(format!("{}-{number}", self.run)).ok()
        };
        let id = request.headers().get("idempotency-key").cloned().or_else(new);
        id.filter(|id| is_order_id(id.as_bytes()))
    }
}

/// Whether the ledger, whose lines are words between spaces, can take it.
pub(super) fn is_order_id(id: &[u8]) -> bool {
    (1..=MAX_ORDER_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// The key allows the mesh to repeat the POST: the ledger books an order id once.
fn order(
    checkout: &BaseUrl,
    order_id: &HeaderValue,
    item: &Item,
) -> Result<Request<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let content = serde_json::to_vec(item)?;
    Ok(Request::post(checkout.join("/orders"))
        .header("idempotency-key", order_id)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(content.into()))?)
}

fn front_page(request: &Request<Incoming>) -> Reply {
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if !accept.is_some_and(|value| value.contains("text/html")) {
        return json(StatusCode::OK, &serde_json::json!({ "products": PRODUCTS }));
    }
    let rows: String = PRODUCTS
        .iter()
        .map(|p| format!("<li><a href=\"/product/{}\">{}</a>\n", p.id, p.name))
        .collect();
    let page = format!("<!doctype html><title>shop</title><h1>Shop</h1><ul>\n{rows}</ul>\n");
    body(StatusCode::OK, "text/html; charset=utf-8", page.into())
}

fn product_page(path: &str) -> Reply {
    let id = path.strip_prefix("/product/").and_then(|id| id.parse().ok());
    match id.and_then(product) {
        Some(product) => json(StatusCode::OK, product),
        None => not_found(),
    }
}

async fn cart(request: Request<Incoming>) -> Reply {
    let item: Item = match json_body(request.into_body()).await {
        Ok(item) => item,
        Err(reply) => return reply,
    };
    match item.cents() {
        Ok(cents) => json(StatusCode::OK, &serde_json::json!({ "item": item, "cents": cents })),
        Err(error) => problem(StatusCode::UNPROCESSABLE_ENTITY, &error),
    }
}
