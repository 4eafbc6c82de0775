//! One line per finished request on stdout, if asked for. A slow reader loses lines, not requests.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use mesh_model::Reason;
use mesh_model::tap::Record;

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

    /// Lines lost so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
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
