//! One endpoint of a backend: the bottom of the outbound stack.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::StatusCode;
use mesh_layers::{BoxError, Request, Response, ResponseFuture};
use mesh_model::endpoint::{Endpoint, ProtocolHint};
use mesh_model::stats::{SeriesKey, StatProtocol};
use mesh_model::{Direction, Reason};
use parking_lot::Mutex;
use tower::Service;
use tracing::Instrument;

use crate::config::{Config, Limits};
use crate::connect::{Connect, ConnectError, Secure};
use crate::error::{PeerRefused, told_reason};
use crate::exchange::{BackendInfo, Exchange, Recorder, RouteInfo};
use crate::http::client::Client;
use crate::http::forward::{self, L5D_PROXY_ERROR};
use crate::http::pool::PoolLimits;
use crate::identity::Identity;
use crate::io::Io;
use crate::telemetry::{HttpLabels, Peer, Series, SeriesSpec, Tls, TransportLabels};

/// Sends requests and opens connections to one endpoint. Clones are handles on the same one.
#[derive(Clone, Debug)]
pub(crate) struct EndpointService {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoint: Arc<Endpoint>,
    backend: Arc<BackendInfo>,
    client: Client,
    tls: Tls,
    /// The authority of requests that name none.
    authority: Box<str>,
    recorder: Arc<Recorder>,
    /// Where requests of a route are counted; few routes share a backend.
    series: Mutex<Vec<Counted>>,
}

#[derive(Debug)]
struct Counted {
    route: Arc<RouteInfo>,
    protocol: StatProtocol,
    series: Arc<Series>,
}

/// Routes come and go with policies; their entries here must not add up.
const MAX_COUNTED: usize = 64;

impl EndpointService {
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        backend: &Arc<BackendInfo>,
        recorder: &Arc<Recorder>,
        config: &Config,
        identity: &Identity,
        of_pool: PoolLimits,
    ) -> Self {
        let own = config.pod_ips.contains(&endpoint.addr.ip());
        let secure = identity.id().and(endpoint.identity.as_ref()).map(|peer| Secure {
            peer: peer.clone(),
            ours: identity.clone(),
            direct_port: endpoint.opaque_transport,
            own_port: own.then(|| config.inbound.addr.port()),
        });
        let tls = match &secure {
            Some(secure) => Tls::Id(secure.peer.id.as_str().into()),
            None if identity.id().is_none() => Tls::None("disabled"),
            None => Tls::None("not_provided_by_service_discovery"),
        };
        let labels = TransportLabels {
            tls: tls.clone(),
            dst: Arc::clone(&endpoint.labels),
            ..TransportLabels::new(Direction::Outbound, Peer::Dst, Some(endpoint.addr))
        };
        let limits: &Limits = &config.limits;
        let connect = Connect {
            addrs: vec![endpoint.addr],
            bind_ip: config.bind_ip,
            timeout: limits.connect_timeout_outbound,
            transport: recorder.telemetry.transport.series(&labels),
            secure,
        };
        let inner = Inner {
            tls,
            client: Client::new(connect, endpoint.http2.clone(), limits, of_pool),
            authority: endpoint.addr.to_string().into(),
            backend: Arc::clone(backend),
            recorder: Arc::clone(recorder),
            series: Mutex::default(),
            endpoint,
        };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.inner.endpoint
    }

    pub(crate) fn client(&self) -> &Client {
        &self.inner.client
    }

    /// A connection of its own, for bytes.
    pub(crate) async fn connect(&self) -> Result<Io, ConnectError> {
        self.inner.client.connect().open_bytes().await
    }

    /// Where a route's exchanges with this endpoint are counted.
    pub(crate) fn series(&self, route: &Arc<RouteInfo>, protocol: StatProtocol) -> Arc<Series> {
        let mut counted = self.inner.series.lock();
        let found = counted
            .iter()
            .find(|entry| entry.protocol == protocol && Arc::ptr_eq(&entry.route, route));
        if let Some(entry) = found {
            return Arc::clone(&entry.series);
        }
        if counted.len() >= MAX_COUNTED {
            counted.clear();
        }
        let series = self.inner.recorder.telemetry.stats.series(self.spec(route, protocol));
        let entry = Counted { route: Arc::clone(route), protocol, series: Arc::clone(&series) };
        counted.push(entry);
        series
    }

    fn spec(&self, route: &RouteInfo, protocol: StatProtocol) -> SeriesSpec {
        let Inner { endpoint, backend, tls, .. } = &*self.inner;
        SeriesSpec {
            key: SeriesKey {
                direction: Direction::Outbound,
                protocol,
                peer: Some(endpoint.addr.ip()),
                port: endpoint.addr.port(),
                parent: Arc::clone(&route.parent_text),
                route: Arc::clone(&route.route_text),
                backend: Arc::clone(&backend.text),
                identity: tls.id(),
            },
            labels: HttpLabels {
                target_addr: Some(endpoint.addr),
                tls: tls.clone(),
                parent: Some(route.parent.clone()),
                route: Some(route.route.clone()),
                backend: Some(backend.meta.clone()),
                dst: Arc::clone(&endpoint.labels),
                ..HttpLabels::default()
            },
        }
    }

    fn prepare(&self, request: &mut Request) {
        let Inner { endpoint, authority, .. } = &*self.inner;
        if let Some(authority) = &endpoint.authority_override {
            forward::set_authority(request, authority);
        }
        let as_http2 = endpoint.hint == ProtocolHint::H2 && !forward::wants_upgrade(request);
        if request.version() == http::Version::HTTP_2 {
            forward::to_http2(request, authority);
        } else if as_http2 {
            forward::mark_orig_proto(request);
            forward::to_http2(request, authority);
        } else {
            forward::to_http1(request, authority);
        }
    }
}

impl Service<Request> for EndpointService {
    type Response = Response;
    type Error = BoxError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> ResponseFuture {
        let exchange = Exchange::of(&request).cloned();
        if let Some(exchange) = &exchange
            && let Some(route) = exchange.route()
        {
            let series = self.series(&route, exchange.protocol());
            exchange.balanced(self.inner.endpoint.addr, series);
        }
        self.prepare(&mut request);
        let inner = Arc::clone(&self.inner);
        let span = tracing::debug_span!("outbound.endpoint", addr = %inner.endpoint.addr);
        let call = async move {
            let result = inner.client.send(request).await;
            let result = result.and_then(|mut response| match refused_by_proxy(&mut response) {
                Some(reason) => Err(PeerRefused { addr: inner.endpoint.addr, reason }.into()),
                None => Ok(response),
            });
            if let Some(exchange) = exchange {
                exchange.answered(&result);
            }
            result
        };
        Box::pin(call.instrument(span))
    }
}

/// Whether the far proxy says that its application never saw the request. What proxies tell each
/// other about errors ends here.
fn refused_by_proxy(response: &mut Response) -> Option<Reason> {
    response.headers_mut().remove(L5D_PROXY_ERROR)?;
    let may_refuse = [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK];
    if !may_refuse.contains(&response.status()) {
        return None;
    }
    let reason = told_reason(response.headers())?;
    matches!(reason, Reason::LocalRefused | Reason::Draining).then_some(reason)
}
