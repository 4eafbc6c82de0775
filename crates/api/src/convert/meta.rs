//! Names of resources, and targets.

use linkerd2_proxy_api::meta::{self as pb, metadata::Kind};
use linkerd2_proxy_api::outbound::traffic_spec;
use mesh_model::{Meta, ResourceRef, Target};

use super::net::{read_addr, read_port};
use super::required;
use crate::error::{ConversionError, Result};
use crate::ext;

const CORE: &str = "core";

pub(crate) fn read_meta(proto: Option<pb::Metadata>, field: &str) -> Result<Meta> {
    match required(required(proto, field)?.kind, field)? {
        Kind::Default(name) => Ok(Meta::Default(name)),
        Kind::Resource(resource) => read_resource(resource, field).map(Meta::Resource),
    }
}

pub(super) fn read_resource(proto: pb::Resource, field: &str) -> Result<ResourceRef> {
    if proto.kind.is_empty() || proto.name.is_empty() {
        return Err(ConversionError::invalid(field, "names no kind or no object"));
    }
    Ok(ResourceRef {
        group: if proto.group.is_empty() { CORE.into() } else { proto.group },
        kind: proto.kind,
        name: proto.name,
        namespace: proto.namespace,
        section: proto.section,
        port: Some(read_port(proto.port, field)?).filter(|port| *port != 0),
    })
}

pub(crate) fn write_meta(meta: &Meta) -> pb::Metadata {
    let kind = match meta {
        Meta::Default(name) => Kind::Default(name.clone()),
        Meta::Resource(r) => Kind::Resource(pb::Resource {
            group: r.group.clone(),
            kind: r.kind.clone(),
            name: r.name.clone(),
            namespace: r.namespace.clone(),
            section: r.section.clone(),
            port: r.port.map(u32::from).unwrap_or_default(),
        }),
    };
    pb::Metadata { kind: Some(kind) }
}

pub(crate) fn read_target(proto: Option<traffic_spec::Target>) -> Result<Target> {
    match required(proto, "target")? {
        traffic_spec::Target::Addr(addr) => read_addr(Some(addr), "target.addr").map(Target::Addr),
        traffic_spec::Target::Authority(authority) => read_path(&authority, "target.authority"),
    }
}

pub(crate) fn write_target(target: &Target) -> traffic_spec::Target {
    match target {
        Target::Addr(addr) => traffic_spec::Target::Addr((*addr).into()),
        Target::Authority(authority) => traffic_spec::Target::Authority(authority.clone()),
    }
}

/// The target of a `path`: an address if it is one, else a `host:port`.
pub(crate) fn read_path(path: &str, field: &str) -> Result<Target> {
    if path.is_empty() {
        return Err(ConversionError::missing(field));
    }
    Ok(path.parse().map_or_else(|_| Target::Authority(path.into()), Target::Addr))
}

pub(crate) fn read_key(key: ext::ResourceKey) -> Result<ResourceRef> {
    let ext::ResourceKey { group, kind, name, namespace, port, workload: _ } = key;
    let section = String::new();
    read_resource(pb::Resource { group, kind, name, namespace, section, port }, "resource")
}

pub(crate) fn write_key(key: &ResourceRef, workload: String) -> ext::ResourceKey {
    ext::ResourceKey {
        group: key.group.clone(),
        kind: key.kind.clone(),
        name: key.name.clone(),
        namespace: key.namespace.clone(),
        port: key.port.map(u32::from).unwrap_or_default(),
        workload,
    }
}
