//! One line per finished request on stdout, if asked for. A slow reader loses lines, not requests.

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use mesh_model::Reason;
use mesh_model::tap::Record;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;

/// Lines that wait for stdout.
const QUEUE: usize = 4_096;

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// The common log format of web servers, with the duration and reason behind it.
    Common,
    /// One JSON object a line.
    Json,
}

/// Where finished requests are logged; off unless started.
#[derive(Clone, Debug, Default)]
pub struct AccessLog {
    lines: Option<(AccessLogFormat, SyncSender<String>)>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// Starts the thread that writes to stdout, if there is to be a log. Without a thread there is
    /// none, which the proxy's own log tells.
    pub fn new(format: Option<AccessLogFormat>) -> Self {
        let Some(format) = format else { return Self::default() };
        match Self::start(format, io::stdout()) {
            Ok((log, _)) => log,
            Err(error) => {
                tracing::error!(%error, "no access log: its thread could not be started");
                Self::default()
            }
        }
    }

    /// Starts a thread that writes to `out`; it ends when the last clone is gone.
    fn start(
        format: AccessLogFormat,
        out: impl Write + Send + 'static,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let (sender, lines) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("access-log".into());
        let thread = thread.spawn(move || write_all(&lines, out))?;
        Ok((Self { lines: Some((format, sender)), dropped: Arc::default() }, thread))
    }

    /// Whether records are wanted at all.
    pub fn enabled(&self) -> bool {
        self.lines.is_some()
    }

    /// Logs a finished request, unless too many lines wait already.
    pub fn write(&self, record: &Record) {
        let Some((format, lines)) = &self.lines else { return };
        let line = match format {
            AccessLogFormat::Common => common(record),
            AccessLogFormat::Json => json(record),
        };
        if lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// `access_log_dropped_lines_total`; registered by the log's owner.
impl Collector for AccessLog {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = ("access_log_dropped_lines", "Lines not written in time");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        let dropped = self.dropped.load(Relaxed);
        family.encode_counter(&dropped, None::<&Exemplar<NoLabelSet, u64>>)
    }
}

/// Flushes whenever there is nothing more to write.
fn write_all(lines: &Receiver<String>, out: impl Write) {
    let mut out = io::BufWriter::new(out);
    while let Ok(line) = lines.recv() {
        let mut next = Some(line);
        while let Some(line) = next {
            // Nobody reads stdout any more: keep taking lines, so that senders never see a full queue.
            let _ = out.write_all(line.as_bytes());
            next = lines.try_recv().ok();
        }
        let _ = out.flush();
    }
}

/// `client - identity [time] "GET /path HTTP" status bytes micros reason endpoint`
fn common(record: &Record) -> String {
    let started = started(record).strftime("%d/%b/%Y:%H:%M:%S +0000").to_string();
    let mut line = String::with_capacity(160);
    let _ = writeln!(
        line,
        "{} - {} [{started}] \"{} {}\" {} {} {} {} {}",
        record.source.ip(),
        record.tls.as_deref().unwrap_or("-"),
        record.method.escape_default(),
        record.path.escape_default(),
        record.status,
        record.response_bytes,
        record.duration.as_micros(),
        record.reason.map_or("-", Reason::code),
        record.destination.map_or("-".into(), |addr| addr.to_string()),
    );
    line
}

fn json(record: &Record) -> String {
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let value = serde_json::json!({
        "time": started(record).to_string(),
        "direction": record.direction.as_str(),
        "source": record.source.to_string(),
        "destination": record.destination.map(|addr| addr.to_string()),
        "method": record.method,
        "authority": record.authority,
        "path": record.path,
        "parent": record.parent,
        "route": record.route,
        "backend": record.backend,
        "status": record.status,
        "grpc_status": record.grpc_status,
        "reason": record.reason.map(Reason::code),
        "attempts": record.attempts,
        "request_bytes": record.request_bytes,
        "response_bytes": record.response_bytes,
        "first_byte_us": record.first_byte.map(micros),
        "duration_us": micros(record.duration),
        "tls": record.tls,
    });
    format!("{value}\n")
}

fn started(record: &Record) -> jiff::Timestamp {
    let millis = i64::try_from(record.started_unix_ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use mesh_model::Direction;

    use super::*;

    /// Hands what is written to the test, and waits until the test takes it.
    struct Handover(SyncSender<Vec<u8>>);

    impl Write for Handover {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn record() -> Record {
        Record {
            id: 1,
            started_unix_ms: 1_700_000_000_123,
            direction: Direction::Outbound,
            source: "10.0.0.1:4000".parse().unwrap(),
            destination: Some("10.0.0.2:80".parse().unwrap()),
            method: "GET".into(),
            scheme: "http".into(),
            authority: "tax".into(),
            path: "/a?b=\"c\"\n".into(),
            parent: "Service/shop/tax:80".into(),
            route: "default/http".into(),
            backend: "Service/shop/tax:80".into(),
            status: 504,
            grpc_status: None,
            reason: Some(Reason::RequestTimeout),
            attempts: 2,
            request_bytes: 10,
            response_bytes: 20,
            first_byte: None,
            duration: Duration::from_micros(1_500),
            tls: None,
            policy: None,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
        }
    }

    #[test]
    fn a_common_line_cannot_be_broken_by_what_the_client_sent() {
        let expected = "10.0.0.1 - - [14/Nov/2023:22:13:20 +0000] \"GET /a?b=\\\"c\\\"\\n\" 504 20 \
                        1500 request-timeout 10.0.0.2:80\n";
        assert_eq!(common(&record()), expected);
    }

    #[test]
    fn a_json_line_is_an_object() {
        let line = json(&record());
        assert!(line.ends_with('\n') && !line.trim_end().contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["time"], "2023-11-14T22:13:20.123Z");
        assert_eq!(value["path"], "/a?b=\"c\"\n");
        assert_eq!(value["duration_us"], 1_500);
        assert_eq!(value["reason"], "request-timeout");
        assert_eq!(value["first_byte_us"], serde_json::Value::Null);
    }

    #[test]
    fn off_unless_asked_for() {
        let log = AccessLog::new(None);
        assert!(!log.enabled());
        log.write(&record());
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_and_not_time() {
        let (sender, written) = mpsc::sync_channel(0);
        let (log, thread) = AccessLog::start(AccessLogFormat::Common, Handover(sender)).unwrap();
        // The thread is stuck in its first write or before; the rest waits in the queue until it
        // is full. The buffer takes some lines out of it.
        let lines = QUEUE + 1_000;
        (0..lines).for_each(|_| log.write(&record()));
        let dropped = log.dropped.load(Relaxed) as usize;
        assert!(dropped > 0, "the queue is bounded");
        drop(log);
        let text: Vec<u8> = written.iter().flatten().collect();
        let count = text.iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(count + dropped, lines, "every line is either written or counted");
        thread.join().unwrap();
    }
}
