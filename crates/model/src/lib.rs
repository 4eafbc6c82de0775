//! What routes, policies, endpoints and statistics *mean*: plain data and pure functions.
//!
//! Nothing here knows tokio, tonic or Kubernetes. The control plane builds these values from its
//! sources, `mesh-api` carries them over the wire, and the proxy acts on them. Matching,
//! authorising and histograms live here too, so that the proxy, the control plane and `meshctl` cannot disagree.
//!
//! Read [`outbound`] first: one `OutboundPolicy` is what a proxy needs to know about a destination.

pub mod authz;
mod cors;
pub mod egress;
pub mod endpoint;
pub mod gateway;
pub mod inbound;
pub mod matching;
pub mod meta;
pub mod outbound;
pub mod reason;
pub mod route;
pub mod stats;
pub mod tap;

pub use self::endpoint::{Destination, Endpoint, Profile, ProtocolHint, TlsIdentity};
pub use self::meta::{Meta, ResourceRef, Target};
pub use self::outbound::{OutboundPolicy, Protocol};
pub use self::reason::Reason;

/// Where a proxy stands relative to the application it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From the mesh to the local application.
    Inbound,
    /// From the local application into the mesh.
    Outbound,
}

impl Direction {
    /// The value of the `direction` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}
