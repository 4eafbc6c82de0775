//! Endpoints, updates of a destination, and profiles.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use linkerd2_proxy_api::destination as pb;
use mesh_model::endpoint::{Destination, Endpoint, Http2Params, Labels, Profile, ProtocolHint};
use mesh_model::{Meta, TlsIdentity};
use pb::http2_client_params::{FlowControl, Internals, KeepAlive};
use pb::protocol_hint::{self, Protocol};
use pb::tls_identity::{DnsLikeIdentity, Strategy, UriLikeIdentity};
use pb::update::Update;

use super::meta::{read_meta, write_meta};
use super::net::{read_addr, read_limit, read_port, write_limit};
use super::{list, required, write_list};
use crate::Wire;
use crate::error::{At, ConversionError, Result};
use crate::limit;
use crate::validate::{self, Violation};

impl Wire for Destination {
    type Proto = pb::Update;

    fn from_proto(proto: pb::Update) -> Result<Self> {
        match required(proto.update, "update")? {
            Update::Add(add) => Ok(Self::Add {
                endpoints: list(add.addrs, "add.addrs", limit::ENDPOINTS, read_endpoint)?,
                labels: read_labels(add.metric_labels).at("add")?,
            }),
            Update::Remove(remove) => {
                list(remove.addrs, "remove.addrs", limit::ENDPOINTS, |addr| {
                    read_addr(Some(addr), "")
                })
                .map(Self::Remove)
            }
            Update::NoEndpoints(none) => Ok(Self::NoEndpoints { exists: none.exists }),
        }
    }

    fn to_proto(&self) -> Result<pb::Update> {
        let update = match self {
            Self::Add { endpoints, labels } => Update::Add(pb::WeightedAddrSet {
                addrs: write_list(endpoints, "add.addrs", write_endpoint)?,
                metric_labels: write_labels(labels),
            }),
            Self::Remove(addrs) => Update::Remove(pb::AddrSet {
                addrs: addrs.iter().map(|addr| (*addr).into()).collect(),
            }),
            Self::NoEndpoints { exists } => {
                Update::NoEndpoints(pb::NoEndpoints { exists: *exists })
            }
        };
        Ok(pb::Update { update: Some(update) })
    }

    fn validate(proto: &pb::Update) -> std::result::Result<(), Violation> {
        validate::destination(proto)
    }
}

impl Wire for Profile {
    type Proto = pb::DestinationProfile;

    fn from_proto(proto: pb::DestinationProfile) -> Result<Self> {
        Ok(Self {
            name: Some(proto.fully_qualified_name).filter(|name| !name.is_empty()),
            opaque: proto.opaque_protocol,
            endpoint: proto.endpoint.map(read_endpoint).transpose().at("endpoint")?,
        })
    }

    /// With an endpoint, a reader ignores the name, so it is left out.
    fn to_proto(&self) -> Result<pb::DestinationProfile> {
        let endpoint = self.endpoint.as_ref().map(write_endpoint).transpose().at("endpoint")?;
        let name = self.name.as_ref().filter(|_| endpoint.is_none());
        Ok(pb::DestinationProfile {
            fully_qualified_name: name.cloned().unwrap_or_default(),
            opaque_protocol: self.opaque,
            endpoint,
            ..Default::default()
        })
    }

    fn validate(proto: &pb::DestinationProfile) -> std::result::Result<(), Violation> {
        validate::profile(proto)
    }
}

pub(super) fn read_endpoint(proto: pb::WeightedAddr) -> Result<Endpoint> {
    let hint = proto.protocol_hint.unwrap_or_default();
    let opaque_transport = match hint.opaque_transport {
        None => None,
        Some(transport) => {
            let field = "protocol_hint.opaque_transport.inbound_port";
            Some(read_port(transport.inbound_port, field)?).filter(|port| *port != 0)
        }
    };
    let authority = proto.authority_override.map(|a| a.authority_override);
    Ok(Endpoint {
        addr: read_addr(proto.addr, "addr")?,
        weight: proto.weight,
        labels: read_labels(proto.metric_labels)?,
        identity: proto.tls_identity.map(read_identity).transpose()?,
        // A hint of an unknown kind is but a hint not taken.
        hint: match hint.protocol {
            None => ProtocolHint::None,
            Some(Protocol::H2(_)) => ProtocolHint::H2,
            Some(Protocol::Opaque(_)) => ProtocolHint::Opaque,
        },
        opaque_transport,
        authority_override: authority.filter(|authority| !authority.is_empty()),
        http2: proto.http2.map(read_http2).transpose().at("http2")?.unwrap_or_default(),
        resource: proto.resource_ref.map(|r| read_meta(Some(r), "resource_ref")).transpose()?,
    })
}

