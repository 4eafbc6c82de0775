//! Labels of the metric families, with the names dashboards of the ecosystem already read.
//!
//! Values are kept as they came (names, addresses, shared maps) and turned into text at a scrape.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_model::endpoint::Labels;
use mesh_model::{Direction, Meta};
use prometheus_client::encoding::{
    EncodeLabelKey, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder,
};

/// How the hop is protected.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tls {
    /// mTLS; the peer's identity, empty when it showed none.
    Id(Arc<str>),
    /// TLS that is not ours and passes through untouched.
    Opaque,
    /// No TLS, and why.
    None(&'static str),
}

impl Tls {
    /// The peer's identity, if it proved one.
    pub fn id(&self) -> Option<Arc<str>> {
        match self {
            Self::Id(id) => Some(Arc::clone(id)),
            Self::Opaque | Self::None(_) => None,
        }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self::None("disabled")
    }
}

/// Labels of a series of requests. What does not apply stays `None` or empty and makes no label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HttpLabels {
    pub authority: Option<Arc<str>>,
    /// The endpoint outbound, the local port inbound.
    pub target_addr: Option<SocketAddr>,
    pub tls: Tls,
    /// The Service or target asked for; outbound.
    pub parent: Option<Meta>,
    pub route: Option<Meta>,
    /// The Service chosen; outbound.
    pub backend: Option<Meta>,
    /// `dst_*`, outbound.
    pub dst: Labels,
    /// `srv_*`, inbound: `name`, `group`, `kind`.
    pub srv: Labels,
    /// `authz_*`, inbound.
    pub authz: Labels,
}

/// Visits label names and values in their order on the page.
pub(super) trait Pairs {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str));
}

/// Lets anything with [`Pairs`] stand where the encoder wants a label set.
pub(super) struct LabelSet<'a, P: ?Sized>(pub(super) &'a P);

impl<P: Pairs + ?Sized> EncodeLabelSet for LabelSet<'_, P> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        let mut result = Ok(());
        self.0.pairs(&mut |name, value| {
            if result.is_ok() {
                result = encode_pair(encoder, name, value);
            }
        });
        result
    }
}

fn encode_pair(encoder: &mut LabelSetEncoder<'_>, name: &str, value: &str) -> std::fmt::Result {
    let mut label = encoder.encode_label();
    let mut key = label.encode_label_key()?;
    EncodeLabelKey::encode(&name, &mut key)?;
    let mut text = key.encode_label_value()?;
    EncodeLabelValue::encode(&value, &mut text)?;
    text.finish()
}

/// Labels as text. What differs only in parts that make no label becomes the same here, and is to
/// be added up: a page must not have a line twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rendered(Vec<(String, String)>);

impl Rendered {
    pub(super) fn of(labels: &impl Pairs) -> Self {
        let mut pairs = Vec::with_capacity(16);
        labels.pairs(&mut |name, value| pairs.push((name.to_owned(), value.to_owned())));
        Self(pairs)
    }

    /// The labels of what found no place among others.
    pub(super) fn overflow() -> Self {
        Self(vec![("overflow".to_owned(), "true".to_owned())])
    }
}

impl Pairs for Rendered {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        self.0.iter().for_each(|(name, value)| visit(name, value));
    }
}

impl Pairs for Direction {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        visit("direction", self.as_str());
    }
}

impl<A: Pairs, B: Pairs> Pairs for (&A, B) {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        self.0.pairs(visit);
        self.1.pairs(visit);
    }
}

/// `target_addr`, `target_ip`, `target_port`.
pub(super) fn target(addr: Option<SocketAddr>, visit: &mut dyn FnMut(&str, &str)) {
    if let Some(addr) = addr {
        visit("target_addr", &addr.to_string());
        visit("target_ip", &addr.ip().to_string());
        visit("target_port", &addr.port().to_string());
    }
}

/// `tls` and what belongs to it.
pub(super) fn tls(tls: &Tls, direction: Direction, visit: &mut dyn FnMut(&str, &str)) {
    match tls {
        Tls::Id(id) => {
            visit("tls", "true");
            match direction {
                Direction::Inbound => visit("client_id", id),
                Direction::Outbound => visit("server_id", id),
            }
        }
        Tls::Opaque => visit("tls", "opaque"),
        Tls::None("disabled") => visit("tls", "disabled"),
        Tls::None(why) => {
            visit("tls", "no_identity");
            visit("no_tls_reason", why);
        }
    }
}

/// A map's entries under a prefix. Names that are no label names are made into some; of several
/// that become the same the first is kept, because a page with a label twice is invalid.
pub(super) fn prefixed(prefix: &str, labels: &Labels, visit: &mut dyn FnMut(&str, &str)) {
    let mut seen: Vec<String> = Vec::with_capacity(labels.len());
    for (name, value) in labels.iter() {
        let name = format!("{prefix}_{}", label_name(name));
        if !seen.contains(&name) {
            visit(&name, value);
            seen.push(name);
        }
    }
}

/// `srv_*`, with the port of the address behind it.
pub(super) fn server(srv: &Labels, addr: Option<SocketAddr>, visit: &mut dyn FnMut(&str, &str)) {
    prefixed("srv", srv, visit);
    if let Some(addr) = addr.filter(|_| !srv.is_empty() && !srv.contains_key("port")) {
        visit("srv_port", &addr.port().to_string());
    }
}

/// How much of a [`Meta`] makes labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Detail {
    /// `PREFIX_group`, `PREFIX_kind`, `PREFIX_name`.
    Name,
    /// And `PREFIX_namespace`.
    Object,
    /// And `PREFIX_port`, `PREFIX_section_name`.
    Port,
}

pub(super) fn meta(prefix: &str, meta: &Meta, detail: Detail, visit: &mut dyn FnMut(&str, &str)) {
    let mut put = |part: &str, value: &str| visit(&format!("{prefix}_{part}"), value);
    let resource = meta.resource();
    put("group", resource.map_or("", |r| &r.group));
    put("kind", resource.map_or("default", |r| &r.kind));
    if detail >= Detail::Object {
        put("namespace", resource.map_or("", |r| &r.namespace));
    }
    put("name", meta.name());
    if detail >= Detail::Port {
        let port = resource.and_then(|r| r.port);
        put("port", &port.map(|port| port.to_string()).unwrap_or_default());
        put("section_name", resource.map_or("", |r| &r.section));
    }
}

fn label_name(name: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
    name.chars().map(legal).collect()
}

/// The labels of the endpoint-level families.
pub(super) struct EndpointSet<'a>(pub(super) Direction, pub(super) &'a HttpLabels);

impl Pairs for EndpointSet<'_> {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        let Self(direction, labels) = *self;
        direction.pairs(visit);
        if let Some(authority) = &labels.authority {
            visit("authority", authority);
        }
        target(labels.target_addr, visit);
        tls(&labels.tls, direction, visit);
        prefixed("dst", &labels.dst, visit);
        server(&labels.srv, labels.target_addr, visit);
        if let (Direction::Inbound, Some(route)) = (direction, &labels.route) {
            meta("route", route, Detail::Name, visit);
        }
        prefixed("authz", &labels.authz, visit);
    }
}
