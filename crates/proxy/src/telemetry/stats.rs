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
        identity: None,
    };
    let labels = HttpLabels { authority: Some("(overflow)".into()), ..HttpLabels::default() };
    SeriesSpec { key, labels }
}

#[cfg(test)]
mod tests {
    use mesh_model::Reason;
    use tokio::time::advance;

    use super::super::{Finished, Telemetry, TelemetryConfig};
    use super::*;

    fn telemetry(max_series: usize) -> Arc<Telemetry> {
        Telemetry::new(&TelemetryConfig { max_series, ..TelemetryConfig::default() })
    }

    fn spec(direction: Direction, port: u16) -> SeriesSpec {
        let mut spec = overflow(direction);
        spec.key.port = port;
        spec.labels.target_addr = Some(([10, 0, 0, 1], port).into());
        spec.labels.authority = None;
        spec
    }

    fn outbound(port: u16) -> SeriesSpec {
        spec(Direction::Outbound, port)
    }

    fn finished(status: u16) -> Finished {
        Finished {
            status,
            grpc_status: None,
            success: status < 500,
            first_byte: Some(Duration::from_millis(5)),
            total: Duration::from_millis(10),
            request_bytes: 100,
            response_bytes: 1_000,
            reason: (status == 504).then_some(Reason::RequestTimeout),
            attempts: 3,
        }
    }

