//! The same in the words of the linkerd2 API, for proxies that do not know ours: a list of those who
//! are let in.
//!
//! What cannot be said there is said narrower, never wider. An allow rule about certain requests is
//! left out, since other proxies compare paths as they are written. A deny rule takes away all that
//! it could be about.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use mesh_model::Meta;
use mesh_model::authz::{
    Action, ClientMatch, DefaultAccess, DefaultRule, IdentityPattern, PortAuthz, Source,
};
use mesh_model::inbound::{Authentication, Authorization, Cidr, Network};

use crate::index::object::POLICY_GROUP;

/// Denials divide authorizations; their number must not double with each.
const MAX_AUTHORIZATIONS: usize = 100;

/// Those whom a port's rules let in, or fewer.
pub(in crate::index) fn for_others(authz: &PortAuthz) -> Arc<[Authorization]> {
    let mut allowed = Vec::new();
    let allows = authz.rules.iter().filter(|rule| rule.action == Action::Allow);
    let mut governed = false;
    for rule in allows {
        governed = true;
        if rule.route.is_some() || !rule.to.is_empty() {
            continue;
        }
        let anyone = [Source { client: ClientMatch::Anyone, networks: Vec::new() }];
        let from = if rule.from.is_empty() { &anyone[..] } else { &rule.from };
        allowed.extend(from.iter().map(|source| authorization(&rule.meta, source)));
    }
    if !governed {
        allowed.extend(of_default(&authz.default));
    }
    for rule in authz.rules.iter().filter(|rule| rule.action == Action::Deny) {
        if rule.from.is_empty() {
            allowed.clear();
        }
        for source in &rule.from {
            // To leave one out is to say it narrower, too.
            let left = allowed.into_iter().flat_map(|have| without(have, source));
            allowed = left.take(MAX_AUTHORIZATIONS).collect();
        }
    }
    allowed.into()
}

/// Lets everybody in.
pub(in crate::index) fn everybody(name: &str) -> Arc<[Authorization]> {
    let source = Source { client: ClientMatch::Anyone, networks: Vec::new() };
    Arc::new([authorization(&Meta::Default(name.into()), &source)])
}

fn of_default(default: &DefaultRule) -> Option<Authorization> {
    let (client, cluster) = match default.access {
        DefaultAccess::AllUnauthenticated | DefaultAccess::Audit => (ClientMatch::Anyone, false),
        DefaultAccess::AllAuthenticated => (ClientMatch::Authenticated, false),
        DefaultAccess::ClusterUnauthenticated => (ClientMatch::Anyone, true),
        DefaultAccess::ClusterAuthenticated => (ClientMatch::Authenticated, true),
        DefaultAccess::Deny => return None,
    };
    let network = |net: &Cidr| Network { net: *net, except: Vec::new() };
    let networks: Vec<Network> =
        if cluster { default.cluster.iter().map(network).collect() } else { Vec::new() };
    // Without any network nobody is in the cluster; a source without any is everybody.
    if cluster && networks.is_empty() {
        return None;
    }
    Some(authorization(&default.meta, &Source { client, networks }))
}

fn authorization(meta: &Meta, source: &Source) -> Authorization {
    let any = |addr| Network { net: Cidr { addr, prefix: 0 }, except: Vec::new() };
    let everywhere =
        || vec![any(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), any(IpAddr::V6(Ipv6Addr::UNSPECIFIED))];
    let networks = &source.networks;
    Authorization {
        meta: meta.clone(),
        networks: if networks.is_empty() { everywhere() } else { networks.clone() },
        authentication: match &source.client {
            ClientMatch::Anyone | ClientMatch::Unauthenticated => Authentication::Unauthenticated,
            ClientMatch::Authenticated => Authentication::MeshTls,
            ClientMatch::Among(patterns) => among(patterns),
        },
        labels: labels(meta),
    }
}

fn among(patterns: &[IdentityPattern]) -> Authentication {
    let (mut identities, mut suffixes) = (Vec::new(), Vec::new());
    for pattern in patterns {
        match pattern {
            IdentityPattern::Exact(identity) => identities.push(identity.clone()),
            IdentityPattern::Suffix(suffix) => {
                suffixes.push(suffix.split('.').map(str::to_owned).collect());
            }
        }
    }
    Authentication::Identities { identities, suffixes }
}

/// What is left of an authorization when a source is denied.
fn without(have: Authorization, denied: &Source) -> Vec<Authorization> {
    // Outside the denied networks nothing changes.
    let outside = (!denied.networks.is_empty()).then(|| {
        let mut outside = have.clone();
        for network in &mut outside.networks {
            network.except.extend(denied.networks.iter().map(|network| network.net));
        }
        outside
    });
    let inside = match (&denied.client, have.authentication) {
        (ClientMatch::Unauthenticated, Authentication::Unauthenticated) => {
            Some(Authentication::MeshTls)
        }
        (ClientMatch::Unauthenticated, authenticated) => Some(authenticated),
        (ClientMatch::Among(patterns), Authentication::Identities { identities, suffixes })
            if suffixes.is_empty() =>
        {
            let kept = |identity: &String| !patterns.iter().any(|p| p.matches(identity));
            let identities: Vec<String> = identities.into_iter().filter(kept).collect();
            (!identities.is_empty()).then_some(Authentication::Identities { identities, suffixes })
        }
        // Who is left of "everybody but some" has no words there.
        _ => None,
    };
    let inside = inside.map(|authentication| Authorization {
        authentication,
        meta: have.meta,
        networks: have.networks,
        labels: have.labels,
    });
    outside.into_iter().chain(inside).collect()
}

/// Names what decides in figures; the mesh's own defaults as if they were objects.
pub(in crate::index) fn labels(meta: &Meta) -> BTreeMap<String, String> {
    let (kind, name) = match meta {
        Meta::Default(name) => ("default", name),
        Meta::Resource(resource) => (resource.kind.as_str(), &resource.name),
    };
    [("group", POLICY_GROUP), ("kind", kind), ("name", name)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}
