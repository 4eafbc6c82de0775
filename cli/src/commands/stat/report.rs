//! The answer to a stat request as figures: rates, shares and quantiles; `None` where nothing is known.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_api::ext;
use mesh_model::stats::Histogram;
use serde::Serialize;

use crate::commands::shared::Lost;

/// The document of `-o json` and `-o yaml`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// `server` or `client`
    pub view: String,
    pub window_seconds: u64,
    pub rows: Vec<Row>,
    pub unreachable: Vec<Lost>,
}

/// The fields of a row that fit into a CSV column.
pub(super) const CSV_FIELDS: &[&str] = &[
    "namespace",
    "kind",
    "name",
    "by",
    "meshed_pods",
    "running_pods",
    "covered_seconds",
    "requests",
    "failures",
    "success",
    "rps",
    "latency_ms_p50",
    "latency_ms_p95",
    "latency_ms_p99",
    "first_byte_ms_p50",
    "first_byte_ms_p95",
    "first_byte_ms_p99",
    "retries_rate",
    "request_bytes_rate",
    "response_bytes_rate",
    "tcp_open_connections",
    "no_data",
];

/// One resource, or one of its routes, backends or pods.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub namespace: String,
    pub kind: String,
    pub name: String,
    pub by: Option<String>,
    pub meshed_pods: u32,
    pub ready_pods: u32,
    pub running_pods: u32,
    pub covered_seconds: u32,
    #[serde(flatten)]
    pub figures: Figures,
    pub breakers: Vec<Breaker>,
    pub no_data: Option<String>,
}

/// What was counted. Rates are per second over the span covered, latencies in milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    pub requests: Option<u64>,
    pub failures: Option<u64>,
    /// 0.0…1.0
    pub success: Option<f64>,
    pub rps: Option<f64>,
    pub latency_ms_p50: Option<f64>,
    pub latency_ms_p95: Option<f64>,
    pub latency_ms_p99: Option<f64>,
    pub first_byte_ms_p50: Option<f64>,
    pub first_byte_ms_p95: Option<f64>,
    pub first_byte_ms_p99: Option<f64>,
    pub retries_rate: Option<f64>,
    pub request_bytes_rate: Option<f64>,
    pub response_bytes_rate: Option<f64>,
    pub tcp_open_connections: Option<u64>,
    /// 1xx…5xx
    pub status_classes: Vec<u64>,
    pub reasons: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Breaker {
    pub backend: String,
    pub endpoint: String,
    pub state: String,
}

impl Report {
    pub(crate) fn from_reply(reply: ext::StatReply, window: Duration) -> Self {
        let mut rows: Vec<Row> = reply.rows.into_iter().map(Row::from).collect();
        rows.sort_by(|a, b| {
            let key = |row: &Row| {
                (row.namespace.clone(), row.kind.clone(), row.name.clone(), row.by.clone())
            };
            key(a).cmp(&key(b))
        });
        Self {
            view: reply.view,
            window_seconds: window.as_secs(),
            rows,
            unreachable: reply.unreachable.into_iter().map(Lost::from).collect(),
        }
    }
}

impl From<ext::StatRow> for Row {
    fn from(row: ext::StatRow) -> Self {
        let of = row.r#ref.unwrap_or_default();
        let figures = match (&row.totals, row.no_data.is_empty()) {
            (Some(totals), true) => Figures::new(totals, row.covered_seconds),
            _ => Figures::default(),
        };
        Self {
            namespace: of.namespace,
            kind: of.kind,
            name: of.name,
            by: Some(row.by).filter(|by| !by.is_empty()),
            meshed_pods: row.meshed_pods,
            ready_pods: row.ready_pods,
            running_pods: row.running_pods,
            covered_seconds: row.covered_seconds,
            figures,
            breakers: row.breakers.into_iter().map(Breaker::from).collect(),
            no_data: Some(row.no_data).filter(|why| !why.is_empty()),
        }
    }
}

impl From<ext::Breaker> for Breaker {
    fn from(breaker: ext::Breaker) -> Self {
        Self { backend: breaker.backend, endpoint: breaker.endpoint, state: breaker.state }
    }
}

impl Figures {
    /// Figures of what was counted in `covered` seconds. Without requests the HTTP ones stay unknown: a database's
    /// success rate is not 0.
    pub(crate) fn new(totals: &ext::Totals, covered: u32) -> Self {
        let rate = |count: u64| (covered > 0).then(|| rounded(count as f64 / f64::from(covered)));
        let tcp = Self {
            request_bytes_rate: rate(totals.request_bytes),
            response_bytes_rate: rate(totals.response_bytes),
            // HTTP series count requests, not connections: nothing is known of theirs.
            tcp_open_connections: (totals.tcp_open + totals.tcp_opened + totals.tcp_closed > 0)
                .then_some(totals.tcp_open),
            reasons: totals.reasons.iter().map(|(code, count)| (code.clone(), *count)).collect(),
            ..Self::default()
        };
        let requests = totals.success.saturating_add(totals.failure);
        if requests == 0 {
            return tcp;
        }
        let latency = Quantiles::of(totals.latency.as_ref());
        let first_byte = Quantiles::of(totals.first_byte.as_ref());
        Self {
            requests: Some(requests),
            failures: Some(totals.failure),
            // Not rounded: 99.9999 % is not all.
            success: Some(totals.success as f64 / requests as f64),
            rps: rate(requests),
            latency_ms_p50: latency.0[0],
            latency_ms_p95: latency.0[1],
            latency_ms_p99: latency.0[2],
            first_byte_ms_p50: first_byte.0[0],
            first_byte_ms_p95: first_byte.0[1],
            first_byte_ms_p99: first_byte.0[2],
            retries_rate: rate(totals.retries),
            status_classes: totals.classes.clone(),
            ..tcp
        }
    }
}

/// P50, P95 and P99 in milliseconds.
struct Quantiles([Option<f64>; 3]);

impl Quantiles {
    fn of(counted: Option<&ext::Histogram>) -> Self {
        // A histogram that makes no sense is as good as none.
        let histogram =
            counted.cloned().and_then(|h| Histogram::try_from(h).ok()).unwrap_or_default();
        let millis = |q| histogram.quantile(q).map(|d: Duration| rounded(d.as_secs_f64() * 1e3));
        Self([0.5, 0.95, 0.99].map(millis))
    }
}

/// More than three decimals are noise.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
