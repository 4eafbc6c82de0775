//! Who is waited for while a request is under way: the endpoint, or the client that has not sent
//! all of it yet. A slow client with a deadline must not get endpoints ejected.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::{Body, BoxError};

/// Whether the endpoint wants more of the request's body than the client has sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Starved(Option<Arc<AtomicBool>>);

impl Starved {
    /// Follows a request's body. Free for one that is there already.
    pub(super) fn follow(body: Body) -> (Self, Body) {
        if body.is_end_stream() || body.as_full().is_some() {
            return (Self::default(), body);
        }
        let flag = Arc::new(AtomicBool::new(false));
        let followed = Body::boxed(Followed { body, starved: Arc::clone(&flag) });
        (Self(Some(flag)), followed)
    }

    pub(super) fn now(&self) -> bool {
        self.0.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed))
    }
}

struct Followed {
    body: Body,
    starved: Arc<AtomicBool>,
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.starved.store(polled.is_pending(), Ordering::Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
