//! Settings of a backend beyond linkerd2-proxy-api.

use http::HeaderName;
use mesh_model::outbound::Strategy;

use crate::error::{ConversionError, Result};
use crate::ext::{self, backend_extension::Strategy as Pb};
use crate::validate::Violation;
use crate::{BackendExtension, Wire};

impl Wire for BackendExtension {
    type Proto = ext::BackendExtension;

    fn from_proto(proto: ext::BackendExtension) -> Result<Self> {
        let strategy = match Pb::try_from(proto.strategy) {
            Ok(Pb::PeakEwma) => Strategy::PeakEwma,
            Ok(Pb::LeastRequest) => Strategy::LeastRequest,
            Ok(Pb::RoundRobin) => Strategy::RoundRobin,
            Ok(Pb::RingHash) => Strategy::RingHash,
            Err(_) => return Err(ConversionError::missing("strategy")),
        };
        let hash_header = match proto.hash_header.as_str() {
            "" => None,
            name => Some(HeaderName::try_from(name).map_err(|_| {
                ConversionError::invalid("hash_header", format!("`{name}` is no header name"))
            })?),
        };
        Ok(Self { strategy, hash_header })
    }

    fn to_proto(&self) -> Result<ext::BackendExtension> {
        let strategy = match self.strategy {
            Strategy::PeakEwma => Pb::PeakEwma,
            Strategy::LeastRequest => Pb::LeastRequest,
            Strategy::RoundRobin => Pb::RoundRobin,
            Strategy::RingHash => Pb::RingHash,
        };
        let hash_header = self.hash_header.as_ref().map(|h| h.to_string()).unwrap_or_default();
        Ok(ext::BackendExtension { strategy: strategy.into(), hash_header })
    }

    /// Our own message has no reader that its types do not already protect.
    fn validate(_: &ext::BackendExtension) -> std::result::Result<(), Violation> {
        Ok(())
    }
}
