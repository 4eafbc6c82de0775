//! The connections to one endpoint: HTTP/1 ones are reused one request at a time, HTTP/2 ones carry
//! as many streams as the endpoint allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use mesh_layers::Body;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Connections open and idle, within their limit.
#[derive(Debug)]
pub(crate) struct Pool {
    idle: Mutex<Vec<Idle>>,
    streams: Mutex<Vec<Streams>>,
    /// Held by one task at a time while it opens an HTTP/2 connection that others may share.
    pub(crate) opening: tokio::sync::Mutex<()>,
    open: Arc<Semaphore>,
    freed: Arc<Notify>,
    idle_timeout: Duration,
}

#[derive(Debug)]
struct Idle {
    send: http1::SendRequest<Body>,
    since: Instant,
}

/// One HTTP/2 connection.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    pub(crate) send: http2::SendRequest<Body>,
    in_flight: Arc<AtomicUsize>,
    /// How many the endpoint allows, as the connection's task last saw it.
    allowed: Arc<AtomicUsize>,
}

/// A stream in use; dropping it makes room for another.
#[derive(Debug)]
pub(crate) struct Stream(Arc<AtomicUsize>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Pool {
    pub(crate) fn new(max_connections: usize, idle_timeout: Duration) -> Self {
        Self {
            idle: Mutex::default(),
            streams: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            open: Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS))),
            freed: Arc::default(),
            idle_timeout,
        }
    }

    /// The HTTP/1 connection used last, if one is free; or leave to open one. Waits while all that
    /// are allowed are in use.
    pub(crate) async fn http1(&self) -> Http1 {
        loop {
            if let Some(send) = self.take_idle() {
                return Http1::Reused(send);
            }
            if let Ok(permit) = Arc::clone(&self.open).try_acquire_owned() {
                return Http1::Open(self.granted(permit));
            }
            self.freed.notified().await;
        }
    }

    /// Leave to open a connection that is not shared. Waits likewise.
    pub(crate) async fn permit(&self) -> Permit {
        loop {
            if let Ok(permit) = Arc::clone(&self.open).try_acquire_owned() {
                return self.granted(permit);
            }
            self.freed.notified().await;
        }
    }

    fn take_idle(&self) -> Option<http1::SendRequest<Body>> {
        let mut idle = self.idle.lock();
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            if idle[at].send.is_ready() {
                return Some(idle.remove(at).send);
            }
            if idle[at].send.is_closed() {
                idle.remove(at);
            }
        }
        None
    }

    /// Takes back an HTTP/1 connection whose response has ended.
    pub(crate) fn put(&self, send: http1::SendRequest<Body>) {
        if !send.is_closed() {
            self.idle.lock().push(Idle { send, since: Instant::now() });
            self.freed.notify_one();
        }
    }

    /// A stream on an open HTTP/2 connection that has room for one.
    pub(crate) fn stream(&self) -> Option<(http2::SendRequest<Body>, Stream)> {
        let mut streams = self.streams.lock();
        streams.retain(|conn| !conn.send.is_closed());
        let conn = streams
            .iter()
            .find(|conn| conn.in_flight.load(Relaxed) < conn.allowed.load(Relaxed).max(1))?;
        conn.in_flight.fetch_add(1, Relaxed);
        Some((conn.send.clone(), Stream(Arc::clone(&conn.in_flight))))
    }

    /// Adds an HTTP/2 connection.
    pub(crate) fn share(&self, send: http2::SendRequest<Body>, allowed: Arc<AtomicUsize>) {
        self.streams.lock().push(Streams { send, in_flight: Arc::default(), allowed });
    }

    /// A stream on the least busy open connection, which has no room: it waits its turn there.
    pub(crate) fn queued_stream(&self) -> Option<(http2::SendRequest<Body>, Stream)> {
        let streams = self.streams.lock();
        let conn = streams.iter().min_by_key(|conn| conn.in_flight.load(Relaxed))?;
        conn.in_flight.fetch_add(1, Relaxed);
        Some((conn.send.clone(), Stream(Arc::clone(&conn.in_flight))))
    }

    /// Whether another connection may be opened now.
    pub(crate) fn try_permit(&self) -> Option<Permit> {
        let permit = Arc::clone(&self.open).try_acquire_owned().ok()?;
        Some(self.granted(permit))
    }

    fn granted(&self, permit: OwnedSemaphorePermit) -> Permit {
        Permit { permit: Some(permit), freed: Arc::clone(&self.freed) }
    }

    /// Closes what has been idle for too long.
    pub(crate) fn expire(&self, now: Instant) {
        self.idle.lock().retain(|conn| {
            !conn.send.is_closed() && now.duration_since(conn.since) < self.idle_timeout
        });
    }
}

/// What [`Pool::http1`] grants.
#[derive(Debug)]
pub(crate) enum Http1 {
    Reused(http1::SendRequest<Body>),
    Open(Permit),
}

/// One of the connections allowed to the endpoint; kept by whoever drives the connection. It must not
/// keep the pool: the pool keeps idle connections, which would then outlive their endpoint.
#[derive(Debug)]
pub(crate) struct Permit {
    permit: Option<OwnedSemaphorePermit>,
    freed: Arc<Notify>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        // Returned first, so that whoever is woken finds it.
        drop(self.permit.take());
        self.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_open_connection_does_not_keep_the_pool() {
        let pool = Arc::new(Pool::new(1, Duration::from_secs(3)));
        let Http1::Open(permit) = pool.http1().await else { panic!("there is none to reuse") };
        let alive = Arc::downgrade(&pool);
        drop(pool);
        assert!(alive.upgrade().is_none());
        drop(permit);
    }

    #[tokio::test]
    async fn a_connection_that_ends_makes_room_for_who_waits() {
        let pool = Pool::new(1, Duration::from_secs(3));
        let permit = pool.permit().await;
        let (_second, ()) = tokio::join!(pool.permit(), async { drop(permit) });
        assert!(pool.try_permit().is_none());
    }
}
