//! The accept loop of the small servers beside the data path: bounded, and ended in good order.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Connections at a time to one of these ports from this machine; more are closed at once.
pub(crate) const MAX_CONNECTIONS: usize = 64;
/// The same from one address elsewhere: who holds all of its own keeps neither this machine nor the
/// node's probes out.
pub(crate) const MAX_PER_PEER: usize = 16;
/// The same from all addresses elsewhere.
pub(crate) const MAX_ELSEWHERE: usize = 256;
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
    let places = Arc::new(Places::default());
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
        let Some(place) = Places::take(&places, peer.ip()) else {
            tracing::warn!(%peer, port, "too many connections");
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
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// The open connections by who has them: an address, or anybody on this machine (`None`).
#[derive(Debug, Default)]
struct Places(Mutex<HashMap<Option<IpAddr>, usize>>);

/// The place of one open connection.
struct Place {
    places: Arc<Places>,
    peer: Option<IpAddr>,
}

impl Places {
    fn take(places: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let peer = Some(peer.to_canonical()).filter(|ip| !ip.is_loopback());
        let mut taken = places.0.lock();
        let of_peer = taken.get(&peer).copied().unwrap_or_default();
        let here = taken.get(&None).copied().unwrap_or_default();
        let elsewhere = taken.values().sum::<usize>() - here;
        let has_room = match peer {
            None => of_peer < MAX_CONNECTIONS,
            Some(_) => of_peer < MAX_PER_PEER && elsewhere < MAX_ELSEWHERE,
        };
        if !has_room {
            return None;
        }
        taken.insert(peer, of_peer + 1);
        drop(taken);
        Some(Place { places: Arc::clone(places), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock();
        let left = taken.get(&self.peer).map_or(0, |count| count - 1);
        match left {
            0 => drop(taken.remove(&self.peer)),
            left => drop(taken.insert(self.peer, left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_places_of_others() {
        let places = Arc::new(Places::default());
        let take = |ip: &str| Places::take(&places, ip.parse().unwrap());
        let stranger: Vec<_> = (0..MAX_PER_PEER).map(|_| take("10.0.0.9").unwrap()).collect();
        assert!(take("10.0.0.9").is_none() && take("::ffff:10.0.0.9").is_none());
        let node = take("10.0.0.1").expect("the node's probe");
        let crowd: Vec<_> = (0..u8::MAX)
            .flat_map(|number| (0..MAX_PER_PEER).map(move |_| format!("10.0.1.{number}")))
            .filter_map(|ip| take(&ip))
            .collect();
        assert_eq!(stranger.len() + crowd.len() + 1, MAX_ELSEWHERE);
        let here: Vec<_> = (0..MAX_CONNECTIONS)
            .map(|number| take(if number % 2 == 0 { "127.0.0.1" } else { "::1" }).unwrap())
            .collect();
        assert!(take("127.0.0.2").is_none());
        drop((stranger, crowd, here, node));
        assert!(places.0.lock().is_empty(), "no address is remembered");
    }
}
