//! What the proxy at the edge is told.

use std::fmt;

use mesh_model::gateway::{EdgeCertificate, GatewayConfig, GatewayPort, Https, PrivateKey};
use mesh_model::outbound::OutboundPolicy;
use mesh_model::route::HostMatch;

use super::additions::WholePolicy;
use super::net::read_port;
use super::{list, write_list};
use crate::Wire;
use crate::error::{At, ConversionError, Result};
use crate::ext;
use crate::limit;
use crate::validate::Violation;

impl Wire for GatewayConfig {
    type Proto = ext::GatewayConfig;

    fn from_proto(proto: ext::GatewayConfig) -> Result<Self> {
        Ok(Self { ports: list(proto.ports, "ports", limit::GATEWAY_PORTS, read_gateway_port)? })
    }

    fn to_proto(&self) -> Result<ext::GatewayConfig> {
        super::bounded(self.ports.len(), "ports", limit::GATEWAY_PORTS)?;
        Ok(ext::GatewayConfig { ports: write_list(&self.ports, "ports", write_gateway_port)? })
    }

    fn validate(proto: &ext::GatewayConfig) -> std::result::Result<(), Violation> {
        let policies = proto.ports.iter().flat_map(|port| {
            let https = port.https.as_ref().and_then(|https| https.policy.as_ref());
            port.http.iter().chain(https).chain(&port.bytes)
        });
        for policy in policies {
            WholePolicy::validate(policy)?;
        }
        Ok(())
    }
}

fn read_gateway_port(proto: ext::GatewayPort) -> Result<GatewayPort> {
    let port = read_port(proto.port, "port")?;
    if port == 0 {
        // It would be any port, and another one each time.
        return Err(ConversionError::invalid("port", "must not be 0"));
    }
    Ok(GatewayPort {
        port,
        http: proto.http.map(|policy| read_policy(policy, "http")).transpose()?,
        https: proto.https.map(read_https).transpose().at("https")?,
        bytes: proto.bytes.map(|policy| read_policy(policy, "bytes")).transpose()?,
    })
}

fn write_gateway_port(port: &GatewayPort) -> Result<ext::GatewayPort> {
    let write = |policy: &Option<OutboundPolicy>, field| {
        policy.as_ref().map(|policy| write_policy(policy, field)).transpose()
    };
    Ok(ext::GatewayPort {
        port: port.port.into(),
        http: write(&port.http, "http")?,
        https: port.https.as_ref().map(write_https).transpose().at("https")?,
        bytes: write(&port.bytes, "bytes")?,
    })
}

fn read_policy(proto: ext::OutboundPolicy, field: &str) -> Result<OutboundPolicy> {
    WholePolicy::from_proto(proto).map(|WholePolicy(policy)| policy).at(field)
}

fn write_policy(policy: &OutboundPolicy, field: &str) -> Result<ext::OutboundPolicy> {
    // A copy, which is a matter of pointers: routes are shared.
    WholePolicy(policy.clone()).to_proto().at(field)
}

fn read_https(proto: ext::GatewayHttps) -> Result<Https> {
    let policy = super::required(proto.policy, "policy")?;
    let certificates = list(
        proto.certificates,
        "certificates",
        limit::ITEMS,
        |proto: ext::GatewayCertificate| {
            let host = match proto.host.as_str() {
                "" => None,
                text => Some(HostMatch::parse(text).ok_or_else(|| {
                    ConversionError::invalid("host", format!("`{text}` is no host"))
                })?),
            };
            super::bounded(proto.chain.len() + proto.key.len(), "chain", limit::PEM_BYTES)?;
            Ok(EdgeCertificate { host, chain: proto.chain, key: PrivateKey(proto.key) })
        },
    )?;
    Ok(Https { policy: read_policy(policy, "policy")?, certificates })
}

fn write_https(https: &Https) -> Result<ext::GatewayHttps> {
    let certificate = |certificate: &EdgeCertificate| {
        Ok(ext::GatewayCertificate {
            host: certificate.host.as_ref().map(ToString::to_string).unwrap_or_default(),
            chain: certificate.chain.clone(),
            key: certificate.key.0.clone(),
        })
    };
    super::bounded(https.certificates.len(), "certificates", limit::ITEMS)?;
    Ok(ext::GatewayHttps {
        policy: Some(write_policy(&https.policy, "policy")?),
        certificates: write_list(&https.certificates, "certificates", certificate)?,
    })
}

/// Without what is secret.
impl fmt::Debug for ext::GatewayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayKey").field("workload", &self.workload).finish_non_exhaustive()
    }
}

/// Without what is secret.
impl fmt::Debug for ext::GatewayCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayCertificate").field("host", &self.host).finish_non_exhaustive()
    }
}
