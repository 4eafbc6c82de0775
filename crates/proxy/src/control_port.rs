//! The control port (4190): figures, live requests and the proxy's view of the world, over gRPC.
//!
//! `mesh.ext.v1.Proxy` is what our control plane and `meshctl` ask; `tap.Tap` of
//! linkerd2-proxy-api is there for controllers of the ecosystem. The figures come from
//! [`crate::telemetry`]; what their fields mean stands in `crates/api/proto`.

mod door;
mod remembered;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mesh_api::ext::proxy_server::{Proxy, ProxyServer};
use mesh_api::ext::{self, ConfigReply, ConfigRequest, StatsReply, StatsRequest, TapRequest};
use mesh_api::stats::write_series;
use mesh_api::tap::{self, StreamEnd, Subject, TapMessage, TapSource, TapSubscription};
use mesh_model::endpoint::Labels;
use mesh_model::stats::WINDOW_SECONDS;
use mesh_model::tap::{Record, TapFilter};
use mesh_model::{Direction, Meta, Reason};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::admin::ports;
use crate::identity::Identity;
use crate::telemetry::observed::Observation;
use crate::telemetry::{EndpointState, TapReceiver, Telemetry, Who};

/// Streams at a time on one connection.
const MAX_STREAMS: u32 = 64;
/// A tap whose reader is gone without a word ends after so long.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3));
/// HTTP/2's INTERNAL_ERROR.
const RESET: u32 = 2;

/// Makes the proxy's account of itself, as one JSON document.
pub(crate) type ConfigFn = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// Serves until `drain` is cancelled, which also ends the taps.
pub(crate) async fn serve(
    listener: TcpListener,
    telemetry: Arc<Telemetry>,
    config: ConfigFn,
    identity: Identity,
    drain: CancellationToken,
) {
    let port = ControlPort { telemetry, config, drain: drain.clone() };
    let routes = tap::tap_routes(port.clone()).add_service(ProxyServer::new(port)).prepare();
    let connection = |stream, peer| {
        let (identity, routes) = (identity.clone(), routes.clone());
        async move {
            let stream = door::admit(stream, peer, &identity).await?;
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .keep_alive_interval(KEEP_ALIVE.0)
                .keep_alive_timeout(KEEP_ALIVE.1)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
            Some(connection)
        }
    };
    ports::serve(listener, "control", drain, connection).await;
}

#[derive(Clone)]
struct ControlPort {
    telemetry: Arc<Telemetry>,
    config: ConfigFn,
    drain: CancellationToken,
}

#[tonic::async_trait]
impl Proxy for ControlPort {
    type TapStream = BoxStream<'static, Result<ext::TapEvent, Status>>;

    async fn stats(&self, request: Request<StatsRequest>) -> Result<Response<StatsReply>, Status> {
        let seconds = match u64::from(request.into_inner().window_seconds) {
            0 => return Err(Status::invalid_argument("window_seconds is 0; ask for 1 to 600")),
            seconds => seconds.min(WINDOW_SECONDS),
        };
        let snapshot = self.telemetry.stats.snapshot(seconds);
        let series = snapshot.series.iter();
        Ok(Response::new(StatsReply {
            covered_seconds: snapshot.covered_seconds as u32,
            series: series.map(|row| write_series(&row.key, &row.totals, row.tcp_open)).collect(),
            overflowed_series: snapshot.overflowed,
            breakers: breakers(&self.telemetry),
        }))
    }

    async fn tap(&self, request: Request<TapRequest>) -> Result<Response<Self::TapStream>, Status> {
        let TapRequest { filter, max_rps } = request.into_inner();
        let filter = filter.unwrap_or_default();
        let show_secrets = filter.show_secrets;
        let filter =
            TapFilter::try_from(filter).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let events = self
            .telemetry
            .tap
            .subscribe(filter, max_rps, show_secrets)
            .map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let events = self.until_drained(events);
        let write = |(record, skipped): (Record, u64)| {
            Ok(ext::TapEvent { skipped, ..ext::TapEvent::from(&record) })
        };
        Ok(Response::new(events.map(write).boxed()))
    }

    async fn observed(
        &self,
        request: Request<ext::ObservedRequest>,
    ) -> Result<Response<ext::ObservedReply>, Status> {
        let window = Duration::from_secs(request.into_inner().window_seconds.into());
        let (all, left_out, covered) = self.telemetry.observed.within(window);
        let observation = |seen: Observation| {
            let (identity, peer) = match seen.who {
                Who::Identity(identity) => (identity.to_string(), String::new()),
                Who::Address(ip) => (String::new(), ip.to_string()),
            };
            ext::Observation {
                port: seen.port.into(),
                identity,
                peer,
                protocol: seen.protocol.as_str().into(),
                method: seen.method,
                path: seen.path,
                below: seen.below,
                count: seen.count,
            }
        };
        Ok(Response::new(ext::ObservedReply {
            covered_seconds: u32::try_from(covered.as_secs()).unwrap_or(u32::MAX),
            observations: all.into_iter().map(observation).collect(),
            left_out,
        }))
    }

    async fn notable(
        &self,
        request: Request<ext::NotableRequest>,
    ) -> Result<Response<ext::NotableReply>, Status> {
        let ext::NotableRequest { id, limit } = request.into_inner();
        let wanted = match id.as_str() {
            "" => None,
            id => Some(id.parse().map_err(|e| Status::invalid_argument(format!("`{id}`: {e}")))?),
        };
        let limit = if limit == 0 { usize::MAX } else { limit as usize };
        let requests = self.telemetry.notable.latest(wanted, limit);
        let requests = requests.iter().map(|request| remembered::write(request)).collect();
        Ok(Response::new(ext::NotableReply { requests }))
    }

