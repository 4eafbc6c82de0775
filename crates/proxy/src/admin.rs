//! The admin port (4191): is the proxy ready, what does it count, what does it believe.
//!
//! One small HTTP/1.1 server with bounds on connections, heads and bodies. Probes and `/metrics` are
//! for everybody. What changes something, and what tells of the mesh and the pod, is for callers of the
//! same pod only, a port-forward among them. Read [`crate::telemetry`] for `/metrics`.

pub(crate) mod ports;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::telemetry::{LogHandle, Telemetry};

/// From one request's end to the end of the next one's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest log filter, in bytes.
const MAX_BODY: usize = 4 * 1024;
const PATHS: &str = "paths: GET /ready /live /metrics /config /env.json, \
                     GET or PUT /proxy-log-level, POST /shutdown\n";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// Variables with another prefix are named, but their values are nobody's business.
const OWN_VARIABLES: &str = "MESH_PROXY_";
const SECRET_WORDS: [&str; 4] = ["TOKEN", "SECRET", "PASSWORD", "KEY"];

/// Whether the proxy takes traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// Not yet, or not any more, and why.
    NotReady(Cow<'static, str>),
}

/// What the admin port shows and controls.
#[derive(Clone)]
pub struct AdminState {
    pub ready: watch::Receiver<Readiness>,
    /// What the proxy believes, made when asked for.
    pub config: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Told when somebody asks the proxy to end.
    pub shutdown: mpsc::Sender<()>,
    pub log: LogHandle,
    pub telemetry: Arc<Telemetry>,
}

/// Serves until `drain` is cancelled, then finishes the requests that run.
pub async fn serve(listener: TcpListener, state: AdminState, drain: CancellationToken) {
    let connection = |stream: TcpStream, peer: SocketAddr| {
        let state = state.clone();
        let near = stream.local_addr().is_ok_and(|local| is_near(peer.ip(), local.ip()));
        let service = service_fn(move |request| {
            let state = state.clone();
            async move { Ok::<_, Infallible>(respond(request, near, &state).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        ready(Some(connection))
    };
    ports::serve(listener, "admin", drain, connection).await;
}

/// Whether a caller is of the same pod: it comes by loopback, or from the address that it calls.
fn is_near(peer: IpAddr, local: IpAddr) -> bool {
    let (peer, local) = (peer.to_canonical(), local.to_canonical());
    peer.is_loopback() || peer == local
}

async fn respond(
    request: Request<Incoming>,
    near: bool,
    state: &AdminState,
) -> Response<Full<Bytes>> {
    let allowed: &[Method] = match request.uri().path() {
        "/ready" | "/live" | "/metrics" | "/config" | "/env.json" => &[Method::GET, Method::HEAD],
        "/proxy-log-level" => &[Method::GET, Method::HEAD, Method::PUT],
        "/shutdown" => &[Method::POST],
        _ => return text(StatusCode::NOT_FOUND, PATHS),
    };
    if !allowed.contains(request.method()) {
        return not_allowed(allowed);
    }
    let open = matches!(request.uri().path(), "/ready" | "/live" | "/metrics");
    if !near && !open {
        return text(StatusCode::FORBIDDEN, "only callers of the same pod may ask for this\n");
    }
    match request.uri().path() {
        "/ready" => readiness(&state.ready.borrow()),
        "/live" => text(StatusCode::OK, "live\n"),
        "/metrics" => metrics(&request, &state.telemetry),
        "/config" => json(&(state.config)()),
        "/env.json" => json(&environment(std::env::vars_os())),
        "/shutdown" => shutdown(&state.shutdown),
        _ if request.method() == Method::PUT => set_log_level(request, &state.log).await,
        _ => match state.log.current() {
            Ok(filter) => text(StatusCode::OK, format!("{filter}\n")),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
    }
}

fn readiness(readiness: &Readiness) -> Response<Full<Bytes>> {
    match readiness {
        Readiness::Ready => text(StatusCode::OK, "ready\n"),
        Readiness::NotReady(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

fn metrics(request: &Request<Incoming>, telemetry: &Telemetry) -> Response<Full<Bytes>> {
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let page = telemetry.expose(accept);
    response(StatusCode::OK, page.content_type, page.body)
}

async fn set_log_level(request: Request<Incoming>, log: &LogHandle) -> Response<Full<Bytes>> {
    let body = match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("unreadable body: {error}\n")),
    };
    match log.set(&String::from_utf8_lossy(&body)) {
        Ok(()) => response(StatusCode::NO_CONTENT, TEXT, ""),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn shutdown(shutdown: &mpsc::Sender<()>) -> Response<Full<Bytes>> {
    // A full or closed channel means that somebody asked before.
    let _ = shutdown.try_send(());
    text(StatusCode::ACCEPTED, "shutting down\n")
}

/// The variables by name; values of other programs' variables and of secrets are left out.
fn environment(
    variables: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> serde_json::Value {
    let show = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let name = name.to_string_lossy().into_owned();
        let upper = name.to_ascii_uppercase();
        let secret = SECRET_WORDS.iter().any(|word| upper.contains(word));
        let value = match name.starts_with(OWN_VARIABLES) && !secret {
            true => value.to_string_lossy().into_owned(),
            false => "[redacted]".to_owned(),
        };
        (name, value)
    };
    let shown: BTreeMap<String, String> = variables.map(show).collect();
    serde_json::json!(shown)
}

fn not_allowed(allowed: &[Method]) -> Response<Full<Bytes>> {
    let methods: Vec<&str> = allowed.iter().map(Method::as_str).collect();
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, PATHS);
    if let Ok(allow) = HeaderValue::from_str(&methods.join(", ")) {
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}

fn json(value: &serde_json::Value) -> Response<Full<Bytes>> {
    response(StatusCode::OK, JSON, format!("{value:#}\n"))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(status, TEXT, body)
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminState").field("ready", &self.ready).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
