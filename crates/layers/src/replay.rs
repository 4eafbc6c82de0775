//! [`Replay`]: the body of a request that may have to be sent again.
//!
//! Frames are kept only while they are forwarded, as the `Bytes` they came in; nothing is read
//! ahead and nothing copied. A body that outgrows its limit goes on unharmed and can't be sent
//! again. Each try gets its own body; only the newest may read on, since an older one may still sit
//! in the connection of a try that was given up.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;

use crate::{Body, BoxError, RequestBodyError};

/// Each kept chunk has a cost of its own, so a drizzle of tiny ones is bounded too.
const MAX_CHUNKS: usize = 1024;

/// Hands out the body of a request, once per try.
#[derive(Debug)]
pub struct Replay(Source);

#[derive(Debug)]
enum Source {
    Empty,
    Full(Bytes),
    Stream(Arc<Mutex<Shared>>),
}

/// Why a body can't be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotReplayable {
    /// It outgrew what may be kept.
    TooLarge,
    /// It failed itself.
    Failed,
}

/// A body older than the newest try's was read.
#[derive(Debug, thiserror::Error)]
#[error("this try of the request was given up")]
struct Superseded;

#[derive(Debug)]
struct Shared {
    body: Body,
    /// Counts the bodies handed out.
    generation: u32,
    /// What was read so far, if it is being kept.
    chunks: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    /// Bytes in `chunks`.
    kept: usize,
    max: usize,
    keeping: bool,
    /// Chunks that the newest try has sent.
    cursor: usize,
    trailers_sent: bool,
    consumed: bool,
    ended: bool,
    failed: bool,
}

impl Replay {
    /// Takes a body of which at most `max` bytes are kept. Bodies without frames or of bytes
    /// already in memory cost nothing.
    pub fn new(body: Body, max: usize) -> Self {
        if body.is_end_stream() {
            return Self(Source::Empty);
        }
        if let Some(bytes) = body.as_full() {
            return Self(Source::Full(bytes.clone()));
        }
        let keeping = body.size_hint().lower() <= max as u64;
        Self(Source::Stream(Arc::new(Mutex::new(Shared {
            body,
            generation: 0,
            chunks: Vec::new(),
            trailers: None,
            kept: 0,
            max,
            keeping,
            cursor: 0,
            trailers_sent: false,
            consumed: false,
            ended: false,
            failed: false,
        }))))
    }

    /// The body for the next try, from its first byte; earlier ones become unreadable. Ask
    /// [`Replay::check`] before any try but the first.
    pub fn body(&self) -> Body {
        match &self.0 {
            Source::Empty => Body::empty(),
            Source::Full(bytes) => Body::full(bytes.clone()),
            Source::Stream(shared) => {
                let mut state = shared.lock();
                state.generation += 1;
                state.cursor = 0;
                state.trailers_sent = false;
                let generation = state.generation;
                drop(state);
                Body::boxed(ReplayBody { shared: Arc::clone(shared), generation })
            }
        }
    }

    /// Whether the body could be sent again, now.
    pub fn check(&self) -> Result<(), NotReplayable> {
        let Source::Stream(shared) = &self.0 else {
            return Ok(());
        };
        let state = shared.lock();
        match () {
            () if state.failed => Err(NotReplayable::Failed),
            () if state.keeping || !state.consumed => Ok(()),
            () => Err(NotReplayable::TooLarge),
        }
    }
}

/// There will be no other try: what was sent is let go, and nothing more is kept.
impl Drop for Replay {
    fn drop(&mut self) {
        if let Source::Stream(shared) = &self.0 {
            shared.lock().stop_keeping();
        }
    }
}

impl Shared {
    fn stop_keeping(&mut self) {
        self.keeping = false;
        for sent in self.chunks.iter_mut().take(self.cursor) {
            *sent = Bytes::new();
        }
        if self.cursor == self.chunks.len() {
            self.chunks = Vec::new();
            self.cursor = 0;
        }
    }

    fn keep(&mut self, chunk: &Bytes) {
        if !self.keeping || chunk.is_empty() {
            return;
        }
        if self.kept + chunk.len() > self.max || self.chunks.len() == MAX_CHUNKS {
            self.stop_keeping();
            return;
        }
        self.kept += chunk.len();
        self.chunks.push(chunk.clone());
        self.cursor = self.chunks.len();
    }

