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
pub mod limit;
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

pub use self::convert::additions::{WholePolicy, WireSize};
pub use self::error::ConversionError;
pub use self::identity::{Certified, CertifyRequest, TrustRoots};
pub use self::wire::{EncodeError, Wire};
pub use self::workload::Workload;

pub use mesh_model::outbound::{BackendExtension, RetryBudget};

/// One message of a watch: usable, or to be counted and left aside in favour of the last good one.
#[derive(Clone, Debug, PartialEq)]
pub enum Update<T> {
    Valid(T),
    Invalid(ConversionError),
}
