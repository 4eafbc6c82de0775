//! The record of one request: who decided what, and how it ended.
//!
//! It travels in the request's extensions; every section of the stack notes its decision there.
//! However the exchange ends (a response read to its end, cut short, or a client that went away)
//! the record is closed exactly once, and figures, tap, access log and trace all come from it.

mod memory;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode};
use mesh_layers::{
    BoxError, End, Outcome, Request, Response, Track, grpc_is_failure, grpc_status, is_grpc,
    status_outcome, track,
};
use mesh_model::stats::{SeriesKey, StatProtocol};
use mesh_model::tap::Record;
use mesh_model::{Direction, Meta, Reason};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::memory::Asked;
use crate::error::{Failure, REQUEST_ID, told_reason};
use crate::telemetry::notable::{MAX_TRIES, RequestId, Try};
use crate::telemetry::{
    AccessLog, Finished, HttpLabels, RetryCounters, Series, SeriesSpec, Span, SpanEnd, Telemetry,
    Tracer,
};

/// Where closed records go.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) access_log: AccessLog,
    pub(crate) tracer: Option<Tracer>,
}

/// A route and what it belongs to; made once per policy, pointed to by every request.
#[derive(Debug)]
pub(crate) struct RouteInfo {
    pub(crate) parent: Meta,
    pub(crate) route: Meta,
    pub(crate) parent_text: Arc<str>,
    pub(crate) route_text: Arc<str>,
    pub(crate) retries: Arc<RetryCounters>,
}

impl RouteInfo {
    pub(crate) fn new(telemetry: &Telemetry, parent: &Meta, route: &Meta) -> Arc<Self> {
        Arc::new(Self {
            retries: telemetry.retries.route(parent, route),
            parent_text: parent.to_string().into(),
            route_text: route.to_string().into(),
            parent: parent.clone(),
            route: route.clone(),
        })
    }

    /// A route of one of the workload's own ports: it has no parent.
    pub(crate) fn inbound(route: &Meta) -> Arc<Self> {
        Arc::new(Self {
            // Nothing is retried inbound: counted nowhere.
            retries: Arc::default(),
            parent_text: Arc::default(),
            route_text: route.to_string().into(),
            parent: Meta::Default(String::new()),
            route: route.clone(),
        })
    }
}

/// A backend, likewise.
#[derive(Debug)]
pub(crate) struct BackendInfo {
    pub(crate) meta: Meta,
    pub(crate) text: Arc<str>,
}

impl BackendInfo {
    pub(crate) fn new(meta: &Meta) -> Arc<Self> {
        Arc::new(Self { text: meta.to_string().into(), meta: meta.clone() })
    }
}

/// One request on its way.
#[derive(Debug)]
pub(crate) struct Exchange {
    recorder: Arc<Recorder>,
    direction: Direction,
    client: SocketAddr,
    /// The port of the server side, for requests that never get an endpoint.
    port: u16,
    started: Instant,
    grpc: bool,
    attempts: AtomicU32,
    request_bytes: AtomicU64,
    decided: Mutex<Decided>,
    asked: Asked,
    /// Only while somebody taps or access is logged.
    head: Option<Box<Head>>,
}

#[derive(Debug, Default)]
struct Decided {
    route: Option<Arc<RouteInfo>>,
    backend: Option<Arc<BackendInfo>>,
    endpoint: Option<SocketAddr>,
    series: Option<Arc<Series>>,
    /// The try under way.
    tried: Option<Tried>,
    /// Tries that were given up.
    tries: Vec<Try>,
    /// What decided whether it may be made; only while somebody watches, or if it may not.
    policy: Option<String>,
    /// Only of a sampled request.
    span: Option<Box<Span>>,
    closed: bool,
}

/// One try, and what came of it so far.
#[derive(Debug)]
struct Tried {
    backend: Option<Arc<BackendInfo>>,
    endpoint: SocketAddr,
    started: Instant,
    status: u16,
    grpc_status: Option<u16>,
    reason: Option<Reason>,
}

#[derive(Debug)]
struct Head {
    started: SystemTime,
    method: http::Method,
    uri: http::Uri,
    headers: HeaderMap,
}

/// How an exchange ended.
struct Ended<'a> {
    status: u16,
    grpc_status: Option<u16>,
    /// `None`: the client went away before there was an answer to judge.
    success: Option<bool>,
    first_byte: Option<Duration>,
    response_bytes: u64,
    reason: Option<Reason>,
    /// That the mesh answered with, whatever it counts as.
    told: Option<Reason>,
    message: &'a str,
    id: Option<RequestId>,
    response_headers: Option<&'a HeaderMap>,
}

