//! What the proxy at the edge is told: the listeners of all Gateways, merged by port.
//!
//! One gateway serves all Gateways of the mesh's class. Listeners that share a port are told apart by
//! their hosts: a request is for the listener whose host is the most specific, and finds the routes of
//! that one only. Of listeners in conflict the oldest Gateway's counts.

mod config;
mod room;

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_api::limit;
use mesh_model::meta::ResourceRef;
use mesh_model::route::HostMatch;

use super::Objects;
use super::object::{
    AllowedNamespaces, CertificateContent, CertificateRef, GATEWAY_CLASS, GATEWAY_NAME, Gateway,
    GatewayRef, Kind, Labels, Listener, ListenerProtocol, Name, RouteHead, route_ref,
};

/// How long an exchange with a client may be silent when its route has no timeout of its own.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The same of gRPC, whose streams wait for something to happen.
pub const GRPC_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// The label that every namespace has in a cluster.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A listener among all others.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    pub gateway: &'a Gateway,
    pub listener: &'a Listener,
    pub conflict: Option<Conflict>,
}

/// Why a listener cannot have its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// An older one speaks something else there.
    Protocol,
    /// An older one has its host, or hosts that it is one of, for its own namespaces.
    Host,
    /// Older ones are as many as one gateway has.
    TooMany,
}

/// Why a route does not attach to a Gateway that it names as parent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAttached {
    #[error("Gateway {0} does not exist")]
    NoGateway(Name),
    #[error("the Gateway has no listener of this name and port")]
    NoListener,
    #[error("the Gateway's listeners of this name and port are in conflict with older ones")]
    Conflict,
    #[error("the Gateway's listeners take no such routes of this namespace (`allowedRoutes`)")]
    NotAllowed,
    #[error("the Gateway's listeners have none of the route's hostnames")]
    NoHost,
}

impl NotAttached {
    /// The reason of the condition `Accepted`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoGateway(_) | Self::NoListener | Self::Conflict => "NoMatchingParent",
            Self::NotAllowed => "NotAllowedByListeners",
            Self::NoHost => "NoMatchingListenerHostname",
        }
    }
}

/// Why a listener cannot present a certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCertificate {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotPermitted(String),
}

impl NoCertificate {
    /// The reason of the condition `ResolvedRefs`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "InvalidCertificateRef",
            Self::NotPermitted(_) => "RefNotPermitted",
        }
    }
}

impl Objects {
    /// Whether the mesh serves a Gateway.
    pub fn serves(&self, gateway: &Gateway) -> bool {
        self.serves_class(&gateway.class)
    }

    /// Whether the mesh serves the Gateways of a class.
    pub fn serves_class(&self, class: &str) -> bool {
        match self.gateway_classes.get(class) {
            Some(class) => class.ours,
            None => class == GATEWAY_CLASS,
        }
    }

    /// Where the gateway is reached, as outsiders see it; inside only where nobody brings them to it.
    pub fn gateway_addresses(&self) -> Vec<String> {
        let service = self.service(&Name::new(self.mesh_namespace(), GATEWAY_NAME));
        let Some(service) = service else { return Vec::new() };
        match service.external.is_empty() {
            true => service.cluster_ips.iter().map(ToString::to_string).collect(),
            false => service.external.clone(),
        }
    }

