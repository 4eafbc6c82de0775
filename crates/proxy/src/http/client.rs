//! Sends requests to one endpoint over its pool of connections.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_layers::{Body, BoxError, End, Request, Response, Track, track};
use mesh_model::endpoint::Http2Params;
use tokio::time::Instant;

use super::forward;
use super::pool::{Http1, Permit, Pool, PoolLimits, Stream};
use crate::config::Limits;
use crate::connect::Connect;

/// A client of one endpoint. Clones share its connections.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connect: Connect,
    pool: Arc<Pool>,
    http2: Http2Params,
    max_header_bytes: usize,
}

/// The exchange with the endpoint failed before the response's head.
#[derive(Debug, thiserror::Error)]
#[error("{addr} {}: {source}", if *.sent { "gave no response" } else { "took no request" })]
pub(crate) struct SendError {
    addr: std::net::SocketAddr,
    /// Whether the endpoint may have seen the request.
    pub(crate) sent: bool,
    #[source]
    pub(crate) source: hyper::Error,
}

/// Streams on one connection; more go to another.
const MAX_STREAMS: usize = 64;
const STREAM_WINDOW: u32 = 256 * 1024;
/// Room for every stream, lest a few whose clients do not read keep all others waiting.
pub(super) const CONNECTION_WINDOW: u32 = MAX_STREAMS as u32 * STREAM_WINDOW;

impl Client {
    pub(crate) fn new(
        connect: Connect,
        http2: Http2Params,
        limits: &Limits,
        of_pool: PoolLimits,
    ) -> Self {
        let pool = Arc::new(Pool::new(of_pool, limits.pool_idle_timeout));
        let max_header_bytes = limits.max_header_bytes;
        Self { inner: Arc::new(Inner { connect, pool, http2, max_header_bytes }) }
    }

    pub(crate) fn connect(&self) -> &Connect {
        &self.inner.connect
    }

    /// Closes connections that have been idle for too long.
    pub(crate) fn expire(&self, now: Instant) {
        self.inner.pool.expire(now);
    }

    /// Sends a request in the version it has. HTTP/1 requests must be in origin form.
    ///
    /// # Errors
    /// [`crate::connect::ConnectError`] or [`SendError`].
    pub(crate) async fn send(&self, request: Request) -> Result<Response, BoxError> {
        if request.version() == http::Version::HTTP_2 {
            self.send_http2(request).await
        } else if forward::wants_upgrade(&request) {
            self.send_upgrade(request).await
        } else {
            self.send_http1(request).await
        }
    }

