//! [`ConcurrencyLimit`]: at most so many exchanges in flight; above that, requests fail at once.
//!
//! Load is shed here and never queued: the queue with a bound and a deadline is the balancer's.
//! A permit lasts until the response's body ends or is dropped, because a proxy holds buffers and
//! an upstream connection for exactly that long.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::{BoxError, End, Request, Response, Track, track};

/// The layer, and a handle on the count that all its services share.
#[derive(Clone, Debug)]
pub struct ConcurrencyLimit {
    max: usize,
    in_flight: Arc<AtomicUsize>,
}

/// As many requests as are allowed are in flight already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("overloaded: {max} requests are in flight already")]
pub struct Overloaded {
    pub max: usize,
}

impl ConcurrencyLimit {
    pub fn new(max: usize) -> Self {
        Self { max, in_flight: Arc::default() }
    }

    /// Another bound on the same count: what is in flight already goes on.
    #[must_use]
    pub fn resized(&self, max: usize) -> Self {
        Self { max, in_flight: Arc::clone(&self.in_flight) }
    }

    pub fn max(&self) -> usize {
        self.max
    }

    /// Exchanges now in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn permit(&self) -> Result<Permit, Overloaded> {
        // Relaxed: the count guards no other memory.
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let permit = Permit(Arc::clone(&self.in_flight));
        if before < self.max { Ok(permit) } else { Err(Overloaded { max: self.max }) }
    }
}

/// One exchange in flight.
#[derive(Debug)]
struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Track for Permit {
    fn end(self, _: End<'_>) {}
}

impl<S> Layer<S> for ConcurrencyLimit {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { inner, limit: self.clone() }
    }
}

/// A service whose calls count against a [`ConcurrencyLimit`].
#[derive(Clone, Debug)]
pub struct Limited<S> {
    inner: S,
    limit: ConcurrencyLimit,
}

impl<S> Service<Request> for Limited<S>
where
    S: Service<Request, Response = Response, Error = BoxError>,
{
    type Response = Response;
    type Error = BoxError;
    type Future = LimitedFuture<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        match self.limit.permit() {
            Ok(permit) => {
                State::Admitted { call: self.inner.call(request), permit: Some(permit) }.into()
            }
            Err(overloaded) => State::Shed { overloaded }.into(),
        }
    }
}

pin_project! {
    /// The future of a [`Limited`] call.
    #[derive(Debug)]
    pub struct LimitedFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = Projected]
    #[derive(Debug)]
    enum State<F> {
        Admitted { #[pin] call: F, permit: Option<Permit> },
        Shed { overloaded: Overloaded },
    }
}

impl<F> From<State<F>> for LimitedFuture<F> {
    fn from(state: State<F>) -> Self {
        Self { state }
    }
}

impl<F> Future for LimitedFuture<F>
where
    F: Future<Output = Result<Response, BoxError>>,
{
    type Output = Result<Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projected::Shed { overloaded } => Poll::Ready(Err((*overloaded).into())),
            Projected::Admitted { call, permit } => {
                let result = ready!(call.poll(cx));
                let permit = permit.take();
                Poll::Ready(result.map(|response| match permit {
                    Some(permit) => response.map(|body| track(body, permit)),
                    None => response,
                }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures_util::FutureExt;
    use tower::service_fn;

    use super::*;
    use crate::test_util::{body_channel, collect};
    use crate::{Body, find_cause};

    fn request() -> Request {
        Request::new(Body::empty())
    }

    #[tokio::test]
    async fn a_permit_lasts_until_the_body_ends() {
        let limit = ConcurrencyLimit::new(1);
        let (tx, body) = body_channel();
        let body = parking_lot::Mutex::new(Some(body));
        let mut service = limit.layer(service_fn(|_: Request| {
            let body = body.lock().take().unwrap_or_default();
            async move { Ok::<_, BoxError>(Response::new(body)) }
        }));

        let response = service.call(request()).await.unwrap();
        assert_eq!(limit.in_flight(), 1);
        let error = service.call(request()).await.unwrap_err();
        assert_eq!(find_cause(&error), Some(&Overloaded { max: 1 }));
        assert_eq!(limit.in_flight(), 1, "a shed request gives back what it took");

        drop(tx);
        collect(response.into_body()).await.unwrap();
        assert_eq!(limit.in_flight(), 0);
        service.call(request()).await.unwrap();
        assert_eq!(limit.in_flight(), 0, "an empty body ends with its head");
    }

    #[tokio::test]
    async fn dropping_a_body_or_a_pending_call_gives_the_permit_back() {
        let limit = ConcurrencyLimit::new(1);
        let mut endless = limit.layer(service_fn(|_: Request| async {
            let (tx, body) = body_channel();
            std::mem::forget(tx);
            Ok::<_, BoxError>(Response::new(body))
        }));
        let response = endless.call(request()).await.unwrap();
        drop(response);
        assert_eq!(limit.in_flight(), 0);

        let mut pending = limit
            .layer(service_fn(|_: Request| std::future::pending::<Result<Response, BoxError>>()));
        let mut call = Box::pin(pending.call(request()));
        assert!(call.as_mut().now_or_never().is_none());
        assert_eq!(limit.in_flight(), 1);
        drop(call);
        assert_eq!(limit.in_flight(), 0);
    }

    #[tokio::test]
    async fn an_error_gives_the_permit_back() {
        let limit = ConcurrencyLimit::new(1);
        let mut service =
            limit.layer(service_fn(|_: Request| async { Err::<Response, BoxError>("no".into()) }));
        let mut call = Box::pin(service.call(request()));
        call.as_mut().await.unwrap_err();
        drop(call);
        assert_eq!(limit.in_flight(), 0);
    }

    #[tokio::test]
    async fn services_of_one_layer_share_its_count() {
        let limit = ConcurrencyLimit::new(1);
        let hang = service_fn(|_: Request| std::future::pending::<Result<Response, BoxError>>());
        let _call = limit.layer(hang).call(request());
        assert!(limit.layer(hang).call(request()).await.is_err());
    }
}
