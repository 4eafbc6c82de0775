//! [`RetryLayer`]: sends a request again when a policy wants that and everything allows it.
//!
//! It sits above the balancer, so a retry may go to another endpoint: the tries share a
//! [`crate::Tried`] list, which the balancer avoids. What has to allow a retry, in this order: the
//! method (unless the request never reached a server), the number of tries, the body (see
//! [`crate::replay`]), the request's deadline, and last the budget (see [`crate::budget`]).
//!
//! A response is never delayed for the sake of a retry, and once it was handed down nothing is
//! retried. The copy of the request's head that a retry needs is made once per try that may be
//! followed by another.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderMap;
use http::{request, response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, sleep, timeout_at};
use tower::{Layer, Service};

use crate::replay::{NotReplayable, Replay};
use crate::{
    Attempt, Backoff, Body, BoxError, Budget, Request, RequestDeadline, Response, ResponseFuture,
    TimedOut, TimeoutKind, Tried, TryDeadline, response_outcome,
};

/// What to retry, decided by whoever knows the routes.
pub trait RetryPolicy: Clone + Send + Sync + 'static {
    fn params(&self) -> &RetryParams;

    /// Whether a request may be processed twice: its method is idempotent, or somebody said so.
    fn may_retry(&self, request: &request::Parts) -> bool;

    /// Whether this response's head calls for a retry.
    fn retry_response(&self, response: &response::Parts) -> bool;

    /// Whether these trailers do, of a gRPC response that consists of nothing else.
    fn retry_trailers(&self, trailers: &HeaderMap) -> bool;

    /// Whether this error does; [`TimedOut`] of kind `PerTry` among them.
    fn retry_error(&self, error: &BoxError) -> RetryOn;

    /// Something to count happened.
    fn event(&self, event: RetryEvent);
}

/// Limits of retrying.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryParams {
    /// Tries beyond the first.
    pub max_retries: u32,
    /// Larger request bodies can't be sent again.
    pub max_body_bytes: usize,
    /// How long each try may take to the head of its response.
    pub per_try: Option<Duration>,
    /// The wait before each retry.
    pub backoff: Backoff,
}

impl Default for RetryParams {
    fn default() -> Self {
        Self {
            max_retries: 1,
            max_body_bytes: 64 * 1024,
            per_try: None,
            backoff: Backoff {
                min: Duration::from_millis(25),
                max: Duration::from_millis(250),
                jitter: 1.0,
            },
        }
    }
}

/// Whether an error calls for a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryOn {
    No,
    /// If the request may be processed twice.
    Yes,
    /// The request never reached a server (connect failure, refused stream): in any case.
    Always,
}

/// What became of the wish to retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryEvent {
    /// A retry begins.
    Retried,
    /// A request that was retried got an answer that calls for no other retry.
    Succeeded,
    /// Not retried: that was the last try.
    LimitExceeded,
    /// Not retried: the budget is spent.
    BudgetExhausted,
    /// Not retried: the request's body outgrew the limit.
    BodyTooLarge,
    /// Not retried: the request may have been processed, and must not be twice.
    NotIdempotent,
    /// Not retried: the backoff would end after the request's deadline.
    DeadlineNear,
}

/// Retries by a policy, on a budget.
#[derive(Clone, Debug)]
pub struct RetryLayer<P> {
    policy: P,
    budget: Budget,
}

impl<P: RetryPolicy> RetryLayer<P> {
    pub fn new(policy: P, budget: Budget) -> Self {
        Self { policy, budget }
    }
}

impl<S, P: RetryPolicy> Layer<S> for RetryLayer<P> {
    type Service = Retry<S, P>;

    fn layer(&self, inner: S) -> Retry<S, P> {
        Retry { inner, policy: self.policy.clone(), budget: self.budget.clone() }
    }
}

/// A service whose requests are retried.
#[derive(Clone, Debug)]
pub struct Retry<S, P> {
    inner: S,
    policy: P,
    budget: Budget,
}

impl<S, P> Service<Request> for Retry<S, P>
where
    S: Service<Request, Response = Response, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send + 'static,
    P: RetryPolicy,
{
    type Response = Response;
    type Error = BoxError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> ResponseFuture {
        self.budget.deposit();
        let exchange = Exchange::new(self.clone(), request);
        Box::pin(exchange.run())
    }
}

/// One request on its way through its tries.
struct Exchange<S, P> {
    retry: Retry<S, P>,
    /// The head for the next try; gone with the last one.
    head: Option<request::Parts>,
    replay: Replay,
    may_retry: bool,
    deadline: Option<Instant>,
    attempt: u32,
}

