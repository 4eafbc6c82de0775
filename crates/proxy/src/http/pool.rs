//! The connections to one endpoint: HTTP/1 ones are reused one request at a time, HTTP/2 ones carry
//! as many streams as the endpoint allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use mesh_layers::{Body, Reason, Unavailable};
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
    /// Requests that wait for a connection.
    waiting: AtomicUsize,
    max_waiting: usize,
    idle_timeout: Duration,
}

/// How many connections there may be, and how many requests may wait for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolLimits {
    pub(crate) connections: usize,
    pub(crate) waiting: usize,
}

/// A request that waits for a connection.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
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
    pub(crate) fn new(limits: PoolLimits, idle_timeout: Duration) -> Self {
        Self {
            idle: Mutex::default(),
            streams: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            open: Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS))),
            freed: Arc::default(),
            waiting: AtomicUsize::new(0),
            max_waiting: limits.waiting,
            idle_timeout,
        }
    }

    fn enter(&self) -> Result<Place<'_>, Unavailable> {
        let place = Place(&self.waiting);
        if self.waiting.fetch_add(1, Relaxed) < self.max_waiting {
            return Ok(place);
        }
        Err(self.full())
    }

    fn full(&self) -> Unavailable {
        Unavailable::QueueFull { capacity: self.max_waiting, reason: Reason::NoConnection }
    }

    /// The HTTP/1 connection used last, if one is free; or leave to open one. Waits while all that
    /// are allowed are in use.
    ///
    /// # Errors
    /// When as many wait already as may.
    pub(crate) async fn http1(&self) -> Result<Http1, Unavailable> {
        let mut place = None;
        loop {
            if let Some(send) = self.take_idle() {
                return Ok(Http1::Reused(send));
            }
            if let Some(permit) = self.try_permit() {
                return Ok(Http1::Open(permit));
            }
            if place.is_none() {
                place = Some(self.enter()?);
            }
            self.freed.notified().await;
        }
    }

    /// Leave to open a connection that is not shared. Waits likewise.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) async fn permit(&self) -> Result<Permit, Unavailable> {
        let mut place = None;
        loop {
            if let Some(permit) = self.try_permit() {
                return Ok(permit);
            }
            if place.is_none() {
                place = Some(self.enter()?);
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
    ///
    /// # Errors
    /// When as many wait already as may.
    pub(crate) fn queued_stream(
        &self,
    ) -> Result<Option<(http2::SendRequest<Body>, Stream)>, Unavailable> {
        let streams = self.streams.lock();
        let Some(conn) = streams.iter().min_by_key(|conn| conn.in_flight.load(Relaxed)) else {
            return Ok(None);
        };
        let waiting = streams.iter().map(|conn| {
            conn.in_flight.load(Relaxed).saturating_sub(conn.allowed.load(Relaxed).max(1))
        });
        if waiting.sum::<usize>() >= self.max_waiting {
            return Err(self.full());
        }
        conn.in_flight.fetch_add(1, Relaxed);
        Ok(Some((conn.send.clone(), Stream(Arc::clone(&conn.in_flight)))))
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

/// One of the connections allowed to the endpoint; kept by the connection. It must not
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

    fn pool(connections: usize, waiting: usize) -> Pool {
        Pool::new(PoolLimits { connections, waiting }, Duration::from_secs(3))
    }

    #[tokio::test]
    async fn an_open_connection_does_not_keep_the_pool() {
        let pool = Arc::new(pool(1, 1));
        let Ok(Http1::Open(permit)) = pool.http1().await else { panic!("there is none to reuse") };
        let alive = Arc::downgrade(&pool);
        drop(pool);
        assert!(alive.upgrade().is_none());
        drop(permit);
    }

    #[tokio::test]
    async fn a_connection_that_ends_makes_room_for_who_waits() {
        let pool = pool(1, 1);
        let permit = pool.permit().await.unwrap();
        let (_second, ()) = tokio::join!(pool.permit(), async { drop(permit) });
        assert!(pool.try_permit().is_none());
    }

    #[tokio::test]
    async fn so_many_wait_and_no_more() {
        let pool = pool(1, 1);
        let permit = pool.permit().await.unwrap();
        let full = Unavailable::QueueFull { capacity: 1, reason: Reason::NoConnection };
        let (waited, refused) = tokio::join!(pool.http1(), async {
            let refused = pool.http1().await.map(drop);
            drop(permit);
            refused
        });
        assert!(waited.is_ok());
        assert_eq!(refused, Err(full));
        assert_eq!(pool.waiting.load(Relaxed), 0);
    }
}