pub(super) fn write_endpoint(endpoint: &Endpoint) -> Result<pb::WeightedAddr> {
    Ok(pb::WeightedAddr {
        addr: Some(endpoint.addr.into()),
        weight: endpoint.weight,
        metric_labels: write_labels(&endpoint.labels),
        tls_identity: endpoint.identity.as_ref().map(write_identity),
        protocol_hint: write_hint(endpoint),
        authority_override: endpoint
            .authority_override
            .clone()
            .map(|authority_override| pb::AuthorityOverride { authority_override }),
        http2: write_http2(&endpoint.http2).at("http2")?,
        resource_ref: endpoint.resource.as_ref().map(|meta: &Meta| write_meta(meta)),
    })
}

fn write_hint(endpoint: &Endpoint) -> Option<pb::ProtocolHint> {
    let protocol = match endpoint.hint {
        ProtocolHint::None => None,
        ProtocolHint::H2 => Some(Protocol::H2(protocol_hint::H2 {})),
        ProtocolHint::Opaque => Some(Protocol::Opaque(protocol_hint::Opaque {})),
    };
    let opaque_transport = endpoint
        .opaque_transport
        .map(|port| protocol_hint::OpaqueTransport { inbound_port: u32::from(port) });
    (protocol.is_some() || opaque_transport.is_some())
        .then_some(pb::ProtocolHint { protocol, opaque_transport })
}

fn read_identity(proto: pb::TlsIdentity) -> Result<TlsIdentity> {
    let server_name = proto.server_name.map(|s| s.name).filter(|name| !name.is_empty());
    let (id, server_name) = match required(proto.strategy, "tls_identity.strategy")? {
        Strategy::DnsLikeIdentity(dns) => {
            let server_name = server_name.unwrap_or_else(|| dns.name.clone());
            (dns.name, server_name)
        }
        // Without a name to ask for, the connection would silently be plaintext.
        Strategy::UriLikeIdentity(uri) => {
            (uri.uri, required(server_name, "tls_identity.server_name")?)
        }
    };
    if id.is_empty() {
        return Err(ConversionError::invalid("tls_identity.strategy", "the identity is empty"));
    }
    Ok(TlsIdentity { id, server_name })
}

fn write_identity(identity: &TlsIdentity) -> pb::TlsIdentity {
    let strategy = if identity.id.contains("://") {
        Strategy::UriLikeIdentity(UriLikeIdentity { uri: identity.id.clone() })
    } else {
        Strategy::DnsLikeIdentity(DnsLikeIdentity { name: identity.id.clone() })
    };
    pb::TlsIdentity {
        server_name: Some(DnsLikeIdentity { name: identity.server_name.clone() }),
        strategy: Some(strategy),
    }
}

fn read_http2(proto: pb::Http2ClientParams) -> Result<Http2Params> {
    let set = |value: u32| Some(value).filter(|value| *value > 0);
    let flow = proto.flow_control.unwrap_or_default();
    let alive = proto.keep_alive.unwrap_or_default();
    let internals = proto.internals.unwrap_or_default();
    Ok(Http2Params {
        initial_connection_window: set(flow.initial_connection_window_size),
        initial_stream_window: set(flow.initial_stream_window_size),
        adaptive_flow_control: flow.adaptive_flow_control,
        keep_alive_interval: read_limit(alive.interval, "keep_alive.interval")?,
        keep_alive_timeout: read_limit(alive.timeout, "keep_alive.timeout")?,
        keep_alive_while_idle: alive.while_idle,
        max_concurrent_reset_streams: set(internals.max_concurrent_reset_streams),
        max_frame_size: set(internals.max_frame_size),
        max_send_buf_size: set(internals.max_send_buf_size),
    })
}

fn write_http2(params: &Http2Params) -> Result<Option<pb::Http2ClientParams>> {
    if *params == Http2Params::default() {
        return Ok(None);
    }
    let flow_control = FlowControl {
        initial_connection_window_size: params.initial_connection_window.unwrap_or_default(),
        initial_stream_window_size: params.initial_stream_window.unwrap_or_default(),
        adaptive_flow_control: params.adaptive_flow_control,
    };
    let keep_alive = KeepAlive {
        interval: write_limit(params.keep_alive_interval, "keep_alive.interval")?,
        timeout: write_limit(params.keep_alive_timeout, "keep_alive.timeout")?,
        while_idle: params.keep_alive_while_idle,
    };
    let internals = Internals {
        max_concurrent_reset_streams: params.max_concurrent_reset_streams.unwrap_or_default(),
        max_frame_size: params.max_frame_size.unwrap_or_default(),
        max_send_buf_size: params.max_send_buf_size.unwrap_or_default(),
    };
    Ok(Some(pb::Http2ClientParams {
        flow_control: Some(flow_control).filter(|f| *f != FlowControl::default()),
        keep_alive: Some(keep_alive).filter(|k| *k != KeepAlive::default()),
        internals: Some(internals).filter(|i| *i != Internals::default()),
    }))
}

fn read_labels(labels: HashMap<String, String>) -> Result<Labels> {
    super::bounded(labels.len(), "metric_labels", limit::ITEMS)?;
    Ok(Arc::new(labels.into_iter().collect()))
}

fn write_labels(labels: &BTreeMap<String, String>) -> HashMap<String, String> {
    labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}
