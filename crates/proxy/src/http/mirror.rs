//! Copies of requests for another backend, whose answers nobody hears.
//!
//! A copy never slows the request that it is of: where the other backend cannot keep up, the copy is
//! given up.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use mesh_layers::{Body, BoxError, HttpService, Request};
use mesh_model::route::Ratio;
use tokio::sync::{Semaphore, mpsc};
use tower::Service;

use crate::draws::Deck;

/// Copies under way; requests beyond get none.
const MAX_COPIES: usize = 64;
/// Bytes of one copy that may wait for the other backend, and frames.
const MAX_WAITING: usize = 1 << 20;
const MAX_FRAMES: usize = 256;
/// The end of a copy.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where copies go.
#[derive(Clone, Debug)]
pub(crate) struct Mirror {
    to: HttpService,
    ratio: Ratio,
    deck: Arc<Deck>,
    copies: Arc<Semaphore>,
}

impl Mirror {
    pub(crate) fn new(to: HttpService, ratio: Ratio) -> Self {
        let copies = Arc::new(Semaphore::new(MAX_COPIES));
        Self { to, ratio, deck: Arc::default(), copies }
    }

    /// Sends a copy of a request, if this one is to have one.
    pub(crate) fn copy(&self, request: &mut Request) {
        if super::forward::wants_upgrade(request) || !self.ratio.covers(self.deck.next()) {
            return;
        }
        let Ok(place) = Arc::clone(&self.copies).try_acquire_owned() else { return };
        let mut copy = http::Request::new(Body::empty());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.version_mut() = request.version();
        *copy.headers_mut() = request.headers().clone();
        let body = std::mem::take(request.body_mut());
        let (body, copied) = tee(body);
        *request.body_mut() = body;
        *copy.body_mut() = copied;
        let mut to = self.to.clone();
        tokio::spawn(async move {
            let exchange = async {
                let mut body = to.call(copy).await?.into_body();
                // Read, so that the connection may be used again.
                while let Some(frame) = body.frame().await {
                    frame?;
                }
                Ok::<(), BoxError>(())
            };
            match tokio::time::timeout(TIMEOUT, exchange).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a mirrored request failed"),
                Err(_) => tracing::debug!("a mirrored request took too long"),
            }
            drop(place);
        });
    }
}

/// A body, and a copy of it that follows.
fn tee(body: Body) -> (Body, Body) {
    if body.is_end_stream() {
        return (body, Body::empty());
    }
    let (sender, frames) = mpsc::channel(MAX_FRAMES);
    let waiting = Arc::new(AtomicUsize::new(0));
    let copy =
        Copied { frames, waiting: Arc::clone(&waiting), size: body.size_hint(), ended: false };
    (Body::boxed(Copying { body, copy: Some(sender), waiting }), Body::boxed(copy))
}

/// What goes to a copy; `None` is the end.
type Copy = Option<Frame<Bytes>>;

/// The body that is copied.
struct Copying {
    body: Body,
    /// Gone when the copy is given up, or complete.
    copy: Option<mpsc::Sender<Copy>>,
    waiting: Arc<AtomicUsize>,
}

impl Copying {
    fn pass(&mut self, frame: Copy) {
        let Some(copy) = &self.copy else { return };
        let bytes = frame.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len);
        let fits = self.waiting.load(Relaxed) + bytes <= MAX_WAITING;
        let ended = frame.is_none();
        self.waiting.fetch_add(bytes, Relaxed);
        if !fits || copy.try_send(frame).is_err() || ended {
            self.copy = None;
        }
    }
}

impl HttpBody for Copying {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) => this.pass(None),
            Poll::Ready(Some(Err(_))) => this.copy = None,
            Poll::Ready(Some(Ok(frame))) => {
                let copied = match (frame.data_ref(), frame.trailers_ref()) {
                    (Some(data), _) => Some(Frame::data(data.clone())),
                    (None, Some(trailers)) => Some(Frame::trailers(trailers.clone())),
                    (None, None) => None,
                };
                if copied.is_some() {
                    this.pass(copied);
                }
                // Nobody may ask for what is known to be the end.
                if this.body.is_end_stream() {
                    this.pass(None);
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

/// The copy.
struct Copied {
    frames: mpsc::Receiver<Copy>,
    waiting: Arc<AtomicUsize>,
    /// Of the whole.
    size: SizeHint,
    ended: bool,
}

impl HttpBody for Copied {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        match std::task::ready!(this.frames.poll_recv(cx)) {
            Some(Some(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                this.waiting.fetch_sub(bytes, Relaxed);
                Poll::Ready(Some(Ok(frame)))
            }
            Some(None) => {
                this.ended = true;
                Poll::Ready(None)
            }
            None => {
                this.ended = true;
                Poll::Ready(Some(Err("the request was given up, or its copy fell behind".into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{Full, StreamBody};

    #[tokio::test]
    async fn a_copy_is_the_same() {
        let trailers = http::HeaderMap::from_iter([(
            http::HeaderName::from_static("x-sum"),
            http::HeaderValue::from_static("1"),
        )]);
        let frames =
            [Frame::data("one".into()), Frame::data("two".into()), Frame::trailers(trailers)];
        let stream = futures_util::stream::iter(frames.map(Ok::<_, BoxError>));
        let (body, copy) = tee(Body::boxed(StreamBody::new(stream)));
        let (body, copy) = tokio::join!(body.collect(), copy.collect());
        let (body, copy) = (body.unwrap(), copy.unwrap());
        assert_eq!(body.trailers().unwrap()["x-sum"], "1");
        assert_eq!(copy.trailers(), body.trailers());
        assert_eq!(copy.to_bytes(), body.to_bytes());

        let (body, copy) = tee(Body::boxed(Full::new(Bytes::from_static(b"whole"))));
        assert_eq!(copy.size_hint().exact(), Some(5));
        body.collect().await.unwrap();
        assert_eq!(copy.collect().await.unwrap().to_bytes(), "whole");
    }

    #[tokio::test]
    async fn a_copy_that_falls_behind_is_given_up() {
        let big = Bytes::from(vec![0; MAX_WAITING / 2 + 1]);
        let frames = [big.clone(), big].map(|data| Ok::<_, BoxError>(Frame::data(data)));
        let (body, copy) = tee(Body::boxed(StreamBody::new(futures_util::stream::iter(frames))));
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), MAX_WAITING + 2);
        assert!(copy.collect().await.is_err());
    }

    #[tokio::test]
    async fn the_copy_of_a_request_that_is_given_up_ends_with_it() {
        let frames = futures_util::stream::pending::<Result<Frame<Bytes>, BoxError>>();
        let (body, copy) = tee(Body::boxed(StreamBody::new(frames)));
        drop(body);
        assert!(copy.collect().await.is_err());
    }
}
