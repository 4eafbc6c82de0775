//! What a proxy needs to know about one of its own workload's ports.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use crate::authz::PortAuthz;
use crate::meta::Meta;
use crate::route::{Fault, GrpcMatch, HttpMatch, Route};

/// Protocol, routes and authorisations of one port.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerPolicy {
    pub protocol: ServerProtocol,
    /// Apply to connections, and to requests whose route has none of its own. Empty: nobody.
    pub authorizations: Arc<[Authorization]>,
    /// `name`, `group` and `kind` of the object that governs the port.
    pub labels: Arc<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ServerProtocol {
    Detect { timeout: Duration, routes: Arc<[ServerHttpRoute]>, limit: Option<RateLimit> },
    Http1 { routes: Arc<[ServerHttpRoute]>, limit: Option<RateLimit> },
    Http2 { routes: Arc<[ServerHttpRoute]>, limit: Option<RateLimit> },
    Grpc { routes: Arc<[ServerGrpcRoute]> },
    Opaque,
    Tls,
}

pub type ServerHttpRoute = Route<HttpMatch, Authorize>;
pub type ServerGrpcRoute = Route<GrpcMatch, Authorize>;

/// Who may use a route's rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Authorize {
    pub authorizations: Arc<[Authorization]>,
}

/// Lets clients from `networks` in that prove what `authentication` asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Authorization {
    pub meta: Meta,
    pub networks: Vec<Network>,
    pub authentication: Authentication,
    pub labels: BTreeMap<String, String>,
}

/// A network, less its exceptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub net: Cidr,
    pub except: Vec<Cidr>,
}

impl Network {
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.net.contains(ip) && !self.except.iter().any(|e| e.contains(ip))
    }
}

/// An address block. `prefix` is at most 32 or 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub addr: IpAddr,
    pub prefix: u8,
}

impl Cidr {
    /// Whether `ip` is of the block's family and shares its prefix.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.addr, ip.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let shift = 32u32.saturating_sub(u32::from(self.prefix));
                (u32::from(net) ^ u32::from(ip)).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let shift = 128u32.saturating_sub(u32::from(self.prefix));
                (u128::from(net) ^ u128::from(ip)).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// `10.0.0.0/8`
impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

/// A text that is neither an address nor `ADDRESS/PREFIX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is neither an IP address nor a network such as 10.0.0.0/8")]
pub struct InvalidNetwork;

/// A bare address is a network of one.
impl FromStr for Cidr {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let (addr, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let addr = IpAddr::from_str(addr).map_err(|_| InvalidNetwork)?;
        let max = if addr.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => max,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok().filter(|prefix| *prefix <= max).ok_or(InvalidNetwork)?
            }
            Some(_) => return Err(InvalidNetwork),
        };
        Ok(Self { addr, prefix })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication {
    Unauthenticated,
    /// Any certificate of the mesh.
    MeshTls,
    /// One of these identities, or one that ends in one of these suffixes (whole labels).
    Identities {
        identities: Vec<String>,
        suffixes: Vec<Vec<String>>,
    },
}

/// Requests a port takes; each bound there is has to let a request pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    pub meta: Meta,
    pub total: Option<Rate>,
    /// Of each client: its identity, or its address if it has none.
    pub identity: Option<Rate>,
    /// For the named identities, instead of `identity`.
    pub overrides: Vec<(Rate, Vec<String>)>,
    /// Of each value of a header, which the linkerd2 proxy API cannot express.
    pub header: Option<HeaderRate>,
}

/// So many requests a second, and so many at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u32,
    /// At least 1. The linkerd2 proxy API knows one second's worth only.
    pub burst: u32,
}

impl Rate {
    /// With one second's worth at once.
    pub fn per_second(per_second: u32) -> Self {
        Self { per_second, burst: per_second.max(1) }
    }
}

/// Requests without the header are of one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderRate {
    pub name: HeaderName,
    pub rate: Rate,
}

/// Everything that is said of a port at once, in our own words (`mesh.ext.v1`).
#[derive(Clone, Debug, PartialEq)]
pub struct PortExtension {
    pub authz: PortAuthz,
    pub protocol: PortProtocol,
    pub limits: PortLimits,
    /// Failures and delays on purpose, of requests that are allowed.
    pub faults: Vec<Fault>,
}

/// What clients of a port speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortProtocol {
    /// To be found out.
    #[default]
    Detect,
    /// Comes as HTTP/2 from other proxies.
    Http1,
    Http2,
    Grpc,
    Opaque,
}

impl PortProtocol {
    pub const ALL: [Self; 5] = [Self::Detect, Self::Http1, Self::Http2, Self::Grpc, Self::Opaque];

    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Http1 => "HTTP/1",
            Self::Http2 => "HTTP/2",
            Self::Grpc => "gRPC",
            Self::Opaque => "opaque",
        }
    }

    /// Whether it can only be HTTP, in one form or another.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::Http2 | Self::Grpc)
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.as_str() == name)
    }
}

/// How much a port takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortLimits {
    pub rate: Option<RateLimit>,
    pub concurrency: Option<Concurrency>,
}

/// Requests that may be in flight at a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concurrency {
    pub meta: Meta,
    pub max: u32,
}
