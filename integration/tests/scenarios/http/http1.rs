//! HTTP/1, byte by byte: what only a client that writes its own requests can see.

use mesh_integration::app::TcpApp;
use mesh_integration::client::Connection;
use mesh_integration::mesh::Mesh;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{app, mesh};

async fn connect(mesh: &Mesh) -> Connection {
    Connection::open(mesh.pod("client").upstream(0)).await
}

#[tokio::test]
async fn keep_alive_is_what_each_version_says() {
    let app = app::start().await;
    let mesh = mesh(app.addr()).await;

    let mut connection = connect(&mesh).await;
    for _ in 0..3 {
        connection.send("GET /sized/3 HTTP/1.1\r\nHost: web\r\n\r\n").await;
        let response = connection.response().await;
        assert_eq!((response.minor_version, response.text().as_str()), (1, "xxx"));
        assert_eq!(response.header("connection"), None);
    }
    connection.send("GET /sized/3 HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await;
    assert_eq!(connection.response().await.text(), "xxx");
    assert_eq!(connection.rest().await, b"", "closed as the client asked");

    let mut connection = connect(&mesh).await;
    connection.send("GET /sized/3 HTTP/1.0\r\n\r\n").await;
    assert_eq!(connection.response().await.text(), "xxx");
    assert_eq!(connection.rest().await, b"", "HTTP/1.0 closes");

    let mut connection = connect(&mesh).await;
    for _ in 0..2 {
        connection.send("GET /sized/3 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        let response = connection.response().await;
        assert_eq!(response.text(), "xxx");
        let kept = response.header("connection").map(str::to_ascii_lowercase);
        assert_eq!(kept.as_deref(), Some("keep-alive"), "HTTP/1.0 keeps only what it is told to");
    }
}

#[tokio::test]
async fn http_1_0_needs_neither_host_nor_chunks() {
    let app = app::start().await;
    let mesh = mesh(app.addr()).await;
    let mut connection = connect(&mesh).await;
    connection.send("GET /streamed/100000 HTTP/1.0\r\n\r\n").await;
    let response = connection.response().await;
    assert_eq!(response.header("transfer-encoding"), None, "{:?}", response.headers);
    assert_eq!(response.body.len(), 100_000);

    let mut connection = connect(&mesh).await;
    connection.send("POST /echo HTTP/1.0\r\nContent-Length: 4\r\n\r\nbody").await;
    assert_eq!(connection.response().await.text(), "body");

    let mut connection = connect(&mesh).await;
    connection.send("GET /seen HTTP/1.0\r\n\r\n").await;
    let seen = connection.response().await.text();
    assert!(seen.contains("host: "), "HTTP/1.1 behind the mesh needs one: {seen}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let app = app::start().await;
    let mesh = mesh(app.addr()).await;
    let mut connection = connect(&mesh).await;
    let mut requests = String::new();
    for number in 0..20 {
        // The first ones take longest, and some have bodies.
        let size = (20 - number) * 5_000;
        requests.push_str(&format!("GET /sized/{size} HTTP/1.1\r\nHost: web\r\n\r\n"));
        let body = format!("body {number}");
        let length = body.len();
        requests.push_str(&format!(
            "POST /echo HTTP/1.1\r\nHost: web\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
    }
    connection.send(requests).await;
    for number in 0..20 {
        assert_eq!(connection.response().await.body.len(), (20 - number) * 5_000);
        assert_eq!(connection.response().await.text(), format!("body {number}"));
    }
}

#[tokio::test]
async fn a_client_that_is_done_sending_still_gets_its_answer() {
    let app = app::start().await;
    let mesh = mesh(app.addr()).await;
    let mut connection = connect(&mesh).await;
    connection.send("GET /sized/200000 HTTP/1.1\r\nHost: web\r\n\r\n").await;
    connection.finish().await;
    assert_eq!(connection.response().await.body.len(), 200_000);
    assert_eq!(connection.rest().await, b"");
}

#[tokio::test]
async fn chunks_of_any_size_arrive() {
    let app = app::start().await;
    let mesh = mesh(app.addr()).await;
    let mut connection = connect(&mesh).await;
    connection.send("POST /echo HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let large = "L".repeat(100_000);
    for chunk in ["a", "bc", large.as_str(), "end"] {
        connection.send(format!("{:x}\r\n{chunk}\r\n", chunk.len())).await;
    }
    connection.send("0\r\n\r\n").await;
    let response = connection.response().await;
    assert_eq!(response.header("transfer-encoding"), Some("chunked"));
    assert_eq!(response.text(), format!("abc{large}end"));
}

#[tokio::test]
async fn trailers_arrive_after_the_chunks() {
    let app = app::start().await;
    let mesh = mesh(app.addr()).await;
    let mut connection = connect(&mesh).await;
    let head = "POST /echo HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nTrailer: X-Count\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    connection.send(format!("{head}4\r\nbody\r\n0\r\nX-Count: 4\r\n\r\n")).await;
    let response = connection.response().await;
    assert_eq!(response.text(), "body");
    assert_eq!(response.trailers, [("x-count".to_owned(), "4".to_owned())]);
}

#[tokio::test]
async fn a_body_is_asked_for_before_it_is_sent() {
    let app = app::start().await;
    let mesh = mesh(app.addr()).await;
    let mut connection = connect(&mesh).await;
    let head = "POST /echo HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\n\
                Content-Length: 4\r\n\r\n";
    for _ in 0..2 {
        connection.send(head).await;
        assert_eq!(connection.response().await.status, 100);
        connection.send("body").await;
        let response = connection.response().await;
        assert_eq!((response.status, response.text().as_str()), (200, "body"));
    }
}

#[tokio::test]
async fn an_early_response_overtakes_a_body_that_nobody_reads() {
    // Answers when it has seen the head, and reads no more.
    let app = TcpApp::start(|mut stream| async move {
        let mut head = [0; 1024];
        assert!(stream.read(&mut head).await.unwrap() > 0);
        let answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno";
        stream.write_all(answer).await.unwrap();
        std::future::pending().await
    })
    .await;
    let mesh = mesh(app.addr()).await;
    let mut connection = connect(&mesh).await;
    let head = "POST /early HTTP/1.1\r\nHost: web\r\nContent-Length: 100000000\r\n\r\n";
    connection.send(head).await;
    let response = connection.response_while_sending(100_000_000).await;
    assert_eq!((response.status, response.text().as_str()), (403, "no"));
}

#[tokio::test]
async fn an_answer_does_not_wait_for_the_next_request_to_be_whole() {
    let app = app::start().await;
    let mesh = mesh(app.addr()).await;
    let mut connection = connect(&mesh).await;
    connection.send("GET /sized/3 HTTP/1.1\r\nHost: web\r\n\r\nGET /sized/4 HT").await;
    assert_eq!(connection.response().await.text(), "xxx");
    connection.send("TP/1.1\r\nHost: web\r\n\r\n").await;
    assert_eq!(connection.response().await.text(), "xxxx");
}

#[tokio::test]
async fn the_target_may_stand_in_the_request_line() {
    let app = app::start().await;
    let mesh = mesh(app.addr()).await;
    let proxy = mesh.pod("client").forward_proxy();
    for authority in ["web", "WEB:80", "web.test", "web.test.svc", "web.test.svc.cluster.local:80"]
    {
        let mut connection = Connection::open(proxy).await;
        let line = format!("GET http://{authority}/seen?a=b HTTP/1.1");
        connection.send(format!("{line}\r\nHost: somewhere.else\r\n\r\n")).await;
        let response = connection.response().await;
        let seen = response.text();
        assert_eq!(response.status, 200, "{authority}: {seen}");
        let mut lines = seen.lines();
        assert_eq!(lines.next(), Some("GET /seen?a=b HTTP/1.1"));
        // RFC 9112, 3.2.2: the request line decides.
        assert_eq!(lines.next(), Some(format!("host: {authority}").as_str()));
    }
}

#[tokio::test]
async fn a_forward_proxy_says_what_it_cannot_reach() {
    let app = app::start().await;
    let mesh = mesh(app.addr()).await;
    let proxy = mesh.pod("client").forward_proxy();
    for (line, status) in [
        ("GET /seen HTTP/1.0", 502),
        ("GET http://user:password@web/seen HTTP/1.1", 502),
        ("GET http://nobody.invalid/ HTTP/1.1", 502),
        ("CONNECT web HTTP/1.1", 502),
    ] {
        let mut connection = Connection::open(proxy).await;
        connection.send(format!("{line}\r\n\r\n")).await;
        let response = connection.response().await;
        assert_eq!(response.status, status, "{line}");
        assert_eq!(response.header("x-mesh-reason"), Some("unknown-target"), "{line}");
    }
}

#[tokio::test]
async fn a_server_is_asked_about_itself() {
    let app = app::start().await;
    let mesh = mesh(app.addr()).await;
    let mut connection = connect(&mesh).await;
    connection.send("OPTIONS * HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let seen = connection.response().await.text();
    assert_eq!(seen.lines().next(), Some("OPTIONS * HTTP/1.1"));
}
