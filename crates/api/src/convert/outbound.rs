//! The policy of one outbound target.

use linkerd2_proxy_api::outbound::{self as pb, proxy_protocol};
use mesh_model::OutboundPolicy;
use mesh_model::outbound::{GrpcPolicy, HttpPolicy, Protocol, TcpPolicy};
use proxy_protocol::Kind;

use super::backend::{read_breaker, write_breaker};
use super::meta::{read_meta, write_meta};
use super::net::{read_duration, write_duration};
use super::required;
use super::route::{read_grpc_routes, read_http_routes, write_grpc_routes, write_http_routes};
use super::tcp_route::{
    read_opaque_routes, read_tls_routes, write_opaque_routes, write_tls_routes,
};
use crate::Wire;
use crate::error::{At, Result};
use crate::validate::{self, Violation};

impl Wire for OutboundPolicy {
    type Proto = pb::OutboundPolicy;

    fn from_proto(proto: pb::OutboundPolicy) -> Result<Self> {
        let kind = required(required(proto.protocol, "protocol")?.kind, "protocol.kind")?;
        Ok(Self {
            meta: read_meta(proto.metadata, "metadata")?,
            protocol: read_protocol(kind).at("protocol")?,
        })
    }

    /// Without what this API has no words for: our own proxies get a
    /// [`WholePolicy`](crate::WholePolicy).
    fn to_proto(&self) -> Result<pb::OutboundPolicy> {
        write(&super::additions::lower(self)?)
    }

    fn validate(proto: &pb::OutboundPolicy) -> std::result::Result<(), Violation> {
        validate::outbound(proto)
    }
}

pub(super) fn write(policy: &OutboundPolicy) -> Result<pb::OutboundPolicy> {
    let kind = write_protocol(&policy.protocol).at("protocol")?;
    Ok(pb::OutboundPolicy {
        protocol: Some(pb::ProxyProtocol { kind: Some(kind) }),
        metadata: Some(write_meta(&policy.meta)),
    })
}

fn read_protocol(kind: Kind) -> Result<Protocol> {
    Ok(match kind {
        Kind::Detect(detect) => read_detect(detect).at("detect")?,
        Kind::Http1(http) => Protocol::Http1(read_http1(http).at("http1")?),
        Kind::Http2(http) => Protocol::Http2(read_http2(http).at("http2")?),
        Kind::Grpc(grpc) => Protocol::Grpc(read_grpc(grpc).at("grpc")?),
        Kind::Opaque(opaque) => Protocol::Opaque(read_opaque(opaque).at("opaque")?),
        Kind::Tls(tls) => {
            let routes = read_tls_routes(tls.routes).at("tls")?.into();
            Protocol::Tls(TcpPolicy { routes })
        }
    })
}

fn write_protocol(protocol: &Protocol) -> Result<Kind> {
    Ok(match protocol {
        Protocol::Detect { timeout, http1, http2, opaque } => {
            Kind::Detect(proxy_protocol::Detect {
                timeout: Some(write_duration(*timeout, "detect.timeout")?),
                opaque: Some(write_opaque(opaque).at("detect.opaque")?),
                http1: Some(write_http1(http1).at("detect.http1")?),
                http2: Some(write_http2(http2).at("detect.http2")?),
            })
        }
        Protocol::Http1(http) => Kind::Http1(write_http1(http).at("http1")?),
        Protocol::Http2(http) => Kind::Http2(write_http2(http).at("http2")?),
        Protocol::Grpc(grpc) => Kind::Grpc(write_grpc(grpc).at("grpc")?),
        Protocol::Opaque(tcp) => Kind::Opaque(write_opaque(tcp).at("opaque")?),
        Protocol::Tls(tcp) => {
            Kind::Tls(proxy_protocol::Tls { routes: write_tls_routes(&tcp.routes).at("tls")? })
        }
    })
}

fn read_detect(detect: proxy_protocol::Detect) -> Result<Protocol> {
    Ok(Protocol::Detect {
        timeout: read_duration(detect.timeout, "timeout")?,
        http1: read_http1(required(detect.http1, "http1")?).at("http1")?,
        http2: read_http2(required(detect.http2, "http2")?).at("http2")?,
        opaque: read_opaque(required(detect.opaque, "opaque")?).at("opaque")?,
    })
}

fn read_http1(http: proxy_protocol::Http1) -> Result<HttpPolicy> {
    read_http(http.routes, http.failure_accrual)
}

fn read_http2(http: proxy_protocol::Http2) -> Result<HttpPolicy> {
    read_http(http.routes, http.failure_accrual)
}

fn read_http(
    routes: Vec<pb::HttpRoute>,
    accrual: Option<pb::FailureAccrual>,
) -> Result<HttpPolicy> {
    let breaker = accrual.map(read_breaker).transpose().at("failure_accrual")?.flatten();
    Ok(HttpPolicy { routes: read_http_routes(routes)?.into(), breaker })
}

fn write_http1(http: &HttpPolicy) -> Result<proxy_protocol::Http1> {
    Ok(proxy_protocol::Http1 {
        routes: write_http_routes(&http.routes)?,
        failure_accrual: write_accrual(http.breaker)?,
    })
}

fn write_http2(http: &HttpPolicy) -> Result<proxy_protocol::Http2> {
    Ok(proxy_protocol::Http2 {
        routes: write_http_routes(&http.routes)?,
        failure_accrual: write_accrual(http.breaker)?,
    })
}

fn read_grpc(grpc: proxy_protocol::Grpc) -> Result<GrpcPolicy> {
    let accrual = grpc.failure_accrual;
    let breaker = accrual.map(read_breaker).transpose().at("failure_accrual")?.flatten();
    Ok(GrpcPolicy { routes: read_grpc_routes(grpc.routes)?.into(), breaker })
}

fn write_grpc(grpc: &GrpcPolicy) -> Result<proxy_protocol::Grpc> {
    Ok(proxy_protocol::Grpc {
        routes: write_grpc_routes(&grpc.routes)?,
        failure_accrual: write_accrual(grpc.breaker)?,
    })
}

fn write_accrual(
    breaker: Option<mesh_model::outbound::Breaker>,
) -> Result<Option<pb::FailureAccrual>> {
    breaker.as_ref().map(write_breaker).transpose().at("failure_accrual")
}

fn read_opaque(opaque: proxy_protocol::Opaque) -> Result<TcpPolicy> {
    Ok(TcpPolicy { routes: read_opaque_routes(opaque.routes)?.into() })
}

fn write_opaque(tcp: &TcpPolicy) -> Result<proxy_protocol::Opaque> {
    Ok(proxy_protocol::Opaque { routes: write_opaque_routes(&tcp.routes)? })
}
