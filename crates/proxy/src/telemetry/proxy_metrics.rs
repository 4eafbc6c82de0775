//! The families about the proxy itself: detection, rejected configuration, certificate, balancers.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use mesh_model::{Direction, Meta};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::labels::{self, Detail, LabelSet, Pairs, Rendered};

/// What protocol detection found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Detected {
    Http1,
    Http2,
    Tls,
    Opaque,
    /// The server spoke before its client; opaque.
    ServerFirst,
    /// Nothing came in time; treated as opaque.
    TimedOut,
    /// The connection ended or failed first.
    Failed,
}

/// `protocol_detection_total{direction,result}` and `protocol_detection_duration_seconds`.
#[derive(Debug)]
pub struct DetectMetrics {
    results: Family<DetectLabels, Counter>,
    durations: Family<DetectLabels, Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct DetectLabels {
    direction: Direction,
    result: Option<Detected>,
}

impl DetectMetrics {
    /// Counts a finished detection. Once a connection.
    pub fn record(&self, direction: Direction, result: Detected, took: Duration) {
        self.results.get_or_create(&DetectLabels { direction, result: Some(result) }).inc();
        let labels = DetectLabels { direction, result: None };
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let (name, help) = ("protocol_detection", "Connections by what detection found");
        registry.register(name, help, self.results.clone());
        let name = "protocol_detection_duration_seconds";
        registry.register(name, "Seconds detection took", self.durations.clone());
    }
}

impl Default for DetectMetrics {
    fn default() -> Self {
        let buckets = || Histogram::new([0.000_1, 0.001, 0.01, 0.1, 1.0, 10.0]);
        Self { results: Family::default(), durations: Family::new_with_constructor(buckets) }
    }
}

impl EncodeLabelSet for DetectLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        LabelSet(self).encode(encoder)
    }
}

impl Pairs for DetectLabels {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        self.direction.pairs(visit);
        let result = match self.result {
            None => return,
            Some(Detected::Http1) => "http1",
            Some(Detected::Http2) => "http2",
            Some(Detected::Tls) => "tls",
            Some(Detected::Opaque) => "opaque",
            Some(Detected::ServerFirst) => "server_first",
            Some(Detected::TimedOut) => "timeout",
            Some(Detected::Failed) => "failed",
        };
        visit("result", result);
    }
}

/// `config_rejected_total{reason}`: what the control plane sent and the proxy did not take.
#[derive(Debug, Default)]
pub struct ConfigRejected {
    by_reason: Family<[(&'static str, &'static str); 1], Counter>,
}

impl ConfigRejected {
    /// Counts a rejected update. Reasons come from a fixed list.
    pub fn inc(&self, reason: &'static str) {
        self.by_reason.get_or_create(&[("reason", reason)]).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Updates of the control plane that were invalid and left out";
        registry.register("config_rejected", help, self.by_reason.clone());
    }
}

/// When this proxy's certificate was renewed and when it ends. Unix seconds.
#[derive(Clone, Debug, Default)]
pub struct IdentityMetrics {
    times: Arc<(AtomicI64, AtomicI64)>,
}

impl IdentityMetrics {
    /// A certificate was taken into use.
    pub fn refreshed(&self, now_unix_seconds: i64, expires_unix_seconds: i64) {
        self.times.0.store(expires_unix_seconds, Relaxed);
        self.times.1.store(now_unix_seconds, Relaxed);
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }
}

/// Absent until there is a certificate.
impl Collector for IdentityMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let families = [
            ("expiration", "When the certificate in use ends", self.times.0.load(Relaxed)),
            (
                "refresh",
                "When the certificate in use was taken into use",
                self.times.1.load(Relaxed),
            ),
        ];
        for (what, help, seconds) in families {
            let name = format!("control_identity_cert_{what}_timestamp_seconds");
            let mut gauge = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            if seconds > 0 {
                gauge.encode_gauge(&seconds)?;
            }
        }
        Ok(())
    }
}

/// An endpoint in a balancer, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointState {
    /// Takes requests.
    Ready,
    /// Connecting, or not yet tried.
    Pending,
    /// Kept out by its breaker, but for one request that probes it.
    Probing,
    /// Kept out by its breaker.
    Ejected,
}

/// A balancer as its owner sees it at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalancerView {
    pub parent: Meta,
    pub backend: Meta,
    pub endpoints: Vec<(SocketAddr, EndpointState)>,
}

type View = dyn Fn() -> Vec<BalancerView> + Send + Sync;

/// `outbound_http_balancer_endpoints{endpoint_state}`, and the breakers `stat` shows.
#[derive(Clone, Default)]
pub struct Balancers {
    view: Arc<Mutex<Option<Arc<View>>>>,
}

impl Balancers {
    /// Says how to look at all balancers; asked at every scrape. The last one said holds. There may
    /// be several with the same parent and backend, one per worker.
    pub fn set_view(&self, view: impl Fn() -> Vec<BalancerView> + Send + Sync + 'static) {
        *self.view.lock() = Some(Arc::new(view));
    }

    /// What breakers keep out at the moment, by backend and address. An endpoint that one worker
    /// keeps out and another does not is among them.
    pub fn breakers(&self) -> BTreeMap<(Meta, SocketAddr), EndpointState> {
        let mut breakers = BTreeMap::new();
        for balancer in self.view() {
            for (endpoint, state) in balancer.endpoints {
                if state >= EndpointState::Probing {
                    let kept: &mut EndpointState =
                        breakers.entry((balancer.backend.clone(), endpoint)).or_insert(state);
                    *kept = state.max(*kept);
                }
            }
        }
        breakers
    }

    fn view(&self) -> Vec<BalancerView> {
        let view = self.view.lock().clone();
        view.map(|view| view()).unwrap_or_default()
    }
}

impl fmt::Debug for Balancers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balancers").finish_non_exhaustive()
    }
}

impl Pairs for BalancerView {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        labels::meta("parent", &self.parent, Detail::Port, visit);
        labels::meta("backend", &self.backend, Detail::Port, visit);
    }
}

struct StateSet(&'static str);

impl Pairs for StateSet {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        visit("endpoint_state", self.0);
    }
}

/// The family's two states are those of the ecosystem: what a breaker keeps out is pending.
impl Collector for Balancers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // An endpoint counts once, in the best state it has in any of the workers.
        let mut balancers: BTreeMap<Rendered, BTreeMap<SocketAddr, EndpointState>> =
            BTreeMap::new();
        for view in self.view() {
            let endpoints = balancers.entry(Rendered::of(&view)).or_default();
            for (addr, state) in view.endpoints {
                let best = endpoints.entry(addr).or_insert(state);
                *best = state.min(*best);
            }
        }
        let (name, help) = ("outbound_http_balancer_endpoints", "Endpoints in balancers");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, endpoints) in &balancers {
            let ready = endpoints.values().filter(|state| **state == EndpointState::Ready).count();
            for (state, count) in [("ready", ready), ("pending", endpoints.len() - ready)] {
                let set = (labels, StateSet(state));
                family.encode_family(&LabelSet(&set))?.encode_gauge(&(count as u64))?;
            }
        }
        Ok(())
    }
}
