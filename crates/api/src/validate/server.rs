//! Policies of ports.

use linkerd2_proxy_api::inbound as pb;
use pb::proxy_protocol::Kind;

use super::{Checked, Rule, each, filter, holds, meta, present};
use crate::error::At;

/// The policy of a port.
///
/// # Errors
/// The first rule broken.
pub fn server(server: &pb::Server) -> Checked {
    for label in ["group", "kind", "name"] {
        let set = server.labels.get(label).is_some_and(|value| !value.is_empty());
        holds(set, Rule::ServerLabels).at("labels")?;
    }
    authorizations(&server.authorizations)?;
    let kind = server.protocol.as_ref().and_then(|protocol| protocol.kind.as_ref());
    match present(kind, Rule::Empty).at("protocol")? {
        Kind::Detect(detect) => {
            holds(detect.timeout.is_some(), Rule::Detect).at("timeout").and_then(|()| {
                http(&detect.http_routes, "http_routes", detect.http_local_rate_limit.as_ref())
            })
        }
        Kind::Http1(http1) => http(&http1.routes, "routes", http1.local_rate_limit.as_ref()),
        Kind::Http2(http2) => http(&http2.routes, "routes", http2.local_rate_limit.as_ref()),
        Kind::Grpc(grpc) => each(&grpc.routes, "routes", grpc_route),
        Kind::Opaque(_) | Kind::Tls(_) => Ok(()),
    }
    .at("protocol")
}

fn http(routes: &[pb::HttpRoute], field: &str, limit: Option<&pb::HttpLocalRateLimit>) -> Checked {
    limit.map_or(Ok(()), |limit| meta(limit.metadata.as_ref())).at("rate_limit")?;
    each(routes, field, |route| {
        meta(route.metadata.as_ref())?;
        authorizations(&route.authorizations)?;
        holds(!route.rules.is_empty(), Rule::Rules)?;
        each(&route.rules, "rules", |rule| each(&rule.filters, "filters", filter::inbound_http))
    })
}

fn grpc_route(route: &pb::GrpcRoute) -> Checked {
    meta(route.metadata.as_ref())?;
    authorizations(&route.authorizations)?;
    holds(!route.rules.is_empty(), Rule::Rules)?;
    each(&route.rules, "rules", |rule| each(&rule.filters, "filters", filter::inbound_grpc))
}

fn authorizations(authorizations: &[pb::Authz]) -> Checked {
    use pb::authn::Permit;
    each(authorizations, "authorizations", |authz| {
        meta(authz.metadata.as_ref())?;
        let permit = authz.authentication.as_ref().and_then(|authn| authn.permit.as_ref());
        let authenticates = match permit {
            None => false,
            Some(Permit::Unauthenticated(_)) => true,
            Some(Permit::MeshTls(tls)) => tls.clients.is_some(),
        };
        holds(authenticates, Rule::Authorization).at("authentication")?;
        let addressed = |network: &pb::Network| {
            network.net.as_ref().and_then(|net| net.ip.as_ref()).is_some_and(|ip| ip.ip.is_some())
        };
        let networks = !authz.networks.is_empty() && authz.networks.iter().all(addressed);
        holds(networks, Rule::Authorization).at("networks")
    })
}