    async fn send_http1(&self, mut request: Request) -> Result<Response, BoxError> {
        let pool = &self.inner.pool;
        loop {
            let (mut send, reused) = match pool.http1().await? {
                Http1::Reused(send) => (send, true),
                Http1::Open(permit) => (self.open_http1(permit).await?, false),
            };
            match send.try_send_request(request).await {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    let back = Return { send: Some(send), pool: Some(Arc::clone(pool)) };
                    return Ok(Response::from_parts(head, track(body.into(), back)));
                }
                Err(mut error) => match error.take_message() {
                    // The endpoint closed an idle connection; the request has not left.
                    Some(unsent) if reused => request = unsent,
                    unsent => return Err(self.failed(error.into_error(), unsent.is_none())),
                },
            }
        }
    }

    async fn send_upgrade(&self, request: Request) -> Result<Response, BoxError> {
        let permit = self.inner.pool.permit().await?;
        let mut send = self.open_http1(permit).await?;
        let response = send.send_request(request).await.map_err(|e| self.failed(e, true))?;
        let (head, body) = response.into_parts();
        let body = match head.status {
            http::StatusCode::SWITCHING_PROTOCOLS => Body::from(body),
            // The connection ends with this exchange.
            _ => track(body.into(), Return { send: Some(send), pool: None }),
        };
        Ok(Response::from_parts(head, body))
    }

    async fn open_http1(&self, permit: Permit) -> Result<http1::SendRequest<Body>, BoxError> {
        let mut io = self.inner.connect.open().await?;
        io.hold(permit);
        let (send, conn) = http1::Builder::new()
            .max_buf_size(self.inner.max_header_bytes)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| self.failed(error, false))?;
        tokio::spawn(async move {
            // What went wrong reaches the exchange that was under way.
            let _ = conn.with_upgrades().await;
        });
        Ok(send)
    }

    async fn send_http2(&self, request: Request) -> Result<Response, BoxError> {
        let (mut send, stream) = self.stream().await?;
        match send.try_send_request(request).await {
            Ok(response) => {
                let (head, body) = response.into_parts();
                Ok(Response::from_parts(head, track(body.into(), stream)))
            }
            Err(mut error) => {
                let unsent = error.take_message().is_some();
                let error = error.into_error();
                let refused = is_refused(&error);
                Err(self.failed(error, !unsent && !refused))
            }
        }
    }

    /// A stream on an open connection, or on a new one. Where all have as many as the endpoint
    /// allows and no more connections may be opened, the stream waits its turn on one of them.
    async fn stream(&self) -> Result<(http2::SendRequest<Body>, Stream), BoxError> {
        let pool = &self.inner.pool;
        if let Some(stream) = pool.stream() {
            return Ok(stream);
        }
        let _one_at_a_time = pool.opening.lock().await;
        loop {
            if let Some(stream) = pool.stream() {
                return Ok(stream);
            }
            let permit = match pool.try_permit() {
                Some(permit) => permit,
                None => match pool.queued_stream()? {
                    Some(stream) => return Ok(stream),
                    None => pool.permit().await?,
                },
            };
            self.open_http2(permit).await?;
        }
    }

    async fn open_http2(&self, permit: Permit) -> Result<(), BoxError> {
        let mut io = self.inner.connect.open().await?;
        io.hold(permit);
        let params = &self.inner.http2;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(params.initial_stream_window.unwrap_or(STREAM_WINDOW))
            .initial_connection_window_size(
                params.initial_connection_window.unwrap_or(CONNECTION_WINDOW),
            )
            .adaptive_window(params.adaptive_flow_control)
            .max_header_list_size(u32::try_from(self.inner.max_header_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(params.keep_alive_interval.unwrap_or(Duration::from_secs(10)))
            .keep_alive_timeout(params.keep_alive_timeout.unwrap_or(Duration::from_secs(3)))
            .keep_alive_while_idle(params.keep_alive_while_idle)
            .max_send_buf_size(
                params.max_send_buf_size.map_or(STREAM_WINDOW as usize, |size| size as usize),
            );
        if let Some(size) = params.max_frame_size {
            builder.max_frame_size(size.clamp(16_384, 16_777_215));
        }
        if let Some(streams) = params.max_concurrent_reset_streams {
            builder.max_concurrent_reset_streams(streams as usize);
        }
        let handshake = builder.handshake(TokioIo::new(io)).await;
        let (send, mut conn) = handshake.map_err(|error| self.failed(error, false))?;
        let allowed = Arc::new(AtomicUsize::new(conn.current_max_send_streams().min(MAX_STREAMS)));
        self.inner.pool.share(send, Arc::clone(&allowed));
        tokio::spawn(async move {
            // The connection is the only one who knows what its peer allows.
            let _ = poll_fn(|cx| {
                let polled = Pin::new(&mut conn).poll(cx);
                allowed.store(conn.current_max_send_streams().min(MAX_STREAMS), Relaxed);
                polled
            })
            .await;
        });
        Ok(())
    }

    fn failed(&self, source: hyper::Error, sent: bool) -> BoxError {
        let addr = self.inner.connect.addrs[0];
        SendError { addr, sent, source }.into()
    }
}

/// Whether the endpoint said that it did not process the stream.
fn is_refused(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            return h2.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        cause = error.source();
    }
    false
}

/// Gives an HTTP/1 connection back when the response has ended well; closes it otherwise.
struct Return {
    send: Option<http1::SendRequest<Body>>,
    pool: Option<Arc<Pool>>,
}

impl Track for Return {
    fn end(mut self, end: End<'_>) {
        if let (End::Complete { .. }, Some(send), Some(pool)) = (end, self.send.take(), self.pool) {
            pool.put(send);
        }
    }
}

impl Track for Stream {
    fn end(self, _: End<'_>) {}
}
