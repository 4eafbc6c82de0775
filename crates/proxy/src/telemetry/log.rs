//! The proxy's log: to stderr, as text or JSON, with a level that can be changed while it runs.

use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
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
    Installed(#[from] TryInitError),
    #[error("the logger is gone")]
    Gone,
}

/// Changes the level of the running proxy's log.
#[derive(Clone)]
pub struct LogHandle {
    reload: Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
    current: Arc<dyn Fn() -> Option<String> + Send + Sync>,
}

/// Starts logging. Once per process.
pub fn init(level: &str, format: LogFormat) -> Result<LogHandle, LogError> {
    let (filter, handle) = reload::Layer::<EnvFilter, Registry>::new(parse(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let plain = || text::layer().with_writer(std::io::stderr).with_ansi(false);
    match format {
        LogFormat::Plain => registry.with(plain()).try_init()?,
        LogFormat::Json => registry.with(plain().json().flatten_event(true)).try_init()?,
    }
    Ok(LogHandle::new(handle))
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

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let filter = filter.trim();
    EnvFilter::from_str(filter)
        .map_err(|error| LogError::Filter { filter: filter.into(), problem: error.to_string() })
}
