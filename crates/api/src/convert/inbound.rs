//! The policy of one of a workload's own ports, and its routes.

use std::sync::Arc;

use linkerd2_proxy_api::inbound::{self as pb, grpc_route, http_route, proxy_protocol};
use mesh_model::inbound::{
    Authorization, Authorize, RateLimit, ServerGrpcRoute, ServerHttpRoute, ServerPolicy,
    ServerProtocol,
};
use mesh_model::route::{Route, Rule};
use proxy_protocol::Kind;

use super::filter::{read_inbound_grpc, read_inbound_http, write_inbound_grpc, write_inbound_http};
use super::inbound_authz::{
    read_authorizations, read_rate_limit, write_authorizations, write_rate_limit,
};
use super::meta::{read_meta, write_meta};
use super::net::{read_duration, write_duration};
use super::request_match::{
    read_grpc_match, read_hosts, read_http_match, write_grpc_match, write_hosts, write_http_match,
};
use super::{bounded, list, required, write_list};
use crate::Wire;
use crate::error::{At, Result};
use crate::limit;
use crate::validate::{self, Violation};

impl Wire for ServerPolicy {
    type Proto = pb::Server;

    fn from_proto(proto: pb::Server) -> Result<Self> {
        let kind = required(required(proto.protocol, "protocol")?.kind, "protocol.kind")?;
        bounded(proto.labels.len(), "labels", limit::ITEMS)?;
        Ok(Self {
            protocol: read_protocol(kind).at("protocol")?,
            authorizations: read_authorizations(proto.authorizations)?,
            labels: Arc::new(proto.labels.into_iter().collect()),
        })
    }

    fn to_proto(&self) -> Result<pb::Server> {
        let kind = write_protocol(&self.protocol).at("protocol")?;
        Ok(pb::Server {
            protocol: Some(pb::ProxyProtocol { kind: Some(kind) }),
            server_ips: Vec::new(),
            authorizations: write_authorizations(&self.authorizations),
            labels: self.labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        })
    }

    fn validate(proto: &pb::Server) -> std::result::Result<(), Violation> {
        validate::server(proto)
    }
}

fn read_protocol(kind: Kind) -> Result<ServerProtocol> {
    Ok(match kind {
        Kind::Detect(detect) => ServerProtocol::Detect {
            timeout: read_duration(detect.timeout, "detect.timeout")?,
            routes: read_http_routes(detect.http_routes, "http_routes").at("detect")?,
            limit: read_limit(detect.http_local_rate_limit).at("detect.http_local_rate_limit")?,
        },
        Kind::Http1(http) => ServerProtocol::Http1 {
            routes: read_http_routes(http.routes, "routes").at("http1")?,
            limit: read_limit(http.local_rate_limit).at("http1.local_rate_limit")?,
        },
        Kind::Http2(http) => ServerProtocol::Http2 {
            routes: read_http_routes(http.routes, "routes").at("http2")?,
            limit: read_limit(http.local_rate_limit).at("http2.local_rate_limit")?,
        },
        Kind::Grpc(grpc) => {
            ServerProtocol::Grpc { routes: read_grpc_routes(grpc.routes).at("grpc")? }
        }
        Kind::Opaque(_) => ServerProtocol::Opaque,
        Kind::Tls(_) => ServerProtocol::Tls,
    })
}

fn write_protocol(protocol: &ServerProtocol) -> Result<Kind> {
    Ok(match protocol {
        ServerProtocol::Detect { timeout, routes, limit } => Kind::Detect(proxy_protocol::Detect {
            timeout: Some(write_duration(*timeout, "detect.timeout")?),
            http_routes: write_http_routes(routes, "http_routes").at("detect")?,
            http_local_rate_limit: write_limit(limit).at("detect.http_local_rate_limit")?,
        }),
        ServerProtocol::Http1 { routes, limit } => Kind::Http1(proxy_protocol::Http1 {
            routes: write_http_routes(routes, "routes").at("http1")?,
            local_rate_limit: write_limit(limit).at("http1.local_rate_limit")?,
        }),
        ServerProtocol::Http2 { routes, limit } => Kind::Http2(proxy_protocol::Http2 {
            routes: write_http_routes(routes, "routes").at("http2")?,
            local_rate_limit: write_limit(limit).at("http2.local_rate_limit")?,
        }),
        ServerProtocol::Grpc { routes } => {
            Kind::Grpc(proxy_protocol::Grpc { routes: write_grpc_routes(routes).at("grpc")? })
        }
        ServerProtocol::Opaque => Kind::Opaque(proxy_protocol::Opaque {}),
        ServerProtocol::Tls => Kind::Tls(proxy_protocol::Tls {}),
    })
}

