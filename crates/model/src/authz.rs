//! Who may do what on a workload's port: the rules, and the one place that decides by them.
//!
//! [`decide`] is what the proxy calls for each request and connection and `meshctl authz can` for a
//! question, so that they cannot disagree. In order: a probe that the workload declares is allowed;
//! a matching deny rule denies; where an allow rule governs, one must match; else the default
//! decides. Audit rules record and never decide. What is uncertain counts against the client.

mod describe;
mod matches;
mod path;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use http::{HeaderMap, Method, Uri};

use self::matches::Subject;
pub use self::path::{Ambiguous, InvalidPath, PathPattern, canonical};
use crate::inbound::{Cidr, Network};
use crate::meta::Meta;
use crate::route::{HeaderMatch, HostMatch, HttpMatch};

/// Everything that decides about one port.
#[derive(Clone, Debug, PartialEq)]
pub struct PortAuthz {
    /// In no order that matters for the verdict; of several that match, the first is named.
    pub rules: Arc<[AuthorizationRule]>,
    pub default: DefaultRule,
    /// What the workload's health probes ask for.
    pub probes: Arc<[Probe]>,
}

/// One policy, as far as it is about the port.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationRule {
    /// The object it comes from.
    pub meta: Meta,
    pub action: Action,
    /// Only requests of this route; `None` is the whole port.
    pub route: Option<RouteScope>,
    /// Any of these; empty is everybody.
    pub from: Vec<Source>,
    /// Any of these; empty is everything, bytes that are not HTTP too.
    pub to: Vec<Operation>,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    Deny,
    Allow,
    Audit,
}

impl Action {
    pub const ALL: [Self; 3] = [Self::Deny, Self::Allow, Self::Audit];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "Deny",
            Self::Allow => "Allow",
            Self::Audit => "Audit",
        }
    }
}

/// The requests of a route, whichever of several routes would take them.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteScope {
    pub route: Meta,
    pub hosts: Vec<HostMatch>,
    /// Any of these; empty is any request.
    pub matches: Vec<HttpMatch>,
}

/// Clients; both conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub client: ClientMatch,
    /// Any of these; empty is any network.
    pub networks: Vec<Network>,
}

/// What a client must prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMatch {
    Anyone,
    /// To deny: who proves no identity. To allow: who need not prove one, for an identity never
    /// takes anything away.
    Unauthenticated,
    /// Any identity of the mesh.
    Authenticated,
    /// Any of these identities.
    Among(Vec<IdentityPattern>),
}

/// An identity, or all that end in a suffix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityPattern {
    Exact(String),
    /// `*.shop.serviceaccount…` without its `*.`: at least one more label stands before it.
    Suffix(String),
}

/// A text that is no pattern of identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is neither an identity nor `*.` with the end of one")]
pub struct InvalidIdentity;

impl std::str::FromStr for IdentityPattern {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let (bare, suffix) = text.strip_prefix("*.").map_or((text, false), |rest| (rest, true));
        if bare.is_empty()
            || !bare.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'*')
            || bare.split('.').any(str::is_empty)
        {
            return Err(InvalidIdentity);
        }
        let bare = bare.to_owned();
        Ok(if suffix { Self::Suffix(bare) } else { Self::Exact(bare) })
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(identity) => f.write_str(identity),
            Self::Suffix(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

/// Requests; all conditions must hold. One without any is every request, but no bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Operation {
    /// Any of these; empty is any path. gRPC methods are paths, `/package.Service/Method`.
    pub paths: Vec<PathPattern>,
    /// Any of these; empty is any method.
    pub methods: Vec<Method>,
    /// All of these.
    pub headers: Vec<HeaderMatch>,
}

/// What a kubelet asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub method: Method,
    pub path: PathPattern,
}

/// What happens to those about whom no rule says anything.
#[derive(Clone, Debug, PartialEq)]
pub struct DefaultRule {
    pub access: DefaultAccess,
    /// The object that sets it, or the name of the access where it is the mesh's or a namespace's.
    pub meta: Meta,
    /// What `cluster-…` takes for the cluster.
    pub cluster: Arc<[Cidr]>,
}

/// The defaults there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DefaultAccess {
    AllUnauthenticated,
    AllAuthenticated,
    ClusterUnauthenticated,
    ClusterAuthenticated,
    Deny,
    /// Allows everybody and records it.
    Audit,
}

impl DefaultAccess {
    pub const ALL: [Self; 6] = [
        Self::AllUnauthenticated,
        Self::AllAuthenticated,
        Self::ClusterUnauthenticated,
        Self::ClusterAuthenticated,
        Self::Deny,
        Self::Audit,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllUnauthenticated => "all-unauthenticated",
            Self::AllAuthenticated => "all-authenticated",
            Self::ClusterUnauthenticated => "cluster-unauthenticated",
            Self::ClusterAuthenticated => "cluster-authenticated",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }

