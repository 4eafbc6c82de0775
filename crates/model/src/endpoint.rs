//! Endpoints: the addresses that serve a port of a service, and how to talk to each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::meta::Meta;

/// Metric labels of an endpoint or a service, shared because thousands of endpoints carry them.
pub type Labels = Arc<BTreeMap<String, String>>;

/// One address that serves a port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub addr: SocketAddr,
    /// Share of traffic relative to its siblings; 10 000 is the usual weight, 0 gets none.
    pub weight: u32,
    pub labels: Labels,
    /// Whom to expect in mTLS; `None` means plaintext.
    pub identity: Option<TlsIdentity>,
    pub hint: ProtocolHint,
    /// Port of the far proxy that takes connections with a transport header.
    pub opaque_transport: Option<u16>,
    /// Replaces the request's authority.
    pub authority_override: Option<String>,
    pub http2: Http2Params,
    pub resource: Option<Meta>,
}

impl Endpoint {
    /// An endpoint with the usual weight and nothing special about it.
    pub fn plain(addr: SocketAddr) -> Self {
        Self {
            addr,
            weight: DEFAULT_WEIGHT,
            labels: Labels::default(),
            identity: None,
            hint: ProtocolHint::None,
            opaque_transport: None,
            authority_override: None,
            http2: Http2Params::default(),
            resource: None,
        }
    }
}

/// The weight of an endpoint nobody weighed.
pub const DEFAULT_WEIGHT: u32 = 10_000;

/// The identity an endpoint proves in mTLS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsIdentity {
    /// DNS-like id or SPIFFE URI among the certificate's SANs.
    pub id: String,
    /// The name sent as SNI.
    pub server_name: String,
}

/// What the endpoint's proxy is known to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ProtocolHint {
    #[default]
    None,
    /// HTTP/2, also for requests that began as HTTP/1.
    H2,
    /// Not HTTP: detection is to be skipped.
    Opaque,
}

/// HTTP/2 client settings an endpoint asks for; `None` keeps the proxy's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Http2Params {
    pub initial_connection_window: Option<u32>,
    pub initial_stream_window: Option<u32>,
    pub adaptive_flow_control: bool,
    pub keep_alive_interval: Option<Duration>,
    pub keep_alive_timeout: Option<Duration>,
    pub keep_alive_while_idle: bool,
    pub max_concurrent_reset_streams: Option<u32>,
    pub max_frame_size: Option<u32>,
    pub max_send_buf_size: Option<u32>,
}

/// One message of a destination stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Adds or replaces endpoints; `labels` are those of the whole service.
    Add {
        endpoints: Vec<Endpoint>,
        labels: Labels,
    },
    Remove(Vec<SocketAddr>),
    /// The set is empty; `exists` tells whether the service itself does.
    NoEndpoints {
        exists: bool,
    },
}

/// What is known of a destination besides its policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// The service's full name, if the target is a service.
    pub name: Option<String>,
    /// Skip detection and treat the bytes as opaque.
    pub opaque: bool,
    /// The single endpoint, if the target is a pod's address.
    pub endpoint: Option<Endpoint>,
}
