//! A [`Balancer`] as a service: acquire, call, and tell the lease how it went.
//!
//! The latency is that of the response's head; the request is pending until the response's body
//! ends. The outcome is the classification of the response, for gRPC by its trailers; an error is a
//! failure unless it is the client's; and a request that was given up is a failure only if its
//! deadline had passed while it was the endpoint's turn, else the client went away.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use http::StatusCode;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::Service;

use super::retry_after::retry_after;
use super::upload::Starved;
use super::{Balancer, Lease, Unavailable};
use crate::{
    Affinity, BoxError, End, Outcome, Request, RequestDeadline, Response, ResponseFuture, Track,
    Tried, TryDeadline, find_cause, is_request_body_error, response_outcome, track,
    trailers_outcome,
};

impl<S> Service<Request> for Balancer<S>
where
    S: Service<Request, Response = Response, Error = BoxError> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = BoxError;
    type Future = BalancerFuture<S>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let affinity = request.extensions().get::<Affinity>().copied();
        let acquired = match request.extensions().get::<Tried>() {
            Some(tried) => self.try_acquire(affinity, &tried.0.lock()),
            None => self.try_acquire(affinity, &[]),
        };
        let state = match acquired {
            Ok(lease) => State::Calling { exchange: Exchange::begin(lease, request) },
            Err(_) => {
                State::Waiting { rest: Box::pin(wait_and_call(self.clone(), affinity, request)) }
            }
        };
        BalancerFuture { state }
    }
}

/// The path of a request that finds no endpoint available at once.
async fn wait_and_call<S>(
    balancer: Balancer<S>,
    affinity: Option<Affinity>,
    request: Request,
) -> Result<Response, BoxError>
where
    S: Service<Request, Response = Response, Error = BoxError> + Clone + Send + Sync + 'static,
{
    let tried = request.extensions().get::<Tried>().map(Tried::addrs).unwrap_or_default();
    let lease = balancer.acquire(affinity, &tried).await?;
    Exchange::begin(lease, request).await
}

pin_project! {
    /// The future of a balanced call.
    pub struct BalancerFuture<S: Service<Request>> {
        #[pin]
        state: State<S>,
    }
}

pin_project! {
    #[project = Projected]
    enum State<S: Service<Request>> {
        Calling { #[pin] exchange: Exchange<S> },
        Waiting { rest: ResponseFuture },
    }
}

impl<S> Future for BalancerFuture<S>
where
    S: Service<Request, Response = Response, Error = BoxError> + Send + Sync + 'static,
{
    type Output = Result<Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projected::Calling { exchange } => exchange.poll(cx),
            Projected::Waiting { rest } => rest.as_mut().poll(cx),
        }
    }
}

impl<S: Service<Request>> std::fmt::Debug for BalancerFuture<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BalancerFuture")
    }
}

pin_project! {
    /// A call to an endpoint, until the head of its response.
    struct Exchange<S: Service<Request>> {
        #[pin]
        call: S::Future,
        unanswered: Unanswered<S>,
    }
}

/// A lease whose request has no answer yet.
struct Unanswered<S> {
    lease: Option<Lease<S>>,
    patience: Patience,
}

/// How long the endpoint has, and whether it is the one who takes that long.
#[derive(Clone, Default)]
struct Patience {
    request: Option<Instant>,
    /// To the head of the response.
    head: Option<Instant>,
    starved: Starved,
}

impl<S> Exchange<S>
where
    S: Service<Request, Response = Response, Error = BoxError> + Clone,
{
    fn begin(lease: Lease<S>, request: Request) -> Self {
        let extensions = request.extensions();
        if let Some(tried) = extensions.get::<Tried>() {
            tried.push(lease.addr());
        }
        let (patience, request) = Patience::of(request, &lease);
        let call = lease.service().clone().call(request);
        Self { call, unanswered: Unanswered { lease: Some(lease), patience } }
    }
}

impl Patience {
    fn of<S>(request: Request, lease: &Lease<S>) -> (Self, Request) {
        let extensions = request.extensions();
        let limit = extensions.get::<RequestDeadline>().map(|deadline| deadline.0);
        let head = extensions.get::<TryDeadline>().map(|deadline| deadline.0).or(limit);
        let timed = lease.max_latency().is_some();
        if !(timed || lease.has_breaker() && head.is_some()) {
            return (Self::default(), request);
        }
        let (parts, body) = request.into_parts();
        let (starved, body) = Starved::follow(body, timed);
        (Self { request: limit, head, starved }, Request::from_parts(parts, body))
    }

