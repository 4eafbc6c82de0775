//! The tap service of linkerd2-proxy-api: live requests, as controllers of the ecosystem ask for
//! them. `meshctl` asks for finished ones by `mesh.ext.v1` instead, see [`crate::stats`].

mod convert;
mod matching;
mod service;

pub use self::matching::{StringMatch, Subject, TapMatch, TcpMatch};
pub use self::service::{TapSource, tap_routes};

use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderMap, Method};
use mesh_model::Direction;
use mesh_model::endpoint::Labels;

/// What a controller wants to see.
#[derive(Clone, Debug, PartialEq)]
pub struct TapSubscription {
    /// Requests after which the stream ends; 0 is no end.
    pub limit: u32,
    /// `None` matches all.
    pub filter: Option<TapMatch>,
    pub with_headers: bool,
}

/// One thing that happened to one request.
#[derive(Clone, Debug, PartialEq)]
pub struct TapMessage {
    /// Unique within the process; the same in all messages of a request.
    pub id: u64,
    pub direction: Direction,
    pub source: SocketAddr,
    pub source_labels: Labels,
    /// `None` as long as no endpoint is chosen.
    pub destination: Option<SocketAddr>,
    pub destination_labels: Labels,
    pub route_labels: Labels,
    pub event: TapEvent,
}

/// Headers are empty unless the subscription asks for them.
#[derive(Clone, Debug, PartialEq)]
pub enum TapEvent {
    RequestInit {
        method: Method,
        scheme: String,
        authority: String,
        path: String,
        headers: HeaderMap,
    },
    ResponseInit {
        since_request: Duration,
        status: u16,
        headers: HeaderMap,
    },
    ResponseEnd {
        since_request: Duration,
        since_response: Duration,
        response_bytes: u64,
        end: StreamEnd,
        trailers: HeaderMap,
    },
}

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// In full, and it was not gRPC.
    Complete,
    /// With a gRPC status.
    Grpc(u16),
    /// With an HTTP/2 error code.
    Reset(u32),
}