    /// The access of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|access| access.as_str() == name)
    }
}

/// What is to be decided about.
#[derive(Clone, Copy, Debug)]
pub struct AuthzRequest<'a> {
    pub client: IpAddr,
    /// The identity that the client has proven.
    pub identity: Option<&'a str>,
    /// `None` is a connection carried as bytes.
    pub http: Option<HttpRequest<'a>>,
}

/// The head of an HTTP request.
#[derive(Clone, Copy, Debug)]
pub struct HttpRequest<'a> {
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub headers: &'a HeaderMap,
}

/// A decision, and what made it.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict<'a> {
    pub allowed: bool,
    pub basis: Basis,
    /// The object that decided. Of a [`Basis::NoneMatched`], the first that governs.
    pub decided: &'a Meta,
    /// What is to be recorded besides.
    pub audits: Vec<&'a Meta>,
}

/// Why a verdict is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// It is a declared health probe.
    Probe,
    /// A deny rule matches.
    Denied,
    /// An allow rule matches.
    Allowed,
    /// Allow rules govern and none of them matches.
    NoneMatched,
    /// No rule says anything.
    Default,
}

/// Whether a rule applies to a request, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applies,
    OtherClients,
    OtherRequests,
    OtherRoute,
    /// It is about HTTP, and this is a connection carried as bytes.
    NotHttp,
    /// It would have to compare a path that servers read in different ways.
    AmbiguousPath,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Applies => "applies",
            Self::OtherClients => "is for other clients",
            Self::OtherRequests => "is for other requests",
            Self::OtherRoute => "is for the requests of another route",
            Self::NotHttp => "is for HTTP requests, and this connection is carried as bytes",
            Self::AmbiguousPath => "is for certain paths, and servers read this one differently",
        })
    }
}

/// Declared health probes as what decided.
static PROBE: LazyLock<Meta> = LazyLock::new(|| Meta::Default("probe".into()));

/// Decides.
pub fn decide<'a>(authz: &'a PortAuthz, request: &AuthzRequest<'_>) -> Verdict<'a> {
    let subject = Subject::new(*request);
    if authz.probes.iter().any(|probe| subject.is_probe(probe)) {
        let audits = Vec::new();
        return Verdict { allowed: true, basis: Basis::Probe, decided: &PROBE, audits };
    }
    let (mut denied, mut allowed, mut governing) = (None, None, None);
    let mut audits = Vec::new();
    for rule in authz.rules.iter() {
        let outcome = subject.outcome(rule);
        match (rule.action, outcome) {
            (Action::Deny, Outcome::Applies) => denied = denied.or(Some(&rule.meta)),
            (Action::Audit, Outcome::Applies) => audits.push(&rule.meta),
            (Action::Deny | Action::Audit, _) | (Action::Allow, Outcome::OtherRoute) => {}
            (Action::Allow, _) => {
                governing = governing.or(Some(&rule.meta));
                if outcome == Outcome::Applies {
                    allowed = allowed.or(Some(&rule.meta));
                }
            }
        }
    }
    let (allowed, basis, decided) = match (denied, allowed, governing) {
        (Some(rule), ..) => (false, Basis::Denied, rule),
        (None, Some(rule), _) => (true, Basis::Allowed, rule),
        (None, None, Some(rule)) => (false, Basis::NoneMatched, rule),
        (None, None, None) => {
            if authz.default.access == DefaultAccess::Audit {
                audits.push(&authz.default.meta);
            }
            (authz.default.allows(request), Basis::Default, &authz.default.meta)
        }
    };
    Verdict { allowed, basis, decided, audits }
}

/// Of every rule, in order, whether it applies and why not.
pub fn explain(authz: &PortAuthz, request: &AuthzRequest<'_>) -> Vec<Outcome> {
    let subject = Subject::new(*request);
    authz.rules.iter().map(|rule| subject.outcome(rule)).collect()
}

impl DefaultRule {
    fn allows(&self, request: &AuthzRequest<'_>) -> bool {
        let in_cluster = || self.cluster.iter().any(|net| net.contains(request.client));
        match self.access {
            DefaultAccess::AllUnauthenticated | DefaultAccess::Audit => true,
            DefaultAccess::AllAuthenticated => request.identity.is_some(),
            DefaultAccess::ClusterUnauthenticated => in_cluster(),
            DefaultAccess::ClusterAuthenticated => request.identity.is_some() && in_cluster(),
            DefaultAccess::Deny => false,
        }
    }
}
