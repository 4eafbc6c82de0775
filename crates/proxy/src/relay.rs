//! Copies bytes both ways between two connections, each direction ending by itself (half-close).
//!
//! Reads go into one buffer per thread, so that an idle connection holds no memory; only what the
//! other side cannot take at once is kept, and nothing more is read until it is gone.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Large enough that a system call's cost is small against copying its bytes.
const BUFFER: usize = 64 * 1024;

thread_local! {
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// Bytes copied by [`relay_until`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Relayed {
    pub(crate) a_to_b: u64,
    pub(crate) b_to_a: u64,
}

/// Copies until both directions ended, but no longer than `stop` takes.
///
/// # Errors
/// The first error of either connection; the other direction is given up with it. `ConnectionAborted`
/// when it was stopped.
pub(crate) async fn relay_until<A, B>(
    a: &mut A,
    b: &mut B,
    stop: impl Future<Output = ()>,
) -> (Relayed, io::Result<()>)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (OneWay::default(), OneWay::default());
    let mut stop = std::pin::pin!(stop);
    let result = poll_fn(|cx| {
        if stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let there = there.poll(cx, a, b)?;
        let back = back.poll(cx, b, a)?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await;
    (Relayed { a_to_b: there.copied, b_to_a: back.copied }, result)
}

#[derive(Debug, Default)]
struct OneWay {
    /// Read, but not taken by the writer yet.
    kept: Vec<u8>,
    written: usize,
    copied: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    #[default]
    Copying,
    Closing,
    Done,
}

impl OneWay {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            match self.state {
                State::Copying => ready!(self.poll_copy(cx, from, to))?,
                State::Closing => {
                    // The peer may have reset the connection already; its direction is over.
                    let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                    self.state = State::Done;
                }
                State::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    /// One step: writes what is kept, else reads once and writes as much as is taken.
    fn poll_copy<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.written < self.kept.len() {
            let wrote = ready!(Pin::new(&mut *to).poll_write(cx, &self.kept[self.written..]))?;
            self.advance(wrote)?;
            return Poll::Ready(Ok(()));
        }
        SHARED.with_borrow_mut(|shared| {
            let mut buf = ReadBuf::new(shared);
            if Pin::new(&mut *from).poll_read(cx, &mut buf)?.is_pending() {
                // Nothing more for now: what a buffering writer holds must go out.
                let _ = Pin::new(&mut *to).poll_flush(cx)?;
                return Poll::Pending;
            }
            let read = buf.filled();
            if read.is_empty() {
                self.state = State::Closing;
                return Poll::Ready(Ok(()));
            }
            self.copied += read.len() as u64;
            let wrote = match Pin::new(&mut *to).poll_write(cx, read)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(wrote) => wrote,
                // The next step writes what is kept, and that registers the waker again.
                Poll::Pending => 0,
            };
            self.kept.extend_from_slice(&read[wrote..]);
            Poll::Ready(Ok(()))
        })
    }

    fn advance(&mut self, wrote: usize) -> io::Result<()> {
        if wrote == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += wrote;
        if self.written == self.kept.len() {
            // Gives a burst's memory back: connections are many and mostly idle.
            self.kept = Vec::new();
            self.written = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn what_is_stopped_has_been_counted() {
        let (mut client, mut a) = duplex(16);
        let (mut b, mut server) = duplex(16);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let relaying = tokio::spawn(async move {
            relay_until(&mut a, &mut b, async { drop(stopped.await) }).await
        });
        client.write_all(b"question").await.unwrap();
        server.read_exact(&mut [0; 8]).await.unwrap();
        stop.send(()).unwrap();
        let (relayed, result) = relaying.await.unwrap();
        assert_eq!(relayed, Relayed { a_to_b: 8, b_to_a: 0 });
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0, "both ends see it");
    }

    #[tokio::test]
    async fn each_direction_ends_by_itself() {
        let (mut client, mut a) = duplex(16);
        let (mut b, mut server) = duplex(16);
        let relaying =
            tokio::spawn(async move { relay_until(&mut a, &mut b, std::future::pending()).await });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        server.write_all(b"an answer longer than the pipe").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "an answer longer than the pipe");
        let (relayed, result) = relaying.await.unwrap();
        result.unwrap();
        assert_eq!(relayed, Relayed { a_to_b: 8, b_to_a: 30 });
    }

    #[tokio::test]
    async fn a_slow_reader_loses_nothing() {
        let (mut client, mut a) = duplex(1 << 20);
        let (mut b, mut server) = duplex(7);
        tokio::spawn(async move { relay_until(&mut a, &mut b, std::future::pending()).await });
        let sent: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert!(got == sent);
    }
}
