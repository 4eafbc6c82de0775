//! One live request as a proxy saw it, and the filter that picks it.

use std::net::SocketAddr;
use std::time::Duration;

use crate::{Direction, Reason};

/// A finished request (or TCP connection), joined from its beginning, response and end.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Unique within the proxy.
    pub id: u64,
    /// When it began, milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    pub direction: Direction,
    pub source: SocketAddr,
    /// The endpoint that served it; the local application inbound. `None` if none was chosen.
    pub destination: Option<SocketAddr>,
    pub method: String,
    pub scheme: String,
    pub authority: String,
    pub path: String,
    /// The Service asked for, the route and the backend that were chosen, as in `SeriesKey`.
    pub parent: String,
    pub route: String,
    pub backend: String,
    /// 0 when there was no response.
    pub status: u16,
    pub grpc_status: Option<u16>,
    pub reason: Option<Reason>,
    pub attempts: u32,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Until the response's head, and until its end.
    pub first_byte: Option<Duration>,
    pub duration: Duration,
    /// The peer's identity when the hop was mTLS.
    pub tls: Option<String>,
    /// What decided about it at the server.
    pub policy: Option<String>,
    /// Only when asked for; sensitive ones redacted.
    pub request_headers: Vec<(String, String)>,
    pub response_headers: Vec<(String, String)>,
}

/// Which requests to show; every condition set must hold. Matching is on the finished record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapFilter {
    pub direction: Option<Direction>,
    pub method: Option<String>,
    /// A prefix.
    pub path: Option<String>,
    pub authority: Option<String>,
    /// A status (`503`) or a class (`5xx`), already parsed.
    pub status: Option<StatusFilter>,
    pub reason: Option<Reason>,
    /// The other side's address: client inbound, endpoint outbound. Any of these.
    pub peers: Vec<std::net::IpAddr>,
    pub headers: Vec<(String, String)>,
    /// Deliver headers, too.
    pub with_headers: bool,
}

/// A status or a class of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusFilter {
    Code(u16),
    /// The first digit, 1…5.
    Class(u16),
}

impl TapFilter {
    /// Whether a finished request is one of those asked for (headers are checked by the proxy,
    /// which has them).
    pub fn matches(&self, record: &Record) -> bool {
        let peer = match record.direction {
            Direction::Inbound => Some(record.source.ip()),
            Direction::Outbound => record.destination.map(|addr| addr.ip()),
        };
        self.direction.is_none_or(|d| d == record.direction)
            && self.method.as_ref().is_none_or(|m| m.eq_ignore_ascii_case(&record.method))
            && self.path.as_ref().is_none_or(|p| record.path.starts_with(p.as_str()))
            && self.authority.as_ref().is_none_or(|a| {
                record.authority.eq_ignore_ascii_case(a)
                    || crate::matching::host_of(&record.authority).eq_ignore_ascii_case(a)
            })
            && self.status.is_none_or(|s| match s {
                StatusFilter::Code(code) => code == record.status,
                StatusFilter::Class(class) => class == record.status / 100,
            })
            && self.reason.is_none_or(|reason| record.reason == Some(reason))
            && (self.peers.is_empty() || peer.is_some_and(|ip| self.peers.contains(&ip)))
    }
}
