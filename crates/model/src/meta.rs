//! Names of things: the Kubernetes resource a policy came from, and the target a proxy asks about.

use std::fmt;
use std::net::SocketAddr;

/// The resource a route, backend or server stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Meta {
    /// Nobody configured it: the mesh's own default, by name.
    Default(String),
    /// A named object, as in Gateway API references.
    Resource(ResourceRef),
}

impl Meta {
    /// The object behind it, if it is not a default.
    pub fn resource(&self) -> Option<&ResourceRef> {
        match self {
            Self::Default(_) => None,
            Self::Resource(r) => Some(r),
        }
    }

    /// Short name: the object's name, or the default's.
    pub fn name(&self) -> &str {
        match self {
            Self::Default(name) => name,
            Self::Resource(r) => &r.name,
        }
    }
}

/// `kind/namespace/name:port`, or `default/name`.
impl fmt::Display for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default(name) => write!(f, "default/{name}"),
            Self::Resource(r) => r.fmt(f),
        }
    }
}

/// A Kubernetes-style object reference. `group` is `"core"` for core kinds, never empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceRef {
    pub group: String,
    pub kind: String,
    pub name: String,
    pub namespace: String,
    /// A named part of the object (a route's rule), empty if it is the whole.
    pub section: String,
    /// The object's port, for Services and Servers.
    pub port: Option<u16>,
}

impl ResourceRef {
    /// A core Service's port.
    pub fn service(namespace: &str, name: &str, port: u16) -> Self {
        Self {
            group: "core".into(),
            kind: "Service".into(),
            name: name.into(),
            namespace: namespace.into(),
            section: String::new(),
            port: Some(port),
        }
    }
}

/// `kind/namespace/name:port#section`; without what is not set.
impl fmt::Display for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "/{}", self.namespace)?;
        }
        write!(f, "/{}", self.name)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        if !self.section.is_empty() {
            write!(f, "#{}", self.section)?;
        }
        Ok(())
    }
}

/// What an application tried to reach, as its proxy saw it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// The original destination of a redirected connection.
    Addr(SocketAddr),
    /// A `host:port`, from a proxy request or a named upstream.
    Authority(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Authority(authority) => authority.fmt(f),
        }
    }
}
