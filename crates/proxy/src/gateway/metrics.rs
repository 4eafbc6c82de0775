//! Figures that only a gateway has.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

/// Why a connection was closed before a request was read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Its client has too many already.
    TooManyConnections,
    /// No TLS came about: no listener has the name, or the client did not go on.
    Handshake,
    /// It speaks what the port does not serve.
    Protocol,
}

impl Refused {
    const ALL: [Self; 3] = [Self::TooManyConnections, Self::Handshake, Self::Protocol];

    fn as_str(self) -> &'static str {
        match self {
            Self::TooManyConnections => "too-many-connections",
            Self::Handshake => "handshake",
            Self::Protocol => "protocol",
        }
    }
}

/// `gateway_listen_failures_total`, `gateway_refused_connections_total{reason}`.
#[derive(Clone, Debug, Default)]
pub(crate) struct GatewayMetrics {
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    listen_failures: AtomicU64,
    refused: [AtomicU64; Refused::ALL.len()],
}

impl GatewayMetrics {
    pub(super) fn listen_failed(&self) {
        self.counts.listen_failures.fetch_add(1, Relaxed);
    }

    pub(super) fn refused(&self, why: Refused) {
        self.counts.refused[why as usize].fetch_add(1, Relaxed);
    }
}

impl Collector for GatewayMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counter = |count: &AtomicU64| ConstCounter::new(count.load(Relaxed));
        let (name, help) = ("gateway_listen_failures", "Tries to listen on a port that failed");
        let failures = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        counter(&self.counts.listen_failures).encode(failures)?;
        let (name, help) = ("gateway_refused_connections", "Connections closed without a request");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for why in Refused::ALL {
            let labels = [("reason", why.as_str())];
            counter(&self.counts.refused[why as usize]).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