impl<S, P> Exchange<S, P>
where
    S: Service<Request, Response = Response, Error = BoxError>,
    P: RetryPolicy,
{
    fn new(retry: Retry<S, P>, request: Request) -> Self {
        let (mut head, body) = request.into_parts();
        let params = retry.policy.params();
        if params.max_retries > 0 {
            head.extensions.insert(Tried::default());
        }
        Self {
            replay: Replay::new(body, params.max_body_bytes),
            may_retry: retry.policy.may_retry(&head),
            deadline: head.extensions.get::<RequestDeadline>().map(|deadline| deadline.0),
            head: Some(head),
            attempt: 0,
            retry,
        }
    }

    async fn run(mut self) -> Result<Response, BoxError> {
        loop {
            let result = self.send_try().await;
            let (result, wish) = self.consider(result).await;
            let Some(wait) = self.permit(wish, result.is_ok()) else {
                return result;
            };
            // The response's stream, or its connection, is free while we wait.
            drop(result);
            if !wait.is_zero() {
                sleep(wait).await;
            }
            self.attempt += 1;
            self.retry.policy.event(RetryEvent::Retried);
        }
    }

    async fn send_try(&mut self) -> Result<Response, BoxError> {
        let mut request = Request::from_parts(self.next_head(), self.replay.body());
        request.extensions_mut().insert(Attempt(self.attempt));
        let now = Instant::now();
        let per_try = self.retry.policy.params().per_try;
        let try_end = per_try.and_then(|after| Some((now.checked_add(after)?, after)));
        // The request's own deadline is kept by the layer above; it needs no second timer.
        let try_end = try_end.filter(|(at, _)| self.deadline.is_none_or(|deadline| *at < deadline));
        if let Some(at) = try_end.map(|(at, _)| at).or(self.deadline) {
            request.extensions_mut().insert(TryDeadline(at));
        }
        let call = self.retry.inner.call(request);
        let Some((at, after)) = try_end else {
            return call.await;
        };
        match timeout_at(at, call).await {
            Ok(result) => result,
            Err(_) => Err(TimedOut { kind: TimeoutKind::PerTry, after }.into()),
        }
    }

    fn next_head(&mut self) -> request::Parts {
        if self.attempt < self.retry.policy.params().max_retries {
            self.head.clone().expect("kept until the last try")
        } else {
            self.head.take().expect("taken by the last try only")
        }
    }

    /// Whether the policy wishes to retry after this result.
    async fn consider(
        &mut self,
        result: Result<Response, BoxError>,
    ) -> (Result<Response, BoxError>, RetryOn) {
        let policy = &self.retry.policy;
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                let wish = policy.retry_error(&error);
                return (Err(error), wish);
            }
        };
        let (head, mut body) = response.into_parts();
        if policy.retry_response(&head) {
            return (Ok(Response::from_parts(head, body)), RetryOn::Yes);
        }
        let status_in_trailers = response_outcome(head.status, &head.headers).is_none();
        if !self.may_retry || !status_in_trailers {
            return (Ok(Response::from_parts(head, body)), RetryOn::No);
        }
        let first = poll_once(&mut body).await;
        let wish = match &first {
            Poll::Ready(Some(Ok(frame))) => match frame.trailers_ref() {
                Some(trailers) if policy.retry_trailers(trailers) => RetryOn::Yes,
                _ => RetryOn::No,
            },
            Poll::Ready(Some(Err(error))) => policy.retry_error(error),
            Poll::Ready(None) | Poll::Pending => RetryOn::No,
        };
        (Ok(Response::from_parts(head, unread(first, body))), wish)
    }

    /// The wait before the next try, if there may be one.
    fn permit(&self, wish: RetryOn, answered: bool) -> Option<Duration> {
        let Retry { policy, budget, .. } = &self.retry;
        let params = policy.params();
        let refuse = |why| {
            policy.event(why);
            None
        };
        match wish {
            RetryOn::No if answered && self.attempt > 0 => return refuse(RetryEvent::Succeeded),
            RetryOn::No => return None,
            RetryOn::Yes if !self.may_retry => return refuse(RetryEvent::NotIdempotent),
            RetryOn::Yes | RetryOn::Always => {}
        }
        if self.attempt >= params.max_retries {
            return refuse(RetryEvent::LimitExceeded);
        }
        match self.replay.check() {
            Ok(()) => {}
            Err(NotReplayable::TooLarge) => return refuse(RetryEvent::BodyTooLarge),
            // The client's own failure: there is nobody left to retry for.
            Err(NotReplayable::Failed) => return None,
        }
        let wait = params.backoff.delay(self.attempt);
        let resumes = Instant::now().checked_add(wait);
        if self.deadline.is_some_and(|deadline| resumes.is_none_or(|at| at >= deadline)) {
            return refuse(RetryEvent::DeadlineNear);
        }
        if !budget.withdraw() {
            return refuse(RetryEvent::BudgetExhausted);
        }
        Some(wait)
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

/// The first frame of a body, if it is there already.
async fn poll_once(body: &mut Body) -> Polled {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *body).poll_frame(cx))).await
}

/// The body as it was before it was polled.
fn unread(polled: Polled, body: Body) -> Body {
    match polled {
        Poll::Pending => body,
        Poll::Ready(None) => Body::empty(),
        Poll::Ready(first) => Body::boxed(Unread { first, rest: body }),
    }
}

/// A body whose first frame was read already.
struct Unread {
    first: Option<Result<Frame<Bytes>, BoxError>>,
    rest: Body,
}

impl HttpBody for Unread {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let first = match &self.first {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        SizeHint::with_exact(first as u64) + self.rest.size_hint()
    }
}

#[cfg(test)]
mod tests;