fn read_limit(proto: Option<pb::HttpLocalRateLimit>) -> Result<Option<RateLimit>> {
    proto.map(read_rate_limit).transpose()
}

fn write_limit(limit: &Option<RateLimit>) -> Result<Option<pb::HttpLocalRateLimit>> {
    limit.as_ref().map(write_rate_limit).transpose()
}

fn read_http_routes(routes: Vec<pb::HttpRoute>, field: &str) -> Result<Arc<[ServerHttpRoute]>> {
    bounded(routes.iter().map(|route| route.rules.len()).sum(), "rules", limit::RULES).at(field)?;
    list(routes, field, limit::ROUTES, |route| {
        let authorizations = read_authorizations(route.authorizations)?;
        Ok(Route {
            meta: read_meta(route.metadata, "metadata")?,
            hosts: read_hosts(route.hosts)?,
            rules: list(route.rules, "rules", limit::RULES, |rule| {
                Ok(Rule {
                    matches: list(rule.matches, "matches", limit::ITEMS, read_http_match)?,
                    filters: list(rule.filters, "filters", limit::ITEMS, read_inbound_http)?,
                    action: Authorize { authorizations: authorizations.clone() },
                })
            })?,
        })
    })
}

fn write_http_routes(routes: &[ServerHttpRoute], field: &str) -> Result<Vec<pb::HttpRoute>> {
    write_list(routes, field, |route| {
        by_authorizations(&route.rules)
            .map(|(authorizations, rules)| {
                Ok(pb::HttpRoute {
                    metadata: Some(write_meta(&route.meta)),
                    hosts: write_hosts(&route.hosts),
                    authorizations: write_authorizations(authorizations),
                    rules: write_list(rules, "rules", |rule| {
                        Ok(http_route::Rule {
                            matches: write_list(&rule.matches, "matches", write_http_match)?,
                            filters: write_list(&rule.filters, "filters", write_inbound_http)?,
                        })
                    })?,
                })
            })
            .collect::<Result<Vec<_>>>()
    })
    .map(|routes| routes.into_iter().flatten().collect())
}

fn read_grpc_routes(routes: Vec<pb::GrpcRoute>) -> Result<Arc<[ServerGrpcRoute]>> {
    bounded(routes.iter().map(|route| route.rules.len()).sum(), "routes.rules", limit::RULES)?;
    list(routes, "routes", limit::ROUTES, |route| {
        let authorizations = read_authorizations(route.authorizations)?;
        Ok(Route {
            meta: read_meta(route.metadata, "metadata")?,
            hosts: read_hosts(route.hosts)?,
            rules: list(route.rules, "rules", limit::RULES, |rule| {
                Ok(Rule {
                    matches: list(rule.matches, "matches", limit::ITEMS, read_grpc_match)?,
                    filters: list(rule.filters, "filters", limit::ITEMS, read_inbound_grpc)?,
                    action: Authorize { authorizations: authorizations.clone() },
                })
            })?,
        })
    })
}

fn write_grpc_routes(routes: &[ServerGrpcRoute]) -> Result<Vec<pb::GrpcRoute>> {
    write_list(routes, "routes", |route| {
        by_authorizations(&route.rules)
            .map(|(authorizations, rules)| {
                Ok(pb::GrpcRoute {
                    metadata: Some(write_meta(&route.meta)),
                    hosts: write_hosts(&route.hosts),
                    authorizations: write_authorizations(authorizations),
                    rules: write_list(rules, "rules", |rule| {
                        Ok(grpc_route::Rule {
                            matches: rule.matches.iter().map(write_grpc_match).collect(),
                            filters: write_list(&rule.filters, "filters", write_inbound_grpc)?,
                        })
                    })?,
                })
            })
            .collect::<Result<Vec<_>>>()
    })
    .map(|routes| routes.into_iter().flatten().collect())
}

/// The API authorises whole routes, the model single rules: rules that differ go into routes of
/// their own, in order, which matches the same requests.
fn by_authorizations<M>(
    rules: &[Rule<M, Authorize>],
) -> impl Iterator<Item = (&[Authorization], &[Rule<M, Authorize>])> {
    rules
        .chunk_by(|a, b| a.action.authorizations == b.action.authorizations)
        .filter_map(|rules| Some((&*rules.first()?.action.authorizations, rules)))
}
