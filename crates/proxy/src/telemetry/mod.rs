//! What the proxy tells about itself: counters, sliding windows, live requests and logs.
//!
//! Everything is counted through handles that are resolved once per (endpoint, route) or per
//! connection, so that a request costs a few additions and one uncontended lock. Text is made
//! only when somebody reads it. Read [`series`] next: it is what a request touches.

pub mod access_log;
mod bounded;
pub mod counters;
pub mod egress;
mod expose;
mod http_metrics;
pub mod labels;
pub mod log;
pub mod notable;
pub mod observed;
#[cfg(test)]
mod page_tests;
mod process;
pub mod proxy_metrics;
mod responses;
pub mod series;
pub mod stats;
pub mod tap;
pub mod trace;
pub mod transport;
mod window;

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::registry::Registry;

pub use self::access_log::{AccessLog, AccessLogFormat};
pub use self::counters::{AuthzCounters, AuthzLabels, AuthzMetrics, RetryCounters, RetryMetrics};
pub use self::egress::{EgressCounters, EgressLabels, EgressMetrics};
pub use self::expose::Exposition;
pub use self::labels::{HttpLabels, Tls};
pub use self::log::{LogFormat, LogHandle};
pub use self::notable::Notable;
pub use self::observed::{Observed, ObservedPort, Who};
pub use self::proxy_metrics::{
    BalancerView, Balancers, ConfigRejected, DetectMetrics, Detected, EndpointState,
    IdentityMetrics,
};
pub use self::series::{Finished, Series};
pub use self::stats::{SeriesSpec, Snapshot, Stats};
pub use self::tap::{TapHub, TapReceiver};
pub use self::trace::{OtlpEndpoint, SampleShare};
pub(crate) use self::trace::{Span, SpanEnd, Tracer};
pub use self::transport::{Peer, Transport, TransportLabels, TransportMetrics, TransportSeries};

/// Bounds of what telemetry keeps.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// Series of requests kept apart; those beyond share one per direction.
    pub max_series: usize,
    /// Label sets kept apart in each of the other families.
    pub max_label_sets: usize,
    /// Tap sessions at a time.
    pub max_taps: usize,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { max_series: 2_000, max_label_sets: 2_000, max_taps: 32 }
    }
}

/// All of the proxy's figures. One per process, shared.
#[derive(Debug)]
pub struct Telemetry {
    pub stats: Stats,
    pub tap: TapHub,
    pub observed: Observed,
    pub notable: Notable,
    pub transport: TransportMetrics,
    pub authz: AuthzMetrics,
    pub egress: EgressMetrics,
    pub retries: RetryMetrics,
    pub detect: DetectMetrics,
    pub config_rejected: ConfigRejected,
    pub identity: IdentityMetrics,
    pub balancers: Balancers,
    registry: Mutex<Registry>,
}

impl Telemetry {
    pub fn new(cfg: &TelemetryConfig) -> Arc<Self> {
        let telemetry = Self {
            stats: Stats::new(cfg.max_series),
            tap: TapHub::new(cfg.max_taps),
            observed: Observed::default(),
            notable: Notable::default(),
            transport: TransportMetrics::new(cfg.max_label_sets),
            authz: AuthzMetrics::new(cfg.max_label_sets),
            egress: EgressMetrics::new(cfg.max_label_sets),
            retries: RetryMetrics::new(cfg.max_label_sets),
            detect: DetectMetrics::default(),
            config_rejected: ConfigRejected::default(),
            identity: IdentityMetrics::default(),
            balancers: Balancers::default(),
            registry: Mutex::new(Registry::default()),
        };
        telemetry.register_own();
        Arc::new(telemetry)
    }

    /// Adds a collector of the owner's own; it is asked at every scrape.
    pub fn register(&self, collector: impl Collector) {
        self.registry.lock().register_collector(Box::new(collector));
    }

    /// The text of `/metrics`, in the format the `Accept` header asks for.
    pub fn expose(&self, accept: Option<&str>) -> Exposition {
        expose::render(&self.registry.lock(), accept)
    }

    fn register_own(&self) {
        let mut registry = self.registry.lock();
        registry.register_collector(Box::new(self.stats.collector()));
        registry.register_collector(Box::new(self.transport.clone()));
        registry.register_collector(Box::new(self.authz.clone()));
        registry.register_collector(Box::new(self.egress.clone()));
        registry.register_collector(Box::new(self.retries.clone()));
        registry.register_collector(Box::new(self.balancers.clone()));
        self.detect.register(&mut registry);
        self.config_rejected.register(&mut registry);
        self.identity.register(&mut registry);
        process::register(&mut registry);
    }
}
