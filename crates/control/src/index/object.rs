//! What the index holds: the cluster's objects, reduced to what a mesh needs of them.
//!
//! Sources (see `crate::source`) make these from Kubernetes objects and have parsed everything by
//! then: nothing in here can be malformed, and nothing here knows YAML or Kubernetes types.

mod gateway;
mod policy;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::HeaderName;
use mesh_model::authz::DefaultAccess;
use mesh_model::meta::ResourceRef;
use mesh_model::outbound::{Breaker, Strategy};
use mesh_model::route::{
    Filter, GrpcCodes, GrpcMatch, HostMatch, HttpMatch, Ratio, Session, Timeouts,
};

pub use self::gateway::{
    AllowedNamespaces, Certificate, CertificateContent, CertificateRef, Expression, GATEWAY_CLASS,
    GATEWAY_CONTROLLER, GATEWAY_NAME, Gateway, GatewayClass, GatewayRef, Listener,
    ListenerProtocol, NamespaceSelector, Requirement,
};
pub use self::policy::{
    AuthorizationPolicy, Balancing, BreakerPolicy, EgressPolicy, POLICY_GROUP, PolicyTarget,
    PortPolicy, PortProbe, PortRef, TrafficLimits, TrafficPolicy, ZonePreference, policy_ref,
};

/// Namespace and name of an object. Sorts by namespace first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    pub namespace: String,
    pub name: String,
}

impl Name {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// A label as names in Kubernetes have them.
pub(crate) fn is_label(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(fits)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// `namespace/name`
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    Service,
    EndpointSlice,
    Pod,
    Deployment,
    StatefulSet,
    DaemonSet,
    ReplicaSet,
    Job,
    CronJob,
    HttpRoute,
    GrpcRoute,
    TcpRoute,
    TlsRoute,
    ReferenceGrant,
    GatewayClass,
    Gateway,
    /// Those with certificates for clients outside of the mesh.
    Secret,
    AuthorizationPolicy,
    ServerPolicy,
    BackendTrafficPolicy,
    EgressPolicy,
}

impl Kind {
    /// The kind's name as Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::ReplicaSet => "ReplicaSet",
            Self::Job => "Job",
            Self::CronJob => "CronJob",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TcpRoute => "TCPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::GatewayClass => "GatewayClass",
            Self::Gateway => "Gateway",
            Self::Secret => "Secret",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::ServerPolicy => "ServerPolicy",
            Self::BackendTrafficPolicy => "BackendTrafficPolicy",
            Self::EgressPolicy => "EgressPolicy",
        }
    }

    /// The workload kind with this name, in any case (`deployment`).
    pub fn workload(name: &str) -> Option<Self> {
        [
            Self::Deployment,
            Self::StatefulSet,
            Self::DaemonSet,
            Self::ReplicaSet,
            Self::Job,
            Self::CronJob,
        ]
        .into_iter()
        .find(|kind| kind.as_str().eq_ignore_ascii_case(name))
    }
}

/// Which object. A namespace's own `name.namespace` is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub kind: Kind,
    pub name: Name,
}

/// `Service/shop/tax`, `Namespace/shop`
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())?;
        if !self.name.namespace.is_empty() {
            write!(f, "/{}", self.name.namespace)?;
        }
        write!(f, "/{}", self.name.name)
    }
}

/// An object of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Namespace(Namespace),
    Service(Service),
    EndpointSlice(EndpointSlice),
    Pod(Pod),
    Workload(Workload),
    HttpRoute(HttpRoute),
    GrpcRoute(GrpcRoute),
    TcpRoute(TcpRoute),
    TlsRoute(TlsRoute),
    ReferenceGrant(ReferenceGrant),
    GatewayClass(GatewayClass),
    Gateway(Gateway),
    Certificate(Certificate),
    AuthorizationPolicy(AuthorizationPolicy),
    PortPolicy(PortPolicy),
    TrafficPolicy(TrafficPolicy),
    EgressPolicy(EgressPolicy),
}

