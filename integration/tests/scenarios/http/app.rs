//! The application behind the mesh: what it does is in the request's path, and what it saw is in
//! the response.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use mesh_integration::app::HttpApp;
use mesh_integration::client::http::{self as client, Body, empty, full};

pub(super) async fn start() -> HttpApp {
    HttpApp::start(answer).await
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let (what, argument) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    match what {
        "echo" => echo(request),
        "seen" => seen(&request),
        "status" => status(argument.parse().unwrap()),
        "sized" => sized(request.method(), argument),
        "streamed" => Response::new(streamed(argument.parse().unwrap())),
        "early" => with_status(StatusCode::PAYLOAD_TOO_LARGE, full("too large")),
        "trailers" => trailers(),
        "cookies" => cookies(),
        _ => seen(&request),
    }
}

/// Sends back every part of the body as it comes, and the trailers.
fn echo(request: Request<Incoming>) -> Response<Body> {
    let names = request.headers().get(header::TRAILER).cloned();
    let body = request.into_body().map_err(std::io::Error::other).boxed();
    let mut response = Response::new(body);
    if let Some(names) = names {
        response.headers_mut().insert(header::TRAILER, names);
    }
    response
}

/// Method, URI and version, then the headers, a line each. Who calls is not the client's to say, and
/// left out if it is as it should be.
fn seen(request: &Request<Incoming>) -> Response<Body> {
    let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    let client = mesh_integration::mesh::id_of("client");
    let added = |name: &str, value: &[u8]| name == "l5d-client-id" && value == client.as_bytes();
    for (name, value) in request.headers() {
        if added(name.as_str(), value.as_bytes()) {
            continue;
        }
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    Response::new(full(text))
}

fn sized(method: &Method, length: &str) -> Response<Body> {
    // hyper leaves out the body that a `HEAD` must not have in HTTP/1, but not in HTTP/2.
    let body = if method == Method::HEAD { 0 } else { length.parse().unwrap() };
    let mut response = Response::new(full(vec![b'x'; body]));
    response.headers_mut().insert(header::CONTENT_LENGTH, length.parse().unwrap());
    response
}

fn status(status: u16) -> Response<Body> {
    let mut response = with_status(StatusCode::from_u16(status).unwrap(), empty());
    if status == 304 {
        // The length that a 200 would have.
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("1234"));
        response.headers_mut().insert(header::ETAG, HeaderValue::from_static("\"v1\""));
    }
    response
}

fn with_status(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// A body whose length nobody knows beforehand.
fn streamed(length: usize) -> Body {
    const PART: usize = 16 * 1024;
    let parts = (0..length).step_by(PART).map(move |at| (length - at).min(PART));
    let frames = stream::iter(parts).map(|size| Ok(Frame::data(Bytes::from(vec![b'y'; size]))));
    client::streamed(frames)
}

fn trailers() -> Response<Body> {
    let trailers: HeaderMap =
        [(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("42"))]
            .into_iter()
            .collect();
    let frames = [Frame::data(Bytes::from_static(b"body")), Frame::trailers(trailers)];
    let mut response = Response::new(client::streamed(stream::iter(frames.map(Ok))));
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-sum"));
    response
}

fn cookies() -> Response<Body> {
    let mut response = Response::new(empty());
    for cookie in ["a=1", "b=2", "a=3"] {
        response.headers_mut().append(header::SET_COOKIE, HeaderValue::from_static(cookie));
    }
    response
}
