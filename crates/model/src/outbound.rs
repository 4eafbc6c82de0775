//! What a proxy needs to know about one destination of its application.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use crate::endpoint::Endpoint;
use crate::meta::Meta;
use crate::route::{
    Backoff, Distribution, Filter, GrpcMatch, HostMatch, HttpMatch, Retry, Route, Session, Timeouts,
};

/// Protocol, routes, backends and breaker for one target.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboundPolicy {
    /// The Service (or default) the target resolved to.
    pub meta: Meta,
    pub protocol: Protocol,
}

/// How to find out what is spoken, or what is known to be spoken.
#[derive(Clone, Debug, PartialEq)]
pub enum Protocol {
    Detect {
        /// A client silent for longer is treated as opaque.
        timeout: Duration,
        http1: HttpPolicy,
        http2: HttpPolicy,
        opaque: TcpPolicy,
    },
    Http1(HttpPolicy),
    Http2(HttpPolicy),
    Grpc(GrpcPolicy),
    Opaque(TcpPolicy),
    Tls(TcpPolicy),
}

/// Routes of an HTTP destination.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpPolicy {
    pub routes: Arc<[HttpRoute]>,
    pub breaker: Option<Breaker>,
}

/// Routes of a gRPC destination.
#[derive(Clone, Debug, PartialEq)]
pub struct GrpcPolicy {
    pub routes: Arc<[GrpcRoute]>,
    pub breaker: Option<Breaker>,
}

/// Routes of an opaque or TLS destination.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpPolicy {
    pub routes: Arc<[TcpRoute]>,
}

pub type HttpRoute = Route<HttpMatch, Forward>;
pub type GrpcRoute = Route<GrpcMatch, Forward>;

/// What a rule does with the requests it matched.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    pub backends: Distribution<RouteBackend>,
    pub timeouts: Timeouts,
    pub retry: Option<Retry>,
    /// Requests may set timeouts and retries themselves, in the headers `l5d-timeout`, `l5d-retry-limit` and others.
    pub allow_request_headers: bool,
    /// An extension, as those of [`Filter`].
    pub session: Option<Session>,
}

/// A backend as one rule uses it.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteBackend {
    pub filters: Vec<Filter>,
    pub backend: Backend,
}

/// A route for bytes: by SNI when it is TLS, else unconditional.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpRoute {
    pub meta: Meta,
    /// Empty: any, and connections that are not TLS.
    pub snis: Vec<HostMatch>,
    pub backends: Distribution<Backend>,
    /// Set when the route exists in order to refuse.
    pub refuse: Option<Refuse>,
}

/// Why a TCP route refuses connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refuse {
    Forbidden,
    Invalid(String),
}

/// Where requests go: a service's balanced endpoints, or one address.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    pub meta: Meta,
    pub queue: Queue,
    pub kind: BackendKind,
}

#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one per backend of a rule, in an `Arc`")]
pub enum BackendKind {
    Forward(Endpoint),
    Balance(Balance),
}

/// A service's endpoints, discovered by name, and the load estimate for picking among them.
#[derive(Clone, Debug, PartialEq)]
pub struct Balance {
    /// `name:port` for the destination service.
    pub path: String,
    pub default_rtt: Duration,
    pub decay: Duration,
    pub penalty: Option<Penalty>,
}

/// Artificial latency for endpoints that answer 429.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Penalty {
    pub penalty: Duration,
    pub max_retry_after: Duration,
    pub decay: Duration,
}

/// How many requests may wait for an endpoint, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    pub capacity: u32,
    pub failfast_timeout: Duration,
}

/// Circuit breaking of each endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Breaker {
    /// Failures in a row that open it.
    pub consecutive: Option<u32>,
    pub success_rate: Option<SuccessRate>,
    pub backoff: Backoff,
    /// Endpoints that must stay in service; 0 lets all be ejected.
    pub min_ready: u32,
}

/// Opens the breaker when the moving success rate falls below `threshold`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    /// 0.0…1.0.
    pub threshold: f64,
    pub decay: Duration,
    /// Requests seen before it may open.
    pub min_requests: u32,
}

/// Balancer of a backend, which the linkerd2 proxy API cannot express (`mesh.ext.v1`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Strategy {
    #[default]
    PeakEwma,
    LeastRequest,
    RoundRobin,
    RingHash,
}

impl Strategy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PeakEwma => "peak-ewma",
            Self::LeastRequest => "least-request",
            Self::RoundRobin => "round-robin",
            Self::RingHash => "ring-hash",
        }
    }
}

/// Settings of one backend that the linkerd2 proxy API cannot express (`mesh.ext.v1`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendExtension {
    pub strategy: Strategy,
    /// Ring hash: the request header that holds the key; `None` means the client's address.
    pub hash_header: Option<HeaderName>,
    /// How long a new endpoint takes to get its whole share.
    pub slow_start: Option<Duration>,
    /// A response whose head takes longer is a failure to the breaker.
    pub breaker_latency: Option<Duration>,
    /// Connections to each endpoint.
    pub max_connections: Option<u32>,
    pub max_in_flight: Option<u32>,
    /// Of requests to the resource as a route's parent; `None` is the proxy's own.
    pub retry_budget: Option<RetryBudget>,
}

/// How many retries a flow of requests may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Of the requests.
    pub percent: u32,
    pub min_per_second: u32,
}