impl Object {
    pub fn key(&self) -> ObjectKey {
        let (kind, name) = match self {
            Self::Namespace(o) => (Kind::Namespace, Name::new("", &o.name)),
            Self::Service(o) => (Kind::Service, o.name.clone()),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, o.name.clone()),
            Self::Pod(o) => (Kind::Pod, o.name.clone()),
            Self::Workload(o) => (o.kind, o.name.clone()),
            Self::HttpRoute(o) => (Kind::HttpRoute, o.head.name.clone()),
            Self::GrpcRoute(o) => (Kind::GrpcRoute, o.head.name.clone()),
            Self::TcpRoute(o) => (Kind::TcpRoute, o.head.name.clone()),
            Self::TlsRoute(o) => (Kind::TlsRoute, o.head.name.clone()),
            Self::ReferenceGrant(o) => (Kind::ReferenceGrant, o.name.clone()),
            Self::GatewayClass(o) => (Kind::GatewayClass, Name::new("", &o.name)),
            Self::Gateway(o) => (Kind::Gateway, o.name.clone()),
            Self::Certificate(o) => (Kind::Secret, o.name.clone()),
            Self::AuthorizationPolicy(o) => (Kind::AuthorizationPolicy, o.name.clone()),
            Self::PortPolicy(o) => (Kind::ServerPolicy, o.name.clone()),
            Self::TrafficPolicy(o) => (Kind::BackendTrafficPolicy, o.name.clone()),
            Self::EgressPolicy(o) => (Kind::EgressPolicy, o.name.clone()),
        };
        ObjectKey { kind, name }
    }
}

pub type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Namespace {
    pub name: String,
    pub labels: Labels,
    /// The mesh's own: `meshctl.dev/…` and `config.meshctl.dev/…`.
    pub annotations: Labels,
    /// Overrides the default opaque ports within the namespace.
    pub opaque_ports: Option<PortSet>,
    /// Overrides the mesh's default within the namespace.
    pub default_access: Option<DefaultAccess>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    pub name: Name,
    pub labels: Labels,
    /// Empty when it is headless.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses and names by which a load balancer or the network outside of the cluster has it.
    pub external: Vec<String>,
    pub ports: Vec<ServicePort>,
    /// Overrides the namespace's opaque ports.
    pub opaque_ports: Option<PortSet>,
    /// Instead of the default breaker; `Some(None)` is none at all.
    pub breaker: Option<Option<Breaker>>,
    pub balancer: Balancer,
    /// Requests may set timeouts and retries themselves.
    pub allow_request_headers: bool,
}

impl Service {
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.port == port)
    }
}

/// How clients spread requests over a service's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balancer {
    pub strategy: Strategy,
    /// Ring hash: the header that holds the key; `None` is the client's address.
    pub hash_header: Option<HeaderName>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServicePort {
    /// Empty when it is the only one.
    pub name: String,
    pub port: u16,
    pub app_protocol: AppProtocol,
}

/// What a service's port is declared to speak (`appProtocol`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppProtocol {
    /// Nothing, or nothing that helps: to be detected.
    #[default]
    Unknown,
    Http1,
    Http2,
    Grpc,
    Opaque,
}

impl AppProtocol {
    /// Its short name; empty when unknown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::Http1 => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Opaque => "opaque",
        }
    }
}

/// Addresses that serve a service's ports, all at the same numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointSlice {
    pub name: Name,
    /// In the same namespace.
    pub service: String,
    /// `(name of the service's port, number at the address)`
    pub ports: Vec<(String, u16)>,
    pub addresses: Vec<EndpointAddress>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct EndpointAddress {
    pub ip: IpAddr,
    /// In the slice's namespace; `None` for addresses outside the cluster.
    pub pod: Option<String>,
    /// Ready and not terminating.
    pub ready: bool,
    /// Still answers while it terminates: better than nothing, when nothing is ready.
    pub draining: bool,
    pub zone: Option<String>,
    /// The node it is on.
    pub node: Option<String>,
    /// The zones whose clients are to use it; empty: nobody has said.
    pub hints: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pod {
    pub name: Name,
    pub ip: Option<IpAddr>,
    /// Those of the other family, in a dual-stack cluster.
    pub other_ips: Vec<IpAddr>,
    /// Shares its node's address, so the address does not identify it.
    pub host_network: bool,
    /// In the same namespace. Its identity is that of all pods which have it.
    pub service_account: String,
    /// The top of its ownership, in the same namespace.
    pub owner: Option<(Kind, String)>,
    pub labels: Labels,
    pub ports: Vec<ContainerPort>,
    /// By its own label.
    pub zone: Option<String>,
    /// Where it is scheduled.
    pub node: Option<String>,
    /// Scheduled and not finished.
    pub running: bool,
    pub ready: bool,
    pub terminating: bool,
    /// Version of the proxy beside it; `None` when there is none.
    pub proxy: Option<String>,
    /// Overrides the namespace's opaque ports.
    pub opaque_ports: Option<PortSet>,
    pub probes: Vec<PortProbe>,
    /// Overrides the namespace's default.
    pub default_access: Option<DefaultAccess>,
}

impl Pod {
    pub fn meshed(&self) -> bool {
        self.proxy.is_some()
    }

    /// The addresses that are its own, which a node's are not.
    pub fn own_ips(&self) -> impl Iterator<Item = IpAddr> {
        let ips = self.ip.iter().chain(&self.other_ips).copied();
        ips.filter(|_| !self.host_network)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    pub name: String,
    pub port: u16,
}

/// What runs pods: a Deployment, a StatefulSet and so on.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub kind: Kind,
    pub name: Name,
    pub labels: Labels,
    /// The mesh's own, which mean nothing here: they belong to the pods' template.
    pub annotations: Labels,
}

/// Ports by ranges, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(pub Vec<std::ops::RangeInclusive<u16>>);

impl PortSet {
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }
}

