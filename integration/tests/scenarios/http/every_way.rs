//! What holds however an application reaches the mesh: the same checks for each [`Way`].

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use mesh_integration::client::http::{Body, Client, Way, empty, full, streamed};
use mesh_integration::mesh::Mesh;
use mesh_integration::wait::within;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{AUTHORITY, app, http1, mesh};

#[tokio::test]
async fn http1_to_a_named_upstream() {
    check(http1).await;
}

#[tokio::test]
async fn http2_with_prior_knowledge() {
    check(|mesh| Way::Http2(mesh.pod("client").upstream(0))).await;
}

#[tokio::test]
async fn absolute_form_to_a_forward_proxy() {
    check(|mesh| Way::Absolute(mesh.pod("client").forward_proxy())).await;
}

#[tokio::test]
async fn http2_to_a_forward_proxy() {
    check(|mesh| Way::AbsoluteHttp2(mesh.pod("client").forward_proxy())).await;
}

#[tokio::test]
async fn http1_through_a_connect_tunnel() {
    check(|mesh| Way::Tunnel(mesh.pod("client").forward_proxy())).await;
}

async fn check(way: impl Fn(&Mesh) -> Way) {
    let app = app::start().await;
    let mesh = mesh(app.addr()).await;
    let way = way(&mesh);
    let mut client = Client::open(way, AUTHORITY).await;
    the_application_sees_the_request(&mut client, way).await;
    methods_and_statuses_pass(&mut client).await;
    responses_without_a_body_stay_so(&mut client).await;
    bodies_pass_whole(&mut client).await;
    bodies_are_passed_on_as_they_come(&mut client).await;
    trailers_pass_both_ways(&mut client).await;
    repeated_headers_keep_their_order(&mut client).await;
    fields_of_one_connection_are_not_passed_on(&mut client).await;
    assert!(client.is_open(), "all of this needs one connection only");
    an_early_response_is_delivered(way).await;
    many_at_once_do_not_mix(way).await;
}

fn get(path: &str) -> Request<Body> {
    Request::builder().uri(path).body(empty()).unwrap()
}

fn post(path: &str, body: Body) -> Request<Body> {
    Request::builder().method(Method::POST).uri(path).body(body).unwrap()
}

async fn bytes(response: Response<Incoming>) -> Bytes {
    within("the body", response.into_body().collect()).await.unwrap().to_bytes()
}

async fn the_application_sees_the_request(client: &mut Client, way: Way) {
    let path = "/seen//a/../b%2Fc;d=1?q=%20&q=2&empty";
    let response = client.send(get(path)).await.unwrap();
    assert_eq!(response.status(), 200);
    let text = String::from_utf8(bytes(response).await.to_vec()).unwrap();
    let (line, headers) = text.split_once('\n').unwrap();
    match way {
        Way::Http2(_) | Way::AbsoluteHttp2(_) => {
            assert_eq!(line, format!("GET http://{AUTHORITY}{path} HTTP/2.0"));
        }
        _ => {
            assert_eq!(line, format!("GET {path} HTTP/1.1"));
            assert_eq!(headers, format!("host: {AUTHORITY}\n"), "nothing is added");
        }
    }
}

async fn methods_and_statuses_pass(client: &mut Client) {
    for method in ["PUT", "PATCH", "DELETE", "OPTIONS", "REPORT"] {
        let request = Request::builder().method(method).uri("/seen").body(full("x")).unwrap();
        let seen = bytes(client.send(request).await.unwrap()).await;
        assert!(seen.starts_with(method.as_bytes()), "{method}");
    }
    for status in [200, 201, 206, 301, 400, 404, 418, 429, 500, 503, 599] {
        let response = client.send(get(&format!("/status/{status}"))).await.unwrap();
        assert_eq!(response.status(), status);
        assert!(!response.headers().contains_key("x-mesh-reason"), "{status}: {response:?}");
        assert!(bytes(response).await.is_empty());
    }
}

async fn responses_without_a_body_stay_so(client: &mut Client) {
    let request = Request::builder().method(Method::HEAD).uri("/sized/1234").body(empty()).unwrap();
    let response = client.send(request).await.unwrap();
    assert_eq!(response.headers()[header::CONTENT_LENGTH], "1234");
    assert!(bytes(response).await.is_empty());
    for status in [204, 304] {
        let response = client.send(get(&format!("/status/{status}"))).await.unwrap();
        assert_eq!(response.status(), status);
        assert!(!response.headers().contains_key(header::TRANSFER_ENCODING));
        if status == 304 {
            assert_eq!(response.headers()[header::ETAG], "\"v1\"");
        }
        assert!(bytes(response).await.is_empty());
    }
}

const LARGE: usize = 20 << 20;

