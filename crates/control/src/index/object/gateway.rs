//! Gateways, what they present to clients, and references to them.

use std::collections::BTreeMap;

use mesh_model::gateway::PrivateKey;
use mesh_model::route::HostMatch;

use super::{Kind, Labels, Name};

/// The class of Gateways that the mesh serves, unless an object says otherwise.
pub const GATEWAY_CLASS: &str = "mesh";
/// What a GatewayClass names that is the mesh's.
pub const GATEWAY_CONTROLLER: &str = "meshctl.dev/gateway";
/// What the gateway itself is called: its Service, its workload and its service account.
pub const GATEWAY_NAME: &str = "mesh-gateway";

/// A class of Gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayClass {
    pub name: String,
    /// Whether the mesh serves it.
    pub ours: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gateway {
    pub name: Name,
    /// Seconds since the Unix epoch; of listeners in conflict the oldest Gateway's counts.
    pub created: Option<i64>,
    pub class: String,
    pub listeners: Vec<Listener>,
}

/// One listener of a Gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    pub name: String,
    pub port: u16,
    pub host: Option<HostMatch>,
    pub protocol: ListenerProtocol,
    /// Secrets, of which one at least has to be there where TLS ends.
    pub certificates: Vec<CertificateRef>,
    pub namespaces: AllowedNamespaces,
    /// Those of its protocol that it takes.
    pub kinds: Vec<Kind>,
    /// Kinds that it wants and cannot have.
    pub foreign_kinds: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenerProtocol {
    Http,
    /// TLS that ends at the gateway, with HTTP in it.
    Https,
    /// TLS that is passed on.
    Tls,
    Tcp,
}

impl ListenerProtocol {
    /// The kinds of routes it can have.
    pub fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Http | Self::Https => &[Kind::HttpRoute, Kind::GrpcRoute],
            Self::Tls => &[Kind::TlsRoute],
            Self::Tcp => &[Kind::TcpRoute],
        }
    }

    /// Whether listeners of both may share a port.
    pub fn shares_with(self, other: Self) -> bool {
        let is_tls = |protocol| matches!(protocol, Self::Https | Self::Tls);
        // Bytes carry nothing to tell listeners apart by.
        (self == Self::Http && other == Self::Http) || (is_tls(self) && is_tls(other))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateRef {
    Secret(Name),
    /// Something that holds no certificate; says what.
    Unusable(String),
}

/// Namespaces whose routes may attach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AllowedNamespaces {
    #[default]
    Same,
    All,
    Selector(NamespaceSelector),
}

/// All of these must hold for a namespace's labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceSelector {
    pub labels: BTreeMap<String, String>,
    pub expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    pub key: String,
    pub is: Requirement,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

impl NamespaceSelector {
    pub fn matches(&self, labels: &Labels) -> bool {
        let holds = |expression: &Expression| {
            let value = labels.get(&expression.key);
            match &expression.is {
                Requirement::In(values) => value.is_some_and(|value| values.contains(value)),
                Requirement::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Requirement::Exists => value.is_some(),
                Requirement::Absent => value.is_none(),
            }
        };
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(holds)
    }
}

/// A reference of a route to a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayRef {
    pub gateway: Name,
    pub port: Option<u16>,
    /// The listener's name.
    pub section: Option<String>,
}

/// A Secret of the type `kubernetes.io/tls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub name: Name,
    pub content: Result<CertificateContent, String>,
}

/// A chain and its key, which belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateContent {
    /// PEM, the leaf first.
    pub chain: String,
    pub key: PrivateKey,
}