impl Exchange {
    /// Begins the record of `request` and puts it into the request's extensions.
    pub(crate) fn begin(
        recorder: &Arc<Recorder>,
        direction: Direction,
        client: SocketAddr,
        port: u16,
        request: &mut Request,
    ) -> Arc<Self> {
        let watched = recorder.telemetry.tap.active() || recorder.access_log.enabled();
        let head = watched.then(|| {
            Box::new(Head {
                started: SystemTime::now(),
                method: request.method().clone(),
                uri: request.uri().clone(),
                headers: request.headers().clone(),
            })
        });
        // Behind the copy of the head: a tap shows what the client sent.
        let tracer = recorder.tracer.as_ref();
        let span = tracer.and_then(|tracer| tracer.begin(direction, client, request));
        let exchange = Arc::new(Self {
            recorder: Arc::clone(recorder),
            direction,
            client,
            port,
            started: Instant::now(),
            grpc: is_grpc(request.headers()),
            attempts: AtomicU32::new(0),
            request_bytes: AtomicU64::new(0),
            decided: Mutex::new(Decided { span, ..Decided::default() }),
            asked: Asked::new(request),
            head,
        });
        request.extensions_mut().insert(Arc::clone(&exchange));
        let body = std::mem::take(request.body_mut()).mark_request();
        *request.body_mut() = track(body, CountRequest(Arc::clone(&exchange)));
        exchange
    }

    /// The record of a request.
    pub(crate) fn of(request: &Request) -> Option<&Arc<Self>> {
        request.extensions().get()
    }

    pub(crate) fn client(&self) -> SocketAddr {
        self.client
    }

    pub(crate) fn protocol(&self) -> StatProtocol {
        if self.grpc { StatProtocol::Grpc } else { StatProtocol::Http }
    }

    pub(crate) fn routed(&self, route: &Arc<RouteInfo>) {
        self.decided.lock().route = Some(Arc::clone(route));
    }