async fn bodies_pass_whole(client: &mut Client) {
    for length in [0, 1, 70_000] {
        let response = client.send(get(&format!("/sized/{length}"))).await.unwrap();
        assert_eq!(response.headers()[header::CONTENT_LENGTH], length.to_string());
        assert_eq!(bytes(response).await.len(), length);
        let response = client.send(get(&format!("/streamed/{length}"))).await.unwrap();
        assert_eq!(bytes(response).await.len(), length);
        let sent = vec![b'z'; length];
        let response = client.send(post("/echo", full(sent.clone()))).await.unwrap();
        assert_eq!(bytes(response).await, sent);
    }
    // Of a known length one way, of an unknown one the other way.
    let pattern: Bytes = (0..LARGE).map(|i| (i % 251) as u8).collect::<Vec<_>>().into();
    let response = client.send(post("/echo", full(pattern.clone()))).await.unwrap();
    assert!(bytes(response).await == pattern, "20 MB come back as they were");
}

/// A body that the test feeds part by part.
fn fed() -> (mpsc::Sender<Frame<Bytes>>, Body) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, streamed(ReceiverStream::new(receiver).map(Ok)))
}

fn data(text: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(text.as_bytes()))
}

async fn bodies_are_passed_on_as_they_come(client: &mut Client) {
    let (feed, body) = fed();
    feed.send(data("first")).await.unwrap();
    let mut response = client.send(post("/echo", body)).await.unwrap();
    for part in ["first", "second", "third"] {
        let frame = within("an echo", response.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), part);
        let next = if part == "first" { "second" } else { "third" };
        if part != "third" {
            feed.send(data(next)).await.unwrap();
        }
    }
    drop(feed);
    assert!(bytes(response).await.is_empty(), "and that is all");
}

async fn trailers_pass_both_ways(client: &mut Client) {
    let trailers = |body: http_body_util::Collected<Bytes>| body.trailers().cloned();
    let mut request = get("/trailers");
    request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    let response = client.send(request).await.unwrap();
    let body = within("the body", response.collect()).await.unwrap();
    assert_eq!(trailers(body).expect("trailers of a response")["x-sum"], "42");

    let (feed, body) = fed();
    feed.send(data("counted")).await.unwrap();
    let mut request = post("/echo", body);
    request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    request.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-count"));
    let response = client.send(request).await.unwrap();
    let mut counted = HeaderMap::new();
    counted.insert("x-count", HeaderValue::from_static("7"));
    feed.send(Frame::trailers(counted)).await.unwrap();
    drop(feed);
    let body = within("the body", response.collect()).await.unwrap();
    assert_eq!(trailers(body).expect("trailers there and back")["x-count"], "7");
}

async fn repeated_headers_keep_their_order(client: &mut Client) {
    let response = client.send(get("/cookies")).await.unwrap();
    let cookies: Vec<_> = response.headers().get_all(header::SET_COOKIE).iter().collect();
    assert_eq!(cookies, ["a=1", "b=2", "a=3"]);
    bytes(response).await;
    let mut request = get("/seen");
    for value in ["one", "two, three", ""] {
        request.headers_mut().append("x-list", HeaderValue::from_static(value));
    }
    let latin1 = HeaderValue::from_bytes(b"caf\xe9").unwrap();
    request.headers_mut().insert("x-latin1", latin1);
    let seen = bytes(client.send(request).await.unwrap()).await;
    let seen = String::from_utf8(seen.to_vec()).unwrap();
    let list: Vec<_> = seen.lines().filter(|line| line.starts_with("x-list")).collect();
    assert_eq!(list, ["x-list: one", "x-list: two, three", "x-list: "]);
    assert!(seen.contains("x-latin1: caf\u{fffd}"), "{seen}");
}

async fn fields_of_one_connection_are_not_passed_on(client: &mut Client) {
    let mut request = get("/seen");
    // HTTP/2 has no such fields; what clients may add there is the mesh's own.
    let forged = ["l5d-proxy-error", "l5d-client-id"];
    for name in forged {
        request.headers_mut().insert(name, HeaderValue::from_static("forged"));
    }
    let response = client.send(request).await.unwrap();
    for name in ["l5d-proxy-error", "x-mesh-reason", "l5d-orig-proto", "connection"] {
        assert!(!response.headers().contains_key(name), "{name} in {response:?}");
    }
    let seen = bytes(response).await;
    let seen = String::from_utf8(seen.to_vec()).unwrap();
    assert!(!seen.contains("forged") && !seen.contains("l5d-"), "{seen}");
}

async fn an_early_response_is_delivered(way: Way) {
    let mut client = Client::open(way, AUTHORITY).await;
    let (feed, body) = fed();
    feed.send(data("the beginning of something large")).await.unwrap();
    let response = client.send(post("/early", body)).await.unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(bytes(response).await, "too large");
    drop(feed);
}

async fn many_at_once_do_not_mix(way: Way) {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        tasks.spawn(async move {
            let mut client = Client::open(way, AUTHORITY).await;
            for round in 0..5 {
                let text = format!("{number}-{round}-").repeat(number * 200 + 1);
                let response = client.send(post("/echo", full(text.clone()))).await.unwrap();
                assert_eq!(bytes(response).await, text);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}
