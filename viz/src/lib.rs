//! The dashboard: one page, and the two documents it is drawn from, `/api/stat` and `/api/edges`.
//!
//! It is a client of `mesh.ext.v1.Mesh` like meshctl and keeps nothing of its own. Read [`documents`]
//! for the shapes; the page is `page.html`.

pub mod documents;

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_api::ext::mesh_client::MeshClient;
use mesh_api::ext::{EdgesRequest, Selector, StatRequest};
use serde::Serialize;
use tokio::net::{TcpListener, UnixStream};
use tonic::transport::{Channel, Endpoint};

/// Seconds of traffic that the page shows.
const WINDOW_SECONDS: u32 = 30;
/// Proxies that do not answer hold the page up no longer than that.
const DEADLINE: Duration = Duration::from_secs(5);
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_CONNECTIONS: usize = 64;

const PAGE: &str = include_str!("page.html");
/// The page is all there is to load, and it talks to nobody but its server.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";

/// A channel to the control plane behind a unix socket, opened when it is first needed.
pub fn connect(socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://control.sock")
        .timeout(DEADLINE)
        .connect_with_connector_lazy(connector)
}

/// Serves the dashboard until the process ends.
pub async fn serve(listener: TcpListener, channel: Channel) {
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = std::sync::Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else { continue };
        let channel = channel.clone();
        let service = service_fn(move |request| {
            let channel = channel.clone();
            async move { Ok::<_, Infallible>(respond(&request, channel).await) }
        });
        tokio::spawn(async move {
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            // A browser that goes away in the middle is nobody's concern.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

async fn respond(request: &Request<Incoming>, channel: Channel) -> Response<Full<Bytes>> {
    if !is_local(request.headers().get(HOST)) {
        return text(
            StatusCode::FORBIDDEN,
            "open the dashboard by a loopback address or localhost\n",
        );
    }
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match request.uri().path() {
        "/" => reply(StatusCode::OK, "text/html; charset=utf-8", PAGE),
        "/api/stat" => json(stat(channel).await),
        "/api/edges" => json(edges(channel).await),
        _ => text(StatusCode::NOT_FOUND, "there are /, /api/stat and /api/edges\n"),
    }
}

/// A page of another site may have its name resolve to this machine; its requests say so.
fn is_local(host: Option<&HeaderValue>) -> bool {
    let Some(host) = host.and_then(|host| host.to_str().ok()) else { return false };
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn deployments() -> Selector {
    Selector { kind: "deployment".to_owned(), ..Selector::default() }
}

async fn stat(channel: Channel) -> Result<documents::Stat, tonic::Status> {
    let request = StatRequest {
        selectors: vec![deployments()],
        window_seconds: WINDOW_SECONDS,
        ..StatRequest::default()
    };
    Ok(MeshClient::new(channel).stat(request).await?.into_inner().into())
}

async fn edges(channel: Channel) -> Result<documents::Edges, tonic::Status> {
    let request = EdgesRequest { selectors: vec![deployments()], window_seconds: WINDOW_SECONDS };
    Ok(MeshClient::new(channel).edges(request).await?.into_inner().into())
}

fn json(document: Result<impl Serialize, tonic::Status>) -> Response<Full<Bytes>> {
    match document {
        Ok(document) => {
            let body = serde_json::to_vec(&document).unwrap_or_default();
            reply(StatusCode::OK, "application/json", body)
        }
        Err(status) => {
            let message = format!("the control plane does not answer: {}\n", status.message());
            text(StatusCode::BAD_GATEWAY, message)
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", body)
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_may_name_it() {
        let local = |host: &'static str| is_local(Some(&HeaderValue::from_static(host)));
        for host in ["localhost:8084", "127.0.0.1:8084", "[::1]:8084", "127.0.0.1", "localhost"] {
            assert!(local(host), "{host}");
        }
        for host in ["evil.example:8084", "192.0.2.1:8084", "localhost.evil.example", ""] {
            assert!(!local(host), "{host}");
        }
        assert!(!is_local(None));
    }

    #[tokio::test]
    async fn a_control_plane_that_is_away_is_said_to_be() {
        let channel = connect("/nonexistent/control.sock".into());
        let response = json(stat(channel).await);
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    }
}
