//! [`DeadlineLayer`]: how long an exchange, its response and its silence may last.
//!
//! One timer serves all three, and it is made only when something actually has to wait. It is armed
//! for the soonest moment that could matter; when it fires, the moments are computed anew from
//! what has happened since, and it is armed again if nothing is due. So progress (a frame, the end
//! of the upload) only writes down a time and never touches the timer.
//!
//! The timer is polled where the exchange is polled: while a client does not read, its response is
//! not polled, and the limit on that is the server's write timeout.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::{Layer, Service};

use crate::{Body, BoxError, End, Request, RequestDeadline, Response, Track, track};

/// Limits on an exchange; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's arrival to the end of the response's body.
    pub request: Option<Duration>,
    /// From the end of the request's body, or the response's head if that is sooner, to the end of
    /// the response's body.
    pub response: Option<Duration>,
    /// Without a frame in either direction.
    pub idle: Option<Duration>,
}

impl Timeouts {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the progress of the request's body matters.
    fn needs_upload(&self) -> bool {
        self.response.is_some() || self.idle.is_some()
    }
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimeoutKind {
    Request,
    Response,
    Idle,
    /// One try of a request; see [`crate::RetryParams`].
    PerTry,
}

impl fmt::Display for TimeoutKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "request",
            Self::Response => "response",
            Self::Idle => "idle",
            Self::PerTry => "per-try",
        })
    }
}

/// An exchange was given up because it lasted too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} timeout of {after:?} reached")]
pub struct TimedOut {
    pub kind: TimeoutKind,
    pub after: Duration,
}

/// Applies [`Timeouts`]; with none set, it costs a comparison.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeadlineLayer {
    timeouts: Timeouts,
}

impl DeadlineLayer {
    pub fn new(timeouts: Timeouts) -> Self {
        Self { timeouts }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner, timeouts: self.timeouts }
    }
}

/// A service whose exchanges are limited by [`Timeouts`].
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
    timeouts: Timeouts,
}

impl<S> Service<Request> for Deadline<S>
where
    S: Service<Request, Response = Response, Error = BoxError>,
{
    type Response = Response;
    type Error = BoxError;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        if self.timeouts.is_none() {
            return DeadlineFuture { call: self.inner.call(request), watch: None };
        }
        let now = Instant::now();
        if let Some(at) = self.timeouts.request.and_then(|limit| now.checked_add(limit)) {
            put_deadline(&mut request, at);
        }
        let mut upload = None;
        if self.timeouts.needs_upload() && !request.body().is_end_stream() {
            let shared = Upload::new(now);
            upload = Some(shared.clone());
            request = request.map(|body| track(body, shared));
        }
        let watch = Watch {
            timeouts: self.timeouts,
            started: now,
            upload,
            head: None,
            last: now,
            timer: None,
        };
        DeadlineFuture { call: self.inner.call(request), watch: Some(watch) }
    }
}

/// An outer layer's deadline stands if it is sooner.
fn put_deadline(request: &mut Request, at: Instant) {
    let outer = request.extensions().get::<RequestDeadline>();
    if outer.is_none_or(|outer| at < outer.0) {
        request.extensions_mut().insert(RequestDeadline(at));
    }
}

/// Progress of the request's body, which lower layers poll.
#[derive(Clone, Debug)]
struct Upload(Arc<Mutex<UploadProgress>>);

#[derive(Debug)]
struct UploadProgress {
    last: Instant,
    ended: bool,
}

impl Upload {
    fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(UploadProgress { last: now, ended: false })))
    }
}

impl Track for Upload {
    fn data(&mut self, _: usize) {
        self.0.lock().last = Instant::now();
    }

    fn end(self, _: End<'_>) {
        *self.0.lock() = UploadProgress { last: Instant::now(), ended: true };
    }
}

/// What is known of an exchange's progress, and its timer.
#[derive(Debug)]
struct Watch {
    timeouts: Timeouts,
    started: Instant,
    /// `None`: the request had no body, or its progress does not matter.
    upload: Option<Upload>,
    /// When the response's head came.
    head: Option<Instant>,
    /// The last frame of the response.
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

/// A moment to look again; a limit is reached then if `limit` says so and nothing has happened.
struct Moment {
    at: Instant,
    limit: Option<TimedOut>,
}

impl Watch {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<TimedOut> {
        loop {
            let timer = match &mut self.timer {
                Some(timer) => timer,
                None => {
                    let Some(moment) = self.next_moment(Instant::now()) else {
                        return Poll::Pending;
                    };
                    self.timer.insert(Box::pin(sleep_until(moment.at)))
                }
            };
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            let Some(moment) = self.next_moment(now) else {
                return Poll::Pending;
            };
            match moment.limit {
                Some(limit) if moment.at <= now => return Poll::Ready(limit),
                _ => self.timer.as_mut().map(|timer| timer.as_mut().reset(moment.at)),
            };
        }
    }

    /// The timer went off, although nobody has polled it since: the source is never pending.
    fn is_overdue(&self) -> bool {
        self.timer.as_ref().is_some_and(|timer| timer.is_elapsed())
    }