/// What all routes have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteHead {
    pub name: Name,
    /// Seconds since the Unix epoch; older routes win ties. `None` sorts first.
    pub created: Option<i64>,
    pub parents: Vec<ServiceRef>,
    pub gateways: Vec<GatewayRef>,
}

/// A reference to a Service: a route's parent or backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceRef {
    pub service: Name,
    /// `None`: all its ports (parents only).
    pub port: Option<u16>,
    /// The port's name, for parents that name a section.
    pub section: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpRoute {
    pub head: RouteHead,
    pub hosts: Vec<HostMatch>,
    pub rules: Vec<RouteRule<HttpMatch>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct GrpcRoute {
    pub head: RouteHead,
    pub hosts: Vec<HostMatch>,
    pub rules: Vec<RouteRule<GrpcMatch>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct TcpRoute {
    pub head: RouteHead,
    pub backends: Vec<BackendRef>,
}

/// Bytes by the server name that a TLS client asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TlsRoute {
    pub head: RouteHead,
    /// Empty: any.
    pub snis: Vec<HostMatch>,
    pub backends: Vec<BackendRef>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteRule<M> {
    /// Empty when it has none.
    pub name: String,
    pub matches: Vec<M>,
    pub filters: Vec<RouteFilter>,
    pub backends: Vec<BackendRef>,
    pub timeouts: Timeouts,
    /// Of one try.
    pub try_timeout: Option<Duration>,
    /// `None`: as the Service has it.
    pub retry: Option<Retries>,
    pub session: Option<Session>,
}

/// How often, and of which answers, a request is tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Retries {
    /// After the first try.
    pub attempts: u32,
    pub statuses: Vec<RangeInclusive<u16>>,
    pub grpc: GrpcCodes,
    /// Before the first of them; `None` is the usual one.
    pub backoff: Option<Duration>,
}

impl Retries {
    /// The most that anybody may ask for.
    pub const MAX: u32 = 100;

    /// Each once, however often a list has it.
    pub fn statuses(codes: impl IntoIterator<Item = u16>) -> Vec<RangeInclusive<u16>> {
        let codes: BTreeSet<u16> = codes.into_iter().collect();
        codes.into_iter().map(|code| code..=code).collect()
    }
}

/// A filter of a rule or a backend.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteFilter {
    Is(Filter),
    /// The backend is still to be looked up; one that is not there hears nothing.
    Mirror {
        target: BackendTarget,
        ratio: Ratio,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct BackendRef {
    pub target: BackendTarget,
    pub weight: u32,
    pub filters: Vec<RouteFilter>,
}

/// Lets routes and Gateways of other namespaces use Services and Secrets of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceGrant {
    pub name: Name,
    /// Kinds, and the namespaces they are in.
    pub from: Vec<(Kind, String)>,
    /// Names of Services; `None` is all of them.
    pub to: Vec<Option<String>>,
    /// Names of Secrets, likewise.
    pub secrets: Vec<Option<String>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum BackendTarget {
    Service {
        service: Name,
        port: u16,
    },
    /// Something a mesh cannot send requests to; says what and why.
    Unusable(String),
}

/// The reference to a route, for policies and figures.
pub fn route_ref(kind: Kind, name: &Name) -> ResourceRef {
    ResourceRef {
        group: "gateway.networking.k8s.io".into(),
        kind: kind.as_str().into(),
        name: name.name.clone(),
        namespace: name.namespace.clone(),
        section: String::new(),
        port: None,
    }
}
