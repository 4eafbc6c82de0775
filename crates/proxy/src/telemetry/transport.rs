//! Connections and bytes: the `tcp_*` families.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mesh_model::Direction;
use mesh_model::endpoint::Labels;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use tokio::time::Instant;

use super::bounded::{Bounded, Entries};
use super::http_metrics;
use super::labels::{self, LabelSet, Pairs, Tls};

/// Which end of the proxy a connection is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// Whoever connected to the proxy.
    Src,
    /// Whom the proxy connected to.
    Dst,
}

/// Labels of a connection. Keep them free of what differs from connection to connection, such as
/// an ephemeral port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransportLabels {
    pub direction: Direction,
    pub peer: Peer,
    pub authority: Option<Arc<str>>,
    /// The original destination or own port for `Src`, the endpoint for `Dst`.
    pub target_addr: Option<SocketAddr>,
    pub tls: Tls,
    /// `dst_*`
    pub dst: Labels,
    /// `srv_*`
    pub srv: Labels,
}

impl TransportLabels {
    /// Labels with nothing but the essentials.
    pub fn new(direction: Direction, peer: Peer, target_addr: Option<SocketAddr>) -> Self {
        let (authority, tls, dst, srv) = Default::default();
        Self { direction, peer, authority, target_addr, tls, dst, srv }
    }
}

/// All connections, by labels. Clones share the table.
#[derive(Clone, Debug)]
pub struct TransportMetrics {
    table: Arc<Bounded<TransportLabels, TransportSeries>>,
}

/// Connections with the same labels; hold it where many are opened.
#[derive(Debug, Default)]
pub struct TransportSeries {
    opened: AtomicU64,
    closed: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    closes: Mutex<Closes>,
}

#[derive(Debug, Default)]
struct Closes {
    /// By errno (0: closed in order).
    by_errno: Vec<(i32, u64)>,
    durations: Durations,
}

/// How long connections lived, in powers of ten of milliseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Durations {
    buckets: [u64; LIFETIME_MS.len() + 1],
    millis: u64,
}

impl Durations {
    fn record(&mut self, millis: u64) {
        self.buckets[LIFETIME_MS.partition_point(|bound| *bound < millis)] += 1;
        self.millis = self.millis.saturating_add(millis);
    }

    fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.millis = self.millis.saturating_add(other.millis);
    }
}

/// Upper bounds of `tcp_connection_duration_ms`: 10 ms to 1000 s.
const LIFETIME_MS: [u64; 6] = [10, 100, 1_000, 10_000, 100_000, 1_000_000];

/// One open connection. Dropping it counts an orderly close.
#[derive(Debug)]
pub struct Transport {
    series: Arc<TransportSeries>,
    errno: i32,
    opened: Instant,
}

impl TransportMetrics {
    pub(super) fn new(max: usize) -> Self {
        Self { table: Arc::new(Bounded::new(max)) }
    }

    /// The connections with these labels.
    pub fn series(&self, labels: &TransportLabels) -> Arc<TransportSeries> {
        self.table.get(labels)
    }

    /// Counts a connection as open until the result is closed or dropped.
    pub fn open(&self, labels: &TransportLabels) -> Transport {
        self.series(labels).open()
    }
}

impl TransportSeries {
    /// Counts a connection as open until the result is closed or dropped.
    pub fn open(self: &Arc<Self>) -> Transport {
        self.opened.fetch_add(1, Relaxed);
        Transport { series: self.clone(), errno: 0, opened: Instant::now() }
    }
}

impl Transport {
    /// Bytes came from the peer.
    pub fn read(&self, bytes: u64) {
        self.series.read.fetch_add(bytes, Relaxed);
    }

    /// Bytes went to the peer.
    pub fn wrote(&self, bytes: u64) {
        self.series.written.fetch_add(bytes, Relaxed);
    }

    /// The connection failed; its close will be counted with this error.
    pub fn failed(&mut self, error: &std::io::Error) {
        self.errno = error.raw_os_error().unwrap_or(0);
    }

