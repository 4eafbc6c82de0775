//! `shipping`: gRPC, one unary call and one server stream; and the client that checkout uses.
//!
//! Kubernetes probes it over HTTP/1 on the main port; gRPC has the port named `grpc`. With `--delay` every call
//! waits first, for latency-aware balancing. The interface is `shop.proto`.

use std::io;
use std::time::Duration;

use http::Uri;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use super::env::Upstream;
use super::lifecycle::{DRAIN_DEADLINE, Lifecycle};
use super::pb;
use super::pb::shipping_client::ShippingClient as Stub;
use super::pb::shipping_server::{Shipping, ShippingServer};
use super::server::{self, not_found};

const BASE_CENTS: u32 = 490;
const CENTS_PER_ARTICLE: u32 = 50;
const PLACES: [&str; 3] = ["packed", "on its way", "delivered"];
const MAX_STREAMS: u32 = 256;
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
const CALL_DEADLINE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone)]
pub(super) struct Config {
    /// Before the answer to each call.
    pub(super) delay: Duration,
    pub(super) pod: String,
}

/// Serves health over `http` and the calls over `grpc` until drained.
pub(super) async fn serve(
    config: Config,
    http: TcpListener,
    grpc: TcpListener,
    lifecycle: Lifecycle,
) -> io::Result<()> {
    let health = server::serve(http, lifecycle.clone(), |_| async { not_found() });
    let calls = async {
        let draining = lifecycle.clone();
        let server = Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .tcp_nodelay(true)
            .add_service(ShippingServer::new(config))
            .serve_with_incoming_shutdown(TcpListenerStream::new(grpc), async move {
                draining.draining().await;
            });
        let deadline = async {
            lifecycle.draining().await;
            tokio::time::sleep(DRAIN_DEADLINE).await;
        };
        tokio::select! {
            ended = server => ended.map_err(io::Error::other),
            () = deadline => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "calls in flight outlived the drain deadline",
            )),
        }
    };
    tokio::try_join!(health, calls).map(|_| ())
}

#[tonic::async_trait]
impl Shipping for Config {
    async fn quote(
        &self,
        request: Request<pb::QuoteRequest>,
    ) -> Result<Response<pb::QuoteReply>, Status> {
        tokio::time::sleep(self.delay).await;
        let articles = request.into_inner().quantity;
        let cents = BASE_CENTS.saturating_add(articles.saturating_mul(CENTS_PER_ARTICLE));
        Ok(Response::new(pb::QuoteReply { cents, served_by: self.pod.clone() }))
    }

    type TrackStream = tokio_stream::Iter<std::vec::IntoIter<Result<pb::TrackEvent, Status>>>;

    async fn track(
        &self,
        _: Request<pb::TrackRequest>,
    ) -> Result<Response<Self::TrackStream>, Status> {
        tokio::time::sleep(self.delay).await;
        let events: Vec<_> = (1..)
            .zip(PLACES)
            .map(|(step, place)| Ok(pb::TrackEvent { step, place: place.to_owned() }))
            .collect();
        Ok(Response::new(tokio_stream::iter(events)))
    }
}

/// What is shipped.
#[derive(Debug)]
pub(super) struct Parcel<'a> {
    pub(super) order_id: &'a str,
    pub(super) quantity: u32,
}

/// The caller's side: one HTTP/2 connection, opened when first needed.
#[derive(Debug, Clone)]
pub(super) struct ShippingClient {
    stub: Stub<Channel>,
}

impl ShippingClient {
    /// `:authority` stays the service's name wherever the connection goes.
    pub(super) fn new(upstream: &Upstream) -> io::Result<Self> {
        let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidInput, error);
        let origin: Uri = format!("http://{}", upstream.authority)
            .parse()
            .map_err(|error| invalid(format!("shipping authority: {error}")))?;
        let channel = Endpoint::from_shared(format!("http://{}", upstream.connect))
            .map_err(|error| invalid(format!("shipping address {}: {error}", upstream.connect)))?
            .origin(origin)
            .connect_timeout(CONNECT_DEADLINE)
            .tcp_nodelay(true)
            .connect_lazy();
        Ok(Self { stub: Stub::new(channel) })
    }

    pub(super) async fn quote(&self, parcel: &Parcel<'_>) -> Result<pb::QuoteReply, Status> {
        let message =
            pb::QuoteRequest { order_id: parcel.order_id.to_owned(), quantity: parcel.quantity };
        Ok(self.stub.clone().quote(within_deadline(message)).await?.into_inner())
    }

    /// The places the parcel passes, in order.
    pub(super) async fn track(&self, parcel: &Parcel<'_>) -> Result<Vec<String>, Status> {
        let message = pb::TrackRequest { order_id: parcel.order_id.to_owned() };
        let mut events = self.stub.clone().track(within_deadline(message)).await?.into_inner();
        let mut places = Vec::new();
        while let Some(event) = events.message().await? {
            if places.len() == PLACES.len() {
                return Err(Status::internal("more track events than steps"));
            }
            places.push(event.place);
        }
        Ok(places)
    }
}

/// Sends the deadline along, as `grpc-timeout`.
fn within_deadline<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_DEADLINE);
    request
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http::Response;
    use http_body_util::Empty;
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tonic::Code;

    use super::*;

    /// Refuses one connection's calls, with the `:authority` they came with as the message.
    async fn echo_authority(listener: TcpListener) {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
            let reply = Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", "9")
                .header("grpc-message", request.uri().authority().unwrap().as_str())
                .body(Empty::<Bytes>::new());
            Ok::<_, Infallible>(reply.unwrap())
        });
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn calls_name_the_service_wherever_they_connect_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = ShippingClient::new(&Upstream {
            authority: "shipping:7000".parse().unwrap(),
            connect: listener.local_addr().unwrap().to_string(),
        })
        .unwrap();
        tokio::spawn(echo_authority(listener));
        let parcel = Parcel { order_id: "order-1", quantity: 1 };
        let refused = client.quote(&parcel).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::FailedPrecondition, "shipping:7000")
        );
        let refused = client.track(&parcel).await.unwrap_err();
        assert_eq!(refused.message(), "shipping:7000");
    }
}
