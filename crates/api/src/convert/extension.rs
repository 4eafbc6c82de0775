//! Settings of a backend beyond linkerd2-proxy-api.

use std::time::Duration;

use http::HeaderName;
use mesh_model::outbound::Strategy;

use crate::error::{ConversionError, Result};
use crate::ext::{self, backend_extension::Strategy as Pb};
use crate::validate::Violation;
use crate::{BackendExtension, RetryBudget, Wire};

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
        let limits = proto.limits.unwrap_or_default();
        let some = |bound: u32| (bound > 0).then_some(bound);
        let time = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
        Ok(Self {
            strategy,
            hash_header,
            slow_start: time(proto.slow_start_ms),
            breaker_latency: time(proto.breaker_latency_ms),
            max_connections: some(limits.connections),
            max_in_flight: some(limits.requests_in_flight),
            retry_budget: proto.retry_budget.map(|budget| RetryBudget {
                percent: budget.percent,
                min_per_second: budget.min_per_second,
            }),
        })
    }

    fn to_proto(&self) -> Result<ext::BackendExtension> {
        let strategy = match self.strategy {
            Strategy::PeakEwma => Pb::PeakEwma,
            Strategy::LeastRequest => Pb::LeastRequest,
            Strategy::RoundRobin => Pb::RoundRobin,
            Strategy::RingHash => Pb::RingHash,
        };
        let hash_header = self.hash_header.as_ref().map(|h| h.to_string()).unwrap_or_default();
        let ms = |time: Option<Duration>| {
            let ms = time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            ms.unwrap_or_default()
        };
        let limits = ext::BackendLimits {
            connections: self.max_connections.unwrap_or_default(),
            requests_in_flight: self.max_in_flight.unwrap_or_default(),
        };
        Ok(ext::BackendExtension {
            strategy: strategy.into(),
            hash_header,
            slow_start_ms: ms(self.slow_start),
            breaker_latency_ms: ms(self.breaker_latency),
            limits: Some(limits),
            retry_budget: self.retry_budget.map(|budget| ext::RetryBudget {
                percent: budget.percent,
                min_per_second: budget.min_per_second,
            }),
        })
    }

    /// Our own message has no reader that its types do not already protect.
    fn validate(_: &ext::BackendExtension) -> std::result::Result<(), Violation> {
        Ok(())
    }
}
