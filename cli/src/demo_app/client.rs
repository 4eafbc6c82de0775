//! HTTP/1 calls to other services: through the mesh's forward proxy if there is one, else directly.
//!
//! Through a proxy requests are in absolute form (`POST http://checkout:8080/orders`), and `Host` is the
//! service's authority either way. Next: `checkout.rs` for calls that are not HTTP/1.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// Below the 3 s after which the mesh closes an idle connection: a reused one is then still open.
const POOL_IDLE: Duration = Duration::from_secs(2);
const POOL_SIZE: usize = 64;
const MAX_BODY: usize = 64 * 1024;

/// A pooled HTTP/1 client. Clones share the pool.
#[derive(Debug, Clone)]
pub(super) struct HttpClient {
    inner: Client<Connector, Full<Bytes>>,
    deadline: Duration,
}

/// Why there is no response, or only a part of one.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("{call}: {source}")]
    Request { call: String, source: hyper_util::client::legacy::Error },
    #[error("{call}: reading the response: {message}")]
    Body { call: String, message: String },
    #[error("{call}: no complete response within {deadline:?}")]
    Deadline { call: String, deadline: Duration },
}

impl HttpClient {
    /// `deadline` bounds each call, from connecting to the end of the response.
    pub(super) fn new(proxy: Option<Authority>, deadline: Duration) -> Self {
        let inner = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_SIZE)
            .build(Connector { proxy });
        Self { inner, deadline }
    }

    /// Sends the request, whose URI is absolute, and reads the whole response.
    pub(super) async fn call(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), CallError> {
        let call = format!("{} {}", request.method(), request.uri());
        match tokio::time::timeout(self.deadline, self.exchange(request, &call)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(CallError::Deadline { call, deadline: self.deadline }),
        }
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        call: &str,
    ) -> Result<(StatusCode, Bytes), CallError> {
        let response = self
            .inner
            .request(request)
            .await
            .map_err(|source| CallError::Request { call: call.to_owned(), source })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|error| CallError::Body {
            call: call.to_owned(),
            message: error.to_string(),
        })?;
        Ok((status, body.to_bytes()))
    }
}

/// The root of a service's URLs, `http://checkout:8080`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BaseUrl {
    authority: Authority,
}

impl BaseUrl {
    pub(super) fn join(&self, path_and_query: &str) -> String {
        format!("http://{}{path_and_query}", self.authority)
    }
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a service URL; write it as http://name:port");
        let authority = text.strip_prefix("http://").ok_or_else(bad)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        Ok(Self { authority: authority.parse().map_err(|_| bad())? })
    }
}

/// Opens the connection to the proxy, or without one to the service.
#[derive(Debug, Clone)]
struct Connector {
    proxy: Option<Authority>,
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let target = self.proxy.clone().or_else(|| uri.authority().cloned());
        let proxied = self.proxy.is_some();
        Box::pin(async move {
            let target = target.ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, "the URI names no host")
            })?;
            let port = target.port_u16().unwrap_or(80);
            let host = target.host().trim_start_matches('[').trim_end_matches(']').to_owned();
            let tcp = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect((host, port)))
                .await
                .map_err(|_| {
                    io::Error::new(io::ErrorKind::TimedOut, "connecting took over 1 s")
                })??;
            tcp.set_nodelay(true)?;
            Ok(Stream { io: TokioIo::new(tcp), proxied })
        })
    }
}

/// A TCP stream that knows whether a proxy is at its end, which decides the form of the request line.
#[derive(Debug)]
struct Stream {
    io: TokioIo<TcpStream>,
    proxied: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers one request on one connection and returns its head.
    async fn record_one(listener: TcpListener) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        String::from_utf8(head).unwrap().to_ascii_lowercase()
    }

    fn get(url: String) -> Request<Full<Bytes>> {
        Request::get(url).body(Full::default()).unwrap()
    }

    #[tokio::test]
    async fn a_proxy_gets_the_absolute_form_and_the_services_host() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap().to_string().parse().unwrap();
        let head = tokio::spawn(record_one(listener));
        let client = HttpClient::new(Some(proxy), Duration::from_secs(5));
        let base: BaseUrl = "http://checkout:8080".parse().unwrap();
        let (status, _) = client.call(get(base.join("/orders?x=1"))).await.unwrap();
        assert_eq!(status, StatusCode::NO_CONTENT);
        let head = head.await.unwrap();
        assert!(head.starts_with("get http://checkout:8080/orders?x=1 http/1.1\r\n"), "{head}");
        assert!(head.contains("\r\nhost: checkout:8080\r\n"), "{head}");
    }

    #[tokio::test]
    async fn a_service_gets_the_origin_form() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base: BaseUrl = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let head = tokio::spawn(record_one(listener));
        let client = HttpClient::new(None, Duration::from_secs(5));
        client.call(get(base.join("/rate"))).await.unwrap();
        assert!(head.await.unwrap().starts_with("get /rate http/1.1\r\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_never_comes_ends_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base: BaseUrl = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let client = HttpClient::new(None, Duration::from_millis(500));
        let error = client.call(get(base.join("/"))).await.unwrap_err();
        assert!(matches!(error, CallError::Deadline { .. }), "{error}");
    }

    #[test]
    fn only_plain_service_urls_are_taken() {
        for bad in ["checkout:8080", "https://checkout:8080", "http://", "http://a/b"] {
            assert!(bad.parse::<BaseUrl>().is_err(), "{bad}");
        }
    }
}
