//! A body that reports its end exactly once, whatever happens.
//!
//! Metrics, concurrency permits and the balancer's pending count all have to last as long as a
//! body does, and a body ends in more ways than one: read to its end, known to be at its end
//! (hyper then never polls it again), failed, or dropped half-way because somebody went away.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::{Body, BoxError};

/// Follows one body.
pub trait Track: Send + 'static {
    /// A data frame of so many bytes went by.
    fn data(&mut self, bytes: usize) {
        let _ = bytes;
    }

    /// The body ended. Called exactly once.
    fn end(self, end: End<'_>);
}

/// How a body ended.
#[derive(Debug)]
pub enum End<'a> {
    Complete {
        trailers: Option<&'a HeaderMap>,
    },
    Error(&'a BoxError),
    /// Dropped by its reader before its end.
    Dropped {
        /// The reader was waiting for the body's source when it gave up, rather than not reading.
        waiting: bool,
    },
}

/// Has `tracker` follow `body`. Free if the body is at its end already, else one box.
pub fn track<T: Track>(body: Body, tracker: T) -> Body {
    if body.is_end_stream() {
        tracker.end(End::Complete { trailers: None });
        return body;
    }
    Body::boxed(Tracked { body, tracker: Some(tracker), waiting: false })
}

struct Tracked<T: Track> {
    body: Body,
    /// Gone once the end was reported.
    tracker: Option<T>,
    waiting: bool,
}

impl<T: Track> Tracked<T> {
    fn end(&mut self, end: End<'_>) {
        if let Some(tracker) = self.tracker.take() {
            tracker.end(end);
        }
    }
}

// Nothing in it is pinned structurally.
impl<T: Track> Unpin for Tracked<T> {}

impl<T: Track> HttpBody for Tracked<T> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        this.waiting = polled.is_pending();
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) => this.end(End::Complete { trailers: None }),
            Poll::Ready(Some(Err(error))) => this.end(End::Error(error)),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.end(End::Complete { trailers: Some(trailers) });
                } else if let Some(tracker) = &mut this.tracker {
                    tracker.data(frame.data_ref().map_or(0, Bytes::len));
                    // The reader of a body of known length need not come back after its last byte.
                    if this.body.is_end_stream() {
                        this.end(End::Complete { trailers: None });
                    }
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<T: Track> Drop for Tracked<T> {
    fn drop(&mut self) {
        let waiting = self.waiting;
        self.end(End::Dropped { waiting });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use futures_util::FutureExt;
    use http_body_util::BodyExt;
    use parking_lot::Mutex;

    use super::*;
    use crate::test_util::{body_channel, collect, grpc_trailers};

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);

    impl Log {
        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock())
        }
    }

    impl Track for Log {
        fn data(&mut self, bytes: usize) {
            self.0.lock().push(format!("{bytes} bytes"));
        }

        fn end(self, end: End<'_>) {
            self.0.lock().push(match end {
                End::Complete { trailers: None } => "complete".into(),
                End::Complete { trailers: Some(t) } => format!("complete with {}", t.len()),
                End::Error(error) => format!("error {error}"),
                End::Dropped { waiting } => format!("dropped, waiting {waiting}"),
            });
        }
    }

    #[tokio::test]
    async fn known_length_ends_with_its_last_byte_and_is_not_told_twice() {
        let log = Log::default();
        let mut body = track(Body::full("hello"), log.clone());
        assert_eq!(body.size_hint().exact(), Some(5));
        body.frame().await.unwrap().unwrap();
        assert_eq!(log.take(), ["5 bytes", "complete"]);
        assert!(body.is_end_stream());
        drop(body);
        assert!(log.take().is_empty());
    }

    #[test]
    fn an_ended_body_is_told_at_once_and_not_boxed() {
        let log = Log::default();
        let body = track(Body::empty(), log.clone());
        assert_eq!(log.take(), ["complete"]);
        assert_eq!(format!("{body:?}"), format!("{:?}", Body::empty()));
    }

    #[tokio::test]
    async fn trailers_end_it() {
        let log = Log::default();
        let (tx, body) = body_channel();
        let mut body = track(body, log.clone());
        tx.data("ab");
        tx.trailers(grpc_trailers(0));
        body.frame().await.unwrap().unwrap();
        body.frame().await.unwrap().unwrap();
        assert_eq!(log.take(), ["2 bytes", "complete with 1"]);
        drop(tx);
        assert!(body.frame().await.is_none());
        assert!(log.take().is_empty());
    }

    #[tokio::test]
    async fn unknown_length_ends_with_the_stream() {
        let log = Log::default();
        let (tx, body) = body_channel();
        tx.data("ab");
        drop(tx);
        collect(track(body, log.clone())).await.unwrap();
        assert_eq!(log.take(), ["2 bytes", "complete"]);
    }

    #[tokio::test]
    async fn an_error_ends_it() {
        let log = Log::default();
        let (tx, body) = body_channel();
        tx.error("reset");
        collect(track(body, log.clone())).await.unwrap_err();
        assert_eq!(log.take(), ["error reset"]);
    }

    #[tokio::test]
    async fn a_drop_tells_whether_somebody_was_waiting() {
        let log = Log::default();
        let (tx, body) = body_channel();
        let mut body = track(body, log.clone());
        tx.data("ab");
        body.frame().await.unwrap().unwrap();
        drop(body);
        assert_eq!(log.take(), ["2 bytes", "dropped, waiting false"]);

        let (_tx, body) = body_channel();
        let mut body = track(body, log.clone());
        assert!(body.frame().now_or_never().is_none());
        drop(body);
        assert_eq!(log.take(), ["dropped, waiting true"]);
    }
}
