//! Golden figures over a short sliding window: what each proxy keeps, and how answers merge.
//!
//! A proxy keeps one [`Window`] per [`SeriesKey`]; the control plane merges the [`Totals`] of many
//! proxies into the rows of `meshctl stat`. Time is passed in, in whole seconds of any monotonic
//! clock, so that everything here is testable without waiting.

mod histogram;
mod window;

use std::net::IpAddr;
use std::sync::Arc;

pub use self::histogram::Histogram;
pub use self::window::{Totals, WINDOW_SECONDS, Window};

use crate::Direction;

/// What a series of figures is about. Text is shared: keys are resolved once per
/// (route, backend, endpoint), not per request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesKey {
    pub direction: Direction,
    pub protocol: StatProtocol,
    /// The other side: the client's address inbound, the endpoint's outbound.
    pub peer: Option<IpAddr>,
    /// The port of the server side.
    pub port: u16,
    /// The Service (`Service/shop/tax:8080`) or authority that was asked for; empty inbound.
    pub parent: Arc<str>,
    /// The route that decided, `HTTPRoute/shop/tax`.
    pub route: Arc<str>,
    /// The Service that was chosen, `Service/shop/tax-v2:8080`; empty inbound.
    pub backend: Arc<str>,
    /// Whom the other side proved to be; `None` in the clear.
    pub identity: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StatProtocol {
    Http,
    Grpc,
    Tcp,
}

impl StatProtocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}
