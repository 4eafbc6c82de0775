//! What may leave the mesh: the rules, and the one place that decides by them.
//!
//! [`EgressRules::decide`] is what the proxy calls for each request and connection to a destination that
//! the control plane does not know, and `meshctl explain --what-if` for a question, so that they cannot
//! disagree. In order: a deny rule that matches denies; an allow rule that matches allows; else the
//! default decides. A rule by host never matches what names no host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::inbound::Network;
use crate::meta::{Meta, ResourceRef};
use crate::route::HostMatch;

/// The group and kind under which hosts outside of the mesh are told in figures.
pub const EGRESS_GROUP: &str = "policy.meshctl.dev";
pub const EGRESS_KIND: &str = "Egress";

/// Everything that decides about what the workloads of a namespace send out of the mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct EgressRules {
    /// In no order that matters for the verdict; of several that match, the first is named.
    pub rules: Arc<[EgressRule]>,
    /// What becomes of what no rule names.
    pub default: EgressDefault,
}

/// One item of a policy. Each condition that there is must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct EgressRule {
    /// The object it comes from, and which of its items it is.
    pub meta: Meta,
    pub action: EgressAction,
    /// Any of these; empty is any host, and what names none.
    pub hosts: Vec<HostMatch>,
    /// Any of these; empty is any address.
    pub networks: Vec<Network>,
    /// Any of these; empty is any port.
    pub ports: Vec<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EgressAction {
    Deny,
    Allow,
}

impl EgressAction {
    pub const ALL: [Self; 2] = [Self::Deny, Self::Allow];

    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "Deny",
            Self::Allow => "Allow",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == name)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct EgressDefault {
    pub action: EgressAction,
    /// The object that says so, or the mesh's own.
    pub meta: Meta,
}

/// Without any policy everything may leave.
impl Default for EgressRules {
    fn default() -> Self {
        let default = EgressDefault { action: EgressAction::Allow, meta: egress_default() };
        Self { rules: Arc::default(), default }
    }
}

/// What leaves.
#[derive(Clone, Copy, Debug)]
pub struct Departure<'a> {
    /// All the names by which it calls its destination, of which the first tells what it is. None for
    /// bytes that name no host.
    pub names: &'a [HostName],
    /// Where it goes; `None` where that is not known, and then no network is matched.
    pub ip: Option<IpAddr>,
    pub port: u16,
}

/// Whether it may, and what says so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EgressVerdict<'a> {
    pub allowed: bool,
    pub by: &'a Meta,
}

impl EgressRules {
    /// Decides. Of several names all must be allowed: what calls itself by two could mean either.
    pub fn decide(&self, what: Departure<'_>) -> EgressVerdict<'_> {
        let mut names = what.names.iter().map(Some);
        let first = self.decide_one(names.next().flatten(), what);
        let others = names.map(|name| self.decide_one(name, what));
        std::iter::once(first).chain(others).find(|verdict| !verdict.allowed).unwrap_or(first)
    }

    fn decide_one(&self, name: Option<&HostName>, what: Departure<'_>) -> EgressVerdict<'_> {
        self.decide_where(|rule| rule.is_about(what.ip, what.port) && rule.names(name))
    }

    /// Decides about all names of a pattern that no narrower pattern has. Of two patterns that have a name
    /// in common one has all of the other's.
    pub fn decide_pattern(&self, pattern: &HostMatch, ip: IpAddr, port: u16) -> EgressVerdict<'_> {
        let names = |rule: &EgressRule| {
            rule.hosts.is_empty() || rule.hosts.iter().any(|host| host.covers(pattern))
        };
        self.decide_where(|rule| rule.is_about(Some(ip), port) && names(rule))
    }

    fn decide_where(&self, matches: impl Fn(&EgressRule) -> bool) -> EgressVerdict<'_> {
        let found = |action| {
            let mut rules = self.rules.iter().filter(|rule| rule.action == action);
            rules.find(|rule| matches(rule)).map(|rule| &rule.meta)
        };
        if let Some(by) = found(EgressAction::Deny) {
            return EgressVerdict { allowed: false, by };
        }
        if let Some(by) = found(EgressAction::Allow) {
            return EgressVerdict { allowed: true, by };
        }
        let EgressDefault { action, meta } = &self.default;
        EgressVerdict { allowed: *action == EgressAction::Allow, by: meta }
    }

