//! A connection, in the clear or secured, whose first bytes may have been read already.

use std::any::Any;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::detect::{RequestLine, Verdict};
use crate::http::activity::Activity;
use crate::telemetry::Transport;

/// A connection: bytes read ahead are read again first, all bytes are counted, and that they come and
/// go is noted for the sweep of slow clients.
#[derive(Debug)]
pub(crate) struct Io {
    stream: Stream,
    ahead: Bytes,
    activity: Option<Arc<Activity>>,
    /// The line that must not turn out to be a request.
    line: Option<Box<RequestLine>>,
    held: Option<Box<dyn Any + Send + Sync>>,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream, Transport),
    /// The connection inside counts the bytes that are really sent.
    Tls(Box<TlsStream<Io>>),
}

impl Io {
    pub(crate) fn new(tcp: TcpStream, transport: Transport) -> Self {
        Self::of(Stream::Tcp(tcp, transport))
    }

    pub(crate) fn secured(tls: TlsStream<Io>) -> Self {
        Self::of(Stream::Tls(Box::new(tls)))
    }

    fn of(stream: Stream) -> Self {
        Self { stream, ahead: Bytes::new(), activity: None, line: None, held: None }
    }

    /// Puts bytes back to be read again, before those that still are.
    pub(crate) fn unread(&mut self, bytes: Bytes) {
        if self.ahead.is_empty() {
            self.ahead = bytes;
        } else if !bytes.is_empty() {
            self.ahead = [bytes, std::mem::take(&mut self.ahead)].concat().into();
        }
    }

    /// Keeps that for as long as the connection is open, whoever has it: an upgrade outlives the
    /// exchange that it was asked for in.
    pub(crate) fn hold(&mut self, place: impl Send + Sync + 'static) {
        self.held = Some(match self.held.take() {
            None => Box::new(place),
            Some(held) => Box::new((held, place)),
        });
    }

    /// Notes there that bytes come and go.
    pub(crate) fn observe(&mut self, activity: Arc<Activity>) {
        if !self.ahead.is_empty() {
            activity.received();
        }
        self.activity = Some(activity);
    }

    /// From now on reading fails when what is read, after the beginning that `line` has seen, turns
    /// out to be an HTTP request. The end of its line is not read.
    pub(crate) fn watch(&mut self, line: RequestLine) {
        self.line = (line.verdict() != Verdict::Not).then(|| Box::new(line));
    }

    /// Whether what was read may be passed on.
    fn is_still_bytes(&mut self, read: &[u8]) -> bool {
        let verdict = self.line.as_mut().map_or(Verdict::Not, |line| line.feed(read));
        if verdict == Verdict::Not {
            self.line = None;
        }
        verdict != Verdict::Http
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let take = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead[..take]);
            self.ahead.advance(take);
            if self.ahead.is_empty() {
                // Empty, it would still hold its buffer for as long as the connection lasts.
                self.ahead = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = match &mut self.stream {
            Stream::Tcp(tcp, _) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        };
        if self.line.is_some()
            && matches!(polled, Poll::Ready(Ok(())))
            && !self.is_still_bytes(&buf.filled()[before..])
        {
            buf.set_filled(before);
            let error = "an HTTP request, on a connection that did not begin as one";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        match &polled {
            Poll::Ready(Ok(())) => {
                let read = buf.filled().len() - before;
                if let Stream::Tcp(_, transport) = &mut self.stream {
                    transport.read(read as u64);
                }
                if let Some(activity) = self.activity.as_ref().filter(|_| read > 0) {
                    activity.received();
                }
            }
            Poll::Ready(Err(error)) => self.failed(error),
            Poll::Pending => {}
        }
        polled
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = match &mut self.stream {
            Stream::Tcp(tcp, _) => Pin::new(tcp).poll_write(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        };
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = match &mut self.stream {
            Stream::Tcp(tcp, _) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Stream::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        };
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Tcp(tcp, _) => tcp.is_write_vectored(),
            Stream::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(tcp, _) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(tcp, _) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

impl Io {
    fn wrote(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &polled {
            Poll::Ready(Ok(written)) => {
                if let Stream::Tcp(_, transport) = &mut self.stream {
                    transport.wrote(*written as u64);
                }
                if let Some(activity) = &self.activity {
                    activity.sent();
                }
            }
            Poll::Ready(Err(error)) => self.failed(error),
            Poll::Pending => {}
        }
        polled
    }

    fn failed(&mut self, error: &io::Error) {
        if let Stream::Tcp(_, transport) = &mut self.stream {
            transport.failed(error);
        }
    }
}
