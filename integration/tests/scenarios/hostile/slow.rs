//! Clients that take for ever over a message's head (slowloris), and those that merely look so.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, Collected};
use hyper::body::{Frame, Incoming};
use mesh_integration::app::HttpApp;
use mesh_integration::client::Connection;
use mesh_integration::client::http::{full, streamed};
use tokio::time::{Instant, interval, sleep};

use super::{app, assert_served, doors, mesh};

const TIMEOUT: (&str, &str) = ("HEADER_TIMEOUT", "1s");
/// Looked for once a second, after a second.
const SOON: Duration = Duration::from_secs(5);

/// Sends a byte every now and then, until it is cut off; says when that was.
async fn drip(addr: std::net::SocketAddr, beginning: &'static str) -> Duration {
    let mut connection = Connection::open(addr).await;
    let started = Instant::now();
    connection.send(beginning).await;
    let mut ticks = interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        if connection.try_send("a").await.is_err() || connection.is_closed() {
            return started.elapsed();
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{beginning:?} was never cut off");
    }
}

#[tokio::test]
async fn a_head_that_is_never_finished_is_cut_off() {
    let app = app().await;
    let mesh = mesh(app.addr(), &[TIMEOUT]).await;
    for (_, addr) in doors(&mesh) {
        let beginnings = [
            "GET / HTTP/1.1\r\nHost: web\r\nX-Slow: ",
            "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\n\r\nxGET / HTTP/1.1\r\nX-Slow: ",
        ];
        let slow = join_all(beginnings.iter().cycle().take(40).map(|start| drip(addr, start)));
        let (cut, ()) = tokio::join!(slow, assert_served(addr));
        for after in cut {
            assert!(after < SOON, "{after:?}");
        }
    }
    // What this is has not been told yet; to be forwarded it must be HTTP.
    let after = drip(mesh.pod("client").upstream(0), "GET /aaaa").await;
    assert!(after < SOON, "{after:?}");
    let after = drip(mesh.pod("client").forward_proxy(), "GET http://").await;
    assert!(after < SOON, "{after:?}");
}

/// Says back what it was sent, once it is whole.
async fn echo() -> HttpApp {
    HttpApp::start(|request: Request<Incoming>| async {
        let body = request.into_body().collect().await;
        Response::new(full(body.map(Collected::to_bytes).unwrap_or_default()))
    })
    .await
}

#[tokio::test]
async fn a_connection_that_rests_is_left_alone() {
    let app = echo().await;
    let mesh = mesh(app.addr(), &[TIMEOUT]).await;
    let rest = async |addr| {
        let mut connection = Connection::open(addr).await;
        for _ in 0..2 {
            connection.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\n").await;
            // Not in the same segment as the head.
            sleep(Duration::from_millis(100)).await;
            connection.send("body").await;
            assert_eq!(connection.response().await.text(), "body");
            sleep(Duration::from_millis(3_500)).await;
        }
    };
    join_all(doors(&mesh).map(|(_, addr)| rest(addr))).await;
}

#[tokio::test]
async fn an_answer_that_takes_its_time_is_not_cut_off() {
    const PARTS: usize = 12;
    let app = HttpApp::start(|_| async {
        let parts = stream::iter(0..PARTS).then(|_| async {
            sleep(Duration::from_millis(350)).await;
            Ok(Frame::data(Bytes::from_static(b"tick ")))
        });
        Response::new(streamed(parts))
    })
    .await;
    let mesh = mesh(app.addr(), &[TIMEOUT]).await;
    let listen = async |addr| {
        let mut connection = Connection::open(addr).await;
        connection.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\n").await;
        sleep(Duration::from_millis(100)).await;
        connection.send("body").await;
        assert_eq!(connection.response().await.text(), "tick ".repeat(PARTS));
    };
    join_all(doors(&mesh).map(|(_, addr)| listen(addr))).await;
}

#[tokio::test]
async fn a_body_may_come_slowly() {
    let app = echo().await;
    let mesh = mesh(app.addr(), &[TIMEOUT]).await;
    let send = async |addr| {
        let mut connection = Connection::open(addr).await;
        connection.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 12\r\n\r\n").await;
        for _ in 0..12 {
            sleep(Duration::from_millis(350)).await;
            connection.send("b").await;
        }
        assert_eq!(connection.response().await.text(), "b".repeat(12));
    };
    join_all(doors(&mesh).map(|(_, addr)| send(addr))).await;
}
