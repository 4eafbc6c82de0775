//! Applications behind the mesh, inside the test's own process: [`HttpApp`] is a plain hyper
//! server for HTTP/1 and HTTP/2, [`TcpApp`] gets the bare connections.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::client::http::Body;

/// An application that gets bare connections. It ends with the value.
#[derive(Debug)]
pub struct TcpApp {
    addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
    _serving: AbortOnDropHandle<()>,
}

impl TcpApp {
    /// Serves each connection on a task of its own.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_at(Ipv4Addr::LOCALHOST, serve).await
    }

    /// As [`Self::start`], at an address of this machine.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start_at<F>(ip: Ipv4Addr, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((ip, 0)).await.expect("a free port");
        let addr = listener.local_addr().expect("a listener has an address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&accepted);
        let serving = tokio::spawn(async move {
            // Connections end with the application.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let accepted = listener.accept().await;
                let (stream, _) = accepted.expect("enough file descriptors");
                counted.fetch_add(1, Relaxed);
                stream.set_nodelay(true).expect("an open connection");
                while connections.try_join_next().is_some() {}
                connections.spawn(serve(stream));
            }
        });
        Self { addr, accepted, _serving: AbortOnDropHandle::new(serving) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Relaxed)
    }
}

/// An application that answers requests.
#[derive(Debug)]
pub struct HttpApp {
    tcp: TcpApp,
    requests: Arc<AtomicUsize>,
}

impl HttpApp {
    /// Answers each request with what `handler` makes of it.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start<H, F>(handler: H) -> Self
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::start_at(Ipv4Addr::LOCALHOST, handler).await
    }

    /// As [`Self::start`], at an address of this machine.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start_at<H, F>(ip: Ipv4Addr, handler: H) -> Self
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        let serve = move |stream| {
            let (handler, counted) = (handler.clone(), Arc::clone(&counted));
            async move {
                let service = service_fn(move |request| {
                    counted.fetch_add(1, Relaxed);
                    let response = handler(request);
                    async move { Ok::<_, Infallible>(response.await) }
                });
                let server = auto::Builder::new(TokioExecutor::new());
                let io = TokioIo::new(stream);
                // A connection that ends badly is the proxy's to notice.
                let _ = server.serve_connection_with_upgrades(io, service).await;
            }
        };
        Self { tcp: TcpApp::start_at(ip, serve).await, requests }
    }

    pub fn addr(&self) -> SocketAddr {
        self.tcp.addr()
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }
}
