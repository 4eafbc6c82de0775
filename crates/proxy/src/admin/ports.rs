//! The accept loop of the small servers beside the data path: bounded, and ended in good order.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections at a time to one of these ports; more are closed at once.
pub(crate) const MAX_CONNECTIONS: usize = 64;
/// Before accepting again after an error of the listener, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves each connection with what `open` makes of it (`None`: nothing), until `drain` is cancelled;
/// then lets the requests that run finish. `port` is for the log.
pub(crate) async fn serve<C, F>(
    listener: TcpListener,
    port: &'static str,
    drain: CancellationToken,
    open: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = Option<C>> + Send + 'static,
    C: GracefulConnection<Error: Display> + Send + 'static,
{
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, port, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
            tracing::warn!(%peer, port, limit = MAX_CONNECTIONS, "too many connections");
            continue;
        };
        // Answers are small and somebody waits for each.
        let _ = stream.set_nodelay(true);
        let (opening, watcher) = (open(stream, peer), graceful.watcher());
        tokio::spawn(async move {
            if let Some(connection) = opening.await
                && let Err(error) = watcher.watch(connection).await
            {
                tracing::debug!(%error, %peer, port, "connection failed");
            }
            drop(permit);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}