    async fn config(&self, _: Request<ConfigRequest>) -> Result<Response<ConfigReply>, Status> {
        Ok(Response::new(ConfigReply { json: (self.config)().to_string() }))
    }
}

impl ControlPort {
    /// Finished requests, each with the number of those left out before it.
    fn until_drained(&self, mut events: TapReceiver) -> BoxStream<'static, (Record, u64)> {
        stream::poll_fn(move |cx| events.poll_recv(cx))
            .map(|event| (event.record, event.skipped))
            .take_until(self.drain.clone().cancelled_owned())
            .boxed()
    }
}

fn breakers(telemetry: &Telemetry) -> Vec<ext::Breaker> {
    let breaker =
        |((backend, endpoint), state): ((Meta, SocketAddr), EndpointState)| ext::Breaker {
            backend: backend.to_string(),
            endpoint: endpoint.to_string(),
            state: if state == EndpointState::Probing { "probing" } else { "ejected" }.to_owned(),
        };
    telemetry.balancers.breakers().into_iter().map(breaker).collect()
}

/// Controllers of the ecosystem are told of a request's three stages when it is over, because
/// records are of finished requests.
impl TapSource for ControlPort {
    fn tap(&self, request: TapSubscription) -> BoxStream<'static, TapMessage> {
        let TapSubscription { limit, filter, with_headers } = request;
        let matches = move |record: &Record, _: Option<&HeaderMap>| {
            Told::of(record).is_some_and(|told| {
                filter.as_ref().is_none_or(|filter| filter.matches(&told.subject(record)))
            })
        };
        match self.telemetry.tap.subscribe_matching(matches, with_headers, 0, false) {
            Ok(events) => {
                let limit = if limit == 0 { usize::MAX } else { limit as usize };
                let records = self.until_drained(events).take(limit);
                records.flat_map(|(record, _)| stream::iter(messages(record))).boxed()
            }
            Err(error) => {
                tracing::warn!(%error, "tap refused");
                stream::empty().boxed()
            }
        }
    }
}

/// What the ecosystem's tap has of a record in another form.
struct Told {
    method: Method,
    source_labels: Labels,
    destination_labels: Labels,
    route_labels: Labels,
}

impl Told {
    /// `None` for what is not HTTP.
    fn of(record: &Record) -> Option<Self> {
        let method = Method::from_bytes(record.method.as_bytes()).ok()?;
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let tls = |id_name: &str| match &record.tls {
            Some(id) => Labels::new([label("tls", "true"), label(id_name, id)].into()),
            None => Labels::default(),
        };
        let (source_labels, destination_labels) = match record.direction {
            Direction::Inbound => (tls("client_id"), Labels::default()),
            Direction::Outbound => (Labels::default(), tls("server_id")),
        };
        let route: BTreeMap<_, _> = match record.route.is_empty() {
            true => BTreeMap::new(),
            false => [label("route", &record.route)].into(),
        };
        Some(Self { method, source_labels, destination_labels, route_labels: Labels::new(route) })
    }

    fn subject<'a>(&'a self, record: &'a Record) -> Subject<'a> {
        Subject {
            source: record.source,
            destination: record.destination,
            scheme: &record.scheme,
            method: &self.method,
            authority: &record.authority,
            path: &record.path,
            destination_labels: &self.destination_labels,
            route_labels: &self.route_labels,
        }
    }
}

/// A request's beginning, its response's, and the end.
fn messages(record: Record) -> Vec<TapMessage> {
    let Some(told) = Told::of(&record) else { return Vec::new() };
    let message = |event| TapMessage {
        id: record.id,
        direction: record.direction,
        source: record.source,
        source_labels: told.source_labels.clone(),
        destination: record.destination,
        destination_labels: told.destination_labels.clone(),
        route_labels: told.route_labels.clone(),
        event,
    };
    let first_byte = record.first_byte.unwrap_or(record.duration);
    let mut messages = vec![message(tap::TapEvent::RequestInit {
        method: told.method.clone(),
        scheme: record.scheme.clone(),
        authority: record.authority.clone(),
        path: record.path.clone(),
        headers: header_map(&record.request_headers),
    })];
    if record.status != 0 {
        messages.push(message(tap::TapEvent::ResponseInit {
            since_request: first_byte,
            status: record.status,
            headers: header_map(&record.response_headers),
        }));
    }
    let broken = matches!(record.reason, Some(Reason::StreamReset | Reason::ConnectionClosed));
    messages.push(message(tap::TapEvent::ResponseEnd {
        since_request: record.duration,
        since_response: record.duration.saturating_sub(first_byte),
        response_bytes: record.response_bytes,
        end: match record.grpc_status {
            _ if record.status == 0 || broken => StreamEnd::Reset(RESET),
            Some(code) => StreamEnd::Grpc(code),
            None => StreamEnd::Complete,
        },
        trailers: HeaderMap::new(),
    }));
    messages
}

fn header_map(headers: &[(String, String)]) -> HeaderMap {
    let header = |(name, value): &(String, String)| {
        Some((name.parse::<HeaderName>().ok()?, value.parse::<HeaderValue>().ok()?))
    };
    headers.iter().filter_map(header).collect()
}

impl fmt::Debug for ControlPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPort").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