    fn next_moment(&self, now: Instant) -> Option<Moment> {
        let (uploaded, upload_last) = match &self.upload {
            None => (Some(self.started), self.started),
            Some(upload) => {
                let progress = upload.0.lock();
                (progress.ended.then_some(progress.last), progress.last)
            }
        };
        let reached = |kind, from: Instant, after: Duration| {
            from.checked_add(after).map(|at| Moment { at, limit: Some(TimedOut { kind, after }) })
        };
        let request =
            self.timeouts.request.and_then(|t| reached(TimeoutKind::Request, self.started, t));
        let response = self.timeouts.response.and_then(|t| {
            match [uploaded, self.head].into_iter().flatten().min() {
                Some(from) => reached(TimeoutKind::Response, from, t),
                // It can't be due any sooner than if it began now.
                None => now.checked_add(t).map(|at| Moment { at, limit: None }),
            }
        });
        let idle = self
            .timeouts
            .idle
            .and_then(|t| reached(TimeoutKind::Idle, self.last.max(upload_last), t));
        [request, response, idle].into_iter().flatten().min_by_key(|moment| moment.at)
    }
}

pin_project! {
    /// The future of a [`Deadline`] call.
    #[derive(Debug)]
    pub struct DeadlineFuture<F> {
        #[pin]
        call: F,
        watch: Option<Watch>,
    }
}

impl<F> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response, BoxError>>,
{
    type Output = Result<Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.call.poll(cx) {
            Poll::Ready(Ok(response)) => {
                let Some(mut watch) = this.watch.take() else {
                    return Poll::Ready(Ok(response));
                };
                if response.body().is_end_stream() {
                    return Poll::Ready(Ok(response));
                }
                let now = Instant::now();
                watch.head = Some(now);
                watch.last = now;
                Poll::Ready(Ok(
                    response.map(|body| Body::boxed(DeadlineBody { body, watch: Some(watch) }))
                ))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => match this.watch {
                Some(watch) => watch.poll(cx).map(|timed_out| Err(timed_out.into())),
                None => Poll::Pending,
            },
        }
    }
}

/// A response's body under a deadline: cut with [`TimedOut`] when it is reached.
struct DeadlineBody {
    body: Body,
    /// Gone once the body was cut.
    watch: Option<Watch>,
}

impl HttpBody for DeadlineBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(watch) = &mut this.watch else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if polled.is_ready() {
            if watch.timeouts.idle.is_some() {
                watch.last = Instant::now();
            }
            // An end that is reached at last is not cut off.
            let goes_on = matches!(&polled, Poll::Ready(Some(Ok(frame))) if frame.is_data());
            if !goes_on || !watch.is_overdue() {
                return polled;
            }
        }
        match watch.poll(cx) {
            Poll::Pending => polled,
            Poll::Ready(timed_out) => {
                // Dropped now, so that the upstream is cut as well, whenever we are dropped.
                this.body = Body::empty();
                this.watch = None;
                Poll::Ready(Some(Err(timed_out.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.watch.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures_util::FutureExt;
    use http_body_util::BodyExt;
    use tokio::time::{advance, sleep};
    use tower::service_fn;

    use super::*;
    use crate::find_cause;
    use crate::test_util::{BodySender, body_channel, collect};

    const SECOND: Duration = Duration::from_secs(1);

    fn timeouts(request: u64, response: u64, idle: u64) -> Timeouts {
        let limit = |seconds: u64| (seconds > 0).then_some(Duration::from_secs(seconds));
        Timeouts { request: limit(request), response: limit(response), idle: limit(idle) }
    }

    fn kind(error: BoxError) -> TimeoutKind {
        find_cause::<TimedOut>(&error).unwrap().kind
    }

    type Answer = Result<Response, BoxError>;

    /// Never answers, and reads the request's body.
    async fn swallow(request: Request) -> Answer {
        let _ = collect(request.into_body()).await;
        std::future::pending().await
    }

    /// Answers at once with a body that the sender feeds.
    async fn answer(limits: Timeouts) -> (BodySender, Body) {
        let (tx, body) = body_channel();
        let slot = Mutex::new(Some(body));
        let mut service = DeadlineLayer::new(limits).layer(service_fn(|_: Request| {
            let body = slot.lock().take().unwrap();
            async move { Ok::<_, BoxError>(Response::new(body)) }
        }));
        let response = service.call(Request::new(Body::empty())).await.unwrap();
        (tx, response.into_body())
    }

    #[tokio::test]
    async fn without_limits_nothing_is_added() {
        let mut service =
            DeadlineLayer::default().layer(service_fn(|request: Request| async move {
                assert!(request.extensions().get::<RequestDeadline>().is_none());
                Ok::<_, BoxError>(Response::new(Body::full("x")))
            }));
        let response = service.call(Request::new(Body::empty())).await.unwrap();
        assert!(response.body().as_full().is_some(), "the body is not wrapped");
    }

    #[tokio::test(start_paused = true)]
    async fn request_limits_the_wait_for_an_answer_and_tells_lower_layers() {
        let start = Instant::now();
        let mut service =
            DeadlineLayer::new(timeouts(5, 0, 0)).layer(service_fn(move |request: Request| {
                let deadline = request.extensions().get::<RequestDeadline>().copied();
                assert_eq!(deadline, Some(RequestDeadline(start + 5 * SECOND)));
                swallow(request)
            }));
        let error = service.call(Request::new(Body::empty())).await.unwrap_err();
        assert_eq!(kind(error), TimeoutKind::Request);
        assert_eq!(start.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sooner_outer_deadline_stands() {
        let sooner = RequestDeadline(Instant::now() + SECOND);
        let mut service =
            DeadlineLayer::new(timeouts(5, 0, 0)).layer(service_fn(move |request: Request| {
                assert_eq!(request.extensions().get(), Some(&sooner));
                async { Ok::<_, BoxError>(Response::default()) }
            }));
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(sooner);
        service.call(request).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn request_cuts_a_body_and_what_is_behind_it() {
        let (tx, mut body) = answer(timeouts(5, 0, 0)).await;
        tx.data("a");
        body.frame().await.unwrap().unwrap();
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(kind(error), TimeoutKind::Request);
        assert!(tx.is_closed(), "the upstream's body is dropped with it");
        assert!(body.frame().await.is_none());
        assert!(body.is_end_stream());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_pauses_is_cut_too() {
        let (tx, mut body) = answer(timeouts(5, 0, 0)).await;
        assert!(body.frame().now_or_never().is_none(), "arms the timer");
        advance(6 * SECOND).await;
        tx.data("late");
        assert_eq!(kind(body.frame().await.unwrap().unwrap_err()), TimeoutKind::Request);
    }

    #[tokio::test(start_paused = true)]
    async fn response_begins_when_the_request_has_been_sent() {
        let start = Instant::now();
        let mut service = DeadlineLayer::new(timeouts(0, 5, 0)).layer(service_fn(swallow));
        let (tx, body) = body_channel();
        let upload = async move {
            for _ in 0..4 {
                sleep(3 * SECOND).await;
                tx.data("x");
            }
        };
        let (error, ()) = tokio::join!(service.call(Request::new(body)), upload);
        assert_eq!(kind(error.unwrap_err()), TimeoutKind::Response);
        assert_eq!(start.elapsed().as_secs(), 12 + 5);
    }

    #[tokio::test(start_paused = true)]
    async fn response_begins_with_the_head_if_that_is_sooner() {
        let mut service =
            DeadlineLayer::new(timeouts(0, 5, 0)).layer(service_fn(|request: Request| async {
                let (tx, body) = body_channel();
                // Both bodies stay open.
                std::mem::forget((request, tx));
                Ok::<_, BoxError>(Response::new(body))
            }));
        let (_tx, body) = body_channel();
        let response = service.call(Request::new(body)).await.unwrap();
        let start = Instant::now();
        let error = collect(response.into_body()).await.unwrap_err();
        assert_eq!(kind(error), TimeoutKind::Response);
        assert_eq!(start.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_is_put_off_by_frames_in_either_direction() {
        let start = Instant::now();
        let (reply, body) = body_channel();
        let slot = Mutex::new(Some(body));
        let mut service =
            DeadlineLayer::new(timeouts(0, 0, 5)).layer(service_fn(|request: Request| {
                tokio::spawn(collect(request.into_body()));
                let body = slot.lock().take().unwrap();
                async move { Ok::<_, BoxError>(Response::new(body)) }
            }));
        let (upload, body) = body_channel();
        let response = service.call(Request::new(body)).await.unwrap();
        let feed = async move {
            for _ in 0..3 {
                sleep(3 * SECOND).await;
                upload.data("x");
                sleep(3 * SECOND).await;
                reply.data("x");
            }
            (upload, reply)
        };
        let (error, _open) = tokio::join!(collect(response.into_body()), feed);
        assert_eq!(kind(error.unwrap_err()), TimeoutKind::Idle);
        assert_eq!(start.elapsed().as_secs(), 18 + 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_time_is_left_alone() {
        let (tx, body) = answer(timeouts(5, 5, 5)).await;
        tx.data("a");
        drop(tx);
        assert_eq!(collect(body).await.unwrap(), "a");

        let mut service = DeadlineLayer::new(timeouts(5, 5, 5))
            .layer(service_fn(|_: Request| async { Err::<Response, BoxError>("refused".into()) }));
        let error = service.call(Request::new(Body::empty())).await.unwrap_err();
        assert_eq!(error.to_string(), "refused");
    }

    #[tokio::test(start_paused = true)]
    async fn endless_limits_are_no_limits() {
        let limit = Some(Duration::MAX);
        let limits = Timeouts { request: limit, response: limit, idle: limit };
        let (tx, mut body) = answer(limits).await;
        assert!(body.frame().now_or_never().is_none());
        advance(3600 * SECOND).await;
        tx.data("a");
        body.frame().await.unwrap().unwrap();
    }
}
