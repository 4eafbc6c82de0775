//! Everything that is said of a port in our own words: who may use it, what it speaks, how much it takes,
//! and what fails there on purpose.

use http::HeaderName;
use mesh_model::authz::PortAuthz;
use mesh_model::inbound::{
    Concurrency, HeaderRate, PortExtension, PortLimits, PortProtocol, Rate, RateLimit,
};

use super::additions::{read_fault, write_fault};
use super::authz::{read_policy_meta, write_policy_meta};
use super::{list, required, write_list};
use crate::Wire;
use crate::error::{At, ConversionError, Result};
use crate::ext::{self, port_authorization::Protocol as Pb};
use crate::limit;
use crate::validate::Violation;

impl Wire for PortExtension {
    type Proto = ext::PortAuthorization;

    fn from_proto(mut proto: ext::PortAuthorization) -> Result<Self> {
        let protocol = match Pb::try_from(proto.protocol) {
            Ok(Pb::Detect) => PortProtocol::Detect,
            Ok(Pb::Http1) => PortProtocol::Http1,
            Ok(Pb::Http2) => PortProtocol::Http2,
            Ok(Pb::Grpc) => PortProtocol::Grpc,
            Ok(Pb::Opaque) => PortProtocol::Opaque,
            Err(_) => return Err(ConversionError::missing("protocol")),
        };
        let rate = proto.rate_limit.take().map(read_rate_limit).transpose().at("rate_limit")?;
        let concurrency = proto.concurrency.take().map(|proto: ext::PortConcurrency| {
            Ok(Concurrency { meta: read_policy_meta(proto.meta, "meta")?, max: proto.max })
        });
        let limits = PortLimits { rate, concurrency: concurrency.transpose().at("concurrency")? };
        let faults = std::mem::take(&mut proto.faults);
        let faults = list(faults, "faults", limit::FAULTS, read_fault)?;
        Ok(Self { authz: PortAuthz::from_proto(proto)?, protocol, limits, faults })
    }

    fn to_proto(&self) -> Result<ext::PortAuthorization> {
        let protocol = match self.protocol {
            PortProtocol::Detect => Pb::Detect,
            PortProtocol::Http1 => Pb::Http1,
            PortProtocol::Http2 => Pb::Http2,
            PortProtocol::Grpc => Pb::Grpc,
            PortProtocol::Opaque => Pb::Opaque,
        };
        let PortLimits { rate, concurrency } = &self.limits;
        let write_concurrency = |concurrency: &Concurrency| ext::PortConcurrency {
            meta: Some(write_policy_meta(&concurrency.meta)),
            max: concurrency.max,
        };
        Ok(ext::PortAuthorization {
            protocol: protocol.into(),
            rate_limit: rate.as_ref().map(write_rate_limit).transpose().at("rate_limit")?,
            concurrency: concurrency.as_ref().map(write_concurrency),
            faults: write_list(&self.faults, "faults", write_fault)?,
            ..self.authz.to_proto()?
        })
    }

    /// Our own message has no reader that its types do not already protect.
    fn validate(_: &ext::PortAuthorization) -> std::result::Result<(), Violation> {
        Ok(())
    }
}

fn read_rate_limit(proto: ext::PortRateLimit) -> Result<RateLimit> {
    let header = proto.header.map(|header: ext::HeaderRate| {
        let name = HeaderName::try_from(&header.name).map_err(|_| {
            ConversionError::invalid("name", format!("`{}` is no header", header.name))
        })?;
        Ok(HeaderRate { name, rate: read_rate(required(header.rate, "rate")?)? })
    });
    Ok(RateLimit {
        meta: read_policy_meta(proto.meta, "meta")?,
        total: proto.total.map(read_rate).transpose().at("total")?,
        identity: proto.identity.map(read_rate).transpose().at("identity")?,
        overrides: list(proto.overrides, "overrides", limit::ITEMS, |item: ext::RateOverride| {
            let rate = read_rate(required(item.rate, "rate")?)?;
            Ok((rate, list(item.identities, "identities", limit::ITEMS, Ok)?))
        })?,
        header: header.transpose().at("header")?,
    })
}

fn write_rate_limit(limit: &RateLimit) -> Result<ext::PortRateLimit> {
    let header = |header: &HeaderRate| ext::HeaderRate {
        name: header.name.to_string(),
        rate: Some(write_rate(header.rate)),
    };
    Ok(ext::PortRateLimit {
        meta: Some(write_policy_meta(&limit.meta)),
        total: limit.total.map(write_rate),
        identity: limit.identity.map(write_rate),
        overrides: write_list(&limit.overrides, "overrides", |(rate, identities)| {
            let identities = identities.clone();
            Ok(ext::RateOverride { rate: Some(write_rate(*rate)), identities })
        })?,
        header: limit.header.as_ref().map(header),
    })
}

/// A burst of nothing would never let anything pass, whatever the rate.
fn read_rate(proto: ext::PortRate) -> Result<Rate> {
    if proto.burst == 0 {
        return Err(ConversionError::missing("burst"));
    }
    Ok(Rate { per_second: proto.per_second, burst: proto.burst })
}

fn write_rate(rate: Rate) -> ext::PortRate {
    ext::PortRate { per_second: rate.per_second, burst: rate.burst.max(1) }
}
