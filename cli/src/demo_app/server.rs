//! The HTTP/1 server of every role: accept, health, hand over, drain.
//!
//! Connections, header time and bodies are bounded. Next: `web.rs`, whose calls go through `client.rs`.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::lifecycle::{DRAIN_DEADLINE, Lifecycle};

/// A complete response; the sample application streams nothing over HTTP/1.
pub(super) type Reply = Response<Full<Bytes>>;

const MAX_CONNECTIONS: usize = 1024;
const MAX_BODY: usize = 16 * 1024;
const HEADER_DEADLINE: Duration = Duration::from_secs(30);
/// A pause after a failed accept: with no file descriptor left, trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until the lifecycle drains and all requests in flight are answered.
///
/// Errors: work in flight was still running at the deadline, and was cut.
pub(super) async fn serve<H, F>(
    listener: TcpListener,
    lifecycle: Lifecycle,
    handler: H,
) -> io::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    loop {
        let (stream, permit) = tokio::select! {
            biased;
            () = lifecycle.draining() => break,
            accepted = accept(&listener, &room) => accepted,
        };
        let handler = handler.clone();
        let lifecycle = lifecycle.clone();
        let service = service_fn(move |request| {
            let reply = answer(request, lifecycle.clone(), handler.clone());
            async move { Ok::<_, Infallible>(reply.await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_DEADLINE)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    tokio::time::timeout(DRAIN_DEADLINE, graceful.shutdown()).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, "requests in flight outlived the drain deadline")
    })
}

/// The next connection, as soon as there is room for it.
pub(super) async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Small answers must not wait for a full segment.
                let _ = stream.set_nodelay(true);
                return (stream, permit);
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer<H, F>(request: Request<Incoming>, lifecycle: Lifecycle, handler: H) -> Reply
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Reply>,
{
    let mut reply = match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" if lifecycle.is_ready() => text(StatusCode::OK, "ready\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "leaving\n"),
        _ => handler(request).await,
    };
    if !lifecycle.is_ready() {
        // Pooled connections move elsewhere while this pod still listens.
        reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    reply
}

/// The request's JSON body, or the response to send instead.
pub(super) async fn json_body<T: DeserializeOwned>(body: Incoming) -> Result<T, Reply> {
    let bytes = match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(problem(StatusCode::PAYLOAD_TOO_LARGE, "the body exceeds 16 KiB"));
        }
        Err(error) => {
            return Err(problem(StatusCode::BAD_REQUEST, &format!("reading the body: {error}")));
        }
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| problem(StatusCode::BAD_REQUEST, &format!("the JSON body: {error}")))
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(bytes) => body(status, "application/json", bytes.into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}

/// An error as every role reports it: `{"error": "…"}`.
pub(super) fn problem(status: StatusCode, error: &str) -> Reply {
    json(status, &serde_json::json!({ "error": error }))
}

pub(super) fn not_found() -> Reply {
    problem(StatusCode::NOT_FOUND, "no such page; GET / lists what there is")
}

pub(super) fn text(status: StatusCode, content: &str) -> Reply {
    body(status, "text/plain; charset=utf-8", Bytes::copy_from_slice(content.as_bytes()))
}

pub(super) fn body(status: StatusCode, content_type: &'static str, content: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(content));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}