    fn lines(telemetry: &Telemetry, name: &str) -> Vec<String> {
        let page = telemetry.expose(None).body;
        page.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_has_all_of_the_last_seconds_and_none_of_the_running_one() {
        let telemetry = telemetry(10);
        let series = telemetry.stats.series(outbound(80));
        series.request();
        series.response(&finished(200));
        series.response(&finished(504));
        series.failed(Reason::ConnectRefused);
        (0..4).for_each(|_| series.gave_up(&finished(503)));
        assert!(telemetry.stats.snapshot(60).series.is_empty());

        advance(Duration::from_secs(3)).await;
        series.response(&finished(200));
        let snapshot = telemetry.stats.snapshot(60);
        assert_eq!(snapshot.covered_seconds, 3);
        let [row] = &snapshot.series[..] else { panic!("{snapshot:?}") };
        assert_eq!(row.key, outbound(80).key);
        let totals = &row.totals;
        assert_eq!((totals.success, totals.failure), (1, 2));
        assert_eq!(totals.classes, [0, 1, 0, 0, 1]);
        assert_eq!(totals.retries, 2 + 2 + 4);
        assert_eq!((totals.request_bytes, totals.response_bytes), (200, 2_000));
        let reasons = [(Reason::ConnectRefused, 1), (Reason::RequestTimeout, 1)];
        assert_eq!(totals.reasons, reasons);
        assert_eq!((totals.latency.count(), totals.first_byte.count()), (2, 2));
        advance(Duration::from_secs(100)).await;
        assert_eq!(telemetry.stats.snapshot(60).covered_seconds, 60);
        assert!(telemetry.stats.snapshot(60).series.is_empty());
        assert_eq!(telemetry.stats.snapshot(9_999).covered_seconds, 103);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_key_with_other_labels_is_one_row() {
        let telemetry = telemetry(10);
        let plain = outbound(80);
        let mut secure = plain.clone();
        secure.labels.tls = super::super::Tls::Id("tax".into());
        for spec in [plain, secure] {
            telemetry.stats.series(spec).response(&finished(200));
        }
        advance(Duration::from_secs(1)).await;
        let snapshot = telemetry.stats.snapshot(60);
        assert_eq!(snapshot.series.len(), 1);
        assert_eq!(snapshot.series[0].totals.success, 2);
        assert_eq!(lines(&telemetry, "response_total").len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn open_connections_are_a_row_even_when_nothing_happens() {
        let telemetry = telemetry(10);
        let mut tcp = outbound(5432);
        tcp.key.protocol = StatProtocol::Tcp;
        let series = telemetry.stats.series(tcp);
        series.opened();
        series.opened();
        series.closed(10, 20);
        series.failed(Reason::ConnectRefused);
        advance(Duration::from_secs(2_000)).await;
        let snapshot = telemetry.stats.snapshot(60);
        assert_eq!(snapshot.series.len(), 1);
        assert_eq!(snapshot.series[0].tcp_open, 1);
        assert_eq!(snapshot.series[0].totals, Totals::default());
        series.closed(0, 0);
        series.closed(0, 0);
        assert_eq!(series.tcp_open(), 0, "never below zero");
        assert!(lines(&telemetry, "response_total").is_empty(), "connections are not responses");
    }

    #[tokio::test(start_paused = true)]
    async fn idle_series_go_and_those_that_are_held_stay() {
        let telemetry = telemetry(10);
        let held = telemetry.stats.series(outbound(1));
        held.request();
        telemetry.stats.series(outbound(2)).request();
        assert_eq!(lines(&telemetry, "request_total").len(), 2);

        advance(Duration::from_secs(WINDOW_SECONDS + 61)).await;
        assert_eq!(lines(&telemetry, "request_total").len(), 1);
        held.request();
        let line = &lines(&telemetry, "request_total")[0];
        assert!(line.contains(r#"target_port="1""#) && line.ends_with(" 2"), "{line}");
        assert!(Arc::ptr_eq(&held, &telemetry.stats.series(outbound(1))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_series_that_nobody_holds_keeps_its_counts() {
        let telemetry = telemetry(10);
        for _ in 0..20 {
            advance(Duration::from_secs(120)).await;
            telemetry.stats.series(outbound(1)).response(&finished(200));
        }
        let line = &lines(&telemetry, "response_total")[0];
        assert!(line.ends_with(" 20"), "{line}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_counts_the_rest_together_by_direction() {
        let telemetry = telemetry(2);
        let held: Vec<_> = (1..=4).map(|port| telemetry.stats.series(outbound(port))).collect();
        let inbound = telemetry.stats.series(spec(Direction::Inbound, 9));
        assert!(Arc::ptr_eq(&held[2], &held[3]));
        assert!(!Arc::ptr_eq(&held[2], &inbound));
        held.iter().for_each(|series| series.response(&finished(200)));
        advance(Duration::from_secs(1)).await;
        let snapshot = telemetry.stats.snapshot(60);
        assert_eq!(snapshot.overflowed, 3);
        assert_eq!(snapshot.series.len(), 3);
        let rest = snapshot.series.iter().find(|row| row.key.port == 0).unwrap();
        assert_eq!(rest.totals.success, 2);
        let page = lines(&telemetry, "response_total");
        assert!(page.iter().any(|l| l.contains(r#"authority="(overflow)""#) && l.ends_with(" 2")));
        assert_eq!(lines(&telemetry, "telemetry_overflowed_series_total ").len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn any_number_of_different_outcomes_is_bounded_and_none_is_lost() {
        let telemetry = telemetry(10);
        let series = telemetry.stats.series(outbound(80));
        for status in 100..1_000 {
            series.response(&finished(status));
        }
        let outcomes = lines(&telemetry, "response_total");
        assert!(outcomes.len() <= 130, "{} outcomes", outcomes.len());
        let count = |line: &String| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap();
        assert_eq!(outcomes.iter().map(count).sum::<u64>(), 900);
        let latencies = lines(&telemetry, "response_latency_ms_count");
        assert!(latencies.len() <= 129, "{} statuses", latencies.len());
        assert_eq!(latencies.iter().map(count).sum::<u64>(), 900);
    }

    /// Counts from several threads end up whole, whoever scrapes meanwhile.
    #[test]
    fn nothing_is_lost_between_threads() {
        let telemetry = telemetry(10);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let series = telemetry.stats.series(outbound(80));
                        series.request();
                        series.response(&finished(200));
                    }
                });
            }
            scope.spawn(|| (0..20).for_each(|_| drop(telemetry.expose(None))));
        });
        assert!(lines(&telemetry, "request_total")[0].ends_with(" 6000"));
        assert!(lines(&telemetry, "response_total")[0].ends_with(" 6000"));
    }
}
