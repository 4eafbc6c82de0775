//! The proxy's log: to stderr, as text or JSON, with a level that can be changed while it runs.

use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;

use tracing::Dispatch;
use tracing::dispatcher::SetGlobalDefaultError;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt as text, reload};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Plain,
    Json,
}

/// Why a log level was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("`{filter}` is no log filter: {problem}; write a level (`info`) or `target=level,…`")]
    Filter { filter: String, problem: String },
    #[error("the process has a logger already")]
    Installed(#[from] SetGlobalDefaultError),
    #[error("the logger is gone")]
    Gone,
}

/// Changes the level of the running proxy's log.
#[derive(Clone)]
pub struct LogHandle {
    reload: Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
    current: Arc<dyn Fn() -> Option<String> + Send + Sync>,
}

/// Starts logging to stderr. Once per process.
pub fn init(level: &str, format: LogFormat) -> Result<LogHandle, LogError> {
    let (dispatch, handle) = build(level, format, std::io::stderr)?;
    tracing::dispatcher::set_global_default(dispatch)?;
    Ok(handle)
}

/// A logger that is not in use yet, and what changes its level while it lives.
pub(crate) fn build<W>(
    level: &str,
    format: LogFormat,
    writer: W,
) -> Result<(Dispatch, LogHandle), LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::<EnvFilter, Registry>::new(parse(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = text::layer().with_writer(writer).with_ansi(false);
    let dispatch = match format {
        LogFormat::Plain => Dispatch::new(registry.with(lines)),
        LogFormat::Json => Dispatch::new(registry.with(lines.json().flatten_event(true))),
    };
    Ok((dispatch, LogHandle::new(handle)))
}

impl LogHandle {
    fn new(handle: reload::Handle<EnvFilter, Registry>) -> Self {
        let reader = handle.clone();
        Self {
            reload: Arc::new(move |filter| handle.reload(filter)),
            current: Arc::new(move || reader.with_current(ToString::to_string).ok()),
        }
    }

    /// The filter in force, as text.
    pub fn current(&self) -> Result<String, LogError> {
        (self.current)().ok_or(LogError::Gone)
    }

    /// Puts another filter in force; a wrong one changes nothing.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        (self.reload)(parse(filter)?).map_err(|_| LogError::Gone)
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogHandle").finish_non_exhaustive()
    }
}

/// Stricter than the parser, which takes a misspelt level for the name of a target, and would so
/// turn off everything else.
fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let filter = filter.trim();
    let wrong = |problem: String| LogError::Filter { filter: filter.into(), problem };
    for directive in filter.split(',').map(str::trim) {
        let level = || !directive.is_empty() && directive.parse::<LevelFilter>().is_ok();
        if !directive.contains(['=', '[']) && !level() {
            return Err(wrong(format!("`{directive}` is no level")));
        }
    }
    EnvFilter::from_str(filter).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut self.0.lock())).unwrap()
        }
    }

    fn logger(format: LogFormat) -> (Dispatch, LogHandle, Lines) {
        let lines = Lines::default();
        let writer = lines.clone();
        let (dispatch, handle) = build("info", format, move || writer.clone()).unwrap();
        (dispatch, handle, lines)
    }

    #[test]
    fn the_level_changes_while_the_logger_is_in_use() {
        let (dispatch, handle, lines) = logger(LogFormat::Plain);
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::debug!("first");
            assert_eq!(lines.take(), "");
            handle.set("debug").unwrap();
            tracing::debug!(port = 80, "second");
        });
        let written = lines.take();
        assert!(written.contains("second") && written.contains("port=80"), "{written}");
        assert!(!written.contains('\u{1b}'), "no colours: {written}");
        assert_eq!(handle.current().unwrap(), "debug");
    }

    #[test]
    fn json_lines_are_objects_with_the_fields_at_the_top() {
        let (dispatch, _handle, lines) = logger(LogFormat::Json);
        tracing::dispatcher::with_default(&dispatch, || tracing::info!(port = 80, "started"));
        let line: serde_json::Value = serde_json::from_str(&lines.take()).unwrap();
        assert_eq!(line["message"], "started");
        assert_eq!(line["port"], 80);
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn a_wrong_filter_changes_nothing_and_says_what_is_wrong() {
        let (_dispatch, handle, _) = logger(LogFormat::Plain);
        for filter in ["", "inof", "info,mesh_proxy", "mesh_proxy=loud", "info,[", "a=b=c"] {
            let error = handle.set(filter).expect_err(filter).to_string();
            assert!(error.starts_with(&format!("`{filter}` is no log filter: ")), "{error}");
            assert_eq!(handle.current().unwrap(), "info");
        }
        for filter in ["OFF", " warn\n", "info,mesh_proxy::outbound=trace", "[span{a=1}]=debug"] {
            handle.set(filter).unwrap();
        }
    }

    #[test]
    fn a_handle_outlives_its_logger_harmlessly() {
        let (dispatch, handle, _) = logger(LogFormat::Plain);
        drop(dispatch);
        assert!(matches!(handle.set("debug"), Err(LogError::Gone)));
        assert!(handle.current().is_err());
    }
}