    fn next_kept(&mut self) -> Option<Bytes> {
        let chunk = self.chunks.get_mut(self.cursor)?;
        self.cursor += 1;
        Some(if self.keeping { chunk.clone() } else { std::mem::take(chunk) })
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(chunk) = self.next_kept() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if self.ended {
            let trailers = self.trailers.clone().filter(|_| !self.trailers_sent);
            self.trailers_sent = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let polled = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.consumed = true;
        match &polled {
            None => self.ended = true,
            Some(Ok(frame)) => {
                if let Some(chunk) = frame.data_ref() {
                    self.keep(chunk);
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.trailers = self.keeping.then(|| trailers.clone());
                    self.trailers_sent = true;
                    self.ended = true;
                }
            }
            Some(Err(_)) => {
                self.failed = true;
                self.ended = true;
            }
        }
        Poll::Ready(polled.map(|frame| frame.map_err(RequestBodyError::wrap)))
    }

    fn is_end_stream(&self) -> bool {
        self.cursor == self.chunks.len()
            && (self.trailers.is_none() || self.trailers_sent)
            && (self.ended || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let kept: usize = self.chunks[self.cursor..].iter().map(Bytes::len).sum();
        let rest = if self.ended { SizeHint::with_exact(0) } else { self.body.size_hint() };
        SizeHint::with_exact(kept as u64) + rest
    }
}

/// The body of one try.
struct ReplayBody {
    shared: Arc<Mutex<Shared>>,
    generation: u32,
}

impl HttpBody for ReplayBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut shared = self.shared.lock();
        if shared.generation != self.generation {
            return Poll::Ready(Some(Err(Superseded.into())));
        }
        shared.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.shared.lock();
        shared.generation == self.generation && shared.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let shared = self.shared.lock();
        if shared.generation == self.generation { shared.size_hint() } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures_util::FutureExt;
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;
    use crate::test_util::{body_channel, collect, grpc_trailers};

    fn next(body: &mut Body) -> Option<Result<Frame<Bytes>, BoxError>> {
        body.frame().now_or_never().expect("ready")
    }

    fn next_data(body: &mut Body) -> Bytes {
        next(body).unwrap().unwrap().into_data().unwrap()
    }

    #[tokio::test]
    async fn bytes_in_memory_are_replayed_without_a_buffer() {
        for text in ["", "hello"] {
            let replay = Replay::new(Body::full(text), 0);
            assert!(!matches!(replay.0, Source::Stream(_)));
            for _ in 0..2 {
                assert_eq!(collect(replay.body()).await.unwrap(), text);
                assert_eq!(replay.check(), Ok(()));
            }
        }
    }

    #[tokio::test]
    async fn a_second_try_reads_what_was_sent_and_then_the_rest() {
        let (tx, body) = body_channel();
        let replay = Replay::new(body, 100);
        let mut first = replay.body();
        tx.data("ab");
        assert_eq!(next_data(&mut first), "ab");

        let mut second = replay.body();
        assert_eq!(second.size_hint().lower(), 2);
        assert_eq!(next_data(&mut second), "ab");
        tx.data("cd");
        tx.trailers(grpc_trailers(0));
        assert_eq!(next_data(&mut second), "cd");
        assert!(next(&mut second).unwrap().unwrap().is_trailers());
        assert!(second.is_end_stream());

        let whole = replay.body().collect().await.unwrap();
        assert_eq!(whole.trailers(), Some(&grpc_trailers(0)));
        assert_eq!(whole.to_bytes(), "abcd");
    }

    #[test]
    fn an_older_body_can_not_steal_frames() {
        let (tx, body) = body_channel();
        let replay = Replay::new(body, 100);
        let mut first = replay.body();
        let mut second = replay.body();
        tx.data("ab");
        assert!(next(&mut first).unwrap().unwrap_err().is::<Superseded>());
        assert_eq!(next_data(&mut second), "ab");
    }

    #[tokio::test]
    async fn outgrowing_the_limit_harms_only_the_replay() {
        let (tx, body) = body_channel();
        let replay = Replay::new(body, 3);
        let mut first = replay.body();
        tx.data("ab");
        next_data(&mut first);
        assert_eq!(replay.check(), Ok(()));
        tx.data("cd");
        assert_eq!(next_data(&mut first), "cd");
        assert_eq!(replay.check(), Err(NotReplayable::TooLarge));
        tx.data("ef");
        drop(tx);
        assert_eq!(collect(first).await.unwrap(), "ef");
    }

    #[test]
    fn a_large_body_can_be_sent_elsewhere_until_somebody_reads_it() {
        let body = http_body_util::Full::new(Bytes::from_static(b"too large"));
        let replay = Replay::new(Body::boxed(body), 3);
        drop(replay.body());
        assert_eq!(replay.check(), Ok(()));
        assert_eq!(next_data(&mut replay.body()), "too large");
        assert_eq!(replay.check(), Err(NotReplayable::TooLarge));
    }

    #[test]
    fn a_drizzle_of_tiny_chunks_is_bounded() {
        let (tx, body) = body_channel();
        let replay = Replay::new(body, 1 << 20);
        let mut first = replay.body();
        for _ in 0..=MAX_CHUNKS {
            tx.data("x");
            next_data(&mut first);
        }
        assert_eq!(replay.check(), Err(NotReplayable::TooLarge));
    }

    #[test]
    fn a_failed_body_is_marked_and_not_replayed() {
        let (tx, body) = body_channel();
        let replay = Replay::new(body, 100);
        tx.error("reset");
        assert!(crate::is_request_body_error(&next(&mut replay.body()).unwrap().unwrap_err()));
        assert_eq!(replay.check(), Err(NotReplayable::Failed));
    }

    #[tokio::test]
    async fn once_released_the_rest_still_arrives() {
        let (tx, body) = body_channel();
        let replay = Replay::new(body, 100);
        let mut first = replay.body();
        for text in ["ab", "cd"] {
            tx.data(text);
            next_data(&mut first);
        }
        let mut second = replay.body();
        assert_eq!(next_data(&mut second), "ab");
        drop(replay);
        tx.data("ef");
        drop(tx);
        assert_eq!(collect(second).await.unwrap(), "cdef");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        /// However a body is cut into chunks and tries, the last try reads all of it, or the
        /// replay says that it can't.
        #[test]
        fn the_last_try_reads_the_same_bytes(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..20),
            tries in prop::collection::vec(0usize..25, 0..5),
            max in 0usize..300,
        ) {
            let (tx, body) = body_channel();
            let replay = Replay::new(body, max);
            for chunk in &chunks {
                tx.data(chunk.clone());
            }
            drop(tx);
            let sent = chunks.concat();
            let mut current = replay.body();
            for frames in tries {
                for _ in 0..frames {
                    next(&mut current);
                }
                if replay.check().is_err() {
                    prop_assert!(sent.len() > max);
                    return Ok(());
                }
                current = replay.body();
            }
            let read = collect(current).now_or_never().expect("ready").unwrap();
            prop_assert_eq!(&read[..], &sent[..]);
        }
    }
}
