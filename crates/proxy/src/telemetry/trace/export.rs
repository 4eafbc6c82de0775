//! Sends ended spans to the collector, in batches, from the control runtime.
//!
//! There is one task and one queue. A collector that is away or slow costs the spans of that time,
//! which are counted, and neither memory nor time of the data path.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter as Otlp, WithExportConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::super::counters::Count;
use super::super::http_metrics::counter;
use super::super::labels::Pairs;
use crate::resolve::Resolver;

/// Spans that wait to be sent.
pub(super) const QUEUE: usize = 1_024;
/// Spans of one message to the collector.
const BATCH: usize = 256;
/// How long a span waits for others to be sent with.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take over a batch.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of the process may wait for the last spans.
const FLUSH: Duration = Duration::from_secs(5);

/// An exporter to `endpoint` that says whose spans they are.
pub(super) fn otlp(endpoint: &str, namespace: &str, pod: &str) -> Result<Otlp, ExporterBuildError> {
    let channel = channel(endpoint)?;
    let builder = Otlp::builder().with_tonic().with_channel(channel).with_timeout(TIMEOUT);
    let mut exporter = builder.build()?;
    let pairs = [
        KeyValue::new("service.name", workload(pod).to_owned()),
        KeyValue::new("k8s.pod.name", pod.to_owned()),
        KeyValue::new("k8s.namespace.name", namespace.to_owned()),
    ];
    exporter.set_resource(&Resource::builder_empty().with_attributes(pairs).build());
    Ok(exporter)
}

/// Connects when there are spans to send, and again after a failure. Names are resolved by the proxy's own
/// resolver: the client's would ask the C library.
fn channel(endpoint: &str) -> Result<Channel, ExporterBuildError> {
    let invalid = |error: tonic::transport::Error| {
        ExporterBuildError::InvalidConfiguration(format!("{endpoint}: {error}"))
    };
    let resolver = Resolver::default();
    let connect = tower::service_fn(move |uri: http::Uri| {
        let resolver = resolver.clone();
        async move {
            let host = uri.host().unwrap_or_default();
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let stream = resolver.connect(host, uri.port_u16().unwrap_or(80)).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).map_err(invalid)?;
    Ok(endpoint.connect_timeout(TIMEOUT).connect_with_connector_lazy(connect))
}

/// The workload a pod is named after: Kubernetes appends an ordinal or five random characters, and
/// Deployments a hash before them, from letters that make no words.
fn workload(pod: &str) -> &str {
    let generated = |part: &str| part.bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b));
    match pod.rsplit_once('-') {
        Some((rest, last)) if last.len() == 5 && generated(last) => match rest.rsplit_once('-') {
            Some((rest, hash)) if (6..=10).contains(&hash.len()) && generated(hash) => rest,
            _ => rest,
        },
        Some((rest, last)) if !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()) => rest,
        _ => pod,
    }
}

/// What became of spans: `trace_spans_total{result}`.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) exported: Arc<Count>,
    /// Never sent: too many waited.
    pub(super) queue_full: Arc<Count>,
    /// The collector did not take them.
    pub(super) failed: Arc<Count>,
}

struct Became(&'static str);

impl Pairs for Became {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        visit("result", self.0);
    }
}

impl Collector for Counts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = ("trace_spans", "Spans of sampled requests by what became of them");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        counter(&mut family, &Became("exported"), self.exported.get())?;
        counter(&mut family, &Became("queue_full"), self.queue_full.get())?;
        counter(&mut family, &Became("failed"), self.failed.get())
    }
}

/// The task that exports.
#[derive(Debug)]
pub(crate) struct Exporter {
    task: JoinHandle<()>,
    closing: CancellationToken,
}

impl Exporter {
    pub(super) fn spawn(
        exporter: impl SpanExporter + 'static,
        spans: mpsc::Receiver<SpanData>,
        counts: &Counts,
    ) -> Self {
        let closing = CancellationToken::new();
        let task = run(exporter, spans, closing.clone(), counts.clone());
        Self { task: tokio::spawn(task), closing }
    }

    /// Sends what waits, within a bound, and ends.
    pub(crate) async fn flush(self) {
        self.closing.cancel();
        if tokio::time::timeout(FLUSH, self.task).await.is_err() {
            tracing::warn!(within = ?FLUSH, "the trace collector did not take the last spans");
        }
    }
}

async fn run(
    exporter: impl SpanExporter,
    mut spans: mpsc::Receiver<SpanData>,
    closing: CancellationToken,
    counts: Counts,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut away = false;
    while !(spans.is_closed() && spans.is_empty()) {
        tokio::select! {
            () = gather(&mut spans, &mut batch) => {}
            // What was gathered stays in the batch, and what waits in the queue.
            () = closing.cancelled(), if !spans.is_closed() => spans.close(),
        }
        if batch.is_empty() {
            continue;
        }
        let count = batch.len() as u64;
        let batch = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
        let failure = match tokio::time::timeout(TIMEOUT, exporter.export(batch)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {TIMEOUT:?}")),
        };
        let counted = if failure.is_some() { &counts.failed } else { &counts.exported };
        counted.add(count);
        // Told when it changes, not with every batch.
        let was_away = std::mem::replace(&mut away, failure.is_some());
        match failure {
            Some(error) if !was_away => {
                tracing::warn!(%error, "the trace collector takes no spans")
            }
            None if was_away => tracing::info!("the trace collector takes spans again"),
            _ => {}
        }
    }
}

/// Returns with a full batch, with fewer spans some time after the first, or when no more can come.
async fn gather(spans: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    spans.recv_many(batch, BATCH).await;
    let more = async {
        while batch.len() < BATCH && spans.recv_many(batch, BATCH - batch.len()).await > 0 {}
    };
    // Whatever came within the time is in the batch.
    let _ = tokio::time::timeout(GATHER, more).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_read_off_pods() {
        for (pod, wanted) in [
            ("checkout-7d9f8c6b5d-x2x4z", "checkout"),
            ("node-agent-x2x4z", "node-agent"),
            ("ledger-0", "ledger"),
            ("web-front", "web-front"),
            ("checkout", "checkout"),
            ("", ""),
        ] {
            assert_eq!(workload(pod), wanted, "{pod}");
        }
    }
}
