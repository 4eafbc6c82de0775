//! What the layers assume of hyper, checked against hyper: over a pipe, in HTTP/1 and HTTP/2.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_layers::{Body, BoxError, End, Track, is_request_body_error, track};
use tokio::io::duplex;
use tokio::sync::oneshot;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Http {
    One,
    Two,
}

/// Sends a request to a server that answers with `answer(its body)`.
async fn exchange<F, A>(
    version: Http,
    request: Request<Body>,
    answer: F,
) -> Result<Response<Incoming>, BoxError>
where
    F: Fn(Body) -> A + Send + Sync + 'static,
    A: Future<Output = Body> + Send + 'static,
{
    let (near, far) = duplex(64 * 1024);
    let (near, far) = (TokioIo::new(near), TokioIo::new(far));
    let answer = Arc::new(answer);
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = Arc::clone(&answer);
        async move { Ok::<_, BoxError>(Response::new(answer(request.into_body().into()).await)) }
    });
    match version {
        Http::One => {
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(far, service));
            let (mut client, connection) = hyper::client::conn::http1::handshake(near).await?;
            tokio::spawn(connection);
            Ok(client.send_request(request).await?)
        }
        Http::Two => {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(far, service));
            let executor = TokioExecutor::new();
            let (mut client, connection) =
                hyper::client::conn::http2::handshake(executor, near).await?;
            tokio::spawn(connection);
            Ok(client.send_request(request).await?)
        }
    }
}

fn post(body: Body) -> Request<Body> {
    Request::post("http://test/").header("host", "test").body(body).unwrap()
}

fn stream(frames: Vec<Result<Frame<Bytes>, &'static str>>) -> Body {
    Body::boxed(StreamBody::new(futures_util::stream::iter(frames)))
}

async fn drain(body: Body) -> Body {
    let _ = body.collect().await;
    Body::empty()
}

/// Tells how a body ended.
struct Told(oneshot::Sender<String>);

impl Track for Told {
    fn end(self, end: End<'_>) {
        let told = match end {
            End::Complete { trailers } => {
                format!("complete, {}", trailers.map_or(0, HeaderMap::len))
            }
            End::Error(_) => "error".into(),
            End::Dropped { .. } => "dropped".into(),
        };
        let _ = self.0.send(told);
    }
}

#[tokio::test]
async fn lengths_are_announced_and_kept_by_wrappers() {
    for version in [Http::One, Http::Two] {
        let (tx, _told) = oneshot::channel();
        let body = track(Body::full("hello").mark_request(), Told(tx));
        let response = exchange(version, post(body), async |body| {
            Body::full(http_body::Body::size_hint(&body).exact().unwrap().to_string())
        });
        let response = response.await.unwrap();
        assert_eq!(response.headers()["content-length"], "1", "{version:?}");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "5");
    }
}

#[tokio::test]
async fn the_end_of_a_body_is_told_in_every_framing() {
    let trailers = HeaderMap::from_iter([("a".parse().unwrap(), "b".parse().unwrap())]);
    for version in [Http::One, Http::Two] {
        for (body, expected) in [
            (Body::full("known length"), "complete, 0"),
            (stream(vec![Ok(Frame::data("unknown".into()))]), "complete, 0"),
            (
                stream(vec![Ok(Frame::data("x".into())), Ok(Frame::trailers(trailers.clone()))]),
                "complete, 1",
            ),
        ] {
            let (tx, told) = oneshot::channel();
            let body = parking_lot::Mutex::new(Some((body, tx)));
            let response = exchange(version, post(Body::empty()), move |_| {
                let (body, tx) = body.lock().take().unwrap();
                async move { track(body, Told(tx)) }
            });
            response.await.unwrap().into_body().collect().await.unwrap();
            assert_eq!(told.await.unwrap(), expected, "{version:?}");
        }
    }
}

#[tokio::test]
async fn what_was_received_ends_too() {
    for version in [Http::One, Http::Two] {
        let request = post(Body::empty());
        let response = exchange(version, request, async |_| Body::full("hello")).await.unwrap();
        let (tx, told) = oneshot::channel();
        let mut body = track(Body::from(response.into_body()), Told(tx));
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "hello");
        assert!(body.frame().await.is_none());
        assert_eq!(told.await.unwrap(), "complete, 0");
    }
}

#[tokio::test]
async fn a_request_body_that_fails_is_told_from_a_failing_server() {
    for version in [Http::One, Http::Two] {
        for mark in [true, false] {
            let frames =
                vec![Ok(Frame::data(Bytes::from_static(b"half"))), Err("client went away")];
            let body = stream(frames);
            let body = if mark { body.mark_request() } else { body };
            let error = exchange(version, post(body), drain).await.unwrap_err();
            assert!(is_request_body_error(&error), "{version:?}, marked {mark}: {error:?}");
        }
    }
}
