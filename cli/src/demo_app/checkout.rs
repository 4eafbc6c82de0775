//! `checkout`: prices an order and books it, with one upstream for each protocol the mesh carries.
//!
//! Tax is HTTP/1, shipping gRPC (one unary call and one stream), the ledger raw TCP. Next: those three files.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use super::catalog::Item;
use super::client::{BaseUrl, HttpClient};
use super::env::Upstream;
use super::ledger::LedgerClient;
use super::lifecycle::Lifecycle;
use super::server::{self, Reply, json, json_body, not_found, problem};
use super::shipping::{Parcel, ShippingClient};
use super::web::is_order_id;

/// Bounds a whole order; each upstream has less.
const ORDER_DEADLINE: Duration = Duration::from_secs(8);
const TAX_DEADLINE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) tax: BaseUrl,
    pub(super) proxy: Option<Authority>,
    pub(super) shipping: Upstream,
    pub(super) ledger: Upstream,
    /// Shown in answers (`checkout` and the header `x-checkout-version`), to see a traffic split.
    pub(super) version: HeaderValue,
    pub(super) pod: String,
}

struct Checkout {
    config: Config,
    tax: HttpClient,
    shipping: ShippingClient,
    ledger: LedgerClient,
}

/// An upstream that failed, and how.
#[derive(Debug, thiserror::Error)]
#[error("{upstream}: {reason}")]
struct UpstreamFailed {
    upstream: &'static str,
    reason: String,
}

#[derive(Debug, Serialize)]
struct Order<'a> {
    order_id: &'a str,
    checkout: &'a str,
    served_by: &'a str,
    cents: u32,
    tax_cents: u32,
    shipping_cents: u32,
    shipped_by: String,
    ledger_entry: u64,
    route: Vec<String>,
}

/// What the tax service answers to `GET /tax?cents=…`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TaxReply {
    pub(super) cents: u32,
}

pub(super) async fn serve(
    config: Config,
    listener: TcpListener,
    lifecycle: Lifecycle,
) -> io::Result<()> {
    let checkout = Arc::new(Checkout {
        tax: HttpClient::new(config.proxy.clone(), TAX_DEADLINE),
        shipping: ShippingClient::new(&config.shipping)?,
        ledger: LedgerClient::new(config.ledger.clone()),
        config,
    });
    server::serve(listener, lifecycle, move |request| {
        let checkout = checkout.clone();
        async move {
            let mut reply = checkout.answer(request).await;
            let version = checkout.config.version.clone();
            reply.headers_mut().insert(HeaderName::from_static("x-checkout-version"), version);
            reply
        }
    })
    .await
}

impl Checkout {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        if request.method() != Method::POST || request.uri().path() != "/orders" {
            return not_found();
        }
        let key = request.headers().get("idempotency-key").cloned();
        let order_id = key.as_ref().and_then(|key| key.to_str().ok());
        let Some(order_id) = order_id.filter(|id| is_order_id(id.as_bytes())) else {
            return problem(StatusCode::BAD_REQUEST, "an order needs an Idempotency-Key");
        };
        let item: Item = match json_body(request.into_body()).await {
            Ok(item) => item,
            Err(reply) => return reply,
        };
        let cents = match item.cents() {
            Ok(cents) => cents,
            Err(error) => return problem(StatusCode::UNPROCESSABLE_ENTITY, &error),
        };
        match tokio::time::timeout(ORDER_DEADLINE, self.place(order_id, item, cents)).await {
            Ok(Ok(order)) => json(StatusCode::OK, &order),
            Ok(Err(error)) => problem(StatusCode::BAD_GATEWAY, &error.to_string()),
            Err(_) => problem(StatusCode::GATEWAY_TIMEOUT, "the order took over 8 s"),
        }
    }

    async fn place<'a>(
        &'a self,
        order_id: &'a str,
        item: Item,
        cents: u32,
    ) -> Result<Order<'a>, UpstreamFailed> {
        let parcel = Parcel { order_id, quantity: item.quantity };
        let quote = async { self.shipping.quote(&parcel).await.map_err(failed("shipping")) };
        let (tax_cents, quote) = tokio::try_join!(self.tax(cents), quote)?;
        let total = cents + tax_cents + quote.cents;
        let ledger_entry = self.ledger.append(order_id, total).await.map_err(failed("ledger"))?;
        let route = self.shipping.track(&parcel).await.map_err(failed("shipping"))?;
        Ok(Order {
            order_id,
            checkout: self.config.version.to_str().unwrap_or_default(),
            served_by: &self.config.pod,
            cents: total,
            tax_cents,
            shipping_cents: quote.cents,
            shipped_by: quote.served_by,
            ledger_entry,
            route,
        })
    }

    /// A GET, so that the mesh may repeat it.
    async fn tax(&self, cents: u32) -> Result<u32, UpstreamFailed> {
        let request = Request::get(self.config.tax.join(&format!("/tax?cents={cents}")))
            .body(Full::<Bytes>::default())
            .map_err(failed("tax"))?;
        let (status, body) = self.tax.call(request).await.map_err(failed("tax"))?;
        if status != StatusCode::OK {
            return Err(failed("tax")(format!("answered {status}")));
        }
        let reply: TaxReply = serde_json::from_slice(&body).map_err(failed("tax"))?;
        Ok(reply.cents)
    }
}

fn failed<E: ToString>(upstream: &'static str) -> impl Fn(E) -> UpstreamFailed {
    move |error| UpstreamFailed { upstream, reason: error.to_string() }
}