    /// Whether anything is decided by the names of hosts.
    pub fn names_hosts(&self) -> bool {
        self.rules.iter().any(|rule| !rule.hosts.is_empty())
    }

    /// Whether nothing is ever denied, nor told by what it is allowed.
    pub fn allow_everything(&self) -> bool {
        self.rules.is_empty() && self.default.action == EgressAction::Allow
    }

    /// Whether anything is decided by address.
    pub fn names_networks(&self) -> bool {
        self.rules.iter().any(|rule| !rule.networks.is_empty())
    }
}

impl EgressRule {
    /// Whether it is about what goes there, under some name.
    pub fn is_about(&self, ip: Option<IpAddr>, port: u16) -> bool {
        let is_in = |ip| self.networks.iter().any(|network| network.contains(ip));
        (self.ports.is_empty() || self.ports.contains(&port))
            && (self.networks.is_empty() || ip.is_some_and(is_in))
    }

    /// Whether it is about what goes by this name, somewhere.
    fn names(&self, name: Option<&HostName>) -> bool {
        let fits =
            |name: &HostName| self.hosts.iter().any(|host| host.match_host(&name.0).is_some());
        self.hosts.is_empty() || name.is_some_and(fits)
    }

    /// Whether it matches everything that `other` does, whatever either does with it.
    pub fn covers(&self, other: &Self) -> bool {
        fn all<T>(own: &[T], other: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
            own.is_empty()
                || (!other.is_empty()
                    && other.iter().all(|other| own.iter().any(|own| covers(own, other))))
        }
        all(&self.hosts, &other.hosts, HostMatch::covers)
            && all(&self.networks, &other.networks, |own, other| own == other)
            && all(&self.ports, &other.ports, |own, other| own == other)
    }
}

/// The name of a host in the one form in which names are compared and told: lower case, without the
/// dot of the root. Never an address, and nothing that no resolver would take.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

/// The longest name that DNS knows.
const MAX_NAME: usize = 253;

impl HostName {
    /// `None` for what is no name: an address, or what is malformed.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if text.len() > MAX_NAME || !text.split('.').all(label) {
            return None;
        }
        // Resolvers take `127.1`, `0x7f.1` and `2130706433` for addresses; names end in a letter's label.
        let last = text.rsplit('.').next().unwrap_or_default();
        let is_number = last.bytes().all(|b| b.is_ascii_digit())
            || last.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("0x"));
        (!is_number).then(|| Self(text.to_ascii_lowercase().into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether traffic to an address stays with the application. Of 127.0.0.0/8 only what everybody calls
/// localhost does: in a mesh on one machine, the others are hosts.
pub fn is_localhost(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip == IpAddr::V4(Ipv4Addr::LOCALHOST) || ip == IpAddr::V6(Ipv6Addr::LOCALHOST)
}

/// What decides, and what is asked of, where no object says more.
pub fn egress_default() -> Meta {
    Meta::Default("egress".into())
}

/// How a host outside of the mesh is called in figures: `Egress/example.com:443`.
pub fn egress_meta(host: &str, port: Option<u16>) -> Meta {
    Meta::Resource(ResourceRef {
        group: EGRESS_GROUP.into(),
        kind: EGRESS_KIND.into(),
        name: host.into(),
        namespace: String::new(),
        section: String::new(),
        port,
    })
}

/// The host in a text that [`egress_meta`] makes.
pub fn egress_host(meta: &str) -> Option<&str> {
    let rest = meta.strip_prefix(EGRESS_KIND)?.strip_prefix('/')?;
    Some(rest.rsplit_once(':').map_or(rest, |(host, _)| host))
}

#[cfg(test)]
mod tests;
