//! What stands behind a proxy under load: a hyper server that answers at once.
//!
//! `/` is a small body, [`LARGE_PATH`] one of [`LARGE_BODY`] bytes.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

pub const LARGE_PATH: &str = "/large";
pub const LARGE_BODY: usize = 1024 * 1024;
const SMALL_BODY: &[u8] = b"Sixty-four bytes, about the size of a small answer in JSON text\n";

/// One port per protocol, so that no bytes are spent on telling them apart.
#[derive(Debug)]
pub struct Backend {
    http1: TcpListener,
    http2: TcpListener,
}

impl Backend {
    pub async fn bind(ip: Ipv4Addr) -> io::Result<Self> {
        Ok(Self {
            http1: TcpListener::bind((ip, 0)).await?,
            http2: TcpListener::bind((ip, 0)).await?,
        })
    }

    pub fn http1_addr(&self) -> io::Result<SocketAddr> {
        self.http1.local_addr()
    }

    /// HTTP/2 with prior knowledge.
    pub fn http2_addr(&self) -> io::Result<SocketAddr> {
        self.http2.local_addr()
    }

    /// Serves until accepting fails.
    pub async fn serve(self) -> io::Result<()> {
        let large = Bytes::from(vec![b'x'; LARGE_BODY]);
        let http1 = each(&self.http1, |socket| {
            let large = large.clone();
            let service = service_fn(move |request| answer(request, large.clone()));
            http1::Builder::new().serve_connection(TokioIo::new(socket), service)
        });
        let http2 = each(&self.http2, |socket| {
            let large = large.clone();
            let service = service_fn(move |request| answer(request, large.clone()));
            http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(socket), service)
        });
        tokio::try_join!(http1, http2).map(|_| ())
    }
}

/// Accepts for ever and runs every connection on its own task.
async fn each<F>(listener: &TcpListener, serve: impl Fn(TcpStream) -> F) -> io::Result<()>
where
    F: Future<Output = Result<(), hyper::Error>> + Send + 'static,
{
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        // A connection that ends badly is the load's to notice.
        tokio::spawn(serve(socket));
    }
}

async fn answer(
    request: Request<Incoming>,
    large: Bytes,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body =
        if request.uri().path() == LARGE_PATH { large } else { Bytes::from_static(SMALL_BODY) };
    Ok(Response::new(Full::new(body)))
}
