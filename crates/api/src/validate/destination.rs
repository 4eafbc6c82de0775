//! Updates of destinations, profiles, endpoints.

use linkerd2_proxy_api::destination::{
    DestinationProfile, Update, WeightedAddr, tls_identity::Strategy, update::Update as Kind,
};
use linkerd2_proxy_api::net::TcpAddress;
use linkerd2_proxy_api::outbound::{OutboundPolicy, proxy_protocol};

use super::{Checked, Rule, each, holds, meta, present};
use crate::error::At;

/// An update of a destination.
///
/// # Errors
/// The first rule broken.
pub fn destination(update: &Update) -> Checked {
    match present(update.update.as_ref(), Rule::Empty).at("update")? {
        Kind::Add(add) => each(&add.addrs, "addrs", endpoint).at("add"),
        Kind::Remove(remove) => {
            each(&remove.addrs, "addrs", |addr| address(Some(addr))).at("remove")
        }
        Kind::NoEndpoints(_) => Ok(()),
    }
}

/// A profile. It leaves routing to the policy: a reader would prefer what the profile says.
///
/// # Errors
/// The first rule broken.
pub fn profile(profile: &DestinationProfile) -> Checked {
    let routing = !profile.routes.is_empty()
        || !profile.dst_overrides.is_empty()
        || profile.retry_budget.is_some();
    let both = profile.endpoint.is_some() && !profile.fully_qualified_name.is_empty();
    holds(!routing && !both, Rule::Profile)?;
    profile.endpoint.as_ref().map_or(Ok(()), endpoint).at("endpoint")
}

/// A profile beside the policy for the same target. They travel on streams of their own, so that
/// this is for the tests of a control plane.
///
/// # Errors
/// When the profile is opaque and the policy is neither opaque nor detects.
pub fn profile_beside(profile: &DestinationProfile, policy: &OutboundPolicy) -> Checked {
    use proxy_protocol::Kind;
    let kind = policy.protocol.as_ref().and_then(|protocol| protocol.kind.as_ref());
    let agrees = matches!(kind, Some(Kind::Detect(_) | Kind::Opaque(_)));
    holds(!profile.opaque_protocol || agrees, Rule::OpaqueProfile).at("opaque_protocol")
}

pub(super) fn endpoint(endpoint: &WeightedAddr) -> Checked {
    address(endpoint.addr.as_ref())?;
    if let Some(resource) = &endpoint.resource_ref {
        meta(Some(resource)).at("resource_ref")?;
    }
    let Some(identity) = &endpoint.tls_identity else { return Ok(()) };
    let named = identity.server_name.as_ref().is_some_and(|name| !name.name.is_empty());
    let id = match &identity.strategy {
        None => "",
        Some(Strategy::DnsLikeIdentity(dns)) => &dns.name,
        Some(Strategy::UriLikeIdentity(uri)) => &uri.uri,
    };
    holds(named && !id.is_empty(), Rule::Identity).at("tls_identity")
}

fn address(addr: Option<&TcpAddress>) -> Checked {
    let ip = addr.and_then(|addr| addr.ip.as_ref()).and_then(|ip| ip.ip.as_ref());
    holds(ip.is_some(), Rule::Address).at("addr")
}
