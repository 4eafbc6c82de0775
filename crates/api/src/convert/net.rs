//! Addresses, ports and durations.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use linkerd2_proxy_api::net as pb;
use mesh_model::inbound::Cidr;

use super::required;
use crate::error::{ConversionError, Result};

/// Longer durations are refused: clocks overflow on absurd ones.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

pub(crate) fn read_addr(proto: Option<pb::TcpAddress>, field: &str) -> Result<SocketAddr> {
    let proto = required(proto, field)?;
    let ip = read_ip(proto.ip, field)?;
    Ok(SocketAddr::new(ip, read_port(proto.port, field)?))
}

pub(crate) fn read_ip(proto: Option<pb::IpAddress>, field: &str) -> Result<IpAddr> {
    required(proto, field)?.try_into().map_err(|_| ConversionError::missing(field))
}

/// A port, which may be 0.
pub(crate) fn read_port(port: u32, field: &str) -> Result<u16> {
    u16::try_from(port).map_err(|_| ConversionError::invalid(field, format!("{port} is no port")))
}

pub(crate) fn read_cidr(proto: pb::IpNetwork, field: &str) -> Result<Cidr> {
    let addr = read_ip(proto.ip, field)?;
    let max = if addr.is_ipv4() { 32 } else { 128 };
    match u8::try_from(proto.prefix_len) {
        Ok(prefix) if prefix <= max => Ok(Cidr { addr, prefix }),
        _ => Err(ConversionError::invalid(
            field,
            format!("{addr}/{} is no network", proto.prefix_len),
        )),
    }
}

pub(crate) fn write_cidr(cidr: &Cidr) -> pb::IpNetwork {
    pb::IpNetwork { ip: Some(cidr.addr.into()), prefix_len: u32::from(cidr.prefix) }
}

/// A duration that must be set; 0 is one.
pub(crate) fn read_duration(proto: Option<prost_types::Duration>, field: &str) -> Result<Duration> {
    let proto = required(proto, field)?;
    let duration = Duration::try_from(proto)
        .map_err(|_| ConversionError::invalid(field, format!("{proto} is negative")))?;
    if duration > MAX_DURATION {
        return Err(ConversionError::invalid(field, format!("{proto} is longer than a year")));
    }
    Ok(duration)
}

/// A duration that must be set and more than 0.
pub(crate) fn read_positive(proto: Option<prost_types::Duration>, field: &str) -> Result<Duration> {
    let duration = read_duration(proto, field)?;
    if duration.is_zero() {
        return Err(ConversionError::invalid(field, "must be more than 0"));
    }
    Ok(duration)
}

/// A limit: unset and 0 are unlimited, as in the Gateway API.
pub(crate) fn read_limit(
    proto: Option<prost_types::Duration>,
    field: &str,
) -> Result<Option<Duration>> {
    let limit = proto.map(|proto| read_duration(Some(proto), field)).transpose()?;
    Ok(limit.filter(|limit| !limit.is_zero()))
}

pub(crate) fn write_duration(duration: Duration, field: &str) -> Result<prost_types::Duration> {
    if duration > MAX_DURATION {
        return Err(ConversionError::invalid(field, format!("{duration:?} is longer than a year")));
    }
    prost_types::Duration::try_from(duration).map_err(|e| ConversionError::invalid(field, e))
}

pub(crate) fn write_limit(
    limit: Option<Duration>,
    field: &str,
) -> Result<Option<prost_types::Duration>> {
    limit.filter(|limit| !limit.is_zero()).map(|limit| write_duration(limit, field)).transpose()
}
