//! Follows one stream of the control plane, opening it again for as long as somebody wants it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use futures_util::StreamExt;
use mesh_api::Update;
use mesh_api::client::UpdateStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::telemetry::Telemetry;

/// What a stream tells.
pub(super) enum Followed<T> {
    /// It was opened; what comes is a new account.
    Opened,
    Update(T),
    /// The control plane answered that there is nothing.
    Refused,
    /// The control plane has no such extension.
    Unimplemented,
}

const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A control plane that knows nothing of a target may come to know it soon.
const REFUSED_BACKOFF: Duration = Duration::from_secs(1);
/// A stream that ends sooner does not count as a success, whatever it said.
const STEADY: Duration = MAX_BACKOFF;
/// Every stream's first message is due at once.
const FIRST_MESSAGE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Follower {
    telemetry: Arc<Telemetry>,
    streams: Streams,
}

/// How the streams to the control plane are doing.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    inner: Arc<StreamsInner>,
}

#[derive(Debug)]
struct StreamsInner {
    wanted: AtomicU32,
    up: AtomicU32,
    rejected: AtomicU32,
    /// Whether the control plane has ever answered.
    answered: watch::Sender<bool>,
    warned: AtomicBool,
}

impl Streams {
    pub(crate) fn wanted(&self) -> u32 {
        self.inner.wanted.load(Relaxed)
    }

    pub(crate) fn up(&self) -> u32 {
        self.inner.up.load(Relaxed)
    }

    /// Messages that made no sense.
    pub(crate) fn rejected(&self) -> u32 {
        self.inner.rejected.load(Relaxed)
    }

    /// Turns true with the control plane's first answer.
    pub(crate) fn answered(&self) -> watch::Receiver<bool> {
        self.inner.answered.subscribe()
    }
}

impl Follower {
    pub(super) fn new(telemetry: Arc<Telemetry>) -> Self {
        let inner = StreamsInner {
            wanted: AtomicU32::new(0),
            up: AtomicU32::new(0),
            rejected: AtomicU32::new(0),
            answered: watch::Sender::new(false),
            warned: AtomicBool::new(false),
        };
        Self { telemetry, streams: Streams { inner: Arc::new(inner) } }
    }

    pub(super) fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Never returns.
    pub(super) async fn follow<T, F>(
        &self,
        what: &'static str,
        open: impl Fn() -> F,
        mut on: impl FnMut(Followed<T>),
    ) where
        F: Future<Output = Result<UpdateStream<T>, Status>>,
    {
        let mut backoff = MIN_BACKOFF;
        loop {
            let mut wanted = Some(Counted::new(&self.streams.inner.wanted));
            let started = Instant::now();
            let status = match tokio::time::timeout(FIRST_MESSAGE, open()).await {
                Ok(Ok(stream)) => {
                    on(Followed::Opened);
                    let status = self.read(what, stream, &mut on).await;
                    if started.elapsed() >= STEADY {
                        backoff = MIN_BACKOFF;
                    }
                    status
                }
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer"),
            };
            match status.code() {
                // No extensions; or somebody else answers in the control plane's place for a while.
                Code::Unimplemented => {
                    self.answered();
                    on(Followed::Unimplemented);
                    wanted = None;
                    backoff = MAX_BACKOFF;
                }
                // These are answers, too: nothing is missing while there is nothing to hear.
                Code::NotFound | Code::InvalidArgument => {
                    self.answered();
                    on(Followed::Refused);
                    wanted = None;
                    backoff = backoff.max(REFUSED_BACKOFF);
                }
                _ => self.away(what, &status),
            }
            tokio::time::sleep(backoff.mul_f64(rand::random_range(0.9..=1.1))).await;
            drop(wanted);
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    async fn read<T>(
        &self,
        what: &'static str,
        mut stream: UpdateStream<T>,
        on: &mut impl FnMut(Followed<T>),
    ) -> Status {
        let mut up = None;
        loop {
            let next = match up {
                None => match tokio::time::timeout(FIRST_MESSAGE, stream.next()).await {
                    Ok(next) => next,
                    Err(_) => return Status::deadline_exceeded("the stream stays silent"),
                },
                Some(_) => stream.next().await,
            };
            match next {
                None => return Status::unavailable("the stream ended"),
                Some(Err(status)) => return status,
                Some(Ok(update)) => {
                    if up.is_none() {
                        up = Some(Counted::new(&self.streams.inner.up));
                        self.answered();
                    }
                    match update {
                        Update::Valid(update) => on(Followed::Update(update)),
                        Update::Invalid(error) => {
                            self.streams.inner.rejected.fetch_add(1, Relaxed);
                            self.telemetry.config_rejected.inc(error.reason());
                            tracing::warn!(what, %error, "kept the last good configuration");
                        }
                    }
                }
            }
        }
    }

    fn answered(&self) {
        self.streams.inner.answered.send_if_modified(|answered| !std::mem::replace(answered, true));
        if self.streams.inner.warned.swap(false, Relaxed) {
            tracing::info!("the control plane is back");
        }
    }

    /// Says once, not once per stream, that the control plane does not answer.
    fn away(&self, what: &'static str, status: &Status) {
        if !self.streams.inner.warned.swap(true, Relaxed) {
            tracing::warn!(what, code = ?status.code(), message = status.message(),
                "the control plane does not answer; going on with what it said last");
        }
    }
}

/// Counts something while it lives.
struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicU32) -> Self {
        counter.fetch_add(1, Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
