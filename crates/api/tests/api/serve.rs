//! A gRPC server on a loopback port, on a runtime of its own so that it can go at once.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;

/// Every test ends by then, or has hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Serving {
    pub(crate) addr: SocketAddr,
    runtime: Option<Runtime>,
}

impl Serving {
    pub(crate) fn new(routes: Routes) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let incoming =
                TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
            tonic::transport::Server::builder()
                .add_routes(routes)
                .serve_with_incoming(incoming)
                .await
        });
        Self { addr, runtime: Some(runtime) }
    }
}

impl Serving {
    /// Closes the port and all connections, and returns when that is done.
    pub(crate) async fn go(mut self) {
        let runtime = self.runtime.take();
        let gone = move || runtime.into_iter().for_each(|r| r.shutdown_timeout(PATIENCE));
        tokio::task::spawn_blocking(gone).await.unwrap();
    }
}

/// A runtime cannot be dropped by asynchronous code otherwise.
impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