    /// Where its latest try went.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.decided.lock().endpoint
    }

    pub(crate) fn route(&self) -> Option<Arc<RouteInfo>> {
        self.decided.lock().route.clone()
    }

    /// An object decided whether it may be made.
    pub(crate) fn authorized(&self, policy: &Meta, allowed: bool) {
        if !allowed || self.head.is_some() {
            self.decided.lock().policy = Some(policy.to_string());
        }
    }

    /// A try goes to a backend.
    pub(crate) fn split(&self, backend: &Arc<BackendInfo>) {
        self.decided.lock().backend = Some(Arc::clone(backend));
    }

    /// A try goes to an endpoint; its series is where the request will be counted. The try before
    /// it, if there was one, was given up.
    pub(crate) fn balanced(&self, endpoint: SocketAddr, series: Arc<Series>) {
        self.attempts.fetch_add(1, Relaxed);
        series.request();
        // A try of which nothing is heard is one that took too long.
        let (status, grpc_status, reason) = (0, None, Some(Reason::TryTimeout));
        let started = Instant::now();
        let mut decided = self.decided.lock();
        let backend = decided.backend.clone();
        let tried = Tried { backend, endpoint, started, status, grpc_status, reason };
        decided.endpoint = Some(endpoint);
        let before = decided.tried.replace(tried);
        if let Some(tried) = before.as_ref().filter(|_| decided.tries.len() < MAX_TRIES) {
            decided.tries.push(tried.into());
        }
        let Some((series, tried)) = decided.series.replace(series).zip(before) else { return };
        drop(decided);
        series.gave_up(&Finished {
            status: tried.status,
            grpc_status: tried.grpc_status,
            success: false,
            first_byte: None,
            total: tried.started.elapsed(),
            request_bytes: 0,
            response_bytes: 0,
            reason: tried.reason,
            attempts: 1,
        });
    }

    /// What came of the try under way, as far as its response's head tells.
    pub(crate) fn answered(&self, result: &Result<Response, BoxError>) {
        let answer = match result {
            Ok(response) => {
                let grpc_status = if self.grpc { grpc_status(response.headers()) } else { None };
                (response.status().as_u16(), grpc_status, None)
            }
            Err(error) => (0, None, Some(Failure::of(error).reason)),
        };
        if let Some(tried) = &mut self.decided.lock().tried {
            (tried.status, tried.grpc_status, tried.reason) = answer;
        }
    }

    /// Turns a failure into the response that tells it, and closes the record with it.
    pub(crate) fn fail(self: Arc<Self>, failure: &Failure) -> Response {
        let mut response = failure.response(self.grpc);
        let id = self.recorder.telemetry.notable.id();
        name(response.headers_mut(), id);
        let elapsed = self.started.elapsed();
        let success = match self.grpc {
            true => !grpc_is_failure(failure.grpc_status()),
            false => {
                status_outcome(response.status()) == Outcome::Success && !denied(failure.reason)
            }
        };
        self.close(&Ended {
            status: response.status().as_u16(),
            grpc_status: self.grpc.then(|| failure.grpc_status()),
            success: Some(success),
            first_byte: Some(elapsed),
            response_bytes: 0,
            reason: Some(failure.reason),
            told: Some(failure.reason),
            message: &failure.message,
            id: Some(id),
            response_headers: Some(response.headers()),
        });
        tracing::debug!(direction = self.direction.as_str(), client = %self.client, %failure,
            fault = ?failure.fault(), "request failed");
        response
    }

    /// Follows the response to its end, and closes the record then.
    pub(crate) fn respond(self: Arc<Self>, response: Response) -> Response {
        let (mut head, body) = response.into_parts();
        let fails = self.grpc || head.status.is_client_error() || head.status.is_server_error();
        let told = fails.then(|| told_reason(&head.headers)).flatten();
        let follow = FollowResponse {
            status: head.status.as_u16(),
            reason: told.filter(|reason| {
                // A fault is an answer of a proxy, this one or the other.
                *reason == Reason::FaultInjected
                    || ((self.grpc || is_refusal(head.status)) && refused(*reason))
            }),
            told,
            // The proxy at the other end may have named it; both remember it by that.
            id: told.map(|_| self.named(&mut head.headers)),
            grpc_status: if self.grpc { grpc_status(&head.headers) } else { None },
            headers: self.head.as_ref().map(|_| Box::new(head.headers.clone())),
            first_byte: self.started.elapsed(),
            bytes: 0,
            exchange: self,
        };
        Response::from_parts(head, track(body, follow))
    }

    fn close(&self, ended: &Ended<'_>) {
        let (series, span, decided) = {
            let mut decided = self.decided.lock();
            if std::mem::replace(&mut decided.closed, true) {
                return;
            }
            (decided.series.take(), decided.span.take(), decided)
        };
        let total = self.started.elapsed();
        self.keep(&decided, ended, total, series.as_deref());
        let identity = self.head.as_ref().and(series.as_ref());
        let identity = identity.and_then(|s| s.key().identity.as_deref().map(str::to_owned));
        if let Some(success) = ended.success {
            let series = series.unwrap_or_else(|| {
                let series = self.endpointless(&decided);
                series.request();
                series
            });
            series.response(&Finished {
                status: ended.status,
                grpc_status: ended.grpc_status,
                success,
                first_byte: ended.first_byte,
                total,
                request_bytes: self.request_bytes.load(Relaxed),
                response_bytes: ended.response_bytes,
                reason: ended.reason,
                // Earlier tries were counted where they went.
                attempts: 1,
            });
        }
        if let Some((tracer, span)) = self.recorder.tracer.as_ref().zip(span) {
            tracer.finish(*span, &self.span_end(&decided, ended, total));
        }
        if let Some(head) = &self.head {
            let mut record = self.record(head, &decided, ended, total);
            record.tls = identity;
            drop(decided);
            let Recorder { telemetry, access_log, .. } = &*self.recorder;
            access_log.write(&record);
            if telemetry.tap.active() {
                let (request, response) = (head.headers.clone(), ended.response_headers.cloned());
                telemetry.tap.publish(record, Some(request), response);
            }
        }
    }

    /// The series of requests that failed before any endpoint was chosen.
    fn endpointless(&self, decided: &Decided) -> Arc<Series> {
        let (route, backend) = (decided.route.as_ref(), decided.backend.as_ref());
        self.recorder.telemetry.stats.series(SeriesSpec {
            key: SeriesKey {
                direction: self.direction,
                protocol: self.protocol(),
                peer: match self.direction {
                    Direction::Inbound => Some(self.client.ip()),
                    Direction::Outbound => None,
                },
                port: self.port,
                parent: route.map(|r| Arc::clone(&r.parent_text)).unwrap_or_default(),
                route: route.map(|r| Arc::clone(&r.route_text)).unwrap_or_default(),
                backend: backend.map(|b| Arc::clone(&b.text)).unwrap_or_default(),
                identity: None,
            },
            labels: HttpLabels {
                parent: route.map(|r| r.parent.clone()),
                route: route.map(|r| r.route.clone()),
                backend: backend.map(|b| b.meta.clone()),
                ..HttpLabels::default()
            },
        })
    }

    fn span_end<'a>(
        &self,
        decided: &'a Decided,
        ended: &Ended<'_>,
        total: Duration,
    ) -> SpanEnd<'a> {
        SpanEnd {
            duration: total,
            route: decided.route.as_ref().map(|route| &route.route),
            backend: decided.backend.as_ref().map(|backend| &*backend.text),
            endpoint: decided.endpoint.filter(|_| self.direction == Direction::Outbound),
            attempts: self.attempts.load(Relaxed),
            status: ended.status,
            grpc_status: ended.grpc_status,
            success: ended.success,
            reason: ended.reason,
        }
    }

    fn record(&self, head: &Head, decided: &Decided, ended: &Ended<'_>, total: Duration) -> Record {
        let text = |text: Option<&Arc<str>>| text.map(ToString::to_string).unwrap_or_default();
        let host = || head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        let since_epoch = head.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Record {
            id: self.recorder.telemetry.tap.next_id(),
            started_unix_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
            direction: self.direction,
            source: self.client,
            destination: decided.endpoint,
            method: head.method.to_string(),
            scheme: head.uri.scheme_str().unwrap_or("http").to_owned(),
            authority: head
                .uri
                .authority()
                .map(http::uri::Authority::as_str)
                .or_else(host)
                .unwrap_or_default()
                .to_owned(),
            path: head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            parent: text(decided.route.as_ref().map(|route| &route.parent_text)),
            route: text(decided.route.as_ref().map(|route| &route.route_text)),
            backend: text(decided.backend.as_ref().map(|backend| &backend.text)),
            status: ended.status,
            grpc_status: ended.grpc_status,
            reason: ended.reason,
            attempts: self.attempts.load(Relaxed),
            request_bytes: self.request_bytes.load(Relaxed),
            response_bytes: ended.response_bytes,
            first_byte: ended.first_byte,
            duration: total,
            tls: None,
            policy: decided.policy.clone(),
            request_headers: Vec::new(),
            response_headers: Vec::new(),
        }
    }
}

