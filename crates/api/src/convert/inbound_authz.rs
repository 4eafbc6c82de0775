//! Who may use a port, and how much.

use std::collections::HashMap;
use std::sync::Arc;

use linkerd2_proxy_api::inbound::http_local_rate_limit::r#override::ClientIdentities;
use linkerd2_proxy_api::inbound::http_local_rate_limit::{Limit, Override};
use linkerd2_proxy_api::inbound::{self as pb, authn};
use mesh_model::inbound::{Authentication, Authorization, Network, Rate, RateLimit};
use mesh_model::{Meta, ResourceRef};

use authn::permit_mesh_tls::{Clients, PermitClientIdentities};
use authn::{Permit, PermitMeshTls, PermitUnauthenticated};

use super::meta::{read_meta, write_meta};
use super::net::{read_cidr, write_cidr};
use super::{bounded, list, required, write_list};
use crate::error::{At, ConversionError, Result};
use crate::limit;

/// One without networks lets nobody in and is left out, as the API demands.
pub(super) fn read_authorizations(authorizations: Vec<pb::Authz>) -> Result<Arc<[Authorization]>> {
    let read: Vec<Option<_>> =
        list(authorizations, "authorizations", limit::ITEMS, |authz: pb::Authz| {
            if authz.networks.is_empty() {
                return Ok(None);
            }
            read_authorization(authz).map(Some)
        })?;
    Ok(read.into_iter().flatten().collect())
}

fn read_authorization(authz: pb::Authz) -> Result<Authorization> {
    bounded(authz.labels.len(), "labels", limit::ITEMS)?;
    let meta = match authz.metadata {
        Some(meta) => read_meta(Some(meta), "metadata")?,
        None => meta_of_labels(&authz.labels)?,
    };
    let permit = required(authz.authentication, "authentication")?.permit;
    Ok(Authorization {
        meta,
        networks: list(authz.networks, "networks", limit::ITEMS, |network| {
            Ok(Network {
                net: read_cidr(required(network.net, "net")?, "net")?,
                except: list(network.except, "except", limit::ITEMS, |net| read_cidr(net, ""))?,
            })
        })?,
        authentication: read_permit(required(permit, "authentication.permit")?)
            .at("authentication")?,
        labels: authz.labels.into_iter().collect(),
    })
}

/// What control planes say that predate `metadata`.
fn meta_of_labels(labels: &HashMap<String, String>) -> Result<Meta> {
    let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
    let (group, kind, name) = (label("group"), label("kind"), label("name"));
    if name.is_empty() {
        return Err(ConversionError::missing("metadata"));
    }
    if kind.is_empty() || kind == "default" {
        return Ok(Meta::Default(name));
    }
    let group = if group.is_empty() { "core".into() } else { group };
    Ok(Meta::Resource(ResourceRef { group, kind, name, ..ResourceRef::default() }))
}

fn read_permit(permit: Permit) -> Result<Authentication> {
    let clients = match permit {
        Permit::Unauthenticated(_) => return Ok(Authentication::Unauthenticated),
        Permit::MeshTls(tls) => required(tls.clients, "meshTLS.clients")?,
    };
    match clients {
        Clients::Unauthenticated(_) => Ok(Authentication::MeshTls),
        Clients::Identities(clients) => Ok(Authentication::Identities {
            identities: list(clients.identities, "identities", limit::ITEMS, |i| Ok(i.name))?,
            suffixes: list(clients.suffixes, "suffixes", limit::ITEMS, |s| Ok(s.parts))?,
        }),
    }
}

/// As in [`read_authorizations`], one without networks is left out: the reference proxy would reject
/// the whole policy.
pub(super) fn write_authorizations(authorizations: &[Authorization]) -> Vec<pb::Authz> {
    authorizations.iter().filter(|a| !a.networks.is_empty()).map(write_authorization).collect()
}

fn write_authorization(authorization: &Authorization) -> pb::Authz {
    let network = |network: &Network| pb::Network {
        net: Some(write_cidr(&network.net)),
        except: network.except.iter().map(write_cidr).collect(),
    };
    pb::Authz {
        networks: authorization.networks.iter().map(network).collect(),
        authentication: Some(pb::Authn {
            permit: Some(write_permit(&authorization.authentication)),
        }),
        labels: authorization.labels.clone().into_iter().collect(),
        metadata: Some(write_meta(&authorization.meta)),
    }
}

fn write_permit(authentication: &Authentication) -> Permit {
    let clients = match authentication {
        Authentication::Unauthenticated => {
            return Permit::Unauthenticated(PermitUnauthenticated {});
        }
        Authentication::MeshTls => Clients::Unauthenticated(PermitUnauthenticated {}),
        Authentication::Identities { identities, suffixes } => {
            Clients::Identities(PermitClientIdentities {
                identities: identities.iter().cloned().map(|name| pb::Identity { name }).collect(),
                suffixes: suffixes
                    .iter()
                    .cloned()
                    .map(|parts| pb::IdentitySuffix { parts })
                    .collect(),
            })
        }
    };
    Permit::MeshTls(PermitMeshTls { clients: Some(clients) })
}

pub(super) fn read_rate_limit(proto: pb::HttpLocalRateLimit) -> Result<RateLimit> {
    let overrides: Vec<Option<_>> =
        list(proto.overrides, "overrides", limit::ITEMS, |o: Override| {
            let identities = required(o.clients, "clients")?.identities;
            let identities: Vec<String> =
                list(identities, "clients.identities", limit::ITEMS, |i| Ok(i.name))?;
            Ok(read_rate(o.limit).map(|limit| (limit, identities)))
        })?;
    Ok(RateLimit {
        meta: read_meta(proto.metadata, "metadata")?,
        total: read_rate(proto.total),
        identity: read_rate(proto.identity),
        overrides: overrides.into_iter().flatten().collect(),
        header: None,
    })
}

/// A rate of 0 is no limit.
fn read_rate(limit: Option<Limit>) -> Option<Rate> {
    limit.map(|limit| limit.requests_per_second).filter(|rate| *rate > 0).map(Rate::per_second)
}

/// Leaves out what the API cannot say: other bursts than of one second, and rates by header.
pub(super) fn write_rate_limit(limit: &RateLimit) -> Result<pb::HttpLocalRateLimit> {
    let overrides = write_list(&limit.overrides, "overrides", |(rate, identities)| {
        let identities = identities.iter().cloned().map(|name| pb::Identity { name }).collect();
        Ok(Override {
            limit: Some(write_rate(*rate, "limit")?),
            clients: Some(ClientIdentities { identities }),
        })
    })?;
    Ok(pb::HttpLocalRateLimit {
        metadata: Some(write_meta(&limit.meta)),
        total: limit.total.map(|rate| write_rate(rate, "total")).transpose()?,
        identity: limit.identity.map(|rate| write_rate(rate, "identity")).transpose()?,
        overrides,
    })
}

fn write_rate(rate: Rate, field: &str) -> Result<Limit> {
    if rate.per_second == 0 {
        return Err(ConversionError::unsupported(field, "a limit of 0 would be no limit"));
    }
    Ok(Limit { requests_per_second: rate.per_second })
}