    /// The listeners of all Gateways that the mesh serves; those that win conflicts come first.
    pub fn placed_listeners(&self) -> Vec<Placed<'_>> {
        let mut gateways: Vec<_> = self.gateways.values().filter(|g| self.serves(g)).collect();
        gateways.sort_by_key(|gateway| (gateway.created, &gateway.name));
        let mut all: Vec<Placed<'_>> = Vec::new();
        let mut accepted: BTreeMap<u16, Vec<Placed<'_>>> = BTreeMap::new();
        let mut count = 0;
        for gateway in gateways {
            for listener in &gateway.listeners {
                let mut placed = Placed { gateway, listener, conflict: None };
                let before = accepted.get(&listener.port);
                let is_full = count == limit::ITEMS
                    || before.is_none() && accepted.len() == limit::GATEWAY_PORTS;
                let mut before = before.into_iter().flatten();
                placed.conflict = match is_full {
                    true => Some(Conflict::TooMany),
                    false => before.find_map(|before| self.conflict(before, &placed)),
                };
                if placed.conflict.is_none() {
                    accepted.entry(listener.port).or_default().push(placed);
                    count += 1;
                }
                all.push(placed);
            }
        }
        all
    }

    /// Why a listener cannot be beside an older one at the same port.
    fn conflict(&self, older: &Placed<'_>, placed: &Placed<'_>) -> Option<Conflict> {
        let (before, listener) = (older.listener, placed.listener);
        if !before.protocol.shares_with(listener.protocol) {
            return Some(Conflict::Protocol);
        }
        let namespace = &placed.gateway.name.namespace;
        let is_stranger = || {
            *namespace != older.gateway.name.namespace
                && !self.admits(before, older.gateway, namespace)
        };
        let taken = match (&before.host, &listener.host) {
            (None, None) => true,
            // Nobody is to get hold of a part of what others have, who would not even take a route of theirs.
            (None, Some(_)) => is_stranger(),
            (Some(have), Some(wanted)) => {
                have.covers(wanted) && (wanted.covers(have) || is_stranger())
            }
            (Some(_), None) => false,
        };
        taken.then_some(Conflict::Host)
    }

    /// Whether TLS could end at a listener, if it is to.
    fn has_certificate(&self, placed: &Placed<'_>) -> bool {
        let mut refs = placed.listener.certificates.iter();
        placed.listener.protocol != ListenerProtocol::Https
            || refs.any(|of| self.certificate(&placed.gateway.name, of).is_ok())
    }

    /// The certificate that a Gateway refers to.
    ///
    /// # Errors
    /// Says why it cannot be presented.
    pub fn certificate(
        &self,
        gateway: &Name,
        reference: &CertificateRef,
    ) -> Result<&CertificateContent, NoCertificate> {
        let secret = match reference {
            CertificateRef::Secret(secret) => secret,
            CertificateRef::Unusable(why) => return Err(NoCertificate::Invalid(why.clone())),
        };
        let granted = || {
            let grants = self.grants_in(&secret.namespace);
            let mut grants = grants.filter(|grant| {
                let mut from = grant.from.iter();
                from.any(|(kind, of)| *kind == Kind::Gateway && *of == gateway.namespace)
            });
            grants.any(|grant| {
                grant.secrets.iter().any(|to| to.as_ref().is_none_or(|to| *to == secret.name))
            })
        };
        if secret.namespace != gateway.namespace && !granted() {
            return Err(NoCertificate::NotPermitted(format!(
                "no ReferenceGrant in namespace {} lets Gateways of namespace {} use Secret {}",
                secret.namespace, gateway.namespace, secret.name
            )));
        }
        match self.certificates.get(secret).map(|found| &found.content) {
            Some(Ok(content)) => Ok(content),
            Some(Err(why)) => Err(NoCertificate::Invalid(format!("Secret {secret}: {why}"))),
            None => Err(NoCertificate::Invalid(format!(
                "there is no Secret {secret} of the type kubernetes.io/tls"
            ))),
        }
    }

    /// Whether a route is for a listener, and the listener takes it.
    fn takes(&self, placed: &Placed<'_>, kind: Kind, head: &RouteHead) -> bool {
        let mut refs = head.gateways.iter();
        refs.any(|parent| is_for(parent, placed)) && self.lets_in(placed, kind, head)
    }

    fn lets_in(&self, placed: &Placed<'_>, kind: Kind, head: &RouteHead) -> bool {
        let Placed { gateway, listener, .. } = placed;
        listener.kinds.contains(&kind) && self.admits(listener, gateway, &head.name.namespace)
    }

    /// Whether routes of a namespace may attach.
    fn admits(&self, listener: &Listener, gateway: &Gateway, namespace: &str) -> bool {
        match &listener.namespaces {
            AllowedNamespaces::Same => namespace == gateway.name.namespace,
            AllowedNamespaces::All => true,
            AllowedNamespaces::Selector(selector) => {
                let known = self.namespaces.get(namespace);
                let mut labels: Labels = known.map(|ns| ns.labels.clone()).unwrap_or_default();
                labels.entry(NAMESPACE_NAME.into()).or_insert_with(|| namespace.to_owned());
                selector.matches(&labels)
            }
        }
    }

    /// Whether a route attaches to a Gateway that it names, of all [`Self::placed_listeners`].
    ///
    /// # Errors
    /// Says why it does not.
    pub fn attach(
        &self,
        placed: &[Placed<'_>],
        kind: Kind,
        head: &RouteHead,
        hosts: &[HostMatch],
        parent: &GatewayRef,
    ) -> Result<(), NotAttached> {
        if !self.gateways.contains_key(&parent.gateway) {
            return Err(NotAttached::NoGateway(parent.gateway.clone()));
        }
        let meant: Vec<_> = placed.iter().filter(|placed| is_for(parent, placed)).collect();
        if meant.is_empty() {
            return Err(NotAttached::NoListener);
        }
        let mut served = meant.iter().filter(|placed| placed.conflict.is_none()).peekable();
        if served.peek().is_none() {
            return Err(NotAttached::Conflict);
        }
        let let_in: Vec<_> = served.filter(|at| self.lets_in(at, kind, head)).collect();
        if let_in.is_empty() {
            return Err(NotAttached::NotAllowed);
        }
        let fits =
            |at: &Placed<'_>| kind == Kind::TcpRoute || hosts_at(at.listener, &[], hosts).is_some();
        match let_in.iter().any(|at| fits(at)) {
            true => Ok(()),
            false => Err(NotAttached::NoHost),
        }
    }

    /// How many routes are attached to a listener.
    pub fn attached_routes(&self, placed: &Placed<'_>) -> usize {
        let at = |kind, head: &RouteHead, hosts: &[HostMatch]| {
            self.takes(placed, kind, head) && hosts_at(placed.listener, &[], hosts).is_some()
        };
        let http = self.http_routes.values().filter(|r| at(Kind::HttpRoute, &r.head, &r.hosts));
        let grpc = self.grpc_routes.values().filter(|r| at(Kind::GrpcRoute, &r.head, &r.hosts));
        let tls = self.tls_routes.values().filter(|r| at(Kind::TlsRoute, &r.head, &r.snis));
        let tcp = self.tcp_routes.values().filter(|r| self.takes(placed, Kind::TcpRoute, &r.head));
        http.count() + grpc.count() + tls.count() + tcp.count()
    }
}