    /// Counts the close, with the error that caused it, if any.
    pub fn close(mut self, errno: Option<i32>) {
        self.errno = errno.unwrap_or(0);
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.series.closed.fetch_add(1, Relaxed);
        let millis = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut closes = self.series.closes.lock();
        closes.durations.record(millis);
        // The kernel has fewer than 200 numbers, so this list stays short by itself.
        match closes.by_errno.iter_mut().find(|(errno, _)| *errno == self.errno) {
            Some((_, count)) => *count += 1,
            None => closes.by_errno.push((self.errno, 1)),
        }
    }
}

impl Pairs for TransportLabels {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        self.direction.pairs(visit);
        visit("peer", if self.peer == Peer::Src { "src" } else { "dst" });
        if let Some(authority) = &self.authority {
            visit("authority", authority);
        }
        labels::target(self.target_addr, visit);
        labels::tls(&self.tls, self.direction, visit);
        labels::prefixed("dst", &self.dst, visit);
        labels::server(&self.srv, self.target_addr, visit);
    }
}

/// `errno`, by the name the kernel's headers have for it.
struct Errno(i32);

impl Pairs for Errno {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        visit("errno", &errno_name(self.0));
    }
}

fn errno_name(errno: i32) -> Cow<'static, str> {
    Cow::Borrowed(match errno {
        0 => "",
        32 => "EPIPE",
        101 => "ENETUNREACH",
        103 => "ECONNABORTED",
        104 => "ECONNRESET",
        107 => "ENOTCONN",
        110 => "ETIMEDOUT",
        111 => "ECONNREFUSED",
        113 => "EHOSTUNREACH",
        other => return Cow::Owned(format!("E{other}")),
    })
}

impl Collector for TransportMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.table.all();
        let counter = MetricType::Counter;
        totals(&mut encoder, ("tcp_open", "Connections opened"), counter, &all, |series| {
            series.opened.load(Relaxed)
        })?;
        let help = ("tcp_open_connections", "Connections open now");
        totals(&mut encoder, help, MetricType::Gauge, &all, |series| {
            // Read in this order, a connection that closes in between is not counted below zero.
            let closed = series.closed.load(Relaxed);
            series.opened.load(Relaxed).saturating_sub(closed)
        })?;
        totals(
            &mut encoder,
            ("tcp_read_bytes", "Bytes read from peers"),
            counter,
            &all,
            |series| series.read.load(Relaxed),
        )?;
        let help = ("tcp_write_bytes", "Bytes written to peers");
        totals(&mut encoder, help, counter, &all, |series| series.written.load(Relaxed))?;
        closes(&mut encoder, &all)
    }
}

fn totals(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    kind: MetricType,
    all: &Entries<TransportSeries>,
    value: impl Fn(&TransportSeries) -> u64,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, series) in all {
        let sum: u64 = series.iter().map(|series| value(series)).sum();
        let labels = LabelSet(labels);
        let mut line = family.encode_family(&labels)?;
        match kind {
            MetricType::Gauge => line.encode_gauge(&sum)?,
            _ => line.encode_counter(&sum, None::<&Exemplar<NoLabelSet, u64>>)?,
        }
    }
    Ok(())
}

fn closes(encoder: &mut DescriptorEncoder<'_>, all: &Entries<TransportSeries>) -> fmt::Result {
    let kind = MetricType::Counter;
    let mut family = encoder.encode_descriptor("tcp_close", "Connections closed", None, kind)?;
    for (labels, series) in all {
        let mut sums = BTreeMap::<i32, u64>::new();
        for series in series {
            for (errno, count) in &series.closes.lock().by_errno {
                *sums.entry(*errno).or_default() += count;
            }
        }
        for (errno, count) in sums {
            http_metrics::counter(&mut family, &(labels, Errno(errno)), count)?;
        }
    }
    let (name, help) = ("tcp_connection_duration_ms", "Milliseconds connections lived");
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (labels, series) in all {
        let mut sums = Durations::default();
        series.iter().for_each(|series| sums.merge(&series.closes.lock().durations));
        let Durations { buckets, millis } = sums;
        let bounds = LIFETIME_MS.iter().map(|ms| *ms as f64).chain([f64::INFINITY]);
        let pairs: Vec<_> = bounds.zip(buckets).collect();
        let labels = LabelSet(labels);
        let mut line = family.encode_family(&labels)?;
        line.encode_histogram::<NoLabelSet>(millis as f64, buckets.iter().sum(), &pairs, None)?;
    }
    Ok(())
}
