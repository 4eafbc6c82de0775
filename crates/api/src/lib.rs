//! The wire between proxies, the control plane and `meshctl`.
//!
//! Proxies and the control plane speak the published `linkerd2-proxy-api`, so that either can be
//! somebody else's; what it lacks is in our own `mesh.ext.v1`. No other package imports
//! linkerd2-proxy-api: [`client`] and [`server`] speak in terms of `mesh_model`, and [`Wire`]
//! converts. What must hold for a message that is sent stands in [`validate`].
//!
//! Read [`server`] next for the control plane's side, [`client`] for the proxy's.

pub mod client;
mod convert;
mod error;
mod identity;
pub mod server;
pub mod stats;
pub mod tap;
pub mod validate;
mod wire;
mod workload;

/// Generated from `proto/mesh/ext/v1`; refreshed by `tests/generated.rs`.
#[allow(
    clippy::all,
    clippy::large_futures,
    clippy::unwrap_used,
    missing_debug_implementations,
    rust_2018_idioms,
    unreachable_pub
)]
pub mod ext {
    include!("gen/mesh.ext.v1.rs");
}

pub use self::error::ConversionError;
pub use self::identity::{Certified, CertifyRequest, TrustRoots};
pub use self::wire::{EncodeError, Wire};
pub use self::workload::Workload;

use std::time::Duration;

use http::HeaderName;
use mesh_model::outbound::Strategy;

/// One message of a watch: usable, or to be counted and left aside in favour of the last good one.
#[derive(Clone, Debug, PartialEq)]
pub enum Update<T> {
    Valid(T),
    Invalid(ConversionError),
}

/// Settings of one backend that linkerd2-proxy-api cannot express.
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