/// The reference to a Gateway's port, for figures.
pub fn gateway_ref(name: &Name, port: u16) -> ResourceRef {
    ResourceRef { port: Some(port), ..route_ref(Kind::Gateway, name) }
}

fn is_for(parent: &GatewayRef, placed: &Placed<'_>) -> bool {
    parent.gateway == placed.gateway.name
        && parent.section.as_ref().is_none_or(|section| *section == placed.listener.name)
        && parent.port.is_none_or(|port| port == placed.listener.port)
}

/// Whether a listener takes some of another's hosts from it.
fn is_narrower(listener: &Listener, than: &Listener) -> bool {
    listener.protocol.shares_with(than.protocol)
        && match (&listener.host, &than.host) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(own), Some(than)) => than.covers(own) && !own.covers(than),
        }
}

/// The hosts that others of the same port take from a listener.
fn narrower_than<'a>(listener: &Listener, all: &[Placed<'a>]) -> Vec<&'a HostMatch> {
    let narrower = all.iter().filter(|other| is_narrower(other.listener, listener));
    narrower.filter_map(|other| other.listener.host.as_ref()).collect()
}

/// The hosts that a route has at a listener; none is all of them. `None`: the listener has none of the
/// route's, or narrower listeners have them.
fn hosts_at(
    listener: &Listener,
    narrower: &[&HostMatch],
    route: &[HostMatch],
) -> Option<Vec<HostMatch>> {
    let mut hosts = match (&listener.host, route) {
        (None, []) => return Some(Vec::new()),
        (None, hosts) => hosts.to_vec(),
        (Some(host), []) => vec![host.clone()],
        (Some(host), hosts) => hosts.iter().filter_map(|of| host.intersect(of)).collect(),
    };
    hosts.retain(|host| !narrower.iter().any(|own| own.covers(host)));
    (!hosts.is_empty()).then_some(hosts)
}
