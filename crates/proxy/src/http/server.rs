//! Serves one client connection as HTTP/1 or HTTP/2, until it ends or the proxy drains.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_layers::Response;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::activity::Sweeper;
use super::client::CONNECTION_WINDOW;
use crate::config::Limits;
use crate::io::Io;

/// The version a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

/// How this worker serves HTTP.
#[derive(Debug)]
pub(crate) struct Server {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    sweeper: Arc<Sweeper>,
    drain: CancellationToken,
    /// Everything that a drain waits for.
    tasks: TaskTracker,
}

/// Streams a client may have reset before it must be gone (rapid reset, CVE-2023-44487).
const MAX_RESET_STREAMS: usize = 64;
const STREAM_WINDOW: u32 = 256 * 1024;

impl Server {
    pub(crate) fn new(limits: &Limits, sweeper: Arc<Sweeper>, drain: CancellationToken) -> Self {
        let mut http1 = http1::Builder::new();
        // Not `pipeline_flush`: it holds answers back while the client's next bytes are unread, and
        // takes whole bodies into memory for clients that do not read them.
        http1.half_close(true).max_buf_size(limits.max_header_bytes);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.max_concurrent_streams)
            .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
            .max_local_error_reset_streams(MAX_RESET_STREAMS)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(STREAM_WINDOW)
            .max_send_buf_size(STREAM_WINDOW as usize)
            .keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20));
        Self { http1, http2, sweeper, drain, tasks: TaskTracker::new() }
    }

    /// Runs something that a drain waits for.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    pub(crate) fn drain(&self) -> &CancellationToken {
        &self.drain
    }

    /// Completes once the drain has begun and everything has ended.
    pub(crate) async fn drained(&self) {
        self.drain.cancelled().await;
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// What a drain would wait for now.
    pub(crate) fn open(&self) -> usize {
        self.tasks.len()
    }

    /// Serves the connection to its end. Errors are the client's affair: they are logged.
    pub(crate) async fn serve<S, F>(&self, mut io: Io, version: Version, service: S)
    where
        S: Fn(http::Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Response> + Send + 'static,
    {
        let result = match version {
            Version::Http1 => {
                let activity = self.sweeper.watch();
                io.observe(Arc::clone(&activity));
                let observed = Arc::clone(&activity);
                let service = service_fn(move |request| {
                    let busy = Busy::begin(Arc::clone(&observed));
                    let response = service(request);
                    async move {
                        let response = response.await;
                        drop(busy);
                        Ok::<_, Infallible>(response)
                    }
                });
                let conn = self.http1.serve_connection(TokioIo::new(io), service).with_upgrades();
                let mut conn = pin!(conn);
                tokio::select! {
                    result = conn.as_mut() => result,
                    () = activity.cut() => Ok(()),
                    () = self.drain.cancelled() => {
                        conn.as_mut().graceful_shutdown();
                        conn.await
                    }
                }
            }
            Version::Http2 => {
                let service = service_fn(move |request| {
                    let response = service(request);
                    async move { Ok::<_, Infallible>(response.await) }
                });
                let mut conn = pin!(self.http2.serve_connection(TokioIo::new(io), service));
                tokio::select! {
                    result = conn.as_mut() => result,
                    () = self.drain.cancelled() => {
                        conn.as_mut().graceful_shutdown();
                        conn.await
                    }
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, cause = ?std::error::Error::source(&error), "client connection ended");
        }
    }
}

/// A request in flight on an HTTP/1 connection.
struct Busy(Arc<super::activity::Activity>);

impl Busy {
    fn begin(activity: Arc<super::activity::Activity>) -> Self {
        activity.request_begins();
        Self(activity)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.request_ends();
    }
}
