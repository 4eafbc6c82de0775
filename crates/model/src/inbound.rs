//! What a proxy needs to know about one of its own workload's ports.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::meta::Meta;
use crate::route::{GrpcMatch, HttpMatch, Route};

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

/// Requests a second a port takes, in all and per client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    pub meta: Meta,
    pub total: Option<u32>,
    pub identity: Option<u32>,
    /// For the named identities, instead of `identity`.
    pub overrides: Vec<(u32, Vec<String>)>,
}
