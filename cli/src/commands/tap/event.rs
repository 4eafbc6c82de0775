//! One request as a JSON event, with the field names of the reference's events, joined.

use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use mesh_api::ext;
use mesh_api::ext::mesh_tap_event::Tapped;
use serde::Serialize;

/// A line of `tap -o json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Event {
    /// RFC 3339, UTC
    started: String,
    /// `INBOUND` or `OUTBOUND`
    proxy_direction: &'static str,
    /// The proxy that saw it.
    pod: String,
    namespace: String,
    source: Side,
    destination: Side,
    request_init: RequestInit,
    response_init: Option<ResponseInit>,
    response_end: Option<ResponseEnd>,
    parent: String,
    route: String,
    backend: String,
    reason: Option<String>,
    attempts: u32,
    request_bytes: u64,
    latency_ms: Option<f64>,
    /// The peer's identity.
    tls: Option<String>,
    /// What decided at the server whether it may be made.
    policy: Option<String>,
    skipped: u64,
}

/// One end of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Side {
    ip: Option<String>,
    port: Option<u16>,
    pod: Option<String>,
    namespace: Option<String>,
    /// What was asked for, when no endpoint was chosen.
    #[serde(skip)]
    wanted: String,
}

#[derive(Debug, Serialize)]
struct RequestInit {
    id: u64,
    method: String,
    scheme: String,
    authority: String,
    path: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<Header>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ResponseInit {
    since_request_init: Option<Span>,
    http_status: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<Header>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ResponseEnd {
    since_request_init: Option<Span>,
    since_response_init: Option<Span>,
    response_bytes: u64,
    grpc_status_code: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Span {
    seconds: u64,
    nanos: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct Header {
    name: String,
    value: String,
}

impl Event {
    pub(crate) fn new(tapped: &Tapped) -> Self {
        let event = tapped.event.clone().unwrap_or_default();
        let (first_byte, duration) = (spent(&event.first_byte), spent(&event.duration));
        Self {
            started: started(&event),
            proxy_direction: match event.direction() {
                ext::Direction::Inbound => "INBOUND",
                ext::Direction::Outbound => "OUTBOUND",
                ext::Direction::Unspecified => "UNKNOWN",
            },
            pod: tapped.pod.clone(),
            namespace: tapped.namespace.clone(),
            source: Side::source(tapped, &event),
            destination: Side::destination(tapped, &event),
            request_init: RequestInit {
                id: event.id,
                method: event.method.clone(),
                scheme: event.scheme.clone(),
                authority: event.authority.clone(),
                path: event.path.clone(),
                headers: headers(&event.request_headers),
            },
            response_init: (event.status > 0).then(|| ResponseInit {
                since_request_init: first_byte.map(Span::from),
                http_status: event.status,
                headers: headers(&event.response_headers),
            }),
            response_end: duration.map(|duration| ResponseEnd {
                since_request_init: Some(duration.into()),
                since_response_init: first_byte.map(|first| duration.saturating_sub(first).into()),
                response_bytes: event.response_bytes,
                grpc_status_code: event.grpc_status,
            }),
            reason: Some(event.reason.clone()).filter(|reason| !reason.is_empty()),
            attempts: event.attempts,
            request_bytes: event.request_bytes,
            latency_ms: duration.map(|d| d.as_secs_f64() * 1e3),
            tls: Some(event.tls.clone()).filter(|identity| !identity.is_empty()),
            policy: Some(event.policy.clone()).filter(|policy| !policy.is_empty()),
            skipped: event.skipped,
            parent: event.parent,
            route: event.route,
            backend: event.backend,
        }
    }
}

impl Side {
    pub(crate) fn source(tapped: &Tapped, event: &ext::TapEvent) -> Self {
        Self::new(tapped.source.as_ref(), &event.source, "")
    }

    pub(crate) fn destination(tapped: &Tapped, event: &ext::TapEvent) -> Self {
        // `Service/shop/tax:8080` as `tax:8080`; without a service the authority itself.
        let service = event.parent.rsplit('/').next().unwrap_or_default();
        let wanted = if service.is_empty() { event.authority.as_str() } else { service };
        Self::new(tapped.destination.as_ref(), &event.destination, wanted)
    }

    fn new(named: Option<&ext::ObjectRef>, address: &str, wanted: &str) -> Self {
        let parsed: Option<SocketAddr> = address.parse().ok();
        let named = named.filter(|of| of.kind == "pod" && !of.name.is_empty());
        Self {
            ip: parsed.map(|addr| addr.ip().to_string()),
            port: parsed.map(|addr| addr.port()),
            pod: named.map(|of| of.name.clone()),
            namespace: named.map(|of| of.namespace.clone()),
            wanted: wanted.to_owned(),
        }
    }

    /// The pod's name, else the address, else what was asked for.
    pub(crate) fn short(&self) -> String {
        let known = self.pod.as_deref().or(self.ip.as_deref());
        crate::output::clean(known.unwrap_or(if self.wanted.is_empty() {
            "-"
        } else {
            &self.wanted
        }))
        .into_owned()
    }

    /// The same with the port, for a server.
    pub(crate) fn with_port(&self) -> String {
        match (self.port, self.pod.as_deref(), self.ip.as_deref()) {
            (Some(port), Some(pod), _) => {
                crate::output::clean(&format!("{pod}:{port}")).into_owned()
            }
            (Some(port), None, Some(ip)) if ip.contains(':') => format!("[{ip}]:{port}"),
            (Some(port), None, Some(ip)) => format!("{ip}:{port}"),
            _ => self.short(),
        }
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self { seconds: duration.as_secs(), nanos: duration.subsec_nanos() }
    }
}

/// As everywhere in the mesh: HTTP 5xx, gRPC codes that are the server's fault, what a policy refuses and failures
/// of the mesh are none.
pub(crate) fn succeeded(event: &ext::TapEvent) -> bool {
    let grpc_failed = matches!(event.grpc_status, Some(2 | 4 | 7 | 13 | 14 | 15));
    // A TCP connection has no status; one that the mesh failed has a reason.
    let unanswered = event.status == 0 && (!event.method.is_empty() || !event.reason.is_empty());
    let refused = event.reason == "unauthorized";
    event.status < 500 && !grpc_failed && !unanswered && !refused
}

pub(super) fn started(event: &ext::TapEvent) -> String {
    let known = i64::try_from(event.started_unix_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    known.map(|time| format!("{time:.3}")).unwrap_or_default()
}

pub(super) fn headers(headers: &[ext::Header]) -> Vec<Header> {
    headers.iter().map(|h| Header { name: h.name.clone(), value: h.value.clone() }).collect()
}

fn spent(duration: &Option<prost_types::Duration>) -> Option<Duration> {
    duration.as_ref().map(std_duration)
}

/// A negative duration is none.
pub(crate) fn std_duration(duration: &prost_types::Duration) -> Duration {
    Duration::try_from(*duration).unwrap_or_default()
}
