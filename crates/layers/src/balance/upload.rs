//! Who is waited for while a request is under way: the endpoint, or the client that has not sent
//! all of it yet. A slow client must not get endpoints ejected, be it for a deadline or for latency.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{Body, BoxError};

/// Whether the endpoint wants more of the request's body than the client has sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Starved(Option<Arc<Upload>>);

#[derive(Debug, Default)]
struct Upload {
    starved: AtomicBool,
    /// When the client was waited for last, if it is asked.
    fed: Mutex<Option<Instant>>,
}

impl Starved {
    /// Follows a request's body; `timed` if it matters since when the endpoint has what the client has
    /// sent. Free for one that is there already.
    pub(super) fn follow(body: Body, timed: bool) -> (Self, Body) {
        if body.is_end_stream() || body.as_full().is_some() {
            return (Self::default(), body);
        }
        let upload = Arc::<Upload>::default();
        let followed = Body::boxed(Followed { body, timed, upload: Arc::clone(&upload) });
        (Self(Some(upload)), followed)
    }

    pub(super) fn now(&self) -> bool {
        self.0.as_ref().is_some_and(|upload| upload.starved.load(Ordering::Relaxed))
    }

    /// The end of the last time that it was; `None` without one.
    pub(super) fn until(&self) -> Option<Instant> {
        *self.0.as_ref()?.fed.lock()
    }
}

struct Followed {
    body: Body,
    timed: bool,
    upload: Arc<Upload>,
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let was_starved = self.upload.starved.swap(polled.is_pending(), Ordering::Relaxed);
        if self.timed && was_starved && polled.is_ready() {
            *self.upload.fed.lock() = Some(Instant::now());
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
