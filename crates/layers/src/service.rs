//! [`HttpService`]: any always-ready service of this crate's shape, its type erased.
//!
//! Put `.layer(HttpService::layer())` at the head of a section, so that compile times and types
//! stay small: a clone is one atomic, a call is a clone of what is inside and one box for its
//! future (none if that is boxed already).

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower::{Layer, Service};

use crate::{BoxError, Request, Response};

/// The future of an erased call.
pub type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response, BoxError>> + Send>>;

/// An erased, always ready, cheaply cloned HTTP service.
#[derive(Clone)]
pub struct HttpService(Arc<dyn Erased>);

trait Erased: Send + Sync {
    fn call_erased(&self, request: Request) -> ResponseFuture;
}

impl HttpService {
    /// Erases a service. It must be always ready: its `poll_ready` is never asked.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Request, Response = Response, Error = BoxError> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        match unless_is::<S, Self>(service) {
            Ok(service) => Self(Arc::new(service)),
            Err(erased) => erased,
        }
    }

    /// The layer that erases what is below it.
    pub fn layer() -> HttpServiceLayer {
        HttpServiceLayer(())
    }
}

impl<S> Erased for S
where
    S: Service<Request, Response = Response, Error = BoxError> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    fn call_erased(&self, request: Request) -> ResponseFuture {
        // A clone and not a lock: two threads may be in here, and a call may come back to the same
        // service.
        match unless_is::<S::Future, ResponseFuture>(Service::call(&mut self.clone(), request)) {
            Ok(future) => Box::pin(future),
            Err(boxed) => boxed,
        }
    }
}

/// `Err` with the value as a `B` if that is what an `A` is. Decided when compiled.
fn unless_is<A: 'static, B: 'static>(value: A) -> Result<A, B> {
    let mut slot = Some(value);
    if let Some(same) =
        (&mut slot as &mut dyn Any).downcast_mut::<Option<B>>().and_then(Option::take)
    {
        return Err(same);
    }
    Ok(slot.expect("taken only when it was returned"))
}

impl Service<Request> for HttpService {
    type Response = Response;
    type Error = BoxError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> ResponseFuture {
        self.0.call_erased(request)
    }
}

impl fmt::Debug for HttpService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpService")
    }
}

/// See [`HttpService::layer`].
#[derive(Clone, Copy, Debug)]
pub struct HttpServiceLayer(());

impl<S> Layer<S> for HttpServiceLayer
where
    S: Service<Request, Response = Response, Error = BoxError> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    type Service = HttpService;

    fn layer(&self, inner: S) -> HttpService {
        HttpService::new(inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tower::{ServiceBuilder, ServiceExt, service_fn};

    use super::*;
    use crate::Body;
    use crate::test_util::collect;

    #[tokio::test]
    async fn calls_what_it_erased() {
        let mut service = ServiceBuilder::new().layer(HttpService::layer()).service(service_fn(
            |request: Request| async move { Ok::<_, BoxError>(Response::new(request.into_body())) },
        ));
        let response = service.call(Request::new(Body::full("ping"))).await.unwrap();
        assert_eq!(collect(response.into_body()).await.unwrap(), "ping");
    }

    #[tokio::test]
    async fn errors_come_through_unwrapped() {
        let service = HttpService::new(service_fn(|_: Request| async {
            Err::<Response, BoxError>("refused".into())
        }));
        let error = service.oneshot(Request::new(Body::empty())).await.unwrap_err();
        assert_eq!(error.to_string(), "refused");
    }

    #[test]
    fn erasing_twice_adds_nothing() {
        let once = HttpService::new(service_fn(|_: Request| async {
            Err::<Response, BoxError>("".into())
        }));
        let twice = HttpService::new(once.clone());
        assert!(Arc::ptr_eq(&once.0, &twice.0));
    }
}
