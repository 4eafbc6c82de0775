//! An HTTP client as applications have it, in each of the ways they can reach the mesh.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::Stream;
use http::{Request, Response, Uri, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::wait::within;

/// The body of a message that a test sends.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// A body of these parts, as they come.
pub fn streamed(
    parts: impl Stream<Item = std::io::Result<Frame<Bytes>>> + Send + Sync + 'static,
) -> Body {
    BodyExt::boxed(StreamBody::new(parts))
}

/// A way from an application into the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// HTTP/1.1 to a listener that stands for the service.
    Http1(SocketAddr),
    /// HTTP/2 with prior knowledge, likewise.
    Http2(SocketAddr),
    /// HTTP/1.1 to a forward proxy, with the whole URI in the request line.
    Absolute(SocketAddr),
    /// HTTP/2 to a forward proxy.
    AbsoluteHttp2(SocketAddr),
    /// HTTP/1.1 in a tunnel that a forward proxy opens.
    Tunnel(SocketAddr),
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    way: Way,
    authority: String,
    sender: Sender,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Client {
    /// Connects for requests to `authority`.
    ///
    /// # Panics
    /// When nobody answers.
    pub async fn open(way: Way, authority: &str) -> Self {
        let sender = match way {
            Way::Http1(addr) | Way::Absolute(addr) => Sender::http1(connect(addr).await).await,
            Way::Http2(addr) | Way::AbsoluteHttp2(addr) => Sender::http2(addr).await,
            Way::Tunnel(addr) => Sender::http1(tunnel(addr, authority).await).await,
        };
        Self { way, authority: authority.to_owned(), sender }
    }

    /// Sends a request whose URI is a path only.
    ///
    /// # Errors
    /// When the connection breaks or the answer makes no sense.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        within("a response", self.start(request)).await
    }

    /// As [`Self::send`], without a bound on the time.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn start(&mut self, mut request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        let path = request.uri().clone();
        let whole = || -> Uri {
            format!("http://{}{path}", self.authority).parse().expect("a path after an authority")
        };
        match (&mut self.sender, self.way) {
            (Sender::Http2(sender), _) => {
                *request.uri_mut() = whole();
                *request.version_mut() = http::Version::HTTP_2;
                sender.ready().await?;
                sender.send_request(request).await
            }
            (Sender::Http1(sender), way) => {
                if matches!(way, Way::Absolute(_)) {
                    *request.uri_mut() = whole();
                }
                let host = self.authority.parse().expect("an authority is a header");
                request.headers_mut().entry(header::HOST).or_insert(host);
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// Whether the connection can take another request.
    pub fn is_open(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => !sender.is_closed(),
            Sender::Http2(sender) => !sender.is_closed(),
        }
    }
}

impl Sender {
    async fn http1(stream: TcpStream) -> Self {
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.expect("an open connection");
        // How it ends is told by the last request's result.
        tokio::spawn(async move { drop(connection.with_upgrades().await) });
        Self::Http1(sender)
    }

    async fn http2(addr: SocketAddr) -> Self {
        let io = TokioIo::new(connect(addr).await);
        let handshake = http2::handshake(TokioExecutor::new(), io).await;
        let (sender, connection) = handshake.expect("an open connection");
        tokio::spawn(async move { drop(connection.await) });
        Self::Http2(sender)
    }
}

async fn connect(addr: SocketAddr) -> TcpStream {
    let stream = within("connecting", TcpStream::connect(addr)).await;
    let stream = stream.unwrap_or_else(|error| panic!("connecting to {addr}: {error}"));
    stream.set_nodelay(true).expect("an open connection");
    stream
}

/// Opens a tunnel with CONNECT.
async fn tunnel(proxy: SocketAddr, authority: &str) -> TcpStream {
    let mut connection = super::Connection::open(proxy).await;
    let request = format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n");
    connection.send(request).await;
    connection.tunnel().await
}
