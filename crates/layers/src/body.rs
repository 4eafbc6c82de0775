//! The one body type of the stack.
//!
//! A newtype over a few cases, so that the common ones (nothing, a few bytes, what hyper received)
//! cost no box and no dynamic call, and so that layers can wrap a body without their type showing
//! in every signature. `size_hint` and `is_end_stream` are exact wherever they can be: hyper
//! derives `content-length` and the h2 END_STREAM flag from them.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::{BoxError, RequestBodyError};

/// Body of a request or a response. Default: empty.
#[derive(Default)]
pub struct Body(Inner);

#[derive(Default)]
enum Inner {
    #[default]
    Empty,
    /// Never empty: `Body::full` sees to it.
    Full(Bytes),
    Incoming(Incoming),
    Boxed(Pin<Box<dyn HttpBody<Data = Bytes, Error = BoxError> + Send>>),
}

impl Body {
    /// A body without a single frame.
    pub fn empty() -> Self {
        Self(Inner::Empty)
    }

    /// A body of these bytes in one frame, or of none when they are empty.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::empty() } else { Self(Inner::Full(bytes)) }
    }

    /// Any other body. One allocation, unless it is a `Body` or hyper's `Incoming` already.
    pub fn boxed<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut slot = Some(body);
        let any: &mut dyn Any = &mut slot;
        if let Some(body) = any.downcast_mut::<Option<Self>>().and_then(Option::take) {
            return body;
        }
        if let Some(incoming) = any.downcast_mut::<Option<Incoming>>().and_then(Option::take) {
            return Self::from(incoming);
        }
        match slot {
            Some(body) => Self(Inner::Boxed(Box::pin(body.map_err(Into::into)))),
            None => Self::empty(),
        }
    }

    /// Marks the errors of a request's body as [`RequestBodyError`], so that layers below don't
    /// blame the endpoint for them.
    #[must_use]
    pub fn mark_request(self) -> Self {
        match self.0 {
            Inner::Empty | Inner::Full(_) => self,
            _ => Self::boxed(self.map_err(RequestBodyError::wrap)),
        }
    }

    /// The bytes of a body made by [`Body::full`] that nobody has polled yet.
    pub(crate) fn as_full(&self) -> Option<&Bytes> {
        match &self.0 {
            Inner::Full(bytes) => Some(bytes),
            _ => None,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Inner::Empty => Poll::Ready(None),
            Inner::Full(bytes) => {
                let frame = Frame::data(std::mem::take(bytes));
                self.0 = Inner::Empty;
                Poll::Ready(Some(Ok(frame)))
            }
            Inner::Incoming(incoming) => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
            Inner::Boxed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Empty => true,
            Inner::Full(_) => false,
            Inner::Incoming(incoming) => incoming.is_end_stream(),
            Inner::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Incoming(incoming) => incoming.size_hint(),
            Inner::Boxed(body) => body.size_hint(),
        }
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        Self(Inner::Incoming(incoming))
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::full(bytes)
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self::full(text)
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::full(text)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Inner::Empty => "empty",
            Inner::Full(_) => "full",
            Inner::Incoming(_) => "incoming",
            Inner::Boxed(_) => "boxed",
        };
        f.debug_tuple("Body").field(&kind).finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::test_util::{body_channel, collect};

    #[tokio::test]
    async fn full_knows_its_length_until_it_is_read() {
        let mut body = Body::full("hello");
        assert_eq!(body.size_hint().exact(), Some(5));
        assert!(!body.is_end_stream());
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "hello");
        assert!(body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(0));
        assert!(body.frame().await.is_none());
    }

    #[test]
    fn full_of_nothing_is_empty() {
        for body in [Body::full(""), Body::from(String::new()), Body::empty(), Body::default()] {
            assert!(body.is_end_stream());
            assert_eq!(body.size_hint().exact(), Some(0));
        }
    }

    #[tokio::test]
    async fn boxing_a_body_adds_nothing() {
        let body = Body::boxed(Body::boxed(Body::full("x")));
        assert!(body.as_full().is_some());
        assert_eq!(collect(body).await.unwrap(), "x");
    }

    #[tokio::test]
    async fn boxed_keeps_frames_and_hints_of_any_body() {
        let body = Body::boxed(http_body_util::Full::new(Bytes::from_static(b"abc")));
        assert_eq!(body.size_hint().exact(), Some(3));
        assert_eq!(collect(body).await.unwrap(), "abc");
    }

    #[tokio::test]
    async fn errors_of_a_marked_body_are_the_requests() {
        let (tx, body) = body_channel();
        let mut body = body.mark_request();
        tx.error("reset by the client");
        let error = body.frame().await.unwrap().unwrap_err();
        assert!(crate::is_request_body_error(&error));
        assert_eq!(std::error::Error::source(&*error).unwrap().to_string(), "reset by the client");
    }

    #[test]
    fn marking_known_bytes_is_free() {
        assert!(Body::full("x").mark_request().as_full().is_some());
        assert!(matches!(Body::empty().mark_request().0, Inner::Empty));
    }
}
