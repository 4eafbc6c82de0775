//! The bounded table of series, and the answer to "what happened in the last N seconds?".

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mesh_model::Direction;
use mesh_model::stats::{SeriesKey, StatProtocol, Totals, WINDOW_SECONDS};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::time::Instant;

use super::labels::HttpLabels;
use super::responses::HttpSeries;
use super::series::Series;

/// How often idle series are looked for, at most.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// What a series is about, for `stat` (`key`) and for `/metrics` (`labels`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeriesSpec {
    pub key: SeriesKey,
    pub labels: HttpLabels,
}

/// Sums over a window, for the control port.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Whole seconds the figures cover: fewer than asked for while the proxy is young.
    pub covered_seconds: u64,
    /// One per key that anything happened for, in the order of the keys.
    pub series: Vec<SeriesTotals>,
    /// Series that found no place in the table since the proxy started.
    pub overflowed: u64,
}

/// One row of a [`Snapshot`].
#[derive(Clone, Debug, PartialEq)]
pub struct SeriesTotals {
    pub key: SeriesKey,
    pub totals: Totals,
    /// Connections open now.
    pub tcp_open: u64,
}

/// All series of requests and connections. Clones share the table.
#[derive(Clone, Debug)]
pub struct Stats {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    max: usize,
    epoch: Instant,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    series: BTreeMap<SeriesSpec, Arc<Series>>,
    http: BTreeMap<(Direction, HttpLabels), Arc<HttpSeries>>,
    overflowed: u64,
    /// Seconds since the epoch.
    swept: u64,
}

impl Stats {
    pub(super) fn new(max: usize) -> Self {
        Self { shared: Arc::new(Shared { max, epoch: Instant::now(), table: Mutex::default() }) }
    }

    /// The series for this; resolve it once per (endpoint, route) and hold it. When the table is
    /// full, one that stands for everything else in its direction.
    pub fn series(&self, spec: SeriesSpec) -> Arc<Series> {
        let shared = &*self.shared;
        let mut table = shared.table.lock();
        if let Some(found) = table.series.get(&spec) {
            return found.clone();
        }
        table.sweep(shared.seconds(), SWEEP_EVERY.as_secs());
        if table.series.len() < shared.max {
            return table.insert(spec, shared.epoch);
        }
        table.overflowed += 1;
        let overflow = overflow(spec.key.direction);
        match table.series.get(&overflow) {
            Some(found) => found.clone(),
            None => table.insert(overflow, shared.epoch),
        }
    }

    /// Sums over the last `window` whole seconds, at most ten minutes.
    pub fn snapshot(&self, window: u64) -> Snapshot {
        let shared = &*self.shared;
        let window = window.clamp(1, WINDOW_SECONDS);
        let (all, overflowed) = {
            let mut table = shared.table.lock();
            table.sweep(shared.seconds(), SWEEP_EVERY.as_secs());
            (table.series.values().cloned().collect::<Vec<_>>(), table.overflowed)
        };
        let mut rows: BTreeMap<SeriesKey, (Totals, u64)> = BTreeMap::new();
        for series in all {
            let (totals, tcp_open) = (series.sum(window), series.tcp_open());
            if totals != Totals::default() || tcp_open > 0 {
                let row = rows.entry(series.key().clone()).or_default();
                row.0.merge(&totals);
                row.1 += tcp_open;
            }
        }
        let row = |(key, (totals, tcp_open))| SeriesTotals { key, totals, tcp_open };
        Snapshot {
            covered_seconds: window.min(shared.seconds()),
            series: rows.into_iter().map(row).collect(),
            overflowed,
        }
    }

    pub(super) fn collector(&self) -> impl Collector + use<> {
        self.clone()
    }
}

impl Shared {
    fn seconds(&self) -> u64 {
        self.epoch.elapsed().as_secs()
    }
}

impl Table {
    fn insert(&mut self, spec: SeriesSpec, epoch: Instant) -> Arc<Series> {
        let labels = (spec.key.direction, spec.labels.clone());
        let http = self.http.entry(labels).or_default().clone();
        let series = Arc::new(Series::new(spec.key.clone(), epoch, http));
        self.series.insert(spec, series.clone());
        series
    }

    /// Drops the series that are idle and that nobody holds, at most every so many seconds.
    fn sweep(&mut self, now: u64, every: u64) {
        if now < self.swept + every {
            return;
        }
        self.swept = now;
        self.series.retain(|_, series| {
            let keep = !series.idle() || Arc::strong_count(series) > 1;
            if !keep {
                series.flush();
            }
            keep
        });
        self.http.retain(|_, http| Arc::strong_count(http) > 1);
    }
}

impl Collector for Stats {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut table = self.shared.table.lock();
        table.sweep(self.shared.seconds(), SWEEP_EVERY.as_secs());
        table.series.values().for_each(|series| series.flush());
        let all = table.http.iter();
        let all: Vec<_> = all.map(|(labels, http)| (labels.clone(), http.clone())).collect();
        let overflowed = table.overflowed;
        drop(table);
        super::http_metrics::encode(encoder, &all, overflowed)
    }
}

fn overflow(direction: Direction) -> SeriesSpec {
    let key = SeriesKey {
        direction,
        protocol: StatProtocol::Http,
        peer: None,
        port: 0,
        parent: "".into(),
        route: "".into(),
        backend: "".into(),
    };
    let labels = HttpLabels { authority: Some("(overflow)".into()), ..HttpLabels::default() };
    SeriesSpec { key, labels }
}