    /// Whether it is the endpoint's fault that the request is given up before its head.
    fn ended_before_head(&self, now: Instant) -> bool {
        self.head.is_some_and(|at| at <= now) && !self.starved.now()
    }

    /// Whether the endpoint takes too long for its breaker. The time that the client took to send what
    /// it has to is not the endpoint's.
    fn is_over<S>(&self, lease: &Lease<S>, now: Instant) -> bool {
        lease.is_late(now, self.starved.until()) && !self.starved.now()
    }

    /// Whether it is the endpoint's fault that the response is given up.
    fn ended(&self, now: Instant) -> bool {
        self.request.is_some_and(|at| at <= now) && !self.starved.now()
    }
}

impl<S> Future for Exchange<S>
where
    S: Service<Request, Response = Response, Error = BoxError> + Send + Sync + 'static,
{
    type Output = Result<Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.call.poll(cx));
        let Some(mut lease) = this.unanswered.lease.take() else {
            return Poll::Ready(result);
        };
        Poll::Ready(match result {
            Ok(response) => {
                let patience = std::mem::take(&mut this.unanswered.patience);
                Ok(answered(lease, response, patience))
            }
            Err(error) => {
                // What is refused here never came to the endpoint.
                let ours = find_cause::<Unavailable>(&error).is_some();
                if !ours && !is_request_body_error(&error) {
                    lease.failure(None);
                }
                Err(error)
            }
        })
    }
}

/// Tells what the head of a response says, and follows its body for the rest.
fn answered<S>(mut lease: Lease<S>, response: Response, patience: Patience) -> Response
where
    S: Send + Sync + 'static,
{
    let now = Instant::now();
    let rtt = now.saturating_duration_since(lease.started());
    let hint = || retry_after(response.headers(), SystemTime::now());
    let outcome = response_outcome(response.status(), response.headers());
    if outcome == Some(Outcome::Failure) {
        lease.observe_at_least(now);
        lease.settle_failure(hint());
    } else if response.status() == StatusCode::TOO_MANY_REQUESTS {
        lease.observe_at_least(now);
        lease.penalize(hint(), now);
    } else {
        lease.observe(rtt, now);
    }
    if patience.is_over(&lease, now) {
        lease.settle_failure(None);
    }
    // A body may last for ever; a probe can't wait for that.
    if outcome == Some(Outcome::Success) && lease.awaits_verdict() {
        lease.settle_success(rtt, now);
    }
    let status_in_trailers = outcome.is_none();
    let rest = Answered { lease, rtt, status_in_trailers, patience };
    response.map(|body| track(body, rest))
}

/// A lease whose response's body is under way.
struct Answered<S> {
    lease: Lease<S>,
    rtt: Duration,
    status_in_trailers: bool,
    patience: Patience,
}

impl<S: Send + Sync + 'static> Track for Answered<S> {
    fn data(&mut self, _: usize) {
        if self.lease.awaits_verdict() {
            self.lease.settle_success(self.rtt, Instant::now());
        }
    }

    fn end(mut self, end: End<'_>) {
        let now = Instant::now();
        let outcome = match end {
            End::Complete { trailers } if self.status_in_trailers => trailers_outcome(trailers),
            End::Complete { .. } => Outcome::Success,
            End::Error(error) if is_request_body_error(error) => return,
            End::Error(_) => Outcome::Failure,
            // If nobody was waiting for it, it was the client that took too long.
            End::Dropped { waiting } if waiting && self.patience.ended(now) => Outcome::Failure,
            End::Dropped { .. } => return,
        };
        match outcome {
            Outcome::Success => self.lease.settle_success(self.rtt, now),
            Outcome::Failure => self.lease.settle_failure(None),
        }
    }
}

impl<S> Drop for Unanswered<S> {
    fn drop(&mut self) {
        let Some(lease) = &mut self.lease else { return };
        let now = Instant::now();
        if self.patience.ended_before_head(now) || self.patience.is_over(lease, now) {
            lease.failure(None);
        } else if !self.patience.starved.now() {
            // Not to its discredit, but it can't be faster than that.
            lease.observe_at_least(now);
        }
    }
}

#[cfg(test)]
mod tests;
