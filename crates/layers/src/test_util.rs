//! Bodies and services that tests hold the other end of.
#![allow(clippy::unwrap_used)]

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use crate::{Body, BoxError};

type Sent = Result<Frame<Bytes>, BoxError>;

/// A body fed by a [`BodySender`]; it ends when the sender is dropped.
pub(crate) fn body_channel() -> (BodySender, Body) {
    let (tx, rx) = mpsc::channel(64);
    (BodySender(tx), Body::boxed(ChannelBody(rx)))
}

#[derive(Debug)]
pub(crate) struct BodySender(mpsc::Sender<Sent>);

impl BodySender {
    pub(crate) fn data(&self, bytes: impl Into<Bytes>) {
        self.0.try_send(Ok(Frame::data(bytes.into()))).unwrap();
    }

    pub(crate) fn trailers(&self, trailers: HeaderMap) {
        self.0.try_send(Ok(Frame::trailers(trailers))).unwrap();
    }

    pub(crate) fn error(&self, text: &'static str) {
        self.0.try_send(Err(text.into())).unwrap();
    }

    /// Whether the body was dropped.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

struct ChannelBody(mpsc::Receiver<Sent>);

impl HttpBody for ChannelBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Sent>> {
        self.0.poll_recv(cx)
    }
}

/// All the data of a body.
pub(crate) async fn collect(body: Body) -> Result<Bytes, BoxError> {
    Ok(body.collect().await?.to_bytes())
}

/// `grpc-status: code`.
pub(crate) fn grpc_trailers(code: u16) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.into())])
}