impl Drop for Exchange {
    /// The client went away before there was a response.
    fn drop(&mut self) {
        self.close(&Ended {
            status: 0,
            grpc_status: None,
            success: None,
            first_byte: None,
            response_bytes: 0,
            reason: None,
            told: None,
            message: "",
            id: None,
            response_headers: None,
        });
    }
}

struct CountRequest(Arc<Exchange>);

impl Track for CountRequest {
    fn data(&mut self, bytes: usize) {
        self.0.request_bytes.fetch_add(bytes as u64, Relaxed);
    }

    fn end(self, _: End<'_>) {}
}

/// Tells the client what its request is called.
fn name(headers: &mut HeaderMap, id: RequestId) {
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(REQUEST_ID, id);
    }
}

/// A refused client is a failure in HTTP as it is in gRPC, although nobody's fault but its own: who looks at
/// a success rate wants to know.
fn denied(reason: Reason) -> bool {
    matches!(reason, Reason::Unauthorized | Reason::EgressDenied)
}

/// What another proxy refuses by its port's rules; anything else it says is its own affair.
fn refused(reason: Reason) -> bool {
    matches!(reason, Reason::Unauthorized | Reason::RateLimited | Reason::Overloaded)
}

fn is_refusal(status: StatusCode) -> bool {
    const REFUSALS: [StatusCode; 3] =
        [StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
    REFUSALS.contains(&status)
}

struct FollowResponse {
    exchange: Arc<Exchange>,
    status: u16,
    /// The other proxy's, where it refused the client.
    reason: Option<Reason>,
    told: Option<Reason>,
    id: Option<RequestId>,
    grpc_status: Option<u16>,
    headers: Option<Box<HeaderMap>>,
    first_byte: Duration,
    bytes: u64,
}

impl Track for FollowResponse {
    fn data(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    fn end(self, end: End<'_>) {
        let mut grpc_code = self.grpc_status;
        let (mut reason, mut told) = (self.reason, self.told);
        let mut message = String::new();
        let whole = match end {
            End::Complete { trailers } => {
                if self.exchange.grpc {
                    grpc_code = grpc_code.or_else(|| trailers.and_then(grpc_status));
                }
                true
            }
            End::Error(error) => {
                let failure = Failure::of(error);
                reason = Some(failure.reason);
                told = reason;
                message = failure.message;
                false
            }
            // The client stopped reading, which says nothing about the server.
            End::Dropped { .. } => true,
        };
        let status_ok = self.status < 500;
        let grpc_ok = !grpc_code.is_some_and(grpc_is_failure);
        self.exchange.close(&Ended {
            status: self.status,
            grpc_status: grpc_code,
            success: Some(whole && status_ok && grpc_ok && !self.reason.is_some_and(denied)),
            first_byte: Some(self.first_byte),
            response_bytes: self.bytes,
            reason,
            told,
            message: &message,
            id: self.id,
            response_headers: self.headers.as_deref(),
        });
    }
}
